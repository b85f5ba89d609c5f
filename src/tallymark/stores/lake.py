"""The lake: live journals and a Delta Lake table in one folder, read together with DuckDB.

``journals/`` belongs to the recorders, ``table/`` to :mod:`tallymark.stores.delta`. No server and no lock: a
query opens the journals first and a version of the table second, and takes from each journal what that
version does not have. So it sees every record once, also while a shipper moves records between them.
"""

import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import pyarrow as pa
from deltalake.exceptions import DeltaError

from tallymark.batch import CLOSED, SCHEMA, Batch
from tallymark.clock import Clock, SystemClock
from tallymark.errors import QueryError, StoreError
from tallymark.lane_reader import lanes
from tallymark.model import RESERVED_TYPE
from tallymark.query import MAX_ROWS, Filter, Query
from tallymark.store import StoreInfo
from tallymark.stores.deletion import MAX_IDS, by_day, condition
from tallymark.stores.delta import ATTEMPTS, Deletion, Delta, Snapshot, back_off, utc_day
from tallymark.stores.duck import Engine, FileGone, Statement, aggregate_sql, ids_sql, scan_sql
from tallymark.stores.retention import ClockWatch, Retention

MIB: Final = 1 << 20

TODAY_TARGET: Final = 16 * MIB
"""Files of a day that still grows are joined up to this size: no record is written anew all day long."""

PAST_TARGET: Final = 128 * MIB
"""Files of a day that is over are joined up to this size."""

MANY_FILES: Final = 16
"""How many small files of a growing day are worth joining."""

VACUUM_HOURS: Final = 1
"""For how long a file that was replaced stays, for the queries that are still reading it."""

MAINTAIN_LOCK: Final = "maintain.lock"
"""Locked, in the folder of the lake, by whoever maintains it."""

UNTRUSTED: Final = "the clock has not been seen running steadily for a day"

_NOTHING: Final = SCHEMA.empty_table()

_OWN_ROWS: Final = Query(
    filters=(Filter("metric_type", "=", RESERVED_TYPE),),
    group_by=("name", "metadata.reason"),
    aggregates=("count", "sum"),
)

_SYSTEM_CLOCK: Final = SystemClock()
_USUAL_RETENTION: Final = Retention()

T = TypeVar("T")


class LiveJournal(Protocol):
    """A journal that is open for reading, and stays readable when its file is deleted."""

    journal: str

    @property
    def dropped(self) -> dict[str, int]: ...
    def rows(self, start: int) -> pa.Table: ...
    def pending(self, start: int) -> int: ...


@dataclass(frozen=True)
class Maintenance:
    """What :meth:`Lake.maintain` did.

    Attributes:
        compacted: small files that were joined into others.
        deleted: records that were too old.
        vacuumed: files that were removed from the disk.
        held: why no record was deleted, if so.
    """

    compacted: int = 0
    deleted: int = 0
    vacuumed: int = 0
    held: str | None = None


class Lake:
    """The store behind ``./metrics`` and ``lake:./metrics``; see :class:`tallymark.store.Store`.

    Reading makes no folder: a lake that does not exist is empty. Any number of processes may read, write and
    maintain one at a time.

    Args:
        folder: where it is.
        url: what :meth:`info` calls it.
        live: opens the journals in a folder.

    Raises:
        ConfigError: the folder's path cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        url: str | None = None,
        live: Callable[[Path], Sequence[LiveJournal]] = lanes,
    ) -> None:
        self._folder = Path(folder)
        self._url = url or os.fspath(folder)
        self._live = live
        self._delta = Delta(self._folder / "table")
        self._engine = Engine()

    def write(self, batch: Batch) -> None:
        """Keep a batch in one commit of the table, synced to the disk."""
        with _driver_errors("write to", self._url):
            self._delta.append(batch)

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is in the table."""
        with _driver_errors("read", self._url):
            return self._delta.snapshot(journals).positions

    def scan(self, query: Query) -> pa.Table:
        """The records that match, those in journals included."""
        return self._read(query)

    def aggregate(self, query: Query) -> pa.Table:
        """The groups of the records that match, those in journals included."""
        table = self._read(query)
        if table.num_rows > MAX_ROWS:
            hint = "longer windows, a shorter time, or a limit"
            raise QueryError(f"limit: the answer has more than {MAX_ROWS} rows; hint: {hint}")
        return table

    def delete(self, query: Query) -> int:
        """Forget what is in the table and matches. Records that are still in journals are not touched."""
        days = by_day(query)
        deleted = failures = 0
        with _driver_errors("delete from", self._url):
            # A commit for the days that go as a whole, and one or more for parts of days; each begins with a new look,
            # so that the count is exact whatever others do meanwhile.
            while True:
                planned = self._on_snapshot((), days, lambda snapshot: self._plan(snapshot, days))
                if planned is None:
                    return deleted
                try:
                    self._delta.delete(planned)
                except DeltaError:
                    # Others changed the table meanwhile, or joined its files and removed them.
                    failures += 1
                    if failures == ATTEMPTS or self._delta.snapshot().version == planned.version:
                        raise
                    back_off(failures)
                else:
                    deleted += planned.rows

    def _plan(self, snapshot: Snapshot, days: Query) -> Deletion | None:
        """The next commit towards the deletion of what is counted by day."""
        found = self._run(snapshot, _NOTHING, days).to_pylist()
        counts = {utc_day(row["window_start"]): row["count"] for row in found}
        if not counts:
            return None
        whole = {day: count for day, count in counts.items() if count == snapshot.days[day]}
        if whole:
            return Deletion(snapshot.version, whole)
        sql = condition(days)
        if sql is None:
            statement = Statement()
            records = statement.records(snapshot.files)
            ids = self._engine.run(statement, ids_sql(statement, records, days, MAX_IDS), _NOTHING)
            return Deletion(snapshot.version, Counter(map(utc_day, ids["timestamp"].to_numpy().tolist())), ids=ids)
        return Deletion(snapshot.version, counts, sql)

    def find(self, query: Query, rows: pa.Table) -> pa.Table:
        """Journal, sequence number and timestamp of those among some rows that match."""
        statement = Statement()
        sql = ids_sql(statement, statement.records(()), query, rows.num_rows)
        return self._engine.run(statement, sql, rows)

    def info(self) -> StoreInfo:
        """What is stored, pending and dropped. Bytes are those of the Parquet files."""
        with _driver_errors("read", self._url):
            journals = self._journals()
            return self._on_snapshot(journals, _OWN_ROWS, lambda snapshot: self._info(snapshot, journals))

    def _info(self, snapshot: Snapshot, journals: Sequence[LiveJournal]) -> StoreInfo:
        stored, pending, dropped = snapshot.rows, 0, Counter[str]()
        for row in self._run(snapshot, _NOTHING, _OWN_ROWS).to_pylist():
            stored -= row["count"]
            if row["name"] == "dropped":
                dropped[row["metadata.reason"]] += int(row["sum"])
        for journal in journals:
            position = snapshot.positions.get(journal.journal, 0)
            if position < CLOSED:
                pending += journal.pending(position)
                dropped.update(journal.dropped)
        return StoreInfo(self._url, stored, pending, dict(dropped), snapshot.bytes, snapshot.deleted)

    def close(self) -> None:
        """Give everything back."""
        self._engine.close()

    def compact(self, now: int | None = None) -> int:
        """Join small files where that pays; how many are gone. Days before that of ``now`` (ns) are over."""
        with _driver_errors("compact", self._url):
            today = utc_day(time.time_ns() if now is None else now)
            past, growing = [], []
            for day, sizes in self._delta.file_sizes().items():
                if day < today:
                    past += [day] if _small(sizes, PAST_TARGET) > 1 else []
                else:
                    growing += [day] if _small(sizes, TODAY_TARGET) >= MANY_FILES else []
            gone = self._delta.compact(past, PAST_TARGET) if past else 0
            return gone + (self._delta.compact(growing, TODAY_TARGET) if growing else 0)

    def vacuum(self, hours: int = VACUUM_HOURS, *, strays: bool = False) -> int:
        """Remove files that left the table that long ago; returns how many. Strays are what dead writers left."""
        with _driver_errors("vacuum", self._url):
            return self._delta.vacuum(hours, strays=strays)

    def strays(self) -> list[Path]:
        """Parquet files in the folder of the table that its newest version does not have."""
        with _driver_errors("read", self._url):
            return self._delta.strays()

    def maintain(self, clock: Clock = _SYSTEM_CLOCK, retention: Retention | None = _USUAL_RETENTION) -> Maintenance:
        """Do what keeps a lake small and fast: compact, delete whole days that are too old, vacuum.

        Meant to be called every few minutes. With ``retention`` None no record is deleted. Nothing is deleted before
        ``clock`` has been seen to run steadily for a day, so that a clock which jumps deletes nothing. Where another
        process is at it, nothing is done.
        """
        if not self._folder.is_dir():
            return Maintenance(held="there is no lake yet")
        with _driver_errors("maintain", self._url), _only_one(self._folder / MAINTAIN_LOCK) as alone:
            if not alone:
                return Maintenance(held="another process is at it")
            trusted = self.trusts(clock)
            compacted = self.compact(clock.time_ns())
            expired = [] if retention is None or not trusted else retention.expired(clock.time_ns())
            deleted = sum(map(self.delete, expired))
            held = None if trusted else UNTRUSTED
            return Maintenance(compacted, deleted, self.vacuum(strays=trusted), held)

    @contextlib.contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep others from maintaining this lake; ``waiting`` is called where one of them has to end first."""
        path = self._folder / MAINTAIN_LOCK
        with _only_one(path) as free:
            if free:
                yield
                return
        waiting()
        with _only_one(path, wait=True):
            yield

    def trusts(self, clock: Clock = _SYSTEM_CLOCK) -> bool:
        """Whether records may be deleted by this clock's time. Each look at it counts as a sight of it."""
        return ClockWatch(self._folder / "clock.json", clock).trusted()

    def _journals(self) -> Sequence[LiveJournal]:
        return self._live(self._folder / "journals")

    def _read(self, query: Query) -> pa.Table:
        """The answer from the table and the journals together."""
        with _driver_errors("read", self._url):
            # The journals first: what is shipped after this is in both, and the positions tell.
            journals = self._journals()

            def run(snapshot: Snapshot) -> pa.Table:
                rows = [journal.rows(snapshot.positions.get(journal.journal, 0)) for journal in journals]
                return self._run(snapshot, pa.concat_tables([_NOTHING, *rows]), query)

            return self._on_snapshot(journals, query, run)

    def _run(self, snapshot: Snapshot, live: pa.Table, query: Query) -> pa.Table:
        statement = Statement()
        records = statement.records(snapshot.files)
        if query.aggregates:
            # One more than there may be, to see that there are more.
            sql = aggregate_sql(statement, records, query, query.limit or MAX_ROWS + 1)
            return self._engine.run(statement, sql, live).rename_columns(list(query.output))
        sql = scan_sql(statement, records, query, query.limit or MAX_ROWS)
        return self._engine.run(statement, sql, live).cast(SCHEMA)

    def _on_snapshot(self, journals: Sequence[LiveJournal], query: Query, use: Callable[[Snapshot], T]) -> T:
        """Use the newest version of the table; a newer one when its files were replaced meanwhile."""
        failed: list[str] | None = None
        while True:
            names = [journal.journal for journal in journals]
            snapshot = self._delta.snapshot(names, query.start, query.end)
            try:
                return use(snapshot)
            except FileGone as error:
                if snapshot.files == failed:
                    raise StoreError(f"cannot read {self._url}: {error}") from error
                failed = snapshot.files
                self._delta.reopen()


def _small(files: list[int], target: int) -> int:
    return sum(size < target // 2 for size in files)


@contextlib.contextmanager
def _only_one(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this is the only one that holds the lock file now; for as long as the context lasts."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def _driver_errors(doing: str, url: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise StoreError(f"cannot {doing} {url}: {error}") from error
