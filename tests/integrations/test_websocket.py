"""Websockets: a real client, a real server."""

import asyncio
import contextlib
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tallymark import Metrics
from tallymark.integrations.asgi import MetricsMiddleware

from .traffic import Recorded, a_scope, eventually, only, serving


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
