"""The ASGI middleware, in direct calls where a message has to be exact and behind real servers where it
has to be real.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import tallymark
from tallymark.integrations import asgi, routes
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.model import MAX_NAME_LENGTH, Record
from tallymark.recorder import Metrics
from tallymark.trace import current_trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    """One for all tests: its stop brings everything into the lake, which takes a second."""
    with Metrics(
        str(tmp_path_factory.mktemp("metrics")), service="test", flush_interval_seconds=600
    ) as metrics:
        yield metrics


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


@pytest.fixture
def metrics(recorder: Metrics) -> Metrics:
    return recorder


@pytest.fixture
def recorded(recorder: Metrics) -> Recorded:
    return Recorded(recorder.store)


def eventually(recorded: Recorded, count: int, metric_type: str = "api_request") -> list[Record]:
    """The records once there are ``count``: a server records after the client has its answer."""
    deadline = time.monotonic() + 20
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
        deadline = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def starlette_app(metrics: Metrics) -> Starlette:
    users = Starlette(routes=[Route("/{user}", ok)])
    return Starlette(
        routes=[
            Route("/items/{id:int}", ok, methods=["GET", "POST"]),
            Route("/slash/", ok),
            Mount("/api", routes=[Route("/v{version:int}", ok), Mount("/users", users)]),
            Mount("/tenants/{tenant}", routes=[Route("/bills/{bill}", ok)]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent)),
            Host("admin.example", Starlette(routes=[Route("/panel/{tab}", ok)])),
        ],
        middleware=[Middleware(MetricsMiddleware, metrics=metrics)],
    )


def fastapi_app(metrics: Metrics) -> FastAPI:
    leaf = APIRouter(prefix="/leaf")
    leaf.add_api_route("/{n}", lambda n: n)
    leaf.add_route("/plain/{n}", ok)  # FastAPI does not put the router's own prefix before these
    branch = APIRouter(prefix="/branch")
    branch.include_router(leaf)
    inner = FastAPI()
    inner.include_router(leaf)
    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_api_route("/items/{id}", lambda id: id)  # noqa: A006
    app.include_router(branch)
    app.include_router(leaf, prefix="/again")
    app.mount("/inner", inner)
    app.mount("/files", StaticFiles(directory=Path(__file__).parent))
    return app


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/items/7", "GET /items/{id}"),
        ("/items/seven", "GET unmatched"),
        ("/slash", "GET unmatched"),
        ("/api/v2", "GET /api/v{version}"),
        ("/api/users/anna", "GET /api/users/{user}"),
        ("/api/users/anna/more", "GET unmatched"),
        ("/api/none", "GET unmatched"),
        ("/tenants/acme/bills/9", "GET /tenants/{tenant}/bills/{bill}"),
        ("/tenants/acme/nothing", "GET unmatched"),
        (f"/static/{Path(__file__).name}", "GET /static/{path}"),
        ("/static/none.txt", "GET /static/{path}"),
        ("/.env", "GET unmatched"),
    ],
)
def test_name_is_the_template_of_starlette(
    metrics: Metrics, recorded: Recorded, path: str, name: str
) -> None:
    app = starlette_app(metrics)
    ask(app, path)
    ask(app, path)
    assert [record.name for record in recorded()] == [name, name]
    assert only(recorded()[:1]).metadata["endpoint"] == name.removeprefix("GET ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/items/7", "GET /items/{id}"),
        ("/branch/leaf/7", "GET /branch/leaf/{n}"),
        ("/branch/plain/7", "GET /branch/plain/{n}"),
        ("/again/leaf/7", "GET /again/leaf/{n}"),
        ("/inner/leaf/7", "GET /inner/leaf/{n}"),
        ("/inner/openapi.json", "GET /inner/openapi.json"),
        ("/inner/none", "GET unmatched"),
        ("/docs", "GET /docs"),
        (f"/files/{Path(__file__).name}", "GET /files/{path}"),
        ("/none", "GET unmatched"),
    ],
)
def test_name_is_the_template_of_fastapi(metrics: Metrics, recorded: Recorded, path: str, name: str) -> None:
    app = fastapi_app(metrics)
    ask(app, path)
    ask(app, path)
    assert [record.name for record in recorded()] == [name, name]


def test_one_route_under_two_prefixes_has_two_names(metrics: Metrics, recorded: Recorded) -> None:
    app = fastapi_app(metrics)
    for prefix in ("/branch", "/again", "/inner", "/branch"):
        ask(app, f"{prefix}/leaf/1")
    assert [record.metadata["endpoint"] for record in recorded()] == [
        "/branch/leaf/{n}",
        "/again/leaf/{n}",
        "/inner/leaf/{n}",
        "/branch/leaf/{n}",
    ]


def test_host_route(metrics: Metrics, recorded: Recorded) -> None:
    ask(starlette_app(metrics), "/panel/users", headers=[(b"host", b"admin.example")])
    assert only(recorded()).name == "GET /panel/{tab}"


def test_root_path_is_not_part_of_the_name(metrics: Metrics, recorded: Recorded) -> None:
    app = starlette_app(metrics)
    ask(app, "/behind/proxy/items/7", root_path="/behind/proxy")
    ask(app, "/behind/proxy/api/users/anna", root_path="/behind/proxy")
    assert [record.name for record in recorded()] == ["GET /items/{id}", "GET /api/users/{user}"]


def test_middleware_within_a_mounted_application_names_the_whole_route(
    metrics: Metrics, recorded: Recorded
) -> None:
    inner = Starlette(
        routes=[Route("/{id}", ok)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    ask(Starlette(routes=[Mount("/inner", inner), Route("/outer", ok)]), "/inner/7")
    assert only(recorded()).name == "GET /inner/{id}"


def test_middleware_of_a_single_mount_measures_that_mount_alone(metrics: Metrics, recorded: Recorded) -> None:
    measured = Mount(
        "/measured", routes=[Route("/{id}", ok)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    app = Starlette(routes=[measured, Route("/free", ok)])
    ask(app, "/measured/7")
    ask(app, "/free")
    assert only(recorded()).name == "GET /measured/{id}"


def test_wrong_method_keeps_the_template_and_an_unknown_method_is_other(
    metrics: Metrics, recorded: Recorded
) -> None:
    app = starlette_app(metrics)
    ask(app, "/items/7", method="DELETE")
    ask(app, "/items/7", method="X" * 300)
    ask(app, "/items/7", method="get")
    records = recorded()
    assert [record.name for record in records] == [
        "DELETE /items/{id}",
        "OTHER /items/{id}",
        "OTHER /items/{id}",
    ]
    assert [record.metadata["status_code"] for record in records] == [405, 405, 405]
    assert [record.metadata["method"] for record in records] == ["DELETE", "OTHER", "OTHER"]


def test_answer_of_another_middleware_has_the_name_of_the_route(metrics: Metrics, recorded: Recorded) -> None:
    async def refuse(request: Request, call_next: Any) -> Response:
        return PlainTextResponse("no", 401)

    app = starlette_app(metrics)
    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
    with serving(app) as address:
        assert httpx.get(f"http://{address}/api/users/anna").status_code == 401
        record = only(eventually(recorded, 1))
    assert (record.name, record.metadata["status_code"]) == ("GET /api/users/{user}", 401)


def test_values_of_a_mount_do_not_pile_up(
    metrics: Metrics, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_MAX_KNOWN", 3)
    app = starlette_app(metrics)
    for number in range(8):
        ask(app, f"/tenants/{number}/bills/1")
    assert {record.name for record in recorded()} == {"GET /tenants/{tenant}/bills/{bill}"}


def test_a_very_long_template_is_cut(metrics: Metrics, recorded: Recorded) -> None:
    path = "/" + "x" * 300
    ask(
        Starlette(routes=[Route(path, ok)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]), path
    )
    assert only(recorded()).name == f"GET {path}"[:MAX_NAME_LENGTH]


def test_a_bare_application_may_name_its_routes(metrics: Metrics, recorded: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith("/users/"):
            scope["route"] = "/users/{user}"
        await PlainTextResponse("ok")(scope, receive, send)

    measured = MetricsMiddleware(app, metrics)
    ask(measured, "/users/anna")
    ask(measured, "/other")
    assert [record.name for record in recorded()] == ["GET /users/{user}", "GET unmatched"]


@pytest.mark.parametrize(
    ("traceparent", "taken"),
    [
        (TRACEPARENT, True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-a-later-version-adds", True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01", True),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", False),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-00f067aa0ba902b7-01\n", False),
        (f"00-{TRACE[:-1]}-00f067aa0ba902b7-01", False),
        ("", False),
    ],
)
def test_trace_id_is_that_of_a_valid_traceparent(
    metrics: Metrics, recorded: Recorded, traceparent: str, taken: bool
) -> None:
    headers = [(b"host", b"shop.example"), (b"traceparent", traceparent.encode())]
    [trace_id] = trace_ids(ask(starlette_app(metrics), "/items/7", headers=headers))
    assert (trace_id == TRACE) is taken
    assert len(trace_id) == 32
    assert int(trace_id, 16)
    assert only(recorded()).trace_id == trace_id


def test_trace_id_is_known_within_the_request_and_forgotten_after_it(
    metrics: Metrics, recorded: Recorded
) -> None:
    async def endpoint(request: Request) -> Response:
        metrics.record("cache", "hits", 1)
        return JSONResponse([request.state.trace_id, current_trace_id.get()])

    app = Starlette(
        routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    sent = ask(app, headers=[(b"traceparent", TRACEPARENT.encode())])
    assert sent[1]["body"] == f'["{TRACE}","{TRACE}"]'.encode()
    assert only(recorded("cache")).trace_id == TRACE
    assert current_trace_id.get() is None
    assert trace_ids(ask(app)) != trace_ids(ask(app))


def test_messages_of_the_application_are_left_as_they_are(metrics: Metrics) -> None:
    headers: list[tuple[bytes, bytes]] = []
    start = {"type": "http.response.start", "status": 200, "headers": headers}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send({"type": "http.response.body"})

    measured = MetricsMiddleware(app, metrics)
    assert [len(trace_ids(ask(measured))), len(trace_ids(ask(measured)))] == [1, 1]
    assert start == {"type": "http.response.start", "status": 200, "headers": []}
    assert start["headers"] is headers


def test_skipped_paths_are_answered_and_traced_and_not_recorded(metrics: Metrics, recorded: Recorded) -> None:
    app = MetricsMiddleware(PlainTextResponse("ok"), metrics, skip=["/internal/*", "/ping"])
    for path in ("/health", "/livez", "/readyz", "/metrics", "/ping", "/internal/", "/internal/deep/down"):
        assert len(trace_ids(ask(app, path))) == 1
        ask(app, f"/root{path}", root_path="/root")
    assert recorded() == []
    for path in ("/healthy", "/ping/", "/internal", "/v1/health", "/rooted/ping"):
        ask(app, path, root_path="/root")
    assert len(recorded()) == 5


@pytest.mark.parametrize("skip", ["/docs", ["docs"], ["*"]])
def test_a_skip_that_could_never_match_is_refused(metrics: Metrics, skip: Any) -> None:
    with pytest.raises(ValueError, match="skip: a path begins with '/'"):
        MetricsMiddleware(PlainTextResponse("ok"), metrics, skip=skip)


class Stopwatch:
    """Stands in for the clock of the middleware; moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, milliseconds: float) -> None:
        self.now += int(milliseconds * 1_000_000)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(asgi, "perf_counter_ns", watch)
    return watch


def test_first_byte_last_byte_and_background_are_told_apart(
    metrics: Metrics, recorded: Recorded, watch: Stopwatch
) -> None:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(3):
            watch.advance(10)
            yield "chunk"
        watch.advance(1)

    async def background() -> None:
        watch.advance(400)

    async def endpoint(request: Request) -> Response:
        watch.advance(5.5)
        return StreamingResponse(chunks(), background=BackgroundTask(background))

    app = Starlette(
        routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    ask(app, asgi={"version": "3.0", "spec_version": "2.4"})
    record = only(recorded())
    assert record.value == 36.5
    assert record.unit == "ms"
    assert record.success is True
    assert record.metadata == {
        "method": "GET",
        "endpoint": "/",
        "status_code": 200,
        "ttfb_ms": 5.5,
        "background_ms": 400.0,
    }


def test_the_way_back_through_the_framework_is_no_background_task(
    metrics: Metrics, recorded: Recorded, watch: Stopwatch
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)
        watch.advance(0.2)

    ask(MetricsMiddleware(app, metrics))
    assert "background_ms" not in only(recorded()).metadata


def test_trailers_and_a_file_sent_by_the_server_count_as_the_last_byte(
    metrics: Metrics, recorded: Recorded, watch: Stopwatch
) -> None:
    async def with_trailers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        watch.advance(3)
        await send({"type": "http.response.trailers", "headers": []})

    async def by_path(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watch.advance(2)
        await send({"type": "http.response.pathsend", "path": __file__})
        watch.advance(50)

    ask(MetricsMiddleware(with_trailers, metrics))
    ask(MetricsMiddleware(by_path, metrics))
    assert [record.value for record in recorded()] == [3.0, 2.0]


def failing_app(metrics: Metrics, **options: Any) -> Starlette:
    async def fails(request: Request) -> Response:
        raise KeyError("the secret of somebody")

    async def fails_late(request: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "chunk"
            raise KeyError("the secret of somebody")

        return StreamingResponse(chunks())

    async def fails_afterwards(request: Request) -> Response:
        async def background() -> None:
            raise KeyError("the secret of somebody")

        return PlainTextResponse("ok", background=BackgroundTask(background))

    return Starlette(
        routes=[
            Route("/", fails),
            Route("/late", fails_late),
            Route("/afterwards", fails_afterwards),
            Route("/teapot", lambda request: Response(status_code=418)),
            Route("/down", lambda request: Response(status_code=503)),
        ],
        middleware=[Middleware(MetricsMiddleware, metrics=metrics)],
        **options,
    )


@pytest.mark.parametrize(
    ("path", "status", "success", "error"),
    [
        ("/", 500, False, "KeyError"),
        ("/late", 200, False, "KeyError"),
        ("/afterwards", 200, False, "KeyError"),
        ("/teapot", 418, True, None),
        ("/down", 503, False, None),
    ],
)
def test_outcome_behind_a_real_server(
    metrics: Metrics, recorded: Recorded, path: str, status: int, success: bool, error: str | None
) -> None:
    with serving(failing_app(metrics)) as address, httpx.Client(base_url=f"http://{address}") as client:
        with contextlib.suppress(httpx.RemoteProtocolError), client.stream("GET", path) as response:
            assert response.status_code == status
            assert len(response.headers.get_list("x-trace-id")) == 1
            response.read()
        record = only(eventually(recorded, 1))
    assert (record.metadata["status_code"], record.success, record.error) == (status, success, error)
    assert record.trace_id == response.headers["x-trace-id"]
    assert "secret" not in str(record)


def test_an_exception_goes_on_to_the_server(metrics: Metrics, recorded: Recorded) -> None:
    with pytest.raises(KeyError, match="the secret"):
        ask(failing_app(metrics))
    assert only(recorded()).error == "KeyError"


@pytest.mark.parametrize("debug", [True, False])
def test_error_pages_of_starlette_carry_the_trace_id_and_their_own_status(
    metrics: Metrics, recorded: Recorded, debug: bool
) -> None:
    def handler(request: Request, error: Exception) -> Response:
        return JSONResponse({"trace": request.state.trace_id}, status_code=502)

    app = failing_app(metrics, debug=debug, exception_handlers={Exception: handler})
    with serving(app) as address:
        response = httpx.get(f"http://{address}/")
        record = only(eventually(recorded, 1))
    assert response.headers["x-trace-id"] == record.trace_id
    assert record.metadata["status_code"] == response.status_code == (500 if debug else 502)
    assert (record.success, record.error) == (False, "KeyError")


def test_a_middleware_around_ours_may_still_turn_an_exception_into_an_answer(
    metrics: Metrics, recorded: Recorded
) -> None:
    async def explain(request: Request, call_next: Any) -> Response:
        try:
            response: Response = await call_next(request)
        except KeyError:
            return PlainTextResponse("try later", 503)
        return response

    app = failing_app(metrics)
    app.add_middleware(BaseHTTPMiddleware, dispatch=explain)
    with serving(app) as address:
        response = httpx.get(f"http://{address}/")
        record = only(eventually(recorded, 1))
    assert response.status_code == record.metadata["status_code"] == 503
    assert response.headers["x-trace-id"] == record.trace_id
    assert (record.success, record.error) == (False, None)


def test_an_application_that_answers_nothing_has_failed(metrics: Metrics, recorded: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    ask(MetricsMiddleware(app, metrics))
    record = only(recorded())
    assert (record.metadata["status_code"], record.success, record.error) == (500, False, None)


def test_background_task_does_not_hold_the_response(metrics: Metrics, recorded: Recorded) -> None:
    answered = threading.Event()

    def background() -> None:
        assert answered.wait(20)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(background))

    app = Starlette(
        routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    with serving(app) as address:
        began = time.perf_counter()
        httpx.get(f"http://{address}/")
        elapsed_ms = (time.perf_counter() - began) * 1000
        assert recorded() == []
        answered.set()
        record = only(eventually(recorded, 1))
    assert record.value <= elapsed_ms
    assert record.success is True


def test_streaming_ends_with_the_last_chunk(metrics: Metrics, recorded: Recorded) -> None:
    go_on = threading.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.to_thread(go_on.wait, 20)
        yield b"last"

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(chunks())

    app = Starlette(
        routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    with serving(app) as address, httpx.stream("GET", f"http://{address}/") as response:
        body = response.iter_raw()
        assert next(body) == b"first"
        held_until = time.perf_counter() + 0.02
        while time.perf_counter() < held_until:
            assert recorded() == []
        go_on.set()
        assert b"".join(body) == b"last"
        record = only(eventually(recorded, 1))
    assert record.value >= record.metadata["ttfb_ms"] + 20
    assert record.success is True


def test_client_that_leaves_while_we_stream(metrics: Metrics, recorded: Recorded) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(endless())

    app = Starlette(
        routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    with serving(app) as address:
        with httpx.stream("GET", f"http://{address}/") as response:
            next(response.iter_raw())
        record = only(eventually(recorded, 1))
    assert (record.success, record.error) == (None, None)
    assert record.metadata["disconnected"] is True
    assert record.metadata["status_code"] == 200


def test_client_that_leaves_while_it_sends(metrics: Metrics, recorded: Recorded) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return PlainTextResponse("never")

    app = Starlette(
        routes=[Route("/", endpoint, methods=["POST"])],
        middleware=[Middleware(MetricsMiddleware, metrics=metrics)],
    )
    with serving(app) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        record = only(eventually(recorded, 1))
    assert (record.name, record.success, record.error) == ("POST /", None, "ClientDisconnect")
    assert record.metadata["disconnected"] is True
    assert record.metadata["status_code"] == 499


def test_server_that_refuses_to_send_says_that_the_client_is_gone(
    metrics: Metrics, recorded: Recorded
) -> None:
    async def receive() -> Any:
        raise AssertionError("nobody asks")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client is gone")

    app = MetricsMiddleware(PlainTextResponse("ok"), metrics)
    with pytest.raises(OSError, match="gone"):
        asyncio.run(app(a_scope(), receive, send))
    record = only(recorded())
    assert (record.success, record.error, record.metadata["disconnected"]) == (None, "OSError", True)


def test_a_disconnect_after_the_last_byte_is_how_every_request_ends(
    metrics: Metrics, recorded: Recorded
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    with serving(MetricsMiddleware(app, metrics)) as address:
        httpx.get(f"http://{address}/")
        record = only(eventually(recorded, 1))
    assert record.success is True
    assert "disconnected" not in record.metadata


def test_lifespan_passes_through(metrics: Metrics, recorded: Recorded) -> None:
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, int]]:
        seen.append("up")
        yield {"answer": 42}
        seen.append("down")

    async def endpoint(request: Request) -> Response:
        return JSONResponse([request.state.answer, len(request.state.trace_id)])

    app = Starlette(
        routes=[Route("/", endpoint)],
        lifespan=lifespan,
        middleware=[Middleware(MetricsMiddleware, metrics=metrics)],
    )
    with serving(app) as address:
        assert httpx.get(f"http://{address}/").json() == [42, 32]
        eventually(recorded, 1)
    assert seen == ["up", "down"]


def test_nested_middleware_measures_once(metrics: Metrics, recorded: Recorded) -> None:
    inner = starlette_app(metrics)
    outer = Starlette(
        routes=[Mount("/inner", inner)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)]
    )
    sent = ask(outer, "/inner/items/7")
    assert only(recorded()).name == "GET /inner/items/{id}"
    assert len(trace_ids(sent)) == 1


def test_a_recorder_that_is_not_running_breaks_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = MetricsMiddleware(PlainTextResponse("ok"), Metrics(str(tmp_path)))
    with caplog.at_level(logging.WARNING, logger="tallymark"):
        for _ in range(3):
            assert ask(app)[1]["body"] == b"ok"
    assert app.failures == 3
    assert len(caplog.records) == 1


def socket_app(metrics: Metrics) -> FastAPI:
    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    router = APIRouter(prefix="/rooms")

    @router.websocket("/{room}")
    async def echo(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        while True:
            text = await websocket.receive_text()
            if text == "fail":
                raise KeyError("the secret of somebody")
            if text == "overloaded":
                await websocket.close(1013)
                return
            await websocket.send_text(text)

    @app.websocket("/closed")
    async def closed(websocket: WebSocket) -> None:
        await websocket.close()

    @app.websocket("/denied")
    async def denied(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("down", 503))

    app.include_router(router)
    app.router.routes.append(WebSocketRoute("/plain", echo))
    return app


def talk(address: str, path: str, *texts: str, vanish: bool = False) -> str | None:
    """Open a websocket, say the texts, hear the echo of each, and leave. Gives the ``X-Trace-ID`` of the
    handshake.
    """

    async def conversation() -> str | None:
        try:
            async with connect(f"ws://{address}{path}") as websocket:
                with contextlib.suppress(ConnectionClosed):
                    for text in texts:
                        await websocket.send(text)
                        await websocket.recv()
                if vanish:
                    websocket.transport.abort()
                assert websocket.response is not None
                return websocket.response.headers.get("x-trace-id")
        except InvalidStatus as refusal:
            return refusal.response.headers.get("x-trace-id")

    return asyncio.run(conversation())


def test_websocket(metrics: Metrics, recorded: Recorded) -> None:
    with serving(socket_app(metrics)) as address:
        trace_id = talk(address, "/rooms/blue", "one", "two")
        record = only(eventually(recorded, 1, "websocket"))
    assert record.name == "/rooms/{room}"
    assert (record.success, record.error) == (True, None)
    assert record.metadata == {"endpoint": "/rooms/{room}", "close_code": 1000, "received": 2, "sent": 2}
    assert record.trace_id == trace_id
    assert record.unit == "ms"
    assert record.value > 0


def test_websocket_that_fails(metrics: Metrics, recorded: Recorded) -> None:
    with serving(socket_app(metrics)) as address:
        talk(address, "/rooms/blue", "fail")
        record = only(eventually(recorded, 1, "websocket"))
    assert (record.success, record.error) == (False, "KeyError")
    assert "secret" not in str(record)


def test_websocket_that_the_server_closes_in_trouble(metrics: Metrics, recorded: Recorded) -> None:
    with serving(socket_app(metrics)) as address:
        talk(address, "/rooms/blue", "overloaded")
        record = only(eventually(recorded, 1, "websocket"))
    assert (record.success, record.metadata["close_code"]) == (False, 1013)


def test_websocket_whose_client_vanishes(metrics: Metrics, recorded: Recorded) -> None:
    with serving(socket_app(metrics)) as address:
        talk(address, "/rooms/blue", "one", vanish=True)
        record = only(eventually(recorded, 1, "websocket"))
    assert record.error is None
    # Servers differ: some report it as a close without a code, which is also how browsers close by default.
    assert (record.success, record.metadata["close_code"]) in [(True, 1005), (None, 1006)]


def test_websocket_that_is_refused(metrics: Metrics, recorded: Recorded) -> None:
    with serving(socket_app(metrics)) as address:
        talk(address, "/closed")
        eventually(recorded, 1, "websocket")
        assert talk(address, "/denied") is not None
        eventually(recorded, 2, "websocket")
        talk(address, "/nowhere/7")
        records = eventually(recorded, 3, "websocket")
    assert [record.name for record in records] == ["/closed", "/denied", "unmatched"]
    assert [record.success for record in records] == [True, False, True]


@pytest.mark.parametrize(("code", "success"), [(1000, True), (1001, True), (1006, None), (1011, False)])
def test_websocket_disconnect_that_nobody_catches_is_no_failure(
    metrics: Metrics, recorded: Recorded, code: int, success: bool | None
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise WebSocketDisconnect((await receive())["code"])

    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": code}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    measured = MetricsMiddleware(app, metrics)
    with pytest.raises(WebSocketDisconnect):
        asyncio.run(measured(a_scope("/x", type="websocket"), receive, send))
    record = only(recorded("websocket"))
    assert (record.success, record.error, record.metadata["close_code"]) == (success, None, code)
