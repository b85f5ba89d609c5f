"""The application: what it is made of, and in which order its parts start and end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Final

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

import tallymark
from tallymark.collectors.system import SystemCollector
from tallymark.config import Settings
from tallymark.config import settings as settings_of_process
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.recorder import Metrics
from tallymark.server import health, logs, monitoring, problems, queues, reads, stream, system, writes
from tallymark.server.auth import Guard, check_keys, login_router
from tallymark.server.context import Context
from tallymark.server.headers import SecurityHeaders
from tallymark.server.limits import BodyLimits
from tallymark.server.overview import SERVER
from tallymark.server.pages import add_docs
from tallymark.stores.retention import Retention
from tallymark.upkeep import upkeep

DASHBOARD: Final = Path(__file__).parent / "dashboard"

STOP_SECONDS: Final = 1.0
"""For the last records to come into the store. What is not done by then stays safe in the journal."""

logger = logging.getLogger("tallymark.server")


def create_app(settings: Settings | str | PathLike[str] | None = None, *, recorder: Metrics | None = None) -> FastAPI:
    """The server as an ASGI application. :func:`mount` puts it into another one.

    Args:
        settings: how it works; only a folder or URL is the store, with everything else as the environment and
            the file have it; None takes that from there too. A recorder and a reader are opened on the store at
            the start. Without ``keys`` it answers its own machine only; give ``allowed_hosts`` where a proxy or
            the application around it decides who comes in.
        recorder: a running recorder on the same store, to record with instead of an own one. The server
            neither starts nor stops it.

    Raises:
        ConfigError: a setting is not valid, or a key is unfit.
    """
    settings = _settings(settings)
    keys = check_keys([key.get_secret_value() for key in settings.keys])
    metrics = recorder or Metrics(settings.store, service=SERVER, enabled=settings.enabled, pii=settings.pii)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.shutting_down = asyncio.Event()
        running = _running(settings, metrics, recorder is None)
        context = await to_thread.run_sync(running.__enter__)
        app.state.context, app.state.reader = context, context.reader
        try:
            yield
        finally:
            app.state.shutting_down.set()
            del app.state.context
            await to_thread.run_sync(running.__exit__, None, None, None)

    app = FastAPI(
        title="tallymark",
        summary="Metrics: store them, ask for them, watch them.",
        version=version("tallymark"),
        # There is a page of our own.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.targets = monitoring.targets(settings, metrics)
    problems.install(app)
    _complete_openapi(app, bool(keys))
    # The last one added is the outermost.
    app.add_middleware(BodyLimits, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, keys=keys, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(SecurityHeaders)
    # A stream of events lasts as long as somebody looks: no duration of the server's. Nor is a file worth a series.
    app.add_middleware(MetricsMiddleware, metrics=metrics, skip=["/api/v1/stream", *logs.STREAM_PATHS, *_assets()])
    for router in (health.router, system.router, writes.router, reads.metrics, reads.queries, stream.router):
        app.include_router(router)
    app.include_router(monitoring.router)
    app.include_router(queues.router)
    app.include_router(logs.router)
    if keys:
        app.include_router(login_router(keys))
    add_docs(app)
    _add_dashboard(app)
    return app


def mount(app: FastAPI, server: FastAPI, path: str = "/tallymark") -> None:
    """Put the server into another application, and let it start and end with that.

    ``app.mount`` alone would not start it: a mounted application's lifespan is never run.

        server = create_app(Settings(store="./metrics", allowed_hosts=["*"]), recorder=metrics)
        mount(app, server, "/internal/metrics")

    While a dashboard is open, its stream holds up the end of that application: run uvicorn with a
    ``timeout_graceful_shutdown``.

    Args:
        app: the application.
        server: what :func:`create_app` made.
        path: where the server is found in it.
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with server.router.lifespan_context(server):
            yield

    app.include_router(APIRouter(lifespan=lifespan))
    app.mount(path, server)


def _settings(given: Settings | str | PathLike[str] | None) -> Settings:
    if isinstance(given, Settings):
        return given
    return settings_of_process() if given is None else Settings(store=given)


@contextmanager
def _running(settings: Settings, metrics: Metrics, own: bool) -> Iterator[Context]:
    """Everything that is not a request, started in this order and ended in the reverse."""
    with ExitStack() as stack:
        stack.enter_context(upkeep(settings.store, Retention(settings.retention_days, settings.retention)))
        if own:
            metrics.start()
            stack.callback(_stop, metrics)
        reader = stack.enter_context(tallymark.open(settings.store))
        collector = SystemCollector(metrics, settings.collect_seconds)
        if settings.collect_system:
            stack.enter_context(collector)
        yield Context(settings, metrics, reader, collector)


def _stop(metrics: Metrics) -> None:
    try:
        metrics.stop(STOP_SECONDS)
    except TimeoutError as late:
        logger.info("%s", late)


def _complete_openapi(app: FastAPI, keyed: bool) -> None:
    """What FastAPI cannot know: the media type of problems, and the key."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = problems.in_openapi(describe())
        if keyed:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _assets() -> dict[str, str]:
    """The files of the dashboard, by the paths under which they are answered."""
    files = sorted(found.relative_to(DASHBOARD).as_posix() for found in DASHBOARD.rglob("*") if found.is_file())
    return {"/": "index.html"} | {f"/{file}": file for file in files}


def _add_dashboard(app: FastAPI) -> None:
    """A route for each file. A mount at ``/`` would answer for every path, and hide 405 behind 404."""
    files = StaticFiles(directory=DASHBOARD)

    def add(path: str, file: str) -> None:
        async def asset(request: Request) -> Response:
            response = await files.get_response(file, request.scope)
            response.headers["Cache-Control"] = "no-cache"
            return response

        app.add_route(path, asset, methods=["GET"], include_in_schema=False)

    for path, file in _assets().items():
        add(path, file)
