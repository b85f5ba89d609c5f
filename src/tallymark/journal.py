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
import os
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

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
from tallymark.model import SeriesKey, check_series

if TYPE_CHECKING:
    from pathlib import Path

    from tallymark.privacy import PiiPolicy

LANE_ENTRIES: Final = 65_536
"""Entries of a lane, unless the bound of the journal asks for smaller ones."""

RETRY_NS: Final = 50_000_000
"""How long a full journal or disk is left alone before it is tried again."""

PATIENCE_NS: Final = 10_000_000
"""How long a frame that finds every lane held waits for one before it opens another."""

HELD_NS: Final = 1_000_000_000
"""How long it waits where no other may be opened: a busy machine may keep the thread that holds one from running."""

STATS_ATTEMPTS: Final = 100
"""How often statistics are taken again because lanes changed places meanwhile."""

OnFull = Literal["drop", "raise", "wait"]


class JournalStats(NamedTuple):
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
        pii: what becomes of names that look like a secret or a person; by default they are masked.
    """

    def __init__(
        self,
        folder: "Path",
        clock: Clock,
        *,
        max_records: int,
        on_full: OnFull = "drop",
        wait_seconds: float = 1.0,
        sync_each: bool = False,
        wake: Callable[[], None] = lambda: None,
        pii: "PiiPolicy | None" = None,
    ) -> None:
        from tallymark.metadata import accepted_keys
        from tallymark.privacy import MASK

        self.folder = folder
        self._clock = clock
        self._on_full: OnFull = on_full
        self._wait_seconds = wait_seconds
        self._sync_each = sync_each
        self._wake = wake
        self._pii = pii or MASK
        self._entries = max(64, min(LANE_ENTRIES, max_records // 8))
        self._max_lanes = max(2, -(-max_records // self._entries))
        self.closed = False
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
        self._opening: list[None] = []  # one for each that is being made
        self._full: list[Lane] = []  # those of the open ones that sync() is to close
        #: Complete lanes that are still on disk: the records and the drops of each.
        self._complete: dict[Path, tuple[int, list[int]]] = {}
        #: Of each lane that was shipped and deleted: records, batches, drops.
        self._gone: list[tuple[int, ...]] = []
        self._gone_at = 0
        self._batches: dict[Path, int] = {}  # of lanes that are still there, when stats() last looked
        self._begun, self._ended = itertools.count(), itertools.count()  # of _changing()
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
            held: list[Lane] = []
            try:
                # Taken and held by one call into C: an exception out of a signal handler cannot come in between.
                held.extend(map(list.pop, (free,)))
                lane = held[0]
                number = lane.series.get(key)
                if number is None:
                    series = check_series(key, self._pii)
                    number = lane.series.get(series)
                    if number is not None:  # by another spelling, or behind a mask
                        lane.series[key] = number
                    else:
                        with self._changing():
                            number = lane.define(key, series)
                if number is not None:
                    at = lane.append(RECORD, number, timestamp, value, outcome, text, metadata, error, trace, session)
                    if at:
                        if self._sync_each:
                            self._sync_lane(lane)
                        return lane, at
                # Before a new lane one that a busier moment left behind.
                if free or self._open_lane():
                    try:
                        held.clear()
                    finally:
                        self._full.append(lane)
                    lane.buffer.close()  # here: where the disk is slow memory would grow until sync() is there
                    self._wake()
                    continue
                if self.closed:
                    raise RuntimeError("the recorder is not running")
                if self._gives_up(deadline):
                    lane.drop(self._reason)
                    return None
            except IndexError:
                if self._await_lane(free):
                    continue
                if self.closed:
                    raise RuntimeError("the recorder is not running") from None
                if self._gives_up(deadline):
                    next(self._homeless[self._reason])
                    return None
            except ValueError:
                # The lane was closed under this frame: this is a forked child, or another thread called close().
                if free is self.pool.free:
                    raise
                continue
            finally:
                # Back into the list it was taken from; after a fork that list is nobody's.
                free.extend(held)
            time.sleep(0.001)
            deadline = deadline or time.monotonic_ns() + int(self._wait_seconds * 1e9)

    def _await_lane(self, free: list[Lane]) -> bool:
        """Where every lane is held: whether it is worth looking again."""
        # Another thread gives its lane back in a moment, and files are dear; but it may also be that this very thread
        # holds it, in a frame below this one.
        started = time.monotonic_ns()
        while not free and free is self.pool.free:
            waited = time.monotonic_ns() - started
            held = self._open or self._opening
            if (not held or waited > PATIENCE_NS) and self._open_lane():
                return True
            if not held or waited > HELD_NS:
                return False
            time.sleep(0)
        return True

    def _gives_up(self, deadline: int) -> bool:
        """Whether a record for which there is no room is to be dropped now."""
        if self._on_full == "raise":
            raise BufferFull(f"the journal in {self.folder} has no room ({DROP_REASONS[self._reason]})")
        return self._on_full == "drop" or (deadline != 0 and time.monotonic_ns() > deadline)

    def _sync_lane(self, lane: Lane) -> None:
        try:
            os.fdatasync(lane.fd)
        except ValueError:
            pass  # closed meanwhile, by another thread, which has synced it
        except OSError as error:  # the record is where every other process finds it, and cannot be taken back
            self.complaint = str(error)

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

    def _open_lane(self) -> bool:
        """Add a new lane to those that nobody holds; False where there may be none, and ``_reason`` says why."""
        if self.closed or time.monotonic_ns() < self._retry_at:
            return False
        self._forget_shipped()
        self._opening.append(None)
        try:
            if len(self._complete) + len(self._open) + len(self._opening) > self._max_lanes:
                self._refuse("journal_full", f"{self._max_lanes * self._entries} records wait to be shipped")
                return False
            self._wake()  # before there is a lane: cut short here, the next record tries again
            self.folder.mkdir(parents=True, exist_ok=True)
            lane = Lane(self.folder, self._entries)
            try:
                self._open.append(lane)
            finally:
                self.pool.free.append(lane)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            # Not the name of the file, another one each time: what is said again and again is said once.
            self._refuse("disk_full" if full else "journal_unwritable", f"{error.strerror or error}: {self.folder}")
            return False
        finally:
            self._opening.pop()
        if self.closed:  # meanwhile, by another thread that did not see this lane
            self.close()
            return False
        self.complaint = None
        self._wake()
        return True

    def _refuse(self, reason: str, complaint: str) -> None:
        self._reason = DROP_REASONS.index(reason)
        self._retry_at = time.monotonic_ns() + RETRY_NS
        self.complaint = complaint
        self._wake()  # the recorder's thread says so in the log; where no lane was ever opened it is not there yet

    def _complete_lane(self, lane: Lane) -> None:
        """Give a lane up to the shippers. Waits for the disk."""
        self._sync_lane(lane)
        # Among the open ones until it is closed: a child that is forked meanwhile has to close it, too.
        lane.close()
        with self._changing(), contextlib.suppress(ValueError):  # another thread did
            self._open.remove(lane)
            self._complete[lane.path] = (lane.records, lane.dropped)

    def _forget_shipped(self) -> None:
        for path in list(self._complete):
            try:
                path.stat()
            except FileNotFoundError:
                with self._changing(), contextlib.suppress(KeyError):  # another thread did
                    records, dropped = self._complete.pop(path)
                    # The batch that completed it was one more than those that it told about.
                    self._gone.append((records, self._batches.pop(path, 0) + 1, *dropped))
                    self._gone_at = self._clock.time_ns()
            except OSError:
                continue  # no permission to look, say

    @contextlib.contextmanager
    def _changing(self) -> Generator[None]:
        """Around what stats() must not see half done."""
        next(self._begun)
        try:
            yield
        finally:
            next(self._ended)

    def sync(self) -> None:
        """Bring what was written so far to the disk, and close complete lanes. For one thread at a time."""
        for lane in list(self._open):
            if lane.at != lane.synced:
                lane.synced = lane.at
                self._sync_lane(lane)
        while self._full:
            self._complete_lane(self._full.pop())
        self._house_drops()

    def _house_drops(self) -> None:
        """Write the drops that no lane could take into one."""
        counts = [_peek(counter) for counter in self._homeless]
        if counts == self._housed:
            return
        free = self.pool.free
        if not free and not self._open_lane():
            return
        try:
            lane = free.pop()
        except IndexError:
            return  # somebody was faster; there is a next time
        try:
            with self._changing():  # from one place to another: who counts meanwhile counts again
                for index, total in enumerate(counts):
                    while self._housed[index] < total:
                        lane.drop(index)
                        self._housed[index] += 1
        finally:
            free.append(lane)

    def close(self) -> None:
        """Complete every lane and unlock it. A thread that is inside ``append`` meanwhile gets RuntimeError."""
        self.sync()
        self.closed = True
        free, self.pool.free = self.pool.free, []
        # A thread that holds a lane gives it back in a moment; a frame below this one never does.
        deadline = time.monotonic_ns() + PATIENCE_NS
        while self._open and time.monotonic_ns() < deadline:
            try:
                self._complete_lane(free.pop())
            except IndexError:
                time.sleep(0)
        for lane in list(self._open):
            self._complete_lane(lane)

    def stats(self) -> JournalStats:
        """What became of the records of this process so far, as far as its journals tell."""
        self._forget_shipped()
        for _ in range(STATS_ATTEMPTS):
            ended = _peek(self._ended)
            if _peek(self._begun) == ended:
                stats = self._count()
                if _peek(self._begun) == ended:
                    return stats
            time.sleep(0)
        return self._count()  # what is half done is so in a frame below this one

    def _count(self) -> JournalStats:
        lanes = {lane.path: (lane.records, lane.dropped) for lane in list(self._open)} | self._complete
        counters = {}
        for path in lanes:
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
                counters[path] = read_counters(os.pread(file.fileno(), COUNTERS_SIZE, COUNTERS_AT))
        self._batches = {path: values[BATCHES] for path, values in counters.items()}
        gone_records, gone_batches, *gone_dropped = _sums(self._gone, 2 + len(DROP_REASONS))
        shipped = sum(min(values[SHIPPED], lanes[path][0]) for path, values in counters.items())
        homeless = [_peek(counter) - done for counter, done in zip(self._homeless, self._housed, strict=True)]
        dropped = _sums([gone_dropped, homeless, *(dropped for _, dropped in lanes.values())], len(DROP_REASONS))
        return JournalStats(
            stored=gone_records + shipped,
            pending=sum(records for records, _ in lanes.values()) - shipped,
            dropped={reason: count for reason, count in zip(DROP_REASONS, dropped, strict=True) if count},
            batches=gone_batches + sum(self._batches.values()),
            last_batch_ns=max((values[SHIPPED_AT] for values in counters.values()), default=self._gone_at),
        )

    def _forked(self) -> None:
        """In a forked child: the lanes are the parent's. Closing them here also gives up their inherited locks."""
        for lane in self._open:
            with contextlib.suppress(OSError, BufferError):
                lane.close(unlock=False)
        self._begin()


def _sums(rows: Sequence[Sequence[int]], width: int) -> list[int]:
    return [sum(column) for column in zip([0] * width, *rows, strict=True)]


def _peek(counter: "itertools.count[int]") -> int:
    """The next value of a counter, without taking it. (``next`` on a counter is atomic, ``+=`` is not.)"""
    return int(counter.__reduce__()[1][0])


_journals: "weakref.WeakSet[Journal]" = weakref.WeakSet()


def _forked() -> None:
    for journal in _journals:
        journal._forked()


os.register_at_fork(after_in_child=_forked)
