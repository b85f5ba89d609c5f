"""Measures every request of an ASGI application: Starlette, FastAPI, or a bare one.

    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=metrics)

It is a plain ASGI callable. ``BaseHTTPMiddleware`` was refused: it alone costs some hundred microseconds a
request, and counts background tasks as part of the response.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from tallymark.integrations.routes import RouteNames
from tallymark.integrations.traceparent import trace_id_for
from tallymark.trace import current_trace_id

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Record = Callable[..., object]

ALWAYS_SKIPPED = ("/health", "/livez", "/readyz", "/metrics")
"""Paths that machines ask for all day: they are answered and traced, not recorded."""

SERVER_TROUBLE = frozenset({1011, 1012, 1013, 1014})
"""Websocket close codes with which a server says that it failed: error, restart, overload, bad gateway."""

_VANISHED = 1006  # the connection ended without a closing handshake
_CLIENT_CLOSED_REQUEST = 499  # as nginx writes it: the client left before there was a status
_WORTH_SAYING_NS = 1_000_000  # below it, the time after the last byte is the framework's own way back

_logger = logging.getLogger(__name__)


class MetricsMiddleware:
    """Records each request as a record of the type ``api_request``, each websocket as one of ``websocket``.

    Args:
        app: the application.
        metrics: where to record; may be started later, for instance in the application's lifespan.
        skip: paths that are not recorded, besides :data:`ALWAYS_SKIPPED`: exact ones (``/internal/ping``),
            and whole subtrees, ending in ``*`` (``/static/*``). A ``root_path`` in front is not part of them.

    Raises:
        ValueError: a path of ``skip`` does not begin with ``/``.

    Of a request, the value is the time until the last byte was handed to the server, in milliseconds.
    ``metadata`` has ``method``, ``endpoint`` (the route's template), ``status_code``, ``ttfb_ms`` (until the
    response began) and, from one millisecond on, ``background_ms`` (what background tasks took after the last
    byte). ``success`` is

    - ``False`` for a status of 500 and above, and whenever an exception left the application; ``error`` then
      is the name of its type, never its message, which may quote what the client sent;
    - ``None`` when the client went away before the last byte, as far as the application was told: that is no
      outcome of ours. ``metadata`` then has ``disconnected``, and the status 499 when none had been sent;
    - ``True`` otherwise.

    Of a websocket, the value is how long it was open; ``metadata`` has ``endpoint``, ``close_code``,
    ``received`` and ``sent`` (numbers of messages). A client that vanished (code 1006) makes ``success``
    ``None``.

    Added to a Starlette or FastAPI application, it measures around all of it, whatever the order in which middleware
    was added: only there the pages that answer unhandled exceptions are seen.

    Every response carries ``X-Trace-ID``: the id of the caller's valid W3C ``traceparent``, else a new one.
    It is also ``request.state.trace_id`` and :data:`tallymark.trace.current_trace_id`. Where one instance is
    nested in another, the outer one measures. Recording never breaks a request: a failure is logged once, and
    counted in ``failures``.
    """

    def __init__(self, app: ASGIApp, metrics: "Metrics", *, skip: Iterable[str] = ()) -> None:
        paths = (*ALWAYS_SKIPPED, *skip)
        for path in paths:
            if not path.startswith("/"):
                raise ValueError(f"skip: a path begins with '/', {path!r} does not")
        self.app = app
        self.failures = 0
        self._inner = app
        self._record = metrics.record
        self._names = RouteNames()
        self._skipped = frozenset(path for path in paths if not path.endswith("*"))
        self._skipped_prefixes = tuple(path[:-1] for path in paths if path.endswith("*"))
        self._moved = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if "tallymark" in scope:
            await (self._inner if scope["tallymark"] is self else app)(scope, receive, send)
            return
        scope["tallymark"] = self
        if not self._moved:
            self._move_outside(scope)
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await app(scope, receive, send)
            return
        trace_id = trace_id_for(scope["headers"])
        scope.setdefault("state", {})["trace_id"] = trace_id
        exchange = (_Request if kind == "http" else _Socket)(receive, send, trace_id)
        # Now, because a mount below changes the root path in this very scope.
        path = _path_below_root(scope) if scope.get("root_path") else scope["path"]
        skipped = path in self._skipped or path.startswith(self._skipped_prefixes)
        token = current_trace_id.set(trace_id)
        try:
            await app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.error = type(error).__name__
            raise
        finally:
            if not skipped:
                try:
                    exchange.record(self._record, self._names, scope)
                except Exception as failure:
                    self._count_failure(failure)
            current_trace_id.reset(token)

    def _move_outside(self, scope: Scope) -> None:
        # Starlette answers an unhandled exception outside of every middleware that can be added to it, where
        # neither its response nor its time is seen. So with the first call, which is the lifespan's, we leave
        # our place in the finished stack and stand around it, where Starlette keeps it; but only if we are one
        # of its layers, not part of a single route.
        self._moved = True
        app: Any = scope.get("app")
        stack: Any = getattr(app, "middleware_stack", None)
        layer = stack
        while layer is not None and getattr(layer, "app", None) is not self:
            layer = getattr(layer, "app", None)
        if layer is not None:
            with contextlib.suppress(AttributeError):  # a layer that does not let go of what it wraps
                layer.app = self._inner
                self.app = stack
                app.middleware_stack = self

    def _count_failure(self, failure: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            _logger.warning("A request was not recorded, nor may others be: %s", failure)


def _path_below_root(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope["root_path"]
    below = path.removeprefix(root)
    return below if below != path and below[:1] in ("", "/") else path


def _with_trace_id(message: Message, trace_id: str) -> Message:
    # A copy: applications may send the same message, or the same list of headers, more than once.
    return {**message, "headers": [*message.get("headers", ()), (b"x-trace-id", trace_id.encode())]}


class _Exchange:
    """What server and application say to each other in one request or websocket, and when it began."""

    # What most never change is not set for each of them.
    status = 0
    error: str | None = None

    def __init__(self, receive: Receive, send: Send, trace_id: str) -> None:
        self._receive = receive
        self._send = send
        self._trace_id = trace_id
        self._began = perf_counter_ns()


class _Request(_Exchange):
    """One HTTP request on its way."""

    disconnected = False
    first = 0
    ended = 0

    async def receive(self) -> Message:
        message = await self._receive()
        # After the last byte a server says so of every client, also of one that is still there.
        if message["type"] == "http.disconnect" and not self.ended:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        try:
            if message["type"] == "http.response.start":
                # To a client that has left, a framework may still answer with what came of that.
                self.status = _CLIENT_CLOSED_REQUEST if self.disconnected else int(message["status"])
                await self._send(_with_trace_id(message, self._trace_id))
                self.first = perf_counter_ns()
            else:
                await self._send(message)
                if not message.get("more_body"):
                    self.ended = perf_counter_ns()
        except OSError:
            # How a server says that the client is gone, since version 2.4 of the ASGI specification.
            self.disconnected = True
            raise

    def record(self, record: Record, names: RouteNames, scope: Scope) -> None:
        left = perf_counter_ns()
        began, ended, gone = self._began, self.ended or left, self.disconnected
        name, method, template = names.of(scope)
        status = self.status or (_CLIENT_CLOSED_REQUEST if gone else 500)
        metadata = {
            "method": method,
            "endpoint": template,
            "status_code": status,
            "ttfb_ms": ((self.first or ended) - began) // 1_000 / 1_000,
        }
        if left - ended >= _WORTH_SAYING_NS:
            metadata["background_ms"] = (left - ended) // 1_000 / 1_000
        if gone:
            metadata["disconnected"] = True
        success = None if gone else status < 500 and self.error is None
        value = (ended - began) // 1_000 / 1_000  # whole microseconds: shorter to store, and fine enough
        record("api_request", name, value, "ms", success, self.error, metadata, self._trace_id)


class _Socket(_Exchange):
    """One websocket on its way."""

    close_code: int | None = None
    received = 0
    sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.receive":
            self.received += 1
        elif kind == "websocket.disconnect" and self.close_code is None:
            self.close_code = message.get("code", 1005)
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.send":
            self.sent += 1
        elif kind == "websocket.close":
            self.close_code = message.get("code", 1000)
        elif kind == "websocket.accept" or kind == "websocket.http.response.start":
            self.status = int(message.get("status", 101))
            message = _with_trace_id(message, self._trace_id)
        await self._send(message)

    def record(self, record: Record, names: RouteNames, scope: Scope) -> None:
        name, _, template = names.of(scope)
        # Starlette raises this from a receive when the client has closed: a usual way to end, not a failure.
        error = None if self.error == "WebSocketDisconnect" else self.error
        code = self.close_code
        success: bool | None = error is None and self.status < 500 and code not in SERVER_TROUBLE
        if code == _VANISHED and success:
            success = None
        metadata = {"endpoint": template, "close_code": code, "received": self.received, "sent": self.sent}
        value = (perf_counter_ns() - self._began) // 1_000 / 1_000
        record("websocket", name, value, "ms", success, error, metadata, self._trace_id)
