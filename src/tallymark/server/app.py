"""The application: what it is made of, and in which order its parts start and end."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

import tallymark
from tallymark.collectors.system import SystemCollector
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.recorder import Metrics
from tallymark.server import health, problems, reads, stream, system, writes
from tallymark.server.auth import Guard, check_keys, login_router
from tallymark.server.context import Context
from tallymark.server.headers import SecurityHeaders
from tallymark.server.limits import MAX_BODY_BYTES, BodyLimits
from tallymark.server.overview import SERVER
from tallymark.server.pages import add_docs
from tallymark.server.upkeep import upkeep

DASHBOARD: Final = Path(__file__).parent / "dashboard"

STOP_SECONDS: Final = 1.0
"""For the last records to come into the store. What is not done by then stays safe in the journal."""

logger = logging.getLogger("tallymark.server")


def create_app(
    store: str | os.PathLike[str] = "./metrics",
    *,
    keys: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
    retention_days: float = 30,
    collect_system: bool = True,
    max_body_bytes: int = MAX_BODY_BYTES,
    recorder: Metrics | None = None,
) -> FastAPI:
    """The server as an ASGI application. :func:`mount` puts it into another one.

    Args:
        store: the folder or URL of the store; a recorder and a reader are opened on it at the start.
        keys: any of them opens the server. Without keys it answers its own machine only.
        allowed_hosts: names in the Host header that are answered, ``("*",)`` for any. Give them where a proxy
            or the application around it decides who comes in.
        retention_days: older records are forgotten.
        collect_system: record CPU, memory, disk and network of this machine every five seconds.
        max_body_bytes: largest request body, packed and unpacked.
        recorder: a running recorder on the same store, to record with instead of an own one. The server
            neither starts nor stops it.

    Raises:
        ConfigError: a key is unfit.
    """
    metrics = recorder or Metrics(store, service=SERVER)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.shutting_down = asyncio.Event()
        running = _running(store, metrics, recorder is None, retention_days, collect_system)
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
    problems.install(app)
    _complete_openapi(app, bool(keys))
    # The last one added is the outermost.
    app.add_middleware(BodyLimits, max_body_bytes=max_body_bytes)
    app.add_middleware(Guard, keys=check_keys(keys), allowed_hosts=allowed_hosts)
    app.add_middleware(SecurityHeaders)
    # A stream of events lasts as long as somebody looks: no duration of the server's. Nor is a file worth a series.
    app.add_middleware(MetricsMiddleware, metrics=metrics, skip=["/api/v1/stream", *_assets()])
    for router in (health.router, system.router, writes.router, reads.metrics, reads.queries, stream.router):
        app.include_router(router)
    if keys:
        app.include_router(login_router(keys))
    add_docs(app)
    _add_dashboard(app)
    return app


def mount(app: FastAPI, server: FastAPI, path: str = "/tallymark") -> None:
    """Put the server into another application, and let it start and end with that.

    ``app.mount`` alone would not start it: a mounted application's lifespan is never run.

        server = create_app("./metrics", recorder=metrics, allowed_hosts=["*"])
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


@contextmanager
def _running(
    store: str | os.PathLike[str], metrics: Metrics, own: bool, retention_days: float, collect_system: bool
) -> Iterator[Context]:
    """Everything that is not a request, started in this order and ended in the reverse."""
    url = os.fspath(store)
    with ExitStack() as stack:
        stack.enter_context(upkeep(url, retention_days))
        if own:
            metrics.start()
            stack.callback(_stop, metrics)
        reader = stack.enter_context(tallymark.open(url))
        collector = SystemCollector(metrics)
        if collect_system:
            stack.enter_context(collector)
        yield Context(metrics, reader, collector)


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
