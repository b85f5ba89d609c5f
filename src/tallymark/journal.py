"""The journal: records in memory-mapped files that outlive the process.

A record is in the page cache when the call returns, so SIGKILL cannot take it back and any other process can read it.
Nothing here waits for a lock, a disk or a network.

A process writes to *lanes* (:mod:`tallymark.lane`). Whoever records takes a lane off a list, appends, and puts it
back. ``list.pop`` and ``list.append`` are atomic, so a second thread, a signal handler or the garbage collector that
comes in meanwhile finds the list shorter and takes another lane: there is nothing to dead-lock on. Most processes
never need a second lane.
"""

import contextlib
import errno
import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tallymark.clock import Clock
from tallymark.core import Pool
from tallymark.errors import BufferFull
from tallymark.lane import (
    BATCHES,
    COUNTERS_AT,
    COUNTERS_SIZE,
    DROP_REASONS,
    RECORD,
    SHIPPED,
    SHIPPED_AT,
    Lane,
    read_counters,
)
from tallymark.metadata import accepted_keys
from tallymark.model import SeriesKey, check_series

LANE_ENTRIES: Final = 65_536
"""Entries of a lane, unless the bound of the journal asks for smaller ones."""

RETRY_NS: Final = 50_000_000
"""How long a full journal or disk is left alone before it is tried again."""

OnFull = Literal["drop", "raise", "wait"]

_log = logging.getLogger("tallymark")


@dataclass(frozen=True)
class JournalStats:
    """What became of the records of one process. recorded = stored + pending + dropped."""

    stored: int
    pending: int
    dropped: dict[str, int]
    batches: int
    last_batch_ns: int

    @property
    def recorded(self) -> int:
        """Every call that was accepted."""
        return self.stored + self.pending + sum(self.dropped.values())


class Journal:
    """The lanes of one process.

    Args:
        folder: where the files go; made when it is missing.
        max_records: how many records may wait to be shipped, rounded up to whole lanes.
        on_full: what happens to a record for which there is no room: it is dropped and counted, the call raises
            :class:`~tallymark.errors.BufferFull`, or the call waits up to ``wait_seconds`` and then drops.
        sync_each: make every record safe against a power cut before ``append`` returns.
        wake: called when a lane was opened or completed; must be callable from a signal handler.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        max_records: int,
        on_full: OnFull = "drop",
        wait_seconds: float = 1.0,
        sync_each: bool = False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._on_full: OnFull = on_full
        self._wait_seconds = wait_seconds
        self._sync_each = sync_each
        self._wake = wake
        self._entries = max(64, min(LANE_ENTRIES, max_records // 8))
        self._max_lanes = max(2, -(-max_records // self._entries))
        self._closed = False
        #: The lanes that nobody holds: another list after a fork and after close().
        self.pool = Pool()
        self.pool.service = None
        self.pool.accepted = accepted_keys
        self._begin()
        _journals.add(self)

    def _begin(self) -> None:
        """The state of a process that has recorded nothing yet."""
        self.pool.free = []
        self._open: list[Lane] = []  # the free ones and those that somebody holds
        self._unsynced: list[Lane] = []  # complete and unmapped; sync() closes their files
        self._complete: dict[Path, int] = {}  # complete lanes that are still on disk: how many records each has
        self._gone: list[int] = []  # the records of each lane that was shipped and deleted
        self._past_dropped: list[list[int]] = []
        # Drops that no lane could take; sync() moves them into one.
        self._homeless = [itertools.count() for _ in DROP_REASONS]
        self._housed = [0] * len(DROP_REASONS)
        self._retry_at = 0
        self._reason = 0
        self.complaint: str | None = None  # why no lane could be opened; for a log, not from here: record cannot log

    def append(
        self,
        key: SeriesKey,
        value: float,
        outcome: int,
        text: bytes,
        metadata: int,
        error: int = 0,
        trace: int = 0,
        session: int = 0,
        timestamp: int | None = None,
    ) -> tuple[Lane, int] | None:
        """Write one record: its series, value, outcome (an index into ``OUTCOMES``), its four texts as one and the
        length of each in bytes.

        Returns the lane and the offset of the entry in it; None when the record was dropped, and counted.

        Raises:
            ValueError: the series is not valid.
            BufferFull: there is no room, and this journal was told to raise.
            RuntimeError: the journal was closed meanwhile.
        """
        if timestamp is None:
            timestamp = self._clock.time_ns()
        deadline = 0
        while True:
            free = self.pool.free
            try:
                lane = free.pop()
            except IndexError:
                new = self._open_lane()
                if new is None:
                    if self._closed:
                        raise RuntimeError("the recorder is not running") from None
                    if self._open and not deadline:
                        # Others hold every lane and no more may be opened: let them finish.
                        deadline = time.monotonic_ns() + RETRY_NS
                    if time.monotonic_ns() < deadline:
                        time.sleep(0)
                        continue
                    next(self._homeless[self._reason])
                    return None
                lane = new
            try:
                number = lane.series.get(key)
                if number is None:
                    number = lane.define(key, check_series(key))
                if number is not None:
                    at = lane.append(
                        RECORD, number, timestamp, value, outcome, text, metadata, error, trace, session
                    )
                    if at:
                        if self._sync_each:
                            os.fdatasync(lane.fd)
                        return lane, at
                new = self._open_lane()
                if new is not None:
                    full, lane = lane, new
                    self._complete_lane(full)
                    continue
                if self._on_full == "raise":
                    raise BufferFull(f"the journal in {self.folder} has no room ({DROP_REASONS[self._reason]})")
                if self._on_full == "drop" or time.monotonic_ns() > (deadline or time.monotonic_ns()):
                    lane.drop(self._reason)
                    return None
            except ValueError:
                # The lane was closed under this frame: this is a forked child, or another thread called close().
                if free is self.pool.free:
                    raise
                continue
            finally:
                # Back into the list it was taken from; after a fork that list is nobody's.
                free.append(lane)
            deadline = deadline or time.monotonic_ns() + int(self._wait_seconds * 1e9)
            time.sleep(0.001)

    @property
    def complete_lanes(self) -> int:
        """How many lanes are full and not known to be shipped."""
        return len(self._complete)

    def drop(self, reason: str) -> None:
        """Count a record that was refused before it came here."""
        index = DROP_REASONS.index(reason)
        free = self.pool.free
        try:
            lane = free.pop()
        except IndexError:
            next(self._homeless[index])
            return
        try:
            lane.drop(index)
        finally:
            free.append(lane)

    def _open_lane(self) -> Lane | None:
        """A new lane, held by the caller; None where there may be none, and ``_reason`` says why."""
        if self._closed or time.monotonic_ns() < self._retry_at:
            return None
        self._forget_shipped()
        if len(self._complete) + len(self._open) >= self._max_lanes:
            self._refuse("journal_full", f"{self._max_lanes * self._entries} records wait to be shipped")
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lane = Lane(self.folder, self._entries)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            self._refuse("disk_full" if full else "journal_unwritable", str(error))
            return None
        self.complaint = None
        self._open.append(lane)
        self._wake()
        return lane

    def _refuse(self, reason: str, complaint: str) -> None:
        self._reason = DROP_REASONS.index(reason)
        self._retry_at = time.monotonic_ns() + RETRY_NS
        self.complaint = complaint

    def _complete_lane(self, lane: Lane) -> None:
        """Unmap a full lane. Its file is closed by sync(), which may wait for the disk."""
        self._complete[lane.path] = lane.records
        self._past_dropped.append(lane.dropped)
        self._open.remove(lane)
        lane.buffer.close()
        self._unsynced.append(lane)
        self._wake()

    def _forget_shipped(self) -> None:
        for path in list(self._complete):
            if not path.exists():
                records = self._complete.pop(path, None)
                if records is not None:
                    self._gone.append(records)

    def sync(self) -> None:
        """Bring what was written so far to the disk, and close complete lanes. For one thread at a time."""
        for lane in list(self._open):
            if lane.at != lane.synced:
                lane.synced = lane.at
                os.fdatasync(lane.fd)
        while self._unsynced:
            lane = self._unsynced.pop()
            try:
                os.fdatasync(lane.fd)
            finally:
                lane.close()
        self._house_drops()

    def _house_drops(self) -> None:
        """Write the drops that no lane could take into one."""
        counts = [_peek(counter) for counter in self._homeless]
        if counts == self._housed:
            return
        free = self.pool.free
        try:
            lane = free.pop()
        except IndexError:
            new = self._open_lane()
            if new is None:
                return
            lane = new
        try:
            for index, total in enumerate(counts):
                while self._housed[index] < total:
                    lane.drop(index)
                    self._housed[index] += 1
        finally:
            free.append(lane)

    def close(self) -> None:
        """Complete every lane and unlock it. A thread that is inside ``append`` meanwhile gets RuntimeError."""
        with contextlib.suppress(OSError):
            self.sync()
        self._closed = True
        self.pool.free = []
        for lane in list(self._open):
            self._complete_lane(lane)
        while self._unsynced:
            lane = self._unsynced.pop()
            with contextlib.suppress(OSError):
                os.fdatasync(lane.fd)
            lane.close()

    def stats(self) -> JournalStats:
        """What became of the records of this process so far, as far as its journals tell."""
        self._forget_shipped()
        lanes = dict(self._complete)
        dropped = [sum(column) for column in zip([0] * len(DROP_REASONS), *self._past_dropped, strict=False)]
        counters = {}
        for lane in list(self._open):
            lanes[lane.path] = lane.records
            dropped = [a + b for a, b in zip(dropped, lane.dropped, strict=True)]
        for path in lanes:
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
                counters[path] = read_counters(os.pread(file.fileno(), COUNTERS_SIZE, COUNTERS_AT))
        shipped = {path: min(values[SHIPPED], lanes[path]) for path, values in counters.items()}
        gone = list(self._gone)
        total = sum(gone) + sum(lanes.values())
        stored = sum(gone) + sum(shipped.values())
        homeless = [_peek(counter) - done for counter, done in zip(self._homeless, self._housed, strict=True)]
        return JournalStats(
            stored=stored,
            pending=total - stored,
            dropped={
                reason: a + b
                for reason, a, b in zip(DROP_REASONS, dropped, homeless, strict=True)
                if a + b
            },
            batches=len(gone) + sum(values[BATCHES] for values in counters.values()),
            last_batch_ns=max((values[SHIPPED_AT] for values in counters.values()), default=0),
        )

    def _forked(self) -> None:
        """In a forked child: the lanes are the parent's. Closing them here also gives up their inherited locks."""
        for lane in (*self._open, *self._unsynced):
            with contextlib.suppress(OSError, BufferError):
                lane.close()
        self._begin()


def _peek(counter: "itertools.count[int]") -> int:
    """The next value of a counter, without taking it. (``next`` on a counter is atomic, ``+=`` is not.)"""
    value: int = counter.__reduce__()[1][0]  # type: ignore[index]
    return value


_journals: "weakref.WeakSet[Journal]" = weakref.WeakSet()


def _forked() -> None:
    for journal in _journals:
        journal._forked()


os.register_at_fork(after_in_child=_forked)
