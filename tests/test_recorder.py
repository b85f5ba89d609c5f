"""What an application calls, and what it gets."""

import asyncio
import gc
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recording import books, eventually, in_threads, live, output, python, recording, ship, stop, stored

from tallymark import BufferFull, Metrics, MetricsStats
from tallymark.lane import JOURNALS
from tallymark.model import MAX_ERROR_LENGTH, MAX_ID_LENGTH
from tallymark.shipper import shipping_lock
from tallymark.trace import current_trace_id

pytestmark = pytest.mark.usefixtures("core")

TIMEOUT = 120.0
"""For a machine that has much else to do."""


def total(stats: MetricsStats) -> int:
    """The other side of the books."""
    return stats.total_persisted + stats.queue_size + sum(stats.dropped.values())


# What is stored


def test_an_operation(metrics: Metrics, folder: Path) -> None:
    before = time.time_ns()
    for _ in range(2):  # the second time the series is known
        metrics.record_operation(
            "db_query", "SELECT", 12.5, success=False, error_message="no\x00pe", metadata={"rows": 3}
        )
    first, second = live(folder)
    assert before <= first.pop("timestamp") <= second.pop("timestamp") <= time.time_ns()
    assert second.pop("seq") == first.pop("seq") + 1
    assert first == second
    assert len(first.pop("journal")) == 32
    assert first == {
        "service": "shop",
        "metric_type": "db_query",
        "name": "SELECT",
        "value": 12.5,
        "unit": "ms",
        "success": False,
        "error": "no\ufffdpe",
        "trace_id": None,
        "session_id": None,
        "metadata": '{"rows":3}',
        "description": None,
    }


def test_any_value(metrics: Metrics, folder: Path) -> None:
    for _ in range(2):
        metrics.record("queue", "depth", 3, "1", True, "odd", {"a": None}, "t" * MAX_ID_LENGTH, "s-1")
        metrics.record("queue", "depth", -0.0)
    rows = live(folder)
    assert [(row["value"], row["unit"], row["success"], row["error"]) for row in rows] == [
        (3.0, "1", True, "odd"),
        (0.0, "1", None, None),
    ] * 2
    assert math.copysign(1, rows[1]["value"]) == -1
    assert [(row["trace_id"], row["session_id"], row["metadata"]) for row in rows[:2]] == [
        ("t" * MAX_ID_LENGTH, "s-1", '{"a":null}'),
        (None, None, "{}"),
    ]


def test_on_behalf_of_others(metrics: Metrics, folder: Path) -> None:
    identifier = metrics.ingest(
        "queue", "depth", 3, service="other", timestamp=5_000_000_000, description="How many wait"
    )
    assert identifier is not None
    (record,) = stored(folder)
    assert (record.id, record.service, record.timestamp, record.description) == (
        identifier,
        "other",
        5_000_000_000,
        "How many wait",
    )


@pytest.mark.parametrize("timestamp", [-1, 4_102_444_800_000_000_000, True, 1.0, "now"])
def test_a_moment_out_of_range_is_refused(metrics: Metrics, folder: Path, timestamp: Any) -> None:
    with pytest.raises(ValueError, match="timestamp must lie between the years 1970 and 2100"):
        metrics.ingest("queue", "depth", 3, timestamp=timestamp)
    assert live(folder) == []


def test_the_trace_id_of_the_request_that_is_served(metrics: Metrics, folder: Path) -> None:
    token = current_trace_id.set("4bf92f3577b34da6a3ce929d0e0e4736")
    try:
        for _ in range(2):
            metrics.record("a", "b", 1.0)
            metrics.record_operation("a", "b", 1.0)
            metrics.record("a", "b", 1.0, trace_id="other")
    finally:
        current_trace_id.reset(token)
    metrics.record("a", "b", 1.0)
    ours = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert [row["trace_id"] for row in live(folder)] == [ours, ours, "other"] * 2 + [None]


def test_a_long_error_is_cut(metrics: Metrics, folder: Path) -> None:
    for error in ("é" * 5000, "\ud83d\ude00" * 5000, "x" + "\ud83d\ude00" * 5000, "\ud800" * 5000, "", "  "):
        metrics.record_operation("a", "b", 1.0, False, error)
    assert [row["error"] for row in live(folder)] == [
        "é" * MAX_ERROR_LENGTH,
        "😀" * MAX_ERROR_LENGTH,
        "x" + "😀" * (MAX_ERROR_LENGTH - 1),
        "\ufffd" * MAX_ERROR_LENGTH,
        None,
        "  ",
    ]


@pytest.mark.parametrize(
    ("arguments", "service"), [(("shop.py",), "shop"), (("-m", "shop"), "shop"), (("-c", "import shop"), "python")]
)
def test_the_service_is_the_program_by_default(tmp_path: Path, arguments: tuple[str, ...], service: str) -> None:
    (tmp_path / "shop.py").write_text("from tallymark import Metrics; print(Metrics('metrics').service)")
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{service}\n"


# The life of a recorder


def calls(metrics: Metrics) -> list[Callable[[], object]]:
    return [
        lambda: metrics.record_operation("a", "b", 1.0),
        lambda: metrics.record("a", "b", 1.0),
        lambda: metrics.ingest("a", "b", 1.0),
        metrics.flush,
    ]


def test_before_start_and_after_stop(folder: Path) -> None:
    metrics = Metrics(folder)
    for call in calls(metrics):
        with pytest.raises(RuntimeError, match=r"not running: call start\(\)"):
            call()
    assert not folder.exists()
    assert not metrics.get_stats().is_running
    metrics.start()
    metrics.record("a", "b", 1.0)
    assert metrics.get_stats().is_running
    stop(metrics, folder)
    for call in calls(metrics):
        with pytest.raises(RuntimeError, match=r"not running"):
            call()
    assert not metrics.get_stats().is_running
    assert len(stored(folder)) == 1


def test_starting_twice_is_an_error_and_stopping_twice_is_not(metrics: Metrics) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        metrics.start()
    metrics.stop()
    metrics.stop()


def test_it_can_be_started_again(metrics: Metrics, folder: Path) -> None:
    metrics.record("a", "b", 1.0)
    stop(metrics, folder)
    metrics.start()
    assert metrics.get_stats().total_recorded == 0
    metrics.record("a", "b", 2.0)
    assert [record.value for record in stored(folder)] == [1.0, 2.0]


LIVES = """
import gc, os, sys, warnings
from tallymark import Metrics

def things():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

before = things()
metrics = Metrics(sys.argv[1])
for _ in range(3):
    metrics.start()
    assert things() == before
    metrics.record("a", "b", 1.0)
    assert things()[0] == before[0] + 1
    metrics.stop(120)
    while things() != before:  # the thread is on its way out
        pass
gc.collect()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no zombie")
"""


def test_stopping_leaves_nothing_behind(folder: Path) -> None:
    assert output(python("-c", LIVES, str(folder)), TIMEOUT) == "no zombie\n"
    assert os.listdir(folder / JOURNALS) == [".shipping"]


def test_a_recorder_that_recorded_nothing_makes_nothing(folder: Path) -> None:
    with Metrics(folder) as metrics:
        assert metrics._worker_pid == 0
    assert not folder.exists()


def test_it_keeps_to_its_folder_when_the_program_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = Metrics("./metrics", max_queue_size=512)
    metrics.start()
    metrics.record("a", "b", 0.0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for number in range(1, 200):  # several files
        metrics.record("a", "b", float(number))
    stats = metrics.get_stats()
    assert (stats.total_recorded, stats.queue_size + stats.total_persisted) == (200, 200)
    metrics.stop(TIMEOUT)
    assert os.listdir() == []
    assert sorted(record.value for record in stored(tmp_path / "metrics")) == list(range(200))


@pytest.mark.parametrize("store", [str, lambda path: f"lake:{path}", lambda path: path])
def test_ways_to_name_the_store(folder: Path, store: Callable[[Path], Any]) -> None:
    with recording(folder, store=store(folder)) as metrics:
        metrics.record("a", "b", 1.0)
    assert books(folder).pending == 1


# Waiting and awaiting


def test_flush_and_stop_bring_everything_into_the_store(metrics: Metrics, folder: Path) -> None:
    for _ in range(10):
        metrics.record("a", "b", 1.0)
    metrics.flush(TIMEOUT)
    stats = metrics.get_stats()
    assert (stats.total_recorded, stats.total_persisted, stats.queue_size) == (10, 10, 0)
    assert (stats.batches_written, stats.avg_batch_size) == (1, 10.0)
    assert stats.last_flush_timestamp is not None
    assert abs(stats.last_flush_timestamp.timestamp() - time.time()) < TIMEOUT
    assert (books(folder).stored, books(folder).pending) == (10, 0)
    metrics.record("a", "b", 1.0)
    stats = metrics.get_stats()
    assert (stats.total_recorded, stats.total_persisted, stats.queue_size) == (11, 10, 1)
    metrics.stop(TIMEOUT)
    stats = metrics.get_stats()
    assert (stats.total_recorded, stats.total_persisted, stats.queue_size, stats.batches_written) == (11, 11, 0, 2)
    assert (books(folder).stored, books(folder).pending) == (11, 0)


def test_everything_can_be_awaited(folder: Path) -> None:
    async def main() -> None:
        metrics = Metrics(folder)
        await metrics.start()
        await metrics.record_operation("a", "b", 1.0)
        await metrics.record_operation("a", "b", 1.0)
        await metrics.record("a", "b", 1.0)
        stats = await metrics.get_stats()
        assert (stats.total_recorded, stats.is_running) == (3, True)

        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        await metrics.flush(TIMEOUT)
        assert ticks > 5  # nobody else had to wait
        ticking.cancel()
        assert (await metrics.get_stats()).total_persisted == 3
        await metrics.record("a", "b", 1.0)
        await metrics.stop(TIMEOUT)
        await metrics.stop(TIMEOUT)

    asyncio.run(main())
    assert books(folder).stored == 4


def test_async_with(folder: Path) -> None:
    async def main() -> None:
        async with Metrics(folder) as metrics:
            await metrics.record("a", "b", 1.0)
            with pytest.raises(RuntimeError):
                metrics.start()
        with pytest.raises(RuntimeError):
            metrics.record("a", "b", 1.0)

    asyncio.run(main())
    assert len(stored(folder)) == 1


def test_a_store_that_takes_too_long_is_a_timeout_and_the_records_are_safe(metrics: Metrics, folder: Path) -> None:
    metrics.record("a", "b", 1.0)
    with shipping_lock(folder / JOURNALS) as free:
        assert free
        with pytest.raises(TimeoutError, match="1 records are not in the store yet; they are safe in"):
            metrics.flush(timeout=0.05)
        metrics.stop()  # somebody else is shipping: it is left to them
    assert metrics.get_stats().queue_size == 1
    assert ship(folder).records == 1
    assert metrics.get_stats().total_persisted == 1


def test_leaving_a_with_block_never_hides_the_error_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), Metrics(folder) as metrics:  # noqa: PT012
        metrics.record("a", "b", 1.0)
        monkeypatch.setattr("sys.executable", "/nonexistent/python")
        raise ZeroDivisionError
    assert metrics.get_stats().queue_size == 1


def test_a_shipper_that_is_killed_is_replaced(metrics: Metrics, folder: Path) -> None:
    metrics.record("a", "b", 1.0)
    sealer = metrics._sealer
    assert sealer._start_child()
    assert sealer._child is not None
    sealer._child.kill()
    metrics.flush(TIMEOUT)
    assert metrics.get_stats().total_persisted == 1


def test_a_shipper_that_fails_is_not_waited_for(
    metrics: Metrics, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.record("a", "b", 1.0)
    (folder / "table").write_text("in the way")
    metrics.stop(TIMEOUT)
    assert "shipping failed, the journal keeps the records" in caplog.text
    assert metrics.get_stats().queue_size == 1
    (folder / "table").unlink()
    assert ship(folder).records == 1


def test_stop_waits_for_the_shipper_that_it_started_itself(metrics: Metrics, folder: Path) -> None:
    metrics.record("a", "b", 1.0)
    assert metrics._sealer._start_child()
    child = metrics._sealer._child
    assert isinstance(child, subprocess.Popen)
    metrics.stop(TIMEOUT)
    assert child.returncode is not None
    assert books(folder).stored == 1
    gc.collect()


def test_flush_from_many_threads(metrics: Metrics, folder: Path) -> None:
    def work() -> None:
        for _ in range(3):
            metrics.record("a", "b", 1.0)
            metrics.flush(TIMEOUT)

    in_threads(work, 4)
    assert metrics.get_stats().total_persisted == 12
    metrics.stop(TIMEOUT)
    assert books(folder).stored == 12


def test_without_a_thread_to_spare(metrics: Metrics, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    metrics.record("a", "b", 1.0)
    metrics.record("a", "b", 1.0)
    monkeypatch.undo()
    started = time.monotonic()
    with shipping_lock(folder / JOURNALS):
        metrics.stop(TIMEOUT)
    assert time.monotonic() - started < TIMEOUT / 2
    assert len(live(folder)) == 2


# The books


def test_the_books_balance_all_the_time(folder: Path) -> None:
    metrics = Metrics(folder, max_queue_size=512)
    metrics.start()
    done = threading.Event()
    seen: list[MetricsStats] = []

    def watch() -> None:
        while not done.is_set():
            seen.append(metrics.get_stats())

    def work() -> None:
        for number in range(3000):
            metrics.record("a", f"b{number % 3}", 1.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    in_threads(work, 4)
    done.set()
    watcher.join()
    seen.append(metrics.get_stats())
    assert all(stats.total_recorded == total(stats) for stats in seen)
    recorded = [stats.total_recorded for stats in seen]
    assert recorded == sorted(recorded)
    assert recorded[-1] == 12_000
    assert seen[-1].queue_size + seen[-1].total_persisted <= 512
    metrics.stop(TIMEOUT)
    info = books(folder)
    assert (info.recorded, info.dropped) == (12_000, metrics.get_stats().dropped)


def test_a_full_journal_drops_the_newest_and_counts_it(folder: Path) -> None:
    metrics = Metrics(folder, max_queue_size=512)
    metrics.start()
    with shipping_lock(folder / JOURNALS):
        for number in range(1000):
            metrics.record("a", "b", float(number))
        stats = metrics.get_stats()
        assert [row["value"] for row in live(folder)] == list(range(stats.queue_size))
        assert stats.queue_size in range(400, 513)
        assert stats.dropped == {"journal_full": 1000 - stats.queue_size}
        assert metrics.ingest("a", "b", 1.0) is None
    metrics.flush(TIMEOUT)
    eventually(lambda: recorded_again(metrics))
    metrics.stop(TIMEOUT)
    info = books(folder)
    stats = metrics.get_stats()
    assert (info.stored, info.dropped, info.pending) == (stats.total_persisted, stats.dropped, 0)
    assert info.recorded == stats.total_recorded


def recorded_again(metrics: Metrics) -> bool:
    before = sum(metrics.get_stats().dropped.values())
    metrics.record("a", "b", 1.0)
    return sum(metrics.get_stats().dropped.values()) == before


def fill(metrics: Metrics) -> None:
    for _ in range(1000):
        metrics.record("a", "b", 1.0)


def test_a_full_journal_raises_where_it_was_told_to(folder: Path) -> None:
    metrics = Metrics(folder, max_queue_size=512, on_full="raise")
    metrics.start()
    with shipping_lock(folder / JOURNALS):
        with pytest.raises(BufferFull, match=r"has no room \(journal_full\)"):
            fill(metrics)
        with pytest.raises(BufferFull):
            metrics.record("a", "b", 1.0)
        with pytest.raises(BufferFull), metrics.track_operation("fine"):
            pass
        with pytest.raises(ZeroDivisionError), metrics.track_operation("broken"):
            raise ZeroDivisionError
        stats = metrics.get_stats()
        kept = len(live(folder))
        assert (stats.total_recorded, stats.queue_size, stats.dropped) == (kept, kept, {})
        assert kept > 400
    metrics.stop(TIMEOUT)


def test_a_full_journal_waits_where_it_was_told_to(folder: Path) -> None:
    metrics = Metrics(folder, max_queue_size=512, on_full="wait")
    metrics.start()
    metrics._journal._wait_seconds = TIMEOUT
    with shipping_lock(folder / JOURNALS):
        while metrics.get_stats().queue_size < 496:
            metrics.record("a", "b", 1.0)
        thread = threading.Thread(target=metrics.record, args=("a", "b", 1.0))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    metrics.flush(TIMEOUT)
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    stats = metrics.get_stats()
    assert (stats.total_recorded, stats.dropped) == (497, {})
    metrics._journal._wait_seconds = 0.05
    with shipping_lock(folder / JOURNALS):
        while not metrics.get_stats().dropped:
            metrics.record("a", "b", 1.0)
    metrics.stop(TIMEOUT)
