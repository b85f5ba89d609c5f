"""Requests and servers for the tests of the middleware."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from recording import DEADLINE_SECONDS
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import tallymark
from tallymark.record import Record

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class Recorded:
    """What a test has recorded."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._since = time.time_ns()

    def __call__(self, metric_type: str = "api_request") -> list[Record]:
        """The records so far, oldest first."""
        with tallymark.open(self._store) as reader:
            page = reader.records(metric_type=metric_type, since=self._since, limit=1000)
        return list(page.records[::-1])


def eventually(recorded: Recorded, count: int, metric_type: str = "api_request") -> list[Record]:
    """The records once there are ``count``: a server records after the client has its answer."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(found := recorded(metric_type)) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(found) == count
    return found


def only(records: list[Record]) -> Record:
    assert len(records) == 1
    return records[0]


def a_scope(path: str = "/", **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        **more,
    }


def ask(app: ASGIApp, path: str = "/", **more: Any) -> list[Any]:
    """Send one request to the application itself, and return the messages that it answered with."""
    sent: list[Any] = []
    received: list[Any] = []

    async def receive() -> Any:
        if received:
            await asyncio.Event().wait()  # the client stays, and says no more
        received.append({"type": "http.request", "body": b"", "more_body": False})
        return received[0]

    async def send(message: Any) -> None:
        sent.append(message)

    async def call() -> None:
        await app(a_scope(path, **more), receive, send)

    asyncio.run(call())
    return sent


def trace_ids(messages: list[Any]) -> list[str]:
    return [value.decode() for name, value in messages[0]["headers"] if name == b"x-trace-id"]


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application with uvicorn; gives ``127.0.0.1:port``."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")
