"""What the ASGI middleware adds to a request, beside prometheus-fastapi-instrumentator."""

import asyncio
import time
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench import Row
from tallymark import Metrics
from tallymark.core import core
from tallymark.integrations.asgi import MetricsMiddleware

REQUESTS = 200
"""Requests of one turn."""

HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
]


def run(quick: bool = False) -> list[Row]:
    """Microseconds of CPU per request: with a middleware, less what the same application takes without one.

    The application is called in process with the messages of a server, so that nothing else is measured.
    """
    turns = 40 if quick else 150
    rows = []
    # The limit is for the application that takes least itself. After seventy microseconds of FastAPI every cache
    # is cold: there the same code takes twice as long, the peer's a third longer.
    for framework, make, limit in (("Starlette", _starlette, 0.2), ("FastAPI", _fastapi, None)):
        with TemporaryDirectory(prefix="tallymark-bench-") as folder, Metrics(folder, service="bench") as metrics:
            bare, ours, peer = make(), make(), make()
            ours.add_middleware(MetricsMiddleware, metrics=metrics)
            Instrumentator(registry=CollectorRegistry()).instrument(peer)
            took = asyncio.run(_best([bare, ours, peer], turns))
            if metrics.get_stats().total_recorded < turns * REQUESTS:
                raise RuntimeError("requests were not recorded: the figure is not that of the middleware")
        rows.append(
            Row(
                f"middleware, added to a request of {framework}{'' if core else ', pure Python'}",
                took[1] - took[0],
                "µs",
                "prometheus-fastapi-instrumentator",
                took[2] - took[0],
                limit if core else None,
                f"the request itself takes {took[0]:.0f} µs",
            )
        )
    return rows


def _starlette() -> Starlette:
    async def item(request: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/items/{id}", item)])


def _fastapi() -> Starlette:
    app = FastAPI()

    @app.get("/items/{id}")
    async def item(id: int) -> dict[str, bool]:  # noqa: A002
        return {"ok": True}

    return app


async def _best(apps: list[Starlette], turns: int) -> list[float]:
    """The least CPU time per request of each application, in µs; they take turns."""
    best = [float("inf")] * len(apps)
    for _ in range(turns):
        for number, app in enumerate(apps):
            best[number] = min(best[number], await _turn(app))
    return best


async def _turn(app: Starlette) -> float:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    started = time.thread_time_ns()
    for _ in range(REQUESTS):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/items/7",
            "raw_path": b"/items/7",
            "query_string": b"",
            "root_path": "",
            "headers": HEADERS,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await app(scope, receive, send)
    return (time.thread_time_ns() - started) / REQUESTS / 1000
