"""Put in anywhere, found nowhere: one secret of each kind through every way in, and then every byte is read.

A further way in is one line in :data:`RECORDERS`, :data:`LAYERS` or :data:`LOGGED` (it is given a recorder and a text)
or :data:`REQUESTS` (a client of a server, and a text; it returns the answer).
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from canaries import (
    CANARIES,
    TEXTS,
    assert_no_canary,
    assert_nothing_is_kept,
    assert_nothing_is_logged,
    in_path,
    one_line,
    refused,
)
from celery import Celery
from kombu import Connection, Queue
from recording import DEADLINE_SECONDS, eventually, live, recording, ship, stored
from serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner

from tallymark import Metrics, processing
from tallymark.cli import app as program
from tallymark.collectors.postgres import PostgresCollector
from tallymark.collectors.queues import QueueCollector, queue_depth
from tallymark.collectors.redis import RedisCollector
from tallymark.collectors.target import TargetCollector
from tallymark.config import Settings
from tallymark.config import settings as settings_of_process
from tallymark.errors import ConfigError
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.integrations.celery import instrument, uninstrument
from tallymark.integrations.log_lines import MAX_STACK, MAX_TEXT
from tallymark.integrations.logging import install, log_event
from tallymark.model import clean_text
from tallymark.pipeline import PipelineRun
from tallymark.privacy import RULES, mask_text
from tallymark.review import MetricsService
from tallymark.server import create_app
from tallymark.server.serve import Server
from tallymark.trace import current_session_id, current_trace_id

Entry = Callable[[Metrics, str], object]

RECORDERS: dict[str, Entry] = {
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

LAYERS: dict[str, Entry] = {
    "review: session": lambda metrics, text: reviewing(metrics).create_session(text, text),
    "review: raw ids": lambda metrics, text: reviewing(metrics, raw_ids=True).create_session(text, text),
    "review: timer": lambda metrics, text: timed(metrics, text),
    "review: timer, stopped": lambda metrics, text: reviewing(metrics).timer(text, 1, 2, text).start().stop(False, text),  # noqa: E501
    "review: correction": lambda metrics, text: corrected(metrics, text, transcription_quality=text, metadata={text: text}),  # noqa: E501
    "review: label": lambda metrics, text: reviewing(metrics).label_admin(text, text),
    "review: system metric": lambda metrics, text: reviewing(metrics).record_system_metric(text, 1.0, {text: text}),
    "refused: quality": lambda metrics, text: refused(lambda: corrected(metrics, text, transcription_quality=text * 99)),  # noqa: E501
    "refused: retries": lambda metrics, text: refused(lambda: corrected(metrics, text, retry_count=text)),
    "refused: correction": lambda metrics, text: refused(lambda: corrected(metrics, text, metadata={f"{text} token": text})),  # noqa: E501
    "refused: id": lambda metrics, text: refused(lambda: reviewing(metrics).create_session([text])),  # type: ignore[arg-type]
    "refused: tag": lambda metrics, text: refused(lambda: reviewing(metrics).record_system_metric("a", 1.0, {text: {"email": text}})),  # noqa: E501
    "refused: hours": lambda metrics, text: refused(lambda: reviewing(metrics).get_dashboard_data(text)),  # type: ignore[arg-type]
    "pipeline": lambda metrics, text: piped(metrics, text),
    "pipeline: on its own": lambda metrics, text: unrecorded(metrics, text),
    "pipeline: finish": lambda metrics, text: PipelineRun(metrics, text, text).finish(False, text),
    "refused: stage": lambda metrics, text: refused(lambda: PipelineRun(metrics).record_stage(text, text)),  # type: ignore[arg-type]
    "refused: cache": lambda metrics, text: refused(lambda: PipelineRun(metrics).record_cache(text, text, 0)),  # type: ignore[arg-type]
    "processing: time": lambda metrics, text: processed(processing.track_processing_time(metrics, text, {text: text}), text),  # noqa: E501
    "processing: rate": lambda metrics, text: processing.track_success_rate(metrics, text, 1, 2, {"note": text}),
    "processing: service": lambda metrics, text: processed(processing.MetricsCollector(metrics, text).track_operation(text), text),  # noqa: E501
    "processing: queue": lambda metrics, text: processing.MetricsCollector(metrics, text).record_queue_depth(text, 1, 2.0),  # noqa: E501
    "refused: rate": lambda metrics, text: refused(lambda: processing.track_success_rate(metrics, text, text, 2)),  # type: ignore[arg-type]
    "refused: depth": lambda metrics, text: refused(lambda: processing.MetricsCollector(metrics).record_queue_depth(text, 1, text)),  # type: ignore[arg-type]  # noqa: E501
    "celery": lambda metrics, text: worked(metrics, text),
    "queues": lambda metrics, text: counted(metrics, text),
}  # fmt: skip

LOG = "/api/v1/logs"

logger = logging.getLogger("canary")

LOGGED: dict[str, Callable[[str], object]] = {
    "message": logger.warning,
    "argument": lambda text: logger.warning("%s %r", text, {text: [text]}),
    "arguments that do not fit": lambda text: logger.warning(f"{text} %d %d", text),
    "name of the logger": lambda text: logger.getChild(text).warning("a"),
    "extra": lambda text: logger.info("a", extra={"note": text, f"{text} ": text, "bytes": text.encode()}),
    "extra: forbidden": lambda text: logger.info("a", extra={"password": text, "apiKey": text, f"{text} token": text}),
    "extra: user_id": lambda text: logger.info("a", extra={"user_id": text, "deep": {"user_id": text, "email": [text]}}),  # noqa: E501
    "extra: depth": lambda text: logger.info("a", extra={"a": {text: [text, (text, {text: text})]}}),
    "extra: ids": lambda text: logger.info("a", extra={"trace_id": text, "session_id": text, "event_type": text}),
    "extra: object": lambda text: logger.info("a", extra={"thing": LookupError(text), "things": SimpleNamespace(a=text)}),  # noqa: E501
    "ids": lambda text: in_session(text, lambda: logger.info("a")),
    "exception": lambda text: raised(text),
    "stack": lambda text: logger.info("a", stack_info=True),
    "event": lambda text: log_event(text, text, note=text, session_id=text, password=text, **{text: text}),
    "cut": lambda text: each_cut(text, logger.info, 16, MAX_TEXT, 2 * MAX_TEXT, 2 * MAX_TEXT + 512),
    "cut: field": lambda text: each_cut(text, in_a_field, MAX_TEXT, 2 * MAX_TEXT),
    "cut: id": lambda text: each_cut(text, in_an_id, 128, 256, 256 + 512),
    "cut: the room is full": lambda text: logger.info("a", extra={f"a{i}": "x" * (MAX_TEXT - 3) + text for i in range(6)}),  # noqa: E501
    "cut: exception": lambda text: raised(cut(text, 2 * MAX_TEXT)),
    "cut: stack": lambda text: each_stack(text),
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
    "system": lambda client, text: client.post(f"{API}/collect", params={"service_name": text}),
    "queue": lambda client, text: client.post(f"{API}/queues/track", params={"queue_name": text}),
    "queue: service": lambda client, text: client.post(f"{API}/queues/track", params={"service_name": text}),
    "summary": lambda client, text: client.get("/api/v1/monitoring/summary", params={text: text}),
    "overview": lambda client, text: client.get("/api/v1/overview", params={"service": text}),
    "overview: range": lambda client, text: client.get("/api/v1/overview", params={"since": text}),
    "sparklines": lambda client, text: client.get("/api/v1/series/sparklines", params={"name": text}),
    "live: range": lambda client, text: client.get("/api/v1/stream", params={"since": text}),
    "log": lambda client, text: client.get("/api/v1/logs", params={"limit": 1000}),
    "log: text": lambda client, text: client.get("/api/v1/logs", params={"q": text, "trace_id": text, "session_id": text}),  # noqa: E501
    "log: time": lambda client, text: client.get("/api/v1/logs", params={"since": text}),
    "log: stream": lambda client, text: streamed(client, text),
    "log: stream, level": lambda client, text: client.get(f"{LOG}/stream", params={"level": text}),
    "log: stream, replay": lambda client, text: client.get(f"{LOG}/stream", params={"replay": text}),
    "log: stream, id": lambda client, text: client.get(f"{LOG}/stream", params={"q": text * 99}),
    "headers": lambda client, text: client.get(API, headers={"traceparent": one_line(text), "x-trace-id": "x" + one_line(text)}),  # noqa: E501
}  # fmt: skip


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


def streamed(client: httpx.Client, text: str) -> httpx.Response:
    """The beginning of a stream that would not end."""
    parameters: dict[str, str | int] = {"q": text, "trace_id": text, "session_id": text, "replay": 100}
    with client.stream("GET", f"{LOG}/stream", params=parameters, headers={"last-event-id": one_line(text)}) as answer:
        return httpx.Response(answer.status_code, headers=answer.headers, text=next(answer.iter_text()))


def reviewing(metrics: Metrics, **settings: Any) -> MetricsService:
    return MetricsService(metrics, pseudonym_key="a key", **settings)


def timed(metrics: Metrics, text: str) -> None:
    timer = reviewing(metrics).timer(text, text, text, text, {text: text})
    with contextlib.suppress(LookupError), timer as timing:
        timing.metadata["note"] = text
        metrics.record("a", "b", 1.0)
        raise LookupError(text)


def corrected(metrics: Metrics, text: str, **more: Any) -> None:
    reviewing(metrics).record_correction(text, text, text, text, text, f"{text}, {text}", 5.0, **more)


def piped(metrics: Metrics | None, text: str, folder: Path | None = None) -> None:
    folder = folder or Path(metrics.store if metrics else ".")
    run = PipelineRun(metrics, text, text)
    with contextlib.suppress(LookupError), run:
        for _ in range(2):
            run.record_stage(text, 0.1)
        run.record_cache(text, 1, 2)
        with run.stage(f"{text}."):
            raise LookupError(text)
    assert run.stages
    run.export_json(folder / "out" / "run.json")
    assert_no_canary((folder / "out" / "run.json").read_bytes(), "the export")
    run.log_summary()
    run.print_summary()
    assert_no_canary(f"{run.name} {run.run_id} {run.stages} {run.caches} {run.bottleneck}", "the run")


def unrecorded(metrics: Metrics, text: str) -> None:
    piped(None, text, Path(metrics.store))
    metrics.record("a", "b", 1.0)


def processed(timing: Any, text: str) -> None:
    with contextlib.suppress(LookupError), timing:
        timing.metadata[text] = text
        raise LookupError(text)


def worked(metrics: Metrics, text: str) -> None:
    """A task of Celery that raises, in this process."""
    with Celery("canary", broker="memory://", set_as_current=False) as app:
        app.conf.update(task_always_eager=True, task_eager_propagates=False)
        instrument(app, metrics)

        def fail(words: str, **_: str) -> None:
            raise LookupError(words)

        task = app.task(name=text, shared=False)(fail)
        in_session(text, lambda: task.apply_async((text,), {"note": text}, task_id=text))
        uninstrument(app)


def declare(*queues: str) -> None:
    """Have queues in the memory of this process, where whoever asks ``memory://`` finds them."""
    with Connection("memory://") as broker, broker.channel() as channel:
        for name in queues:
            Queue(name, channel=channel).queue_declare()


def counted(metrics: Metrics, text: str) -> None:
    declare(clean_text(text))  # as the collector asks for it
    collector = QueueCollector(metrics, "memory://", [text], service=text)
    assert collector.collect_once()["connected"]
    collector.stop()


def in_session(text: str, call: Callable[[], object]) -> None:
    tokens = current_trace_id.set(text), current_session_id.set(text)
    try:
        call()
    finally:
        current_trace_id.reset(tokens[0])
        current_session_id.reset(tokens[1])


def raised(text: str) -> None:
    try:
        try:
            raise LookupError(text)
        except LookupError as error:
            error.add_note(text)
            raise RuntimeError(text, {text: text}) from error
    except RuntimeError:
        logger.exception("a")


def each_cut(text: str, say: Callable[[str], object], *lengths: int) -> None:
    for length in lengths:
        say(cut(text, length))


def in_a_field(text: str) -> None:
    logger.info("a", extra={"a": text})


def in_an_id(text: str) -> None:
    logger.info("a", extra={"trace_id": text})


def each_stack(text: str) -> None:
    for length in (MAX_STACK, 2 * MAX_STACK):
        raised(f"{text} {'y' * (length - 20)}")


def cut(text: str, length: int) -> str:
    """A text that breaks off right behind what may not be seen, if it is cut to this length.

    What stands before it shrinks when it is masked, which brings the end into sight.
    """
    needle = dict(CANARIES.values())[text]
    before = max(length - text.index(needle) - len(needle), 0)
    key = f"{CANARIES['private_key'][0]} "
    body = key.replace("Canary\n", "A" * max(before - len(key) - 99, 0) + "Canary\n")
    return f"{body:x<{before}}"[:before].rstrip("x").ljust(before) + text + " z" * 9_000


def test_there_is_a_canary_of_each_kind() -> None:
    assert tuple(CANARIES) == RULES
    for rule, (text, needle) in CANARIES.items():
        assert needle in text
        assert f"[{rule}]" in mask_text(text)
        assert needle not in mask_text(text)
    with pytest.raises(AssertionError):
        assert_no_canary(CANARIES["card"][0], "here")


def put_in(entries: dict[str, Entry], metrics: Metrics, folder: Path) -> None:
    """Each text by each way in, twice: the second time everything is known."""
    seen = 0
    for name, entry in entries.items():
        for _ in range(2):
            metrics.record("a", "b", 1.0, metadata={"note": "", "a": 1})
            for text in TEXTS:
                entry(metrics, text)
        rows = live(folder)
        assert_no_canary(str(rows), name)
        kept, seen = len(rows) - seen, len(rows)
        assert kept == 2 if name.startswith(("refused", "dropped")) else kept > 2 * len(CANARIES), name


def test_recording(folder: Path, core: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with recording(folder) as metrics:
        put_in(RECORDERS, metrics, folder)
        assert_nothing_is_kept(folder)
    ship(folder)
    assert_nothing_is_kept(folder)
    assert_nothing_is_logged(caplog)


def test_no_text_holds_nul_whichever_way_it_comes_in(folder: Path, core: str) -> None:
    with recording(folder) as metrics:
        for entry in (*RECORDERS.values(), *LAYERS.values()):
            for text in ("nul\0", "\0and more of it"):
                for _ in range(2):  # the second time everything is known
                    entry(metrics, text)
        kept = json.dumps([row | {"metadata": json.loads(row["metadata"])} for row in live(folder)])
    assert "\\ufffd" in kept
    assert "\\u0000" not in kept.replace("\\\\", "")


@pytest.fixture
def log(folder: Path) -> Iterator[Path]:
    """The structured log of the folder, with what the tests and what tallymark says."""
    file = folder / "logs" / "metrics.jsonl"
    loggers = [logger, logging.getLogger("tallymark.events")]
    levels = [each.level for each in loggers]
    handlers = [install(file, logging.DEBUG, each) for each in loggers]
    yield file
    for each, handler, level in zip(loggers, handlers, levels, strict=True):
        each.removeHandler(handler)
        each.setLevel(level)
        handler.close()


def test_layers(folder: Path, log: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    with recording(folder) as metrics:
        put_in(LAYERS, metrics, folder)
        service = reviewing(metrics)
        assert_no_canary(f"{service.get_dashboard_data()} {service.get_admin_performance()}", "the report")
        service.export_json(folder / "out" / "report.json")
        service.export_csv(folder / "out" / "report")
    ship(folder)
    assert log.stat().st_size
    assert len(list((folder / "out").rglob("*.*"))) > 5
    assert_nothing_is_kept(folder)
    assert_nothing_is_logged(caplog)
    assert_no_canary("".join(capsys.readouterr()), "the output")


@pytest.mark.parametrize("raw_ids", [False, True])
def test_the_log(
    folder: Path, log: Path, raw_ids: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", False)  # pytest's own handler raises where arguments do not fit
    for each in (*logger.handlers, *logging.getLogger("tallymark.events").handlers):
        monkeypatch.setattr(each.formatter, "raw_ids", raw_ids, raising=False)
    for name, entry in LOGGED.items():
        before = log.stat().st_size if log.exists() else 0
        for text in TEXTS:
            entry(text)
        added = log.read_bytes()[before:]
        assert added.count(b"\n") >= len(TEXTS), name
        assert_no_canary(added, name)
    assert_no_canary("".join(capsys.readouterr()), "the messages")


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "store"


@pytest.fixture(scope="module")
def client(server_folder: Path) -> Iterator[httpx.Client]:
    app = create_app(Settings(store=server_folder, collect_system=False, broker="memory://"))
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        client.post(f"{API}/", json=body("x")).raise_for_status()
        yield client


def test_requests(client: httpx.Client, server_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    handler = install(server_folder / "logs" / "metrics.jsonl", logging.DEBUG, logger)
    for text in TEXTS:
        logger.warning(text, extra={"trace_id": text, "note": text})
    logger.removeHandler(handler)
    handler.close()
    declare("celery", *TEXTS)
    for name, ask in REQUESTS.items():
        for text in TEXTS:
            answer = ask(client, text)
            assert answer.status_code < 500, f"{name}: {answer.text}"
            assert_no_canary(answer.text, f"the answer to {name}")
            assert_no_canary(str(answer.headers), f"the headers of the answer to {name}")
    assert_nothing_is_kept(server_folder)
    assert_nothing_is_logged(caplog)


SECRET = CANARIES["password"][1]

URLS: dict[str, list[str]] = {
    "redis": [f"redis://app:{SECRET}@127.0.0.1:1/0", f"redis://:{SECRET}@127.0.0.1:1/0"],
    "postgres": [
        f"postgresql://app:{SECRET}@127.0.0.1:1/shop",
        f"host=127.0.0.1 port=1 user=app password={SECRET}",
        f"postgresql://127.0.0.1:1/shop?user=app&password={SECRET}",
    ],
    "queues": [f"amqp://app:{SECRET}@127.0.0.1:1//", f"redis://:{SECRET}@127.0.0.1:1/0"],
}


def collector_of(kind: str, url: str, metrics: Metrics) -> TargetCollector:
    if kind == "redis":
        return RedisCollector(metrics, url)
    return PostgresCollector(metrics, url) if kind == "postgres" else QueueCollector(metrics, url)


def test_passwords_of_servers_that_are_not_there(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with recording(folder) as metrics:
        for kind, urls in URLS.items():
            for url in urls:
                collector = collector_of(kind, url, metrics)
                reading = collector.collect_once()
                collector.stop()
                assert not reading["connected"]
                assert_no_canary(f"{reading} {collector.status()} {collector.target}", url)
        for url in URLS["queues"]:
            assert_no_canary(str(queue_depth(one_line(CANARIES["email"][0]), url)["target"]), url)
        assert len([each for each in caplog.records if "cannot ask" in each.message]) == sum(map(len, URLS.values()))
        assert_nothing_is_kept(folder)
    assert_nothing_is_logged(caplog)


@pytest.mark.parametrize("kind", URLS)
def test_urls_that_are_no_urls(kind: str, caplog: pytest.LogCaptureFixture, folder: Path) -> None:
    """A password with a character that ends the host: what stands in front must not be taken for one."""
    caplog.set_level(logging.DEBUG)
    scheme = {"redis": "redis", "postgres": "postgresql", "queues": "amqp"}[kind]
    metrics = Metrics(folder)
    for begin in ("", "app:", ":"):
        for end in ("/", "?", "#", "@", "[", "%", " ", ":", "\\"):
            for url in (
                f"{scheme}://{begin}{SECRET}{end}x@127.0.0.1:1/0",
                f"{begin}{SECRET}{end}x",
                f"{SECRET}://{end}",
            ):
                try:
                    collector = collector_of(kind, url, metrics)
                except (ConfigError, ValueError) as error:
                    assert_no_canary(str(error), url)
                else:
                    assert_no_canary(f"{collector.target} {collector.status()}", url)
                    collector.stop()
    assert_nothing_is_logged(caplog)


def test_a_server_whose_servers_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "store"
    targets: dict[str, Any] = {kind: URLS[kind] for kind in ("redis", "postgres")}
    settings = Settings(store=folder, collect_system=False, broker=URLS["queues"][0], queues=("celery",), **targets)
    with serving(Server(create_app(settings))) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        answers = [
            client.get("/api/v1/monitoring/summary"),
            client.post(f"{API}/queues/track"),
            client.post(f"{API}/queues/track", params={"queue_name": CANARIES["email"][0]}),
        ]
        assert [answer.status_code for answer in answers] == [200, 503, 503]
        assert answers[0].json()["redis"]["connected"] is False
        for answer in answers:
            assert_no_canary(f"{answer.text} {answer.headers}", str(answer.url))
        eventually(lambda: sum("cannot ask" in record.message for record in caplog.records) >= 6)
        assert_nothing_is_kept(folder)
    assert_no_canary(f"{settings} {settings!r}", "the settings")
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
            for text in TEXTS:
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


def test_the_command_line(folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(folder) as metrics:
        for text in TEXTS:
            metrics.record(text, text, 1.0, error=text, metadata={text: text})
            LAYERS["pipeline"](metrics, text)
            LAYERS["review: correction"](metrics, text)
            logger.warning(text, extra={"note": text, "session_id": text})
    asked = [word for text in TEXTS for word in ("--name", text)]
    monkeypatch.setenv("TALLYMARK_STORE", str(folder))
    monkeypatch.setenv("TALLYMARK_REDIS", URLS["redis"][0])
    monkeypatch.setenv("TALLYMARK_BROKER", URLS["queues"][0])
    settings_of_process.cache_clear()
    for arguments in (
        ["query", str(folder), *asked],
        ["query", str(folder)],
        ["tail", str(folder)],
        ["tail", str(folder), "--json"],
        ["tail", str(folder), "--logs"],
        ["info", str(folder)],
        ["review", str(folder), "--json"],
        ["runs", "list", str(folder)],
        ["runs", "show", "latest", str(folder)],
        ["runs", "diff", "latest~1", "latest", str(folder)],
        ["config", "show"],
        ["prune", str(folder), "--dry-run"],
        ["erase", str(folder), "--session", CANARIES["email"][0], "--yes"],
    ):
        done = CliRunner().invoke(program, arguments)
        assert done.exit_code == 0, f"{arguments}: {done.output}"
        assert done.output
        assert_no_canary(done.output, f"the output of {arguments[0]}")
    settings_of_process.cache_clear()


def test_the_environment_of_a_rejecting_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "store"
    app = create_app(Settings(store=folder, collect_system=False, pii="reject"))
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        for text in TEXTS:
            for answer in (
                client.post(f"{API}/", json=body("x") | {"metadata": {"note": text}}),
                client.post(f"{API}/batch", json={"metrics": [body("x"), body(text)]}),
            ):
                assert answer.status_code == 422
                assert_no_canary(answer.text, "the answer")
                assert "privacy rule" in answer.text
        assert client.get(API, params={"metric_type": "x"}).json()["metrics"] == []
    assert_nothing_is_logged(caplog)
