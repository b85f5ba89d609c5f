"""The shipper: from the journals into the store, every record exactly once.

The store keeps, in the transaction that brings the rows, how far each journal has come. Whatever happens between that
and the deletion of a journal, the next shipper sees what is done. ``python -m tallymark.shipper STORE`` ships once.
"""

import contextlib
import itertools
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from tallymark.batch import CLOSED
from tallymark.clock import Clock, SystemClock
from tallymark.delivery import Lot, deliver
from tallymark.errors import TallymarkError
from tallymark.files import is_locked, locked
from tallymark.lane import JOURNALS
from tallymark.lane_reader import LaneReader, each_lane
from tallymark.location import local_folder
from tallymark.maintenance import maintain
from tallymark.sealer import BUSY, LOCK_FILE, REQUEST_FILE, STORE_VARIABLE
from tallymark.store import Store, open_store
from tallymark.without_pandas import keep_pandas_out

BATCH_ROWS: Final = 250_000
"""About how many rows are written at once."""
BATCH_FILES: Final = 100
"""From how many journals at most: each is an open file."""
POLL_SECONDS: Final = 0.25
"""How often a long-running shipper looks whether there is something to do."""
TURN_FILE: Final = ".shipping-turn"
"""Locked, in the folder of the journals, by whoever wants, or took, the right to ship from a shipper on duty."""
STALE_SECONDS: Final = 3600
"""A journal that was never finished being made is removed after this."""

_log = logging.getLogger("tallymark")


@dataclass(frozen=True)
class Shipped:
    """What one round did."""

    records: int
    batches: int


@contextlib.contextmanager
def shipping_lock(journals: Path) -> Generator[bool]:
    """Hold the right to ship from a folder; yields whether it was free."""
    journals.mkdir(parents=True, exist_ok=True)
    with locked(journals / LOCK_FILE, wait=False) as free:
        yield free


@contextlib.contextmanager
def shipping_turn(journals: Path, waiting: Callable[[], None]) -> Generator[None]:
    """Hold the right to ship, as soon as it is free. A shipper on duty gives it up after the round that is under way
    and takes it again afterwards. ``waiting`` is called where somebody has it.
    """
    journals.mkdir(parents=True, exist_ok=True)
    with locked(journals / TURN_FILE):
        for attempt in itertools.count():
            with shipping_lock(journals) as free:
                if free:
                    yield
                    return
            if attempt == 0:
                waiting()
            time.sleep(0.02)


def _somebody_waits(journals: Path) -> bool:
    """Whether somebody wants the next turn."""
    return is_locked(journals / TURN_FILE)


def ship(store: Store, journals: Path, clock: Clock) -> Shipped:
    """Bring everything that the journals hold into the store. The caller holds the shipping lock.

    Raises:
        StoreError: the store refused; what is not stored stays in the journals.
    """
    _remove_unfinished(journals)
    records = batches = 0
    found = each_lane(journals)
    while some := list(itertools.islice(found, BATCH_FILES)):
        positions = store.positions([lane.journal for lane in some])
        waiting: list[_Taken] = []
        for number, lane in enumerate(some, 1):
            waiting.append(_take(lane, positions.get(lane.journal, 0)))
            rows = sum(each.lot.rows.num_rows for each in waiting)
            if rows >= BATCH_ROWS or number == len(some):
                _deliver(store, waiting, journals, clock)
                records += rows
                batches += rows > 0
                waiting = []
        some.clear()  # closes them, before others are opened
    return Shipped(records, batches)


@dataclass(frozen=True)
class _Taken:
    """What was taken from a lane, from ``start`` on."""

    lane: LaneReader
    lot: Lot
    start: int
    shipped: int


def _take(lane: LaneReader, start: int) -> _Taken:
    complete = lane.is_complete()
    found = lane.read(start, complete=complete)
    dropped = lane.dropped if complete and start < CLOSED else {}
    if found.corrupt:
        dropped = {**dropped, "corrupt": found.corrupt}
        _log.warning("%s: %d records are corrupt and were dropped", lane.path, found.corrupt)
    end = CLOSED if complete else found.end
    return _Taken(lane, Lot(lane.journal, lane.capacity, found.table, dropped, end, found.end), start, found.records)


def _deliver(store: Store, taken: list[_Taken], journals: Path, clock: Clock) -> None:
    news = [each.lot for each in taken if each.lot.end != each.start]
    if news:
        deliver(store, news, journals, clock)
    for each in taken:
        if each.lot.end == CLOSED:
            each.lane.path.unlink(missing_ok=True)
        else:
            each.lane.note_shipped(each.shipped, clock.time_ns(), batch=each.lot.rows.num_rows > 0)


def _remove_unfinished(journals: Path) -> None:
    """Remove what a process left behind that was killed while it made a journal."""
    for path in journals.glob(".????????????????????????????????"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def ship_once(url: str, clock: Clock | None = None) -> Shipped | None:
    """Ship everything there is, now, in this process; None where somebody else is doing so.

    Raises:
        ConfigError: the URL is not usable.
        StoreError: the store refused; what is not stored stays in the journals.
    """
    journals = local_folder(url) / JOURNALS
    with shipping_lock(journals) as free:
        if not free:
            return None
        with open_store(url) as store:
            return ship(store, journals, clock or SystemClock())


class Shipper:
    """Ships from a folder for as long as it runs, in a thread; for a server, not for an application.

    Args:
        store: where the records go.
        journals: the folder that they come from.
        interval_seconds: the longest that a record waits.
    """

    def __init__(
        self, store: Store, journals: Path, *, interval_seconds: float = 30.0, clock: Clock | None = None
    ) -> None:
        self._store = store
        self._journals = journals
        self._interval = interval_seconds
        self._clock = clock or SystemClock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: str | None = None  # of the newest round

    def start(self) -> None:
        """Take the right to ship, as soon as it is free, and begin."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="tallymark-shipper", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End after the round that is under way. Stopping without a start is allowed."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with shipping_lock(self._journals) as free:
                    if free and not _somebody_waits(self._journals):
                        self._serve()
            except OSError as error:  # no room even for the lock file, say
                self._fail(error)
            self._stopping.wait(POLL_SECONDS)

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            _log.warning("shipping failed, the journals keep the records: %s", error)
        self.failure = str(error)

    def _serve(self) -> None:
        """With the lock held: ship when it is time, when asked to, and when lanes are complete; until it is to stop, or
        somebody else wants the lock.
        """
        due = 0.0
        failures = 0
        while not self._stopping.wait(POLL_SECONDS) and not _somebody_waits(self._journals):
            asked = (self._journals / REQUEST_FILE).exists()
            if time.monotonic() < due and not (failures == 0 and (asked or self._has_complete_lanes())):
                continue
            try:
                (self._journals / REQUEST_FILE).unlink(missing_ok=True)
                ship(self._store, self._journals, self._clock)
            except Exception as error:
                failures += 1
                self._fail(error)
                # Twice as long after each failure, up to a minute, never in step with other shippers.
                due = time.monotonic() + min(60.0, 0.5 * 2**failures) * random.uniform(0.5, 1.0)
            else:
                failures = 0
                self.failure = None
                due = time.monotonic() + self._interval

    def _has_complete_lanes(self) -> bool:
        return any(lane.is_complete() for lane in each_lane(self._journals))


def main() -> int:
    """Ship once; the command that a recorder starts. Exits with :data:`BUSY` where somebody else is doing so."""
    keep_pandas_out()
    # Arrow's own pool gives memory back at once and the kernel clears it anew: about twice the system time.
    pa.set_memory_pool(pa.system_memory_pool())
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ[STORE_VARIABLE]
    try:
        shipped = ship_once(url)
        if shipped is None:
            return BUSY
        while shipped is not None and shipped.records >= BATCH_ROWS:
            shipped = ship_once(url)  # as many may have come meanwhile; another child would have to start first
        with open_store(url) as store:
            # Joins small files where that pays. How long records are kept is for a server to decide.
            maintain(store, local_folder(url), retention=None, roll_up=False)
    except (TallymarkError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
