"""Recording from where code is interrupted: signal handlers, finalisers, the garbage collector; while others record."""

import _thread
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from recording import end_alarm, eventually, in_threads, live, output, python, recording, ship

from tallymark import Metrics
from tallymark.lane import Lane

# The alarm of pytest-timeout is used here for other things.
pytestmark = [pytest.mark.usefixtures("core"), pytest.mark.timeout(300, method="thread")]

SECONDS = 1.0
"""For how long chance gets its chances."""


@contextmanager
def interrupting(handler: Callable[[], object], every: float = 0.0002) -> Iterator[list[int]]:
    """Run something in a signal handler, very often; counts in the one element of what it yields."""
    calls = [0]
    over = False

    def handle(number: int, frame: FrameType | None) -> None:
        calls[0] += 1
        try:
            handler()
        finally:
            # Not periodic: where a handler takes longer than that nothing else would ever be done.
            if not over:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(every / 10, every))

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, every)
    try:
        yield calls
    finally:
        over = True  # for the handler that runs between the two calls
        end_alarm(before)


def record(metrics: Metrics, number: int) -> None:
    """Now one way through the recorder, now another."""
    if number % 7 == 0:
        metrics.record("a", f"b{number % 70}", float(number), metadata={"list": [number]})
    elif number % 5 == 0:
        metrics.ingest("a", "b", number)
    else:
        metrics.record_operation("a", "b", float(number), metadata={"number": number})


def assert_exact(metrics: Metrics, folder: Path, expected: int) -> None:
    """The books, and what is there, say so many records."""
    stats = metrics.get_stats()
    assert (stats.total_recorded, stats.queue_size, stats.dropped) == (expected, expected, {})
    rows = live(folder)
    assert len({(row["journal"], row["seq"]) for row in rows}) == len(rows) == expected


@pytest.mark.parametrize("max_queue_size", [1_000_000, 6_000])
def test_a_signal_handler(folder: Path, max_queue_size: int) -> None:
    with recording(folder, max_queue_size=max_queue_size) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        recorded = 0
        with interrupting(lambda: record(metrics, recorded)) as calls:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and recorded < 4_000:
                record(metrics, recorded)
                recorded += 1
        assert calls[0] > 10
        if metrics.get_stats().dropped:  # a small journal gets full
            assert metrics.get_stats().total_recorded == recorded + calls[0]
        else:
            assert_exact(metrics, folder, recorded + calls[0])


def test_a_signal_handler_while_threads_record(folder: Path) -> None:
    with recording(folder) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        counts = [0, 0, 0]
        done = threading.Event()

        def work(number: int) -> None:
            while not done.is_set():
                record(metrics, counts[number])
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        with interrupting(lambda: record(metrics, 7)) as calls:
            for thread in threads:
                thread.start()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                record(metrics, counts[2])
                counts[2] += 1
            done.set()
            for thread in threads:
                thread.join()
        assert_exact(metrics, folder, sum(counts) + calls[0])


def test_a_handler_at_every_step_of_a_call(folder: Path) -> None:
    """Each function that a recording call makes use of is interrupted once, by a handler that records."""
    depth = 0
    interruptions = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal depth, interruptions
        if depth == 0 and "tallymark" in frame.f_code.co_filename:
            depth = 1
            metrics.record("a", "inner", 1.0)
            metrics.get_stats()
            interruptions += 1
            depth = 0
        return trace

    with recording(folder, max_queue_size=8000) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for number in range(10):
                metrics.record("a", f"outer{number % 3}", 1.0, metadata={"list": [number]})
        finally:
            sys.settrace(before)
        assert interruptions > 500
        assert_exact(metrics, folder, 10 + interruptions)


class Timeout(Exception):
    """Out of a signal handler, as of Celery's soft time limit."""


@pytest.mark.parametrize("max_queue_size", [1_000_000, 40_000])
def test_exceptions_out_of_signal_handlers(folder: Path, max_queue_size: int) -> None:
    """Whatever call they hit: those that returned are there, and recording goes on for as long as one likes."""
    returned: list[int] = []
    inside = False

    def give_up() -> None:
        if inside:
            raise Timeout

    with recording(folder, max_queue_size=max_queue_size) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        with interrupting(give_up, 0.0005) as calls:
            for number in range(20_000):
                try:
                    inside = True
                    metrics.record("a", f"b{number % 50}", number, metadata={"list": [number]})
                    returned.append(number)
                    inside = False
                except Timeout:
                    inside = False
        assert calls[0] > 20
        stats = metrics.get_stats()
        assert stats.dropped == {}
        found = [int(row["value"]) for row in live(folder)]
        assert len(set(found)) == len(found)
        assert set(returned) <= set(found) <= set(range(20_000))
        assert len(returned) < 20_000
        # A call that was cut short may or may not have been recorded; the books know.
        assert stats.total_recorded == stats.queue_size == len(found)
        # No lane is lost to a call that was cut short; full ones are closed when the thread of the recorder gets there.
        eventually(lambda: len(metrics._journal._open) <= 3)
    assert ship(folder).records == len(found)


def test_a_finaliser(folder: Path) -> None:
    class Resource:
        def __init__(self) -> None:
            self.itself = self  # so that only the garbage collector gets it

        def __del__(self) -> None:
            record(metrics, 7)

    made = 3000
    with recording(folder) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        threshold = gc.get_threshold()
        gc.set_threshold(20, 5, 5)
        try:
            for number in range(made):
                Resource()
                record(metrics, number)
        finally:
            gc.set_threshold(*threshold)
            gc.collect()
        assert_exact(metrics, folder, 2 * made)


def test_a_callback_of_the_garbage_collector(folder: Path) -> None:
    calls = 0

    def callback(phase: str, info: dict[str, int]) -> None:
        nonlocal calls
        calls += 1
        metrics.record("gc", phase, 1.0, metadata={"generation": info["generation"]})

    def work() -> None:
        garbage: list[object] = []
        for number in range(2000):
            garbage.append([number])
            record(metrics, number)

    with recording(folder) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        threshold = gc.get_threshold()
        gc.callbacks.append(callback)
        gc.set_threshold(20, 5, 5)
        try:
            in_threads(work, 2)
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(callback)
        assert calls > 100
        assert_exact(metrics, folder, 4000 + calls)


def test_a_thread_pool(folder: Path) -> None:
    with recording(folder) as metrics, ThreadPoolExecutor(16) as pool:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        list(pool.map(lambda number: record(metrics, number), range(20_000)))
        assert_exact(metrics, folder, 20_000)


def test_another_thread_is_in_the_middle_of_a_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it stays there."""
    inside, go_on = threading.Event(), threading.Event()
    append = Lane.append

    def append_slowly(lane: Lane, *arguments: Any) -> int:
        if threading.current_thread().name == "slow":
            inside.set()
            assert go_on.wait(60)
        return append(lane, *arguments)

    with recording(folder) as metrics:
        monkeypatch.setattr(Lane, "append", append_slowly)
        slow = threading.Thread(target=metrics.record, args=("a", "slow", 1.0), name="slow")
        slow.start()
        assert inside.wait(60)
        for number in range(100):
            record(metrics, number)
        assert len(live(folder)) == 100
        metrics.get_stats()
        go_on.set()
        slow.join()
        assert_exact(metrics, folder, 101)


EXIT = """
import atexit, sys, threading, weakref
from tallymark import Metrics

class Late:
    def __del__(self):
        try:
            metrics.record("a", "late", 1.0)
        except RuntimeError:
            pass

late = Late()
late.itself = late
metrics = Metrics(sys.argv[1])
metrics.start()
atexit.register(lambda: metrics.record("a", "at exit", 1.0))

def daemon():
    try:
        while True:
            metrics.record("a", "daemon", 1.0)
    except RuntimeError:
        pass

threading.Thread(target=daemon, daemon=True).start()
for number in range(1000):
    metrics.record("a", "b", float(number))
"""


def test_a_program_that_ends_without_a_word(folder: Path) -> None:
    assert output(python("-c", EXIT, str(folder)), 120) == ""
    ship(folder)
    names = [record["name"] for record in rows(folder)]
    assert names.count("b") == 1000
    assert names.count("at exit") == 1
    assert not live(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    import tallymark

    with tallymark.open(str(folder)) as reader:
        return [row for page in reader.pages() for row in page.table.to_pylist()]


def test_one_thread_is_started_whoever_comes_in_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread makes its first record while this one is about to start the recorder's thread."""
    started = []
    work, allocate = Metrics._work, _thread.allocate_lock

    def allocate_late() -> _thread.LockType:
        monkeypatch.setattr(_thread, "allocate_lock", allocate)
        metrics.record("a", "other", 1.0)
        return allocate()

    def noted(self: Metrics, *arguments: Any) -> None:
        started.append(_thread.get_ident())
        work(self, *arguments)

    monkeypatch.setattr(Metrics, "_work", noted)
    with recording(folder) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        monkeypatch.setattr(_thread, "allocate_lock", allocate_late)
        metrics.record("a", "this", 1.0)
    assert len(started) == 1


def test_a_thread_that_cannot_be_started_is_with_the_next_lane(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = _thread.start_new_thread

    def refuse(*arguments: Any) -> int:
        monkeypatch.setattr(_thread, "start_new_thread", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with recording(folder, max_queue_size=1_000) as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]
        for number in range(500):
            metrics.record("a", "b", float(number))
        eventually(lambda: metrics._journal.complete_lanes > 2)  # somebody closes those that are full
        assert_exact(metrics, folder, 500)
