"""Celery with real workers on real brokers: every way in which a task can end is one record."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from celery import Celery, chain, group, signals
from fastapi import FastAPI
from recording import DEADLINE_SECONDS, eventually, stored
from serving import serving

import tallymark
from tallymark import Metrics
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.integrations.celery import PUBLISHED, TRACE, instrument, uninstrument
from tallymark.record import Record
from tallymark.trace import current_session_id, current_trace_id

from .jobs import make_app, records, worker

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Shop:
    """An application that publishes, and what its worker has recorded."""

    def __init__(self, app: Celery, folder: Path) -> None:
        self.app = app
        self.folder = folder
        self._reader = tallymark.open(str(folder))

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Publish a task; returns its id."""
        return str(self.app.tasks[task].apply_async(args, **options).id)

    def of(self, task_id: str, count: int = 1) -> list[Record]:
        """The records of a task, as soon as there are so many."""
        found: list[Record] = []

        def there() -> bool:
            newest = self._reader.records(metric_type="celery_task", limit=100).records
            found[:] = [record for record in newest[::-1] if record.metadata["task_id"] == task_id]
            return len(found) >= count

        eventually(there)
        assert len(found) == count
        return found

    def one(self, task: str, *args: Any, **options: Any) -> Record:
        """The record of a task that is published now."""
        return self.of(self.send(task, *args, **options))[0]


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A worker with two processes; when it has ended, no run may be recorded twice."""
    broker = request.getfixturevalue(f"{request.param}_url")
    folder = tmp_path_factory.mktemp(request.param) / "metrics"
    app = make_app(broker, Metrics(folder))
    try:
        with worker(broker, folder, "-c", "2"):
            yield Shop(app, folder)
    finally:
        uninstrument(app)
        app.close()
    ends = Counter((record.metadata["task_id"], record.metadata.get("retries")) for record in records(folder))
    given_back = {record.metadata["task_id"] for record in records(folder) if record.name == "reject"}
    assert {end: count for end, count in ends.items() if count > 1 and end[0] not in given_back} == {}
    # Those of the children that are gone, too; the one that ships may take longer than the worker waits for it.
    eventually(lambda: list((folder / "journals").glob("*.journal")) == [])


def test_success(shop: Shop) -> None:
    record = shop.one("add", 2, 3)
    assert (record.name, record.unit, record.success, record.error) == ("add", "ms", True, None)
    metadata = record.metadata
    assert (metadata["state"], metadata["queue"], metadata["retries"]) == ("success", "celery", 0)
    assert 0 <= metadata["queue_wait_ms"] <= metadata["end_to_end_ms"]
    assert 0 < record.value <= metadata["end_to_end_ms"] - metadata["queue_wait_ms"] + 0.01
    assert "queue_wait_from" not in metadata
    assert "root_id" not in metadata


@pytest.mark.parametrize("words", ["out of paper", "", "naïve ☃ \x00\n\ud800", "x" * 100_000])
def test_failure(shop: Shop, words: str) -> None:
    record = shop.one("fail", words)
    assert (record.success, record.metadata["state"]) == (False, "failure")
    assert record.error is not None
    kept = words[:11].replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert record.error.startswith(f"ValueError: {kept}" if words else "ValueError")


def test_retries_are_no_outcomes_until_the_last(shop: Shop) -> None:
    found = shop.of(shop.send("again"), 3)
    assert [record.metadata["state"] for record in found] == ["retry", "retry", "failure"]
    assert [record.success for record in found] == [None, None, False]
    assert [record.metadata["retries"] for record in found] == [0, 1, 2]
    assert {record.error for record in found} == {"KeyError: 'missing'"}
    assert len({record.trace_id for record in found}) == 1
    waits = [record.metadata["queue_wait_ms"] for record in found]
    ends = [record.metadata["end_to_end_ms"] for record in found]
    # Of each message by itself, from when it was due; of the task from the first one on.
    assert [record.metadata.get("queue_wait_from") for record in found] == [None, "eta", "eta"]
    assert ends == sorted(ends)
    assert ends[2] >= 200
    assert waits[2] < ends[2] - 100


def test_a_countdown_is_no_wait(shop: Shop) -> None:
    record = shop.one("add", 1, 1, countdown=0.5)
    assert record.metadata["queue_wait_from"] == "eta"
    # Celery says when a task is due to the millisecond, or less exactly, and may be a little early.
    assert record.metadata["end_to_end_ms"] >= 400
    assert record.metadata["queue_wait_ms"] <= record.metadata["end_to_end_ms"] - 400


def test_ignored_and_rejected(shop: Shop) -> None:
    assert (shop.one("ignore").success, shop.one("ignore").metadata["state"]) == (None, "ignored")
    refused = shop.one("reject", False)
    assert (refused.success, refused.metadata["state"], refused.error) == (False, "rejected", "not now")
    first, second = shop.of(shop.send("reject", True), 2)
    assert (first.success, first.metadata["state"]) == (None, "rejected")
    assert (second.success, second.metadata["redelivered"]) == (True, True)


def test_expired(shop: Shop) -> None:
    record = shop.one("add", 1, 1, expires=-1)
    assert (record.success, record.value) == (None, 0)
    assert (record.metadata["state"], record.metadata["reason"]) == ("revoked", "expired")


def test_revoked_before_it_ran(shop: Shop) -> None:
    task_id = shop.send("add", 1, 1, countdown=2)
    shop.app.control.revoke(task_id)
    (record,) = shop.of(task_id)
    assert (record.success, record.metadata["state"], record.metadata["reason"]) == (None, "revoked", "revoked")


def test_terminated_while_it_ran(shop: Shop, tmp_path: Path) -> None:
    task_id = shop.send("sleep", 60, str(tmp_path / "started"))
    eventually((tmp_path / "started").exists)
    shop.app.control.revoke(task_id, terminate=True)
    (record,) = shop.of(task_id)
    assert (record.success, record.metadata["reason"]) == (None, "terminated")
    assert record.value > 0


def test_a_process_that_is_killed(shop: Shop) -> None:
    record = shop.one("be killed", 0.2)
    assert (record.success, record.metadata["state"]) == (False, "failure")
    assert record.error is not None
    assert record.error.startswith("WorkerLostError: ")
    assert record.value >= 200
    assert record.trace_id is not None


def test_a_process_that_is_killed_after_it_has_recorded(shop: Shop) -> None:
    task_id = shop.send("be killed at the end")
    assert shop.of(task_id)[0].success is True
    # The worker noticed the loss, said so, and went on.
    log = shop.folder.with_name("worker.log")
    eventually(lambda: task_id in log.read_text() or "SIGKILL" in log.read_text())
    shop.one("add", 1, 1)
    assert len(shop.of(task_id)) == 1


def test_a_task_that_ends_its_process(shop: Shop) -> None:
    record = shop.one("leave")
    assert (record.success, record.error) == (False, "SystemExit: 3")


def test_time_limits(shop: Shop) -> None:
    hard, soft = shop.send("limited"), shop.send("limited softly")
    (record,) = shop.of(hard)
    assert (record.success, record.error) == (False, "TimeLimitExceeded: 1 s")
    assert record.value >= 1000
    (record,) = shop.of(soft)
    assert record.success is False
    assert record.error is not None
    assert record.error.startswith("SoftTimeLimitExceeded")


def test_a_task_that_the_worker_does_not_know(shop: Shop) -> None:
    task_id = str(shop.app.send_task("no such task ☃").id)
    (record,) = shop.of(task_id)
    assert (record.name, record.success, record.metadata["state"]) == ("no such task ☃", False, "unknown")


def test_the_queue_of_an_exchange_is_named(shop: Shop) -> None:
    record = shop.one("add", 1, 1, queue="by topic")
    assert record.metadata["queue"] == "by topic"


@pytest.mark.parametrize(
    "headers",
    [
        {PUBLISHED: 4e9},  # by a clock that is far ahead
        {PUBLISHED: -1.0},
        {PUBLISHED: 1e300},
        {PUBLISHED: "yesterday", TRACE: ["x"]},
        {PUBLISHED: None, TRACE: "x" * 100_000},
        {TRACE: "", "traceparent": "nonsense \x00"},
        {"eta": "2000-01-01T00:00:00"},
    ],
    ids=str,
)
def test_what_others_write_into_headers(shop: Shop, headers: dict[str, Any]) -> None:
    task_id = f"by hand {time.time_ns()}"
    with shop.app.connection_for_write() as connection:
        connection.Producer(serializer="json").publish(
            ((1, 2), {}, {}),
            routing_key="celery",
            headers={"task": "add", "id": task_id, "lang": "py", "root_id": task_id, "retries": 0, **headers},
            correlation_id=task_id,
        )
    (record,) = shop.of(task_id)
    assert record.success is True
    assert record.metadata.get("queue_wait_ms", 0) == 0
    assert record.metadata.get("end_to_end_ms", 0) >= 0
    assert record.trace_id is not None
    assert len(record.trace_id) == 32


def test_a_traceparent_of_others_is_followed(shop: Shop) -> None:
    task_id = f"by hand {time.time_ns()}"
    with shop.app.connection_for_write() as connection:
        connection.Producer(serializer="json").publish(
            ((1, 2), {}, {}),
            routing_key="celery",
            headers={"task": "add", "id": task_id, "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
            correlation_id=task_id,
        )
    assert shop.of(task_id)[0].trace_id == TRACE_ID


def test_a_request_and_the_tasks_that_come_of_it_have_one_trace(shop: Shop, metrics: Metrics) -> None:
    trace_id = uuid.uuid4().hex
    web = FastAPI()
    web.add_middleware(MetricsMiddleware, metrics=metrics)

    @web.post("/order")
    def order() -> str:
        current_session_id.set("session 7")
        return shop.send("pass on")

    with serving(uvicorn.Server(uvicorn.Config(web, log_level="warning"))) as url:
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        answer = httpx.post(f"{url}order", headers=headers, timeout=DEADLINE_SECONDS)
    (record,) = shop.of(answer.json())
    assert (record.trace_id, record.session_id) == (trace_id, "session 7")

    # And what those tasks publish, and record themselves.
    def seen() -> list[Record]:
        return [record for record in stored(shop.folder) if record.trace_id == trace_id and record.name != "add"]

    eventually(lambda: {record.name for record in seen()} == {"pass on", "see", "session 7"} and len(seen()) == 3)
    (of_request,) = [record for record in stored(Path(metrics.store)) if record.trace_id == trace_id]
    assert of_request.name == "POST /order"


def test_chains_and_groups_share_a_root(shop: Shop) -> None:
    add = shop.app.tasks["add"]
    result = chain(add.s(1, 2), add.s(3), add.s(4))()
    ids = [result.parent.parent.id, result.parent.id, result.id]
    found = [shop.of(task_id)[0] for task_id in ids]
    assert [record.metadata.get("root_id") for record in found] == [None, ids[0], ids[0]]
    assert len({record.trace_id for record in found}) == 1
    token = current_trace_id.set(TRACE_ID)
    try:
        results = group(add.s(number, 1) for number in range(10))()
    finally:
        current_trace_id.reset(token)
    assert {shop.of(result.id)[0].trace_id for result in results} == {TRACE_ID}


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools(redis_url: str, folder: Path, pool: str, tmp_path: Path) -> None:
    app = make_app(redis_url, Metrics(folder))
    shop = Shop(app, folder)
    try:
        with worker(redis_url, folder, "-P", pool, "-c", "4"):
            ids = [shop.send("add", number, number) for number in range(50)]
            failed, retried = shop.send("fail", "no"), shop.send("again")
            assert shop.of(failed)[0].success is False
            assert len(shop.of(retried, 3)) == 3
            found = [shop.of(task_id)[0] for task_id in ids]
        assert len({record.trace_id for record in found}) == 50
        assert {record.metadata["state"] for record in found} == {"success"}
    finally:
        uninstrument(app)
        app.close()


@pytest.fixture
def eager(metrics: Metrics) -> Iterator[Celery]:
    app = make_app("memory://", metrics, task_always_eager=True)
    yield app
    uninstrument(app)


def recorded_by(metrics: Metrics, work: Callable[[], object]) -> list[Record]:
    before = len(records(Path(metrics.store)))
    work()
    return records(Path(metrics.store))[before:]


def test_eager_tasks_are_part_of_whoever_calls_them(eager: Celery, metrics: Metrics) -> None:
    token = current_trace_id.set(TRACE_ID)
    try:
        (record,) = recorded_by(metrics, lambda: eager.tasks["add"].delay(1, 2).get())
        assert current_trace_id.get() == TRACE_ID
    finally:
        current_trace_id.reset(token)
    assert (record.success, record.trace_id, record.metadata["eager"]) == (True, TRACE_ID, True)
    assert "queue_wait_ms" not in record.metadata


def test_eager_failures(eager: Celery, metrics: Metrics) -> None:
    def fail() -> None:
        with pytest.raises(ValueError, match="no"):
            eager.tasks["fail"].apply(("no",), throw=True)
        eager.tasks["fail"].apply(("no",))

    found = recorded_by(metrics, fail)
    assert [(record.success, record.error) for record in found] == [(False, "ValueError: no")] * 2
    states = [record.metadata["state"] for record in recorded_by(metrics, eager.tasks["again"].apply)]
    assert states == ["retry", "retry", "failure"]


def test_an_eager_task_within_an_exception_handler_has_not_failed(eager: Celery, metrics: Metrics) -> None:
    def work() -> None:
        try:
            raise OSError("handled")
        except OSError:
            eager.tasks["add"].delay(1, 2)

    (record,) = recorded_by(metrics, work)
    assert (record.success, record.error) == (True, None)


def test_a_recorder_that_does_not_run_breaks_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("silent", broker="memory://", set_as_current=False)
    made = instrument(app, Metrics(folder))

    @app.task(name="count", shared=False)
    def count(number: int) -> int:
        return number + 1

    try:
        assert [count.apply((number,)).get() for number in range(3)] == [1, 2, 3]
    finally:
        uninstrument(app)
    assert made.failures == 3
    assert [record.message for record in caplog.records if "not recorded" in record.message] == [
        "A task was not recorded, nor may others be: RuntimeError: "
        "the recorder is not running: call start(), or use it in a with block"
    ]


def test_of_two_applications_each_has_its_own_records(eager: Celery, metrics: Metrics) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)

    @other.task(name="unmeasured", shared=False)
    def unmeasured() -> None:
        pass

    assert recorded_by(metrics, unmeasured.apply) == []


def test_who_listens_later_in_a_process_of_a_worker_is_told(
    eager: Celery, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def listen(task_id: str, **_: object) -> None:
        heard.append(task_id)

    for signal in (signals.task_prerun, signals.task_postrun):
        monkeypatch.setattr(signal, "use_caching", False)  # and again, when this is over
    signals.worker_process_init.send(sender=None)
    assert vars(signals.task_prerun)["use_caching"]
    run = eager.tasks["add"].apply
    assert len(recorded_by(metrics, lambda: run((1, 2)))) == 1
    signals.task_prerun.connect(listen)
    assert len(recorded_by(metrics, lambda: run((1, 2), task_id="heard"))) == 1
    signals.task_prerun.disconnect(listen)
    assert len(recorded_by(metrics, lambda: run((1, 2)))) == 1
    assert heard == ["heard"]


def test_uninstrument(eager: Celery, metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="instrumented already"):
        instrument(eager, metrics)
    uninstrument(eager)
    assert recorded_by(metrics, lambda: eager.tasks["add"].delay(1, 2)) == []
    uninstrument(eager)
    instrument(eager, metrics)
    assert len(recorded_by(metrics, lambda: eager.tasks["add"].delay(1, 2))) == 1
