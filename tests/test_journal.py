"""Lanes: their writers, and readers that come at any moment."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recording import DEADLINE_SECONDS, books, clone, eventually, in_threads, live, recording, ship, stop, stored

import tallymark
from tallymark import Metrics
from tallymark.batch import CLOSED
from tallymark.lane import ENTRIES_AT, ENTRY_SIZE, JOURNALS, SUFFIX
from tallymark.lane_reader import LaneReader, lanes
from tallymark.shipper import Shipper, shipping_lock
from tallymark.store import open_store

pytestmark = pytest.mark.usefixtures("core")


def files(folder: Path) -> list[Path]:
    return sorted((folder / JOURNALS).glob("*" + SUFFIX))


def hold(metrics: Metrics, count: int) -> None:
    """Make a recorder open so many lanes, as frames that interrupt each other would."""
    free = metrics._journal.pool.free
    held = []
    for _ in range(count):
        metrics.record("a", "b", 1.0)
        held.append(free.pop())
    free.extend(held)


# Reading


def test_another_process_sees_a_record_at_once(folder: Path) -> None:
    with recording(folder) as metrics:
        for number in range(3):
            metrics.record("a", "b", float(number))
            with tallymark.open(str(folder)) as reader:
                assert [record.value for record in reader.records(limit=1).records] == [number]
            assert books(folder).pending == number + 1


def test_a_reader_that_the_writer_passes_misses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel copies a page at a time; meanwhile the writer goes on."""
    pread = os.pread

    def pread_slowly(fd: int, count: int, offset: int) -> bytes:
        if offset != ENTRIES_AT:
            return pread(fd, count, offset)
        first = min(count, 120 * ENTRY_SIZE + 7)
        passed = pread(fd, first, offset)
        for _ in range(60):
            metrics.record("a", "b", 1.0)
        return passed + pread(fd, count - first, offset + first)

    with recording(folder) as metrics:
        for _ in range(100):
            metrics.record("a", "b", 1.0)
        (lane,) = lanes(folder / JOURNALS)
        monkeypatch.setattr(os, "pread", pread_slowly)
        found = lane.read(0)
        monkeypatch.undo()
        rest = lane.read(found.end)
        assert (found.corrupt, rest.corrupt) == (0, 0)
        seen = found.table["seq"].to_pylist() + rest.table["seq"].to_pylist()
        assert seen == list(range(2, metrics.get_stats().total_recorded + 2))


def test_reading_and_shipping_while_everybody_records(folder: Path) -> None:
    done = threading.Event()
    counts: list[int] = []

    def watch() -> None:
        with tallymark.open(str(folder)) as reader:
            while not done.is_set():
                (row,) = reader.query(since=None, agg=["count"], metric_type="a").rows() or [{"count": 0}]
                counts.append(row["count"])

    def keep_shipping() -> None:
        while not done.is_set():
            ship(folder)

    def work() -> None:
        for number in range(2000):
            metrics.record("a", "b", float(number), metadata={"thread": threading.get_native_id()})

    with recording(folder, max_queue_size=8000, on_full="wait") as metrics:
        metrics._journal._wait_seconds = DEADLINE_SECONDS
        helpers = [threading.Thread(target=watch), threading.Thread(target=keep_shipping)]
        for helper in helpers:
            helper.start()
        in_threads(work, 4)
        done.set()
        for helper in helpers:
            helper.join()
        assert metrics.get_stats().total_recorded == 8000
    assert counts == sorted(counts)
    assert counts[-1] <= 8000
    ship(folder)
    per_thread: dict[str, list[float]] = {}
    for record in stored(folder):
        per_thread.setdefault(record.metadata["thread"], []).append(record.value)
    assert [sorted(values) for values in per_thread.values()] == [list(range(2000))] * 4


def test_a_lane_stays_readable_when_it_is_deleted(folder: Path) -> None:
    with recording(folder) as metrics:
        metrics.record("a", "b", 1.0)
    (lane,) = lanes(folder / JOURNALS)
    ship(folder)
    assert not files(folder)
    assert lane.rows(0).num_rows == 1


def test_what_is_no_lane_is_left_out_and_left_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recording(folder) as metrics:
        metrics.record("a", "b", 1.0)
    journals = folder / JOURNALS
    for name, content in (("empty", b""), ("short", b"TALLYMRK"), ("foreign", b"x" * 100_000), ("zero", bytes(20_000))):
        (journals / (name + SUFFIX)).write_bytes(content)
    (journals / ("folder" + SUFFIX)).mkdir()
    (journals / ("gone" + SUFFIX)).symlink_to("nowhere")
    (journals / "notes.txt").write_text("hello")
    assert len(live(folder)) == 1
    assert ship(folder).records == 1
    assert books(folder).stored == 1
    left = {path.name for path in journals.iterdir() if not path.name.startswith(".")}
    assert left == {"notes.txt", *(name + SUFFIX for name in ("empty", "short", "foreign", "zero", "folder", "gone"))}
    complaints = len(caplog.records)
    ship(folder)
    assert len(caplog.records) == complaints  # once is enough


def test_more_files_than_a_process_may_open(folder: Path) -> None:
    """Left behind by processes that were killed."""
    with recording(folder, max_queue_size=64) as metrics:
        metrics.record("a", "b", 1.0)
    (path,) = files(folder)
    for number in range(1, 300):
        clone(path, number)
    script = "ulimit -n 200; exec " + f"{sys.executable} -m tallymark.shipper {folder}"
    subprocess.run(["bash", "-c", script], check=True, timeout=120)
    assert files(folder) == []
    assert books(folder).stored == 300


def test_unfinished_files_are_removed_when_they_are_old(folder: Path) -> None:
    journals = folder / JOURNALS
    journals.mkdir(parents=True)
    old, fresh = journals / ("." + "0" * 32), journals / ("." + "1" * 32)
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))
    ship(folder)
    assert (old.exists(), fresh.exists()) == (False, True)


# Writing


def test_lanes_that_a_busy_moment_left_behind_are_used(folder: Path) -> None:
    with recording(folder, max_queue_size=512) as metrics, shipping_lock(folder / JOURNALS):
        hold(metrics, 8)
        for _ in range(480):
            metrics.record("a", "b", 1.0)
        assert metrics.get_stats().dropped == {}
        assert len(files(folder)) == 8


def test_a_few_lanes_serve_many_threads_and_nothing_is_dropped(folder: Path) -> None:
    def work() -> None:
        for number in range(500):
            metrics.record("a", f"b{number}", 1.0)

    with recording(folder) as metrics:
        in_threads(work, 64)
        stats = metrics.get_stats()
        assert (stats.total_recorded, stats.queue_size, stats.dropped) == (32_000, 32_000, {})
        assert len(files(folder)) <= 16


def test_the_bound_holds_whoever_records(folder: Path) -> None:
    def work() -> None:
        for _ in range(300):
            metrics.record("a", "b", 1.0)

    with recording(folder, max_queue_size=640) as metrics, shipping_lock(folder / JOURNALS):
        in_threads(work, 8)
        stats = metrics.get_stats()
        assert len(files(folder)) == 8
        assert stats.queue_size == len(live(folder)) <= 640
        assert stats.total_recorded == 2400


def test_the_bound_is_for_all_series_together(folder: Path) -> None:
    with recording(folder, max_queue_size=512) as metrics, shipping_lock(folder / JOURNALS):
        for number in range(2000):
            metrics.record("a", f"b{number}", 1.0)
        stats = metrics.get_stats()
        assert stats.total_recorded == 2000
        assert stats.queue_size == len(live(folder)) > 100
        assert {row["name"] for row in live(folder)} == {f"b{number}" for number in range(stats.queue_size)}


def test_large_records_fill_a_lane_sooner(folder: Path) -> None:
    with recording(folder, max_queue_size=1024) as metrics, shipping_lock(folder / JOURNALS):
        for number in range(40):
            metrics.record("a", "b", float(number), metadata={"text": "x" * 16_000})
        stats = metrics.get_stats()
        assert (stats.total_recorded, stats.dropped) == (40, {})
        assert [row["value"] for row in live(folder)] == list(range(40))


def test_stopping_while_threads_record(folder: Path) -> None:
    """Every call that returned is there, and the others got an error."""
    returned = [0] * 8

    def work(number: int) -> None:
        try:
            while True:
                metrics.record("a", "b", float(number))
                returned[number] += 1
        except RuntimeError:
            pass

    for _ in range(4):
        shutil.rmtree(folder, ignore_errors=True)
        returned[:] = [0] * 8
        metrics = Metrics(folder)
        metrics.start()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: sum(returned) > 100)
        stop(metrics, folder)
        for thread in threads:
            thread.join()
        stats = metrics.get_stats()
        assert stats.total_recorded == stats.queue_size == sum(returned)
        assert len(live(folder)) == sum(returned)
        assert all(lane.is_complete() for lane in lanes(folder / JOURNALS))


def test_a_record_is_on_the_disk_before_the_call_returns_where_power_cuts_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("tallymark.journal.os.fdatasync", synced.append)
    with recording(folder, durability="power") as metrics:
        monkeypatch.setattr(metrics, "_wake", lambda: None)
        for _ in range(5):
            before = len(synced)
            metrics.record("a", "b", 1.0)
            assert len(synced) > before

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "the disk is broken")

        monkeypatch.setattr("tallymark.journal.os.fdatasync", fail)
        metrics.record("a", "b", 1.0)
        assert "broken" in (metrics._journal.complaint or "")
    assert len(live(folder)) == 6


def test_the_disk_gets_what_was_recorded_within_a_second_or_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    fdatasync = os.fdatasync

    def note(fd: int) -> None:
        fdatasync(fd)
        synced.set()

    monkeypatch.setattr("tallymark.journal.os.fdatasync", note)
    with recording(folder) as metrics:
        metrics.record("a", "b", 1.0)
        assert synced.wait(DEADLINE_SECONDS)


def test_a_full_lane_is_unlocked_and_shipped_by_a_child(folder: Path) -> None:
    with recording(folder, max_queue_size=512, flush_interval_seconds=0.05) as metrics:
        for _ in range(100):
            metrics.record("a", "b", 1.0)
        eventually(lambda: metrics.get_stats().total_persisted >= 62, 120)
        stats = metrics.get_stats()
        assert stats.total_recorded == 100
        assert stats.batches_written >= 1
        assert stats.last_flush_timestamp is not None


# Statistics


def test_statistics_hold_when_a_shipper_dies_before_it_says_what_it_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(folder) as metrics:
        for _ in range(5):
            metrics.record("a", "b", 1.0)

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(LaneReader, "note_shipped", die)
            with pytest.raises(KeyboardInterrupt):
                ship(folder)
        assert metrics.get_stats().total_persisted == 0
        assert (books(folder).stored, books(folder).pending) == (5, 0)
        ship(folder)
        stats = metrics.get_stats()
        assert (stats.total_persisted, stats.queue_size) == (5, 0)
        metrics.record("a", "b", 1.0)
        ship(folder)
        assert metrics.get_stats().total_persisted == 6
    assert books(folder).stored == 6


def test_statistics_hold_while_lanes_come_and_go(folder: Path) -> None:
    done = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not done.is_set():
            seen.append(metrics.get_stats().total_recorded)

    with recording(folder, max_queue_size=512) as metrics:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(4000):
            metrics.record("a", "b", 1.0)
            for path in files(folder) if metrics._journal.complete_lanes > 3 else ():
                if not any(lane.path == path for lane in metrics._journal._open):
                    path.unlink()  # as a shipper does that took it
        done.set()
        watcher.join()
        assert metrics.get_stats().total_recorded == 4000
    assert seen == sorted(seen)


def test_closed_lanes_are_over_for_every_reader(folder: Path) -> None:
    with recording(folder) as metrics:
        metrics.record("a", "b", 1.0)
    (lane,) = lanes(folder / JOURNALS)
    ship(folder)
    assert open_store(str(folder)).positions([lane.journal]) == {lane.journal: CLOSED}
    assert (lane.rows(CLOSED).num_rows, lane.pending(CLOSED)) == (0, 0)


# The shipper of a server


def test_a_shipper_on_duty(folder: Path) -> None:
    shipper = Shipper(open_store(str(folder)), folder / JOURNALS, interval_seconds=DEADLINE_SECONDS * 10)
    shipper.stop()
    shipper.start()
    try:
        eventually(lambda: tallymark.sealer.somebody_ships(folder / JOURNALS))
        metrics = Metrics(folder)
        metrics.start()
        metrics.record("a", "b", 1.0)
        metrics.flush(DEADLINE_SECONDS)  # asks it
        assert metrics.get_stats().total_persisted == 1
        metrics.record("a", "b", 1.0)
        started = time.monotonic()
        metrics.stop(DEADLINE_SECONDS)  # leaves it to the shipper
        eventually(lambda: metrics.get_stats().total_persisted == 2)
        assert time.monotonic() - started < DEADLINE_SECONDS
        assert files(folder) == []
    finally:
        shipper.stop()
    assert not tallymark.sealer.somebody_ships(folder / JOURNALS)
    assert books(folder).stored == 2


def failing(error: Exception, times: int) -> Callable[..., Any]:
    left = [error] * times

    def fail(*_: object) -> None:
        if left:
            raise left.pop()

    return fail


def test_a_shipper_on_duty_survives_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_store(str(folder))
    monkeypatch.setattr(lake, "write", failing(tallymark.StoreError("no room"), 1))
    monkeypatch.setattr("tallymark.shipper._remove_unfinished", failing(RuntimeError("a bug"), 1))
    (folder).mkdir()
    (folder / JOURNALS).write_text("in the way")
    shipper = Shipper(lake, folder / JOURNALS, interval_seconds=0.1)
    shipper.start()
    try:
        eventually(lambda: shipper.failure is not None)
        (folder / JOURNALS).unlink()
        with recording(folder) as metrics:
            metrics.record("a", "b", 1.0)
            eventually(lambda: metrics.get_stats().total_persisted == 1)
            eventually(lambda: shipper.failure is None)
    finally:
        shipper.stop()
