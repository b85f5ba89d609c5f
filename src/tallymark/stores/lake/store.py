"""The lake: live journals and a Delta Lake table in one folder, read together with DuckDB.

``journals/`` belongs to the recorders, ``table/`` to :mod:`tallymark.stores.lake.delta`. No server and no lock: a
query opens the journals first and a version of the table second, and takes from each journal what that
version does not have. So it sees every record once, also while a shipper moves records between them.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
from deltalake.exceptions import DeltaError

from tallymark import log
from tallymark.batch import SCHEMA, Batch
from tallymark.errors import StoreError
from tallymark.lane_reader import LiveJournal, lanes, unshipped
from tallymark.location import local_folder
from tallymark.model import RESERVED_TYPE
from tallymark.query import Filter, Query
from tallymark.store import Maintenance, Origin, Store, StoreInfo, with_origin
from tallymark.stores.deletion import MAX_IDS, by_day, condition
from tallymark.stores.duck import Engine, FileGone
from tallymark.stores.lake.delta import ATTEMPTS, Deletion, Delta, Snapshot, back_off
from tallymark.stores.objects import said
from tallymark.stores.plan import plan
from tallymark.stores.retention import Retention
from tallymark.stores.rolled import Rolled, relative_error
from tallymark.stores.rollups import Rollups
from tallymark.stores.shared import Shared
from tallymark.times import utc_day

MIB: Final = 1 << 20

TODAY_TARGET: Final = 16 * MIB
"""Files of a day that still grows are joined up to this size: no record is written anew all day long."""

PAST_TARGET: Final = 128 * MIB
"""Files of a day that is over are joined up to this size."""

MANY_FILES: Final = 16
"""How many small files of a growing day are worth joining."""

VACUUM_HOURS: Final = 1
"""For how long a file that was replaced stays, for the queries that are still reading it."""

_NOTHING: Final = SCHEMA.empty_table()

_OWN_ROWS: Final = Query(
    filters=(Filter("metric_type", "=", RESERVED_TYPE),),
    group_by=("name", "metadata.reason"),
    aggregates=("count", "sum"),
)

T = TypeVar("T")


class Lake(Store):
    """The store behind ``./metrics`` and ``lake:./metrics``; see :class:`tallymark.store.Store`.

    Reading makes no folder: a lake that does not exist is empty. Any number of processes may read, write and
    maintain one at a time.

    Args:
        folder: where it is; or ``s3://bucket/path``, where its table is, while its journals are on this machine.
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
        place = os.fspath(folder)
        self._url = url or place
        self._live = live
        if "://" in place:
            self._folder = local_folder(f"lake:{place}")
            self._delta = Delta(f"{place}/table")
        else:
            self._folder = Path(place)
            self._delta = Delta(self._folder / "table")
        self._engine = Engine(self._delta.objects)
        self._own: tuple[list[str], list[dict[str, Any]]] = ([], [])  # the files that they are of, and what is in them
        self._newest = Shared(self._read_newest)
        self._rolled = Rolled(self._engine)
        self._rollups = Rollups(self._folder / "rollups", self._delta.objects)

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
        return self._read(query)

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
        found = self._engine.answer(days, _NOTHING, snapshot.files).to_pylist()
        counts = {utc_day(row["window_start"]): row["count"] for row in found}
        if not counts:
            return None
        whole = {day: count for day, count in counts.items() if count == snapshot.days[day]}
        if whole:
            return Deletion(snapshot.version, whole)
        sql = condition(days)
        if sql is None:
            ids = self._engine.ids(days, _NOTHING, snapshot.files, MAX_IDS)
            return Deletion(snapshot.version, Counter(map(utc_day, ids["timestamp"].to_numpy().tolist())), ids=ids)
        return Deletion(snapshot.version, counts, sql)

    def info(self) -> StoreInfo:
        """What is stored, pending and dropped. Bytes are those of the Parquet files."""
        with _driver_errors("read", self._url):
            journals = self._journals()
            return self._on_snapshot(journals, _OWN_ROWS, lambda snapshot: self._info(snapshot, journals))

    def _info(self, snapshot: Snapshot, journals: Sequence[LiveJournal]) -> StoreInfo:
        pending, dropped = unshipped(journals, snapshot.positions)
        stored = snapshot.rows
        for row in self._own_rows(snapshot):
            stored -= row["count"]
            if row["name"] == "dropped":
                dropped[row["metadata.reason"]] += int(row["sum"])
        return StoreInfo(self._url, stored, pending, dict(dropped), snapshot.bytes, snapshot.deleted)

    def _own_rows(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """What the store wrote down about itself. It is in few files, and to find that out takes a look at all."""
        files, rows = self._own
        if files != snapshot.files:
            rows = self._engine.answer(_OWN_ROWS, _NOTHING, snapshot.files).to_pylist()
            self._own = snapshot.files, rows
        return rows

    def close(self) -> None:
        """Give everything back."""
        self._rollups.close()
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

    def maintain(self, now: int, retention: Retention | None, *, strays: bool = False) -> Maintenance:
        """Compact, delete whole days that are too old, vacuum."""
        compacted = self.compact(now)
        deleted = super().maintain(now, retention).deleted
        return Maintenance(compacted, deleted, self.vacuum(strays=strays))

    def roll_up(self, now: int) -> int:
        """Make the rollups that are missing, and remove those of files that are gone; how many were made."""
        with _driver_errors("make rollups of", self._url):
            snapshot = self._delta.snapshot()
            rows = [file.rows for file in snapshot.stored]
            return self._rollups.keep(dict(zip(snapshot.files, rows, strict=True)))

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """Remove every file that is not of the newest version."""
        self.compact(now)
        self.vacuum(0)
        self.vacuum(strays=strays)
        advice = "a writer that died left it, or one is at work: try again in an hour"
        with _driver_errors("read", self._url):
            self._rollups.remove_others(self._delta.snapshot().files)
            return [f"{path}: no file of the table; {advice}" for path in self._delta.strays()]

    def _journals(self) -> Sequence[LiveJournal]:
        return self._live(self._folder / "journals")

    def _read(self, query: Query) -> pa.Table:
        """The answer from the table and the journals together."""
        with _driver_errors("read", self._url):
            failed: list[str] | None = None
            while True:
                snapshot, rows = self._newest.get()
                snapshot = snapshot.within(query.start, query.end)
                try:
                    return self._answer(query, snapshot, rows)
                except FileGone as error:
                    failed = self._again(snapshot, failed, error)

    def _read_newest(self) -> tuple[Snapshot, pa.Table]:
        """The newest version of the table, and the records in the journals that it does not have."""
        # The journals first: what is shipped after this is in both, and the positions tell.
        journals = self._journals()
        snapshot = self._delta.snapshot([journal.journal for journal in journals])
        rows = [journal.rows(snapshot.positions.get(journal.journal, 0)) for journal in journals]
        return snapshot, pa.concat_tables([_NOTHING, *rows])

    def _answer(self, query: Query, snapshot: Snapshot, rows: pa.Table) -> pa.Table:
        if not query.aggregates:
            return self._engine.answer(query, rows, snapshot.files)
        files = dict(zip(snapshot.files, snapshot.stored, strict=True))
        chosen = plan(query, files, self._rollups.paths())
        if chosen is not None:
            try:
                found = self._rolled.answer(query, chosen, rows)
            except FileGone as error:  # either a sidecar, then the records are there, or a file of the table
                log.warning("without rollups: %s", error)
            else:
                return with_origin(found, Origin(chosen.source, chosen.scanned + rows.num_rows, relative_error(query)))
        scanned = rows.num_rows + sum(file.rows for file in snapshot.stored)
        return with_origin(self._engine.answer(query, rows, snapshot.files), Origin(scanned=scanned))

    def _on_snapshot(self, journals: Sequence[LiveJournal], query: Query, use: Callable[[Snapshot], T]) -> T:
        """Use the newest version of the table; a newer one when its files were replaced meanwhile."""
        failed: list[str] | None = None
        while True:
            names = [journal.journal for journal in journals]
            snapshot = self._delta.snapshot(names, query.start, query.end)
            try:
                return use(snapshot)
            except FileGone as error:
                failed = self._again(snapshot, failed, error)

    def _again(self, snapshot: Snapshot, failed: list[str] | None, error: FileGone) -> list[str]:
        """The files that could not be read, where a newer version of the table may do without them.

        Raises:
            StoreError: they are those that could not be read before.
        """
        if snapshot.files == failed:
            raise StoreError(f"cannot read {self._url}: {error}") from error
        self._delta.reopen()
        return snapshot.files


def _small(files: list[int], target: int) -> int:
    return sum(size < target // 2 for size in files)


@contextlib.contextmanager
def _driver_errors(doing: str, url: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise StoreError(f"cannot {doing} {url}: {said(error)}") from error
