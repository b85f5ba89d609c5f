"""What the middleware measures: in direct calls where a message has to be exact, else behind real servers."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from recording import DEADLINE_SECONDS
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tallymark import Metrics
from tallymark.integrations import asgi
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.integrations.traceparent import trace_id_for
from tallymark.trace import current_trace_id

from .traffic import Recorded, a_scope, ask, eventually, only, serving, trace_ids

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


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
    [trace_id] = trace_ids(ask(MetricsMiddleware(PlainTextResponse("ok"), metrics), headers=headers))
    assert (trace_id == TRACE) is taken
    assert len(trace_id) == 32
    assert int(trace_id, 16)
    assert only(recorded()).trace_id == trace_id


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_with_other_trace_ids() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, trace_id_for([]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() != trace_id_for([])
    os.close(reading)
    os.close(writing)


def test_trace_id_is_known_within_the_request_and_forgotten_after_it(metrics: Metrics, recorded: Recorded) -> None:
    async def endpoint(request: Request) -> Response:
        metrics.record("cache", "hits", 1)
        return JSONResponse([request.state.trace_id, current_trace_id.get()])

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
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

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
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
    with (
        serving(failing_app(metrics)) as address,
        httpx.Client(base_url=f"http://{address}", timeout=DEADLINE_SECONDS) as client,
    ):
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
        response = httpx.get(f"http://{address}/", timeout=DEADLINE_SECONDS)
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
        response = httpx.get(f"http://{address}/", timeout=DEADLINE_SECONDS)
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
    begun, answered = threading.Event(), threading.Event()

    def background() -> None:
        begun.set()
        assert answered.wait(DEADLINE_SECONDS)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(background))

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
    with serving(app) as address:
        began = time.perf_counter()
        httpx.get(f"http://{address}/", timeout=DEADLINE_SECONDS)
        assert begun.wait(DEADLINE_SECONDS)  # by then the server, too, knows that the last byte is sent
        elapsed_ms = (time.perf_counter() - began) * 1000
        assert recorded() == []
        answered.set()
        record = only(eventually(recorded, 1))
    assert record.value <= elapsed_ms
    assert record.success is True


def test_streaming_ends_with_the_last_chunk(metrics: Metrics, recorded: Recorded) -> None:
    sent, go_on = threading.Event(), threading.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        sent.set()
        await asyncio.to_thread(go_on.wait, DEADLINE_SECONDS)
        yield b"last"

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(chunks())

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
    with serving(app) as address, httpx.stream("GET", f"http://{address}/", timeout=DEADLINE_SECONDS) as response:
        body = response.iter_raw()
        assert next(body) == b"first"
        assert sent.wait(DEADLINE_SECONDS)
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

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(MetricsMiddleware, metrics=metrics)])
    with serving(app) as address:
        with httpx.stream("GET", f"http://{address}/", timeout=DEADLINE_SECONDS) as response:
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


def test_server_that_refuses_to_send_says_that_the_client_is_gone(metrics: Metrics, recorded: Recorded) -> None:
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


def test_a_disconnect_after_the_last_byte_is_how_every_request_ends(metrics: Metrics, recorded: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    with serving(MetricsMiddleware(app, metrics)) as address:
        httpx.get(f"http://{address}/", timeout=DEADLINE_SECONDS)
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
        assert httpx.get(f"http://{address}/", timeout=DEADLINE_SECONDS).json() == [42, 32]
        eventually(recorded, 1)
    assert seen == ["up", "down"]


def test_a_recorder_that_is_not_running_breaks_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = MetricsMiddleware(PlainTextResponse("ok"), Metrics(str(tmp_path)))
    with caplog.at_level(logging.WARNING, logger="tallymark"):
        for _ in range(3):
            assert ask(app)[1]["body"] == b"ok"
    assert app.failures == 3
    assert len(caplog.records) == 1
