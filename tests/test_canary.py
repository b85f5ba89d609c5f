"""Put in anywhere, found nowhere: one secret of each kind through every way in, and then every byte is read.

A further way in is one line in :data:`RECORDERS` (it is given a recorder and a text) or :data:`REQUESTS` (a client of
a server, and a text; it returns the answer).
"""

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet
import pytest
from deltalake import DeltaTable
from recording import DEADLINE_SECONDS, live, recording, ship, stored
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tallymark import Metrics
from tallymark.config import Settings
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.privacy import RULES, mask_text
from tallymark.server import create_app
from tallymark.server.serve import Server
from tallymark.trace import current_trace_id

CANARIES = {
    "private_key": (
        "-----BEGIN " + "PRIVATE KEY-----\nMIICanaryCanaryCanary\n-----END PRIVATE KEY-----",
        "CanaryCanary",
    ),
    "jwt": ("ey" + "JhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJjYW5hcnkifQ.Y2FuYXJ5Y2FuYXJ5", "eyJjYW5hcnki"),
    "cloud_key": ("AK" + "IACANARYCANARY0000", "CANARYCANARY0000"),
    "bearer_token": ("Bearer canary0canary0canary0", "canary0canary0"),
    "password": ("amqp://app:canary!pw@broker/", "canary!pw"),
    "email": ("canary.bird@example.com", "canary.bird"),
    "iban": ("GB82 WEST 1234 5698 7654 32", "1234 5698 7654"),
    "card": ("5105 1051 0510 5100", "1051 0510"),
}
"""Of each rule: a text, and what of it must not be found."""

RECORDERS: dict[str, Callable[[Metrics, str], object]] = {
    "record: metric_type": lambda metrics, text: metrics.record(text, "b", 1.0),
    "record: name": lambda metrics, text: metrics.record("a", text, 1.0),
    "record: unit": lambda metrics, text: metrics.record("a", "b", 1.0, text),
    "record: error": lambda metrics, text: metrics.record("a", "b", 1.0, success=False, error=text),
    "record: trace_id": lambda metrics, text: metrics.record("a", "b", 1.0, trace_id=text),
    "record: session_id": lambda metrics, text: metrics.record("a", "b", 1.0, session_id=text),
    "record: metadata": lambda metrics, text: metrics.record("a", "b", 1.0, metadata={"note": text}),
    "record: key": lambda metrics, text: metrics.record("a", "b", 1.0, metadata={text: 1}),
    "record: depth": lambda metrics, text: metrics.record("a", "b", 1.0, metadata={"a": [{text: [text]}]}),
    "record_operation": lambda metrics, text: metrics.record_operation(text, text, 1.0, False, text, {"a": text, text: 1}),  # noqa: E501
    "ingest": lambda metrics, text: metrics.ingest(text, text, 1.0, text, service=text, description=text, error=text),
    "ingest: ids": lambda metrics, text: metrics.ingest("a", "b", 1.0, trace_id=text, session_id=text),
    "the trace of a request": lambda metrics, text: in_trace(metrics, text),
    "track_operation": lambda metrics, text: failing(metrics, text),
    "track_operation: decorator": lambda metrics, text: decorated(metrics, text),
    "track_operation: async": lambda metrics, text: asyncio.run(waiting(metrics, text)),
    "refused: key": lambda metrics, text: refused(lambda: metrics.record("a", "b", 1.0, metadata={f"{text}_token": text})),  # noqa: E501
    "refused: value": lambda metrics, text: refused(lambda: metrics.record("a", "b", 1.0, metadata={text: {"a": text.encode()}})),  # noqa: E501
    "refused: inside a key": lambda metrics, text: refused(lambda: metrics.record("a", "b", 1.0, metadata={text: {"email": text}})),  # noqa: E501
    "refused: error": lambda metrics, text: refused(lambda: metrics.record("a", "b", 1.0, error=ValueError(text))),  # type: ignore[arg-type]
    "refused: number": lambda metrics, text: refused(lambda: metrics.record("a", "b", text)),  # type: ignore[arg-type]
    "refused: outcome": lambda metrics, text: refused(lambda: metrics.record("a", "b", 1.0, success=text)),  # type: ignore[arg-type]
    "dropped in a block": lambda metrics, text: dropped(metrics, text),
    "long error": lambda metrics, text: metrics.record("a", "b", 1.0, error="x " * 490 + text + " y" * 9_000),
}  # fmt: skip

API = "/api/v1/metrics"

REQUESTS: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "create": lambda client, text: client.post(f"{API}/", json=body(text)),
    "create, then read": lambda client, text: client.get(client.post(f"{API}/", json=body(text)).headers["location"]),
    "create: unknown field": lambda client, text: client.post(f"{API}/", json=body("x") | {text: 1}),
    "create: value": lambda client, text: client.post(f"{API}/", json=body("x") | {"value": text}),
    "create: timestamp": lambda client, text: client.post(f"{API}/", json=body("x") | {"timestamp": text}),
    "create: refused key": lambda client, text: client.post(f"{API}/", json=body("x") | {"metadata": {f"{text} token": 1}}),  # noqa: E501
    "create: no JSON": lambda client, text: client.post(f"{API}/", content=text, headers={"content-type": "application/json"}),  # noqa: E501
    "create: type of content": lambda client, text: client.post(f"{API}/", content=text, headers={"content-type": "text/x"}),  # noqa: E501
    "batch": lambda client, text: client.post(f"{API}/batch", json={"metrics": [body(text), body(text)]}),
    "batch: one is wrong": lambda client, text: client.post(f"{API}/batch", json={"metrics": [body(text), body(text) | {text: 1}]}),  # noqa: E501
    "list": lambda client, text: client.get(API, params={"name": text, "metric_type": text, "service": text}),
    "list: time": lambda client, text: client.get(API, params={"start_time": text}),
    "list: window": lambda client, text: client.get(API, params={"time_window": text}),
    "list: cursor": lambda client, text: client.get(API, params={"cursor": text}),
    "list: limit": lambda client, text: client.get(API, params={"limit": text}),
    "query: filter": lambda client, text: client.get("/api/v1/query", params={"where": f"name={text}"}),
    "query: wrong filter": lambda client, text: client.get("/api/v1/query", params={"where": text}),
    "query: aggregate": lambda client, text: client.get("/api/v1/query", params={"agg": text}),
    "query: group": lambda client, text: client.get("/api/v1/query", params={"group_by": text}),
    "query: order": lambda client, text: client.get("/api/v1/query", params={"order_by": text}),
    "unknown parameter": lambda client, text: client.get(API, params={text: text}),
    "id": lambda client, text: client.get(httpx.URL(API).copy_with(path=f"{API}/{in_path(text)}")),
    "path": lambda client, text: client.get(httpx.URL("/").copy_with(path=f"/{in_path(text)}")),
    "headers": lambda client, text: client.get(API, headers={"traceparent": one_line(text), "x-trace-id": "x" + one_line(text)}),  # noqa: E501
}  # fmt: skip


def one_line(text: str) -> str:
    return text.replace("\n", " ")


def in_path(text: str) -> str:
    return one_line(text).replace("/", "")


def body(text: str) -> dict[str, Any]:
    texts = dict.fromkeys(
        ("metric_type", "name", "unit", "service", "description", "error", "trace_id", "session_id"), text
    )
    return {"value": 1.0, **texts, "metadata": {"note": text, "list": [text, {text: text}]}}


def in_trace(metrics: Metrics, text: str) -> None:
    token = current_trace_id.set(text)
    metrics.record("a", "b", 1.0)
    current_trace_id.reset(token)


def failing(metrics: Metrics, text: str) -> None:
    with contextlib.suppress(LookupError), metrics.track_operation(text, {"note": text}, text) as timing:
        timing.metadata[text] = text
        raise LookupError(text)


def decorated(metrics: Metrics, text: str) -> None:
    @metrics.track_operation(text, {text: text})
    def fail() -> None:
        raise LookupError(text)

    with contextlib.suppress(LookupError):
        fail()


async def waiting(metrics: Metrics, text: str) -> None:
    with contextlib.suppress(LookupError):
        async with metrics.track_operation(text, {text: text}):
            raise LookupError(text)


def dropped(metrics: Metrics, text: str) -> None:
    with metrics.track_operation(text) as timing:
        timing.metadata[text] = {text: object()}
        timing.metadata[f"{text} token"] = text


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        call()
    assert_no_canary(str(caught.value), "the error")


def spellings(needle: str) -> set[str]:
    """As it may stand in JSON, in a URL, or without its spaces."""
    return {needle, json.dumps(needle)[1:-1], str(httpx.QueryParams({"q": needle}))[2:], needle.replace(" ", "")}


NEEDLES = {spelling for _, needle in CANARIES.values() for spelling in spellings(needle)}


def assert_no_canary(text: str | bytes, where: str) -> None:
    found = [n for n in NEEDLES if (n in text if isinstance(text, str) else n.encode() in text)]
    assert found == [], f"{found} in {where}"


def assert_nothing_is_kept(folder: Path) -> None:
    """Neither in a file, byte by byte, nor in what the files say, nor in what is read through tallymark."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert_no_canary(path.read_bytes(), str(path))
        if path.suffix == ".parquet":
            assert_no_canary(str(pyarrow.parquet.read_table(path).to_pylist()), str(path))
        if path.name == "_delta_log":
            assert_no_canary(str(DeltaTable(path.parent).to_pyarrow_table().to_pylist()), str(path))
    assert_no_canary(str(live(folder)), "the journals")
    assert_no_canary(str(stored(folder)), "the records")


def assert_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for record in caplog.records:
        if record.name.split(".")[0] == "tallymark":
            assert_no_canary(f"{record.getMessage()} {record.exc_text} {record.args}", "the log")


def test_there_is_a_canary_of_each_kind() -> None:
    assert tuple(CANARIES) == RULES
    for rule, (text, needle) in CANARIES.items():
        assert needle in text
        assert f"[{rule}]" in mask_text(text)
        assert needle not in mask_text(text)
    with pytest.raises(AssertionError):
        assert_no_canary(CANARIES["card"][0], "here")


@pytest.mark.parametrize("entry", RECORDERS)
def test_recording(folder: Path, core: str, entry: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with recording(folder) as metrics:
        for _ in range(2):  # the second time everything is known
            metrics.record("a", "b", 1.0, metadata={"note": "", "a": 1})
            for text, _needle in CANARIES.values():
                RECORDERS[entry](metrics, text)
        kept = len(stored(folder))
        assert kept == 2 if entry.startswith(("refused", "dropped")) else kept > 2 * len(CANARIES)
        assert_nothing_is_kept(folder)
    ship(folder)
    assert_nothing_is_kept(folder)
    assert_nothing_is_logged(caplog)


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "store"


@pytest.fixture(scope="module")
def client(server_folder: Path) -> Iterator[httpx.Client]:
    app = create_app(Settings(store=server_folder, collect_system=False))
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        client.post(f"{API}/", json=body("x")).raise_for_status()
        yield client


@pytest.mark.parametrize("entry", REQUESTS)
def test_requests(client: httpx.Client, server_folder: Path, entry: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    statuses = set()
    for text, _ in CANARIES.values():
        answer = REQUESTS[entry](client, text)
        statuses.add(answer.status_code)
        assert_no_canary(answer.text, "the answer")
        assert_no_canary(str(answer.headers), "the headers of the answer")
    assert not [status for status in statuses if status >= 500], statuses
    assert_nothing_is_kept(server_folder)
    assert_nothing_is_logged(caplog)


@pytest.mark.parametrize("broken", [False, True])
def test_the_middleware(folder: Path, broken: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def item(request: Request) -> JSONResponse:
        if broken:
            raise LookupError(f"{request.url} {request.headers}")
        return JSONResponse({"ok": True})

    async def main() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app.example") as asked:
            for text, _ in CANARIES.values():
                header = one_line(text)
                headers = {
                    "traceparent": header,
                    "x-request-id": header,
                    "authorization": header,
                    "cookie": f"a={header}",
                }
                for path in ("/items/", "/nowhere/"):
                    url = httpx.URL("http://app.example").copy_with(path=path + in_path(text))
                    await asked.get(url, params={"q": text, text: "q"}, headers=headers)

    app = Starlette(routes=[Route("/items/{id}", item)])
    with recording(folder) as metrics:
        app.add_middleware(MetricsMiddleware, metrics=metrics)
        asyncio.run(main())
        assert len(stored(folder)) == 2 * len(CANARIES)
        assert_nothing_is_kept(folder)
    assert_nothing_is_logged(caplog)


def test_the_command_line(folder: Path) -> None:
    with recording(folder) as metrics:
        for text, _ in CANARIES.values():
            metrics.record(text, text, 1.0, error=text, metadata={text: text})
    asked = [word for text, _ in CANARIES.values() for word in ("--name", text)]
    for arguments in (
        ["query", str(folder), *asked],
        ["query", str(folder)],
        ["tail", str(folder)],
        ["info", str(folder)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tallymark", *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert_no_canary(done.stdout, "the output")
        assert_no_canary(done.stderr, "the messages")


def test_the_environment_of_a_rejecting_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "store"
    app = create_app(Settings(store=folder, collect_system=False, pii="reject"))
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        for text, _ in CANARIES.values():
            for answer in (
                client.post(f"{API}/", json=body("x") | {"metadata": {"note": text}}),
                client.post(f"{API}/batch", json={"metrics": [body("x"), body(text)]}),
            ):
                assert answer.status_code == 422
                assert_no_canary(answer.text, "the answer")
                assert "privacy rule" in answer.text
        assert client.get(API, params={"metric_type": "x"}).json()["metrics"] == []
    assert_nothing_is_logged(caplog)
