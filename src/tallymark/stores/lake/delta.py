"""The Delta Lake table of a lake: what is in it, and every change to it. ``deltalake`` does the format."""

import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from tallymark.batch import SCHEMA, Batch
from tallymark.location import check_bucket, check_folder
from tallymark.stores.fresh import fresh
from tallymark.stores.objects import OPTIONS, Objects
from tallymark.stores.retention import DAY_NS

_DATE: Final = pa.field("date", pa.date32(), nullable=False)

# What is the same in neighbours is left to the dictionaries; numbers that all differ do better without.
_DELTA: Final = ColumnProperties(dictionary_enabled=False, encoding="DELTA_BINARY_PACKED")
_SPLIT: Final = ColumnProperties(dictionary_enabled=False, encoding="BYTE_STREAM_SPLIT")
_WRITER: Final = WriterProperties(
    compression="ZSTD",
    compression_level=1,  # 3 takes longer and saves nothing
    max_row_group_size=131_072,  # DuckDB reads row groups in parallel, and skips them one by one
    column_properties={"timestamp": _DELTA, "seq": _DELTA, "value": _SPLIT},
)

_CONFIGURATION: Final = {
    "delta.dataSkippingStatsColumns": "timestamp",  # the only ones that are used
    # A commit every few seconds leaves a file each; nobody travels back in time here.
    "delta.logRetentionDuration": "interval 1 hour",
    "delta.checkpointInterval": "50",
}

ATTEMPTS: Final = 12
"""How often a change is tried that others get in the way of."""

DELETED: Final = "deleted"
"""How many rows were deleted is kept as the position of this, which is no journal: in the commit that deletes them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """One version of the table.

    Attributes:
        version: -1 where there is no table yet.
        files: the Parquet files that may hold rows of the time range that was asked for.
        stored: what is known of each of them.
        positions: how far each of the journals that were asked for is stored; left out where nothing is.
        days: the rows of each day (``2025-01-31``) of the whole table.
        bytes: of the whole table.
        deleted: how many rows were deleted from it so far.
    """

    version: int
    files: list[str]
    stored: list["StoredFile"]
    positions: dict[str, int]
    days: Mapping[str, int]
    bytes: int
    deleted: int

    @property
    def rows(self) -> int:
        """Of the whole table."""
        return sum(self.days.values())

    def within(self, start: int | None, end: int | None) -> "Snapshot":
        """The same, with the files only that may hold timestamps in [start, end)."""
        held = [pair for pair in zip(self.files, self.stored, strict=True) if pair[1].may_hold(start, end)]
        return replace(self, files=[path for path, _ in held], stored=[file for _, file in held])


@dataclass(frozen=True)
class Deletion:
    """What one commit deletes.

    Attributes:
        version: of the table, in which the rows were counted.
        days: how many rows of each day (``2025-01-31``) go.
        condition: SQL that is true for them, within these days.
        ids: journal, seq and timestamp of each of them. Without either the days go as a whole; then only the log is
            touched, otherwise files are written anew.
    """

    version: int
    days: Mapping[str, int]
    condition: str | None = None
    ids: pa.Table | None = None

    @property
    def rows(self) -> int:
        """How many rows go in all."""
        return sum(self.days.values())


class StoredFile(NamedTuple):
    """A Parquet file of the table, and the range of its timestamps where it is known."""

    path: str
    date: date
    bytes: int
    rows: int
    first: int | None
    last: int | None

    def may_hold(self, start: int | None, end: int | None) -> bool:
        """Whether there may be a timestamp in [start, end)."""
        too_old = start is not None and self.last is not None and self.last < start
        too_new = end is not None and self.first is not None and self.first >= end
        return not too_old and not too_new


class Delta:
    """A Delta table. Any method may be called from any thread, and beside other processes.

    Args:
        place: the folder that it is in, or its URL in an object store (``s3://bucket/path``).

    Attributes:
        objects: how its files are read; None where they are files of this machine.

    Raises:
        ConfigError: the place cannot be used.
    """

    def __init__(self, place: Path | str) -> None:
        self._place = check_folder(place) if isinstance(place, Path) else check_bucket(place)
        self._options = None if isinstance(place, Path) else OPTIONS
        self.objects = None if isinstance(place, Path) else Objects(place)
        self._reading = Lock()
        self._table: DeltaTable | None = None
        self._files: list[StoredFile] = []
        self._days: Mapping[str, int] = {}
        self._positions: dict[str, int | None] = {}
        self._known = -1  # the version that these three are of
        self._writing = Lock()
        self._written: DeltaTable | None = None

    def snapshot(self, journals: Collection[str] = (), start: int | None = None, end: int | None = None) -> Snapshot:
        """The newest version, with the files that may hold timestamps in [start, end)."""
        with self._reading:
            table = self._newest_for_reading()
            if table is None:
                return Snapshot(-1, [], [], {}, {}, 0, 0)
            version = table.version()
            if version != self._known:
                self._files, self._positions, self._known = _files(table), {}, version
                self._days = _rows_by_day(self._files)
                if self.objects is not None:
                    self.objects.sizes = {self._name(file): file.bytes for file in self._files}
            # A look at a position takes a millisecond or more, and most versions are asked many times.
            for journal in (*journals, DELETED):
                if journal not in self._positions:
                    self._positions[journal] = table.transaction_version(journal)
            found = ((journal, self._positions[journal]) for journal in journals)
            positions = {journal: position for journal, position in found if position is not None}
            files, days, deleted = self._files, self._days, self._positions[DELETED] or 0
        stored = [file for file in files if file.may_hold(start, end)]
        return Snapshot(
            version=version,
            files=[self._name(file) for file in stored],
            stored=stored,
            positions=positions,
            days=days,
            bytes=sum(file.bytes for file in files),
            deleted=deleted,
        )

    def _newest_for_reading(self) -> DeltaTable | None:
        if self._table is not None:
            try:
                self._table.update_incremental()
            # Somebody removed the folder, put another in its place, or took old commits away.
            except (DeltaError, OSError):
                self._table = None
        if self._table is None:
            self._known = -1
            with contextlib.suppress(TableNotFoundError):
                self._table = self._open()
        return self._table

    def _open(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(self._place, version=version, storage_options=self._options)

    def _name(self, file: StoredFile) -> str:
        return f"{self._place}/{file.path}"

    def reopen(self) -> None:
        """Forget what was read so far: its files are not there."""
        with self._reading:
            self._table = None

    def append(self, batch: Batch) -> None:
        """Keep a batch, but for what is stored of it already; on disk when this returns."""
        with self._writing:
            for attempt in range(ATTEMPTS):
                opened_anew = self._written is None
                try:
                    self._append(batch)
                except CommitFailedError:
                    # Somebody else committed what cannot be reconciled: a deletion, or this very batch.
                    if attempt == ATTEMPTS - 1:
                        raise
                except DeltaError:
                    # The folder may have been removed, or be another one now.
                    if opened_anew:
                        raise
                else:
                    return
                self._written = None
                back_off(attempt)

    def _append(self, batch: Batch) -> None:
        table = self._newest_for_writing()
        found = ((journal, table.transaction_version(journal)) for journal in batch.positions)
        stored = {journal: position for journal, position in found if position is not None}
        new = fresh(batch, stored)
        progress = [Transaction(journal, position) for journal, position in new.positions.items()]
        if not new.table.num_rows and not progress:
            return
        before = table.version()
        write_deltalake(
            table,
            _dated(_sorted(new.table)),
            mode="append",
            writer_properties=_WRITER,
            commit_properties=CommitProperties(app_transactions=progress),
        )
        self._sync(before + 1, table.version())

    def _newest_for_writing(self) -> DeltaTable:
        """The table, made where it is missing."""
        if self._written is not None:
            try:
                self._written.update_incremental()
            except (DeltaError, OSError):  # as for reading
                self._written = None
        if self._written is None:
            if isinstance(self._place, Path):
                self._place.mkdir(parents=True, exist_ok=True)
            self._written = DeltaTable.create(
                self._place,
                Schema.from_arrow(pa.schema([*SCHEMA, _DATE])),
                mode="ignore",
                partition_by=[_DATE.name],
                configuration=_CONFIGURATION,
                storage_options=self._options,
            )
        return self._written

    def _sync(self, first: int, last: int) -> None:
        """Bring commits to the disk: the journal that a batch came from is deleted next."""
        if not isinstance(self._place, Path):
            return  # an object is durable once it is there
        log = self._place / "_delta_log"
        paths = {log, self._place}
        for version in range(first, last + 1):
            commit = log / f"{version:020}.json"
            for line in commit.read_bytes().splitlines():
                added = json.loads(line).get("add")
                if added:
                    path = self._place / added["path"]
                    paths |= {path, path.parent}
            paths.add(commit)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # compacted and vacuumed already
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def delete(self, deletion: Deletion) -> None:
        """Delete rows, and keep how many, in one commit.

        Raises:
            CommitFailedError: the table has changed since they were counted, in a way that matters.
        """
        table = self._open(deletion.version)
        deleted = (table.transaction_version(DELETED) or 0) + deletion.rows
        properties = CommitProperties(app_transactions=[Transaction(DELETED, deleted)])
        if deletion.ids is not None:
            # Not as a condition: of one with very many numbers delta-rs makes a tree that overflows its stack.
            table.merge(
                _dated(deletion.ids),
                "t.date = i.date AND t.journal = i.journal AND t.seq = i.seq",
                source_alias="i",
                target_alias="t",
                writer_properties=_WRITER,
                commit_properties=properties,
            ).when_matched_delete().execute()
            return
        days = ", ".join(f"'{day}'" for day in deletion.days)
        table.delete(
            f"date IN ({days})" + (f" AND ({deletion.condition})" if deletion.condition else ""),
            writer_properties=_WRITER,
            commit_properties=properties,
        )

    def file_sizes(self) -> dict[str, list[int]]:
        """The sizes of the files of each day (``2025-01-31``)."""
        sizes: dict[str, list[int]] = {}
        for file in self._change(_files) or []:
            sizes.setdefault(file.date.isoformat(), []).append(file.bytes)
        return sizes

    def compact(self, days: list[str], target_size: int) -> int:
        """Join the files of these days that are below ``target_size`` bytes; how many are gone."""
        metrics = self._change(
            lambda table: table.optimize.compact(
                partition_filters=[("date", "in", days)],
                target_size=target_size,
                max_concurrent_tasks=1,  # each takes memory; nobody waits for this
                writer_properties=_WRITER,
            )
        )
        return 0 if metrics is None else int(metrics["numFilesRemoved"])

    def vacuum(self, hours: int, *, strays: bool) -> int:
        """Remove the files that have been out of the table for that many hours; how many they were.

        With strays, also those of that age that never were in it: of writers that died. What a writer is about to
        commit looks the same, so the clock has to be right and the hours enough.
        """

        def remove(table: DeltaTable) -> list[str]:
            def vacuum(*, dry_run: bool) -> list[str]:
                return table.vacuum(hours, dry_run=dry_run, enforce_retention_duration=False, full=strays)

            # A vacuum commits twice, even when it finds nothing.
            return vacuum(dry_run=False) if vacuum(dry_run=True) else []

        return len(self._change(remove) or [])

    def strays(self) -> list[str]:
        """The Parquet files beside the log that the newest version does not have."""
        if self.objects is not None:
            found = set(self.objects.listing())
        else:
            folder = Path(self._place)
            found = set(map(str, set(folder.glob("*/*.parquet")) - set(folder.glob("_delta_log/*"))))
        return sorted(found - set(map(self._name, self._change(_files) or [])))

    def _change(self, change: Callable[[DeltaTable], T]) -> T | None:
        """Do something to the newest version, again when somebody else did something meanwhile."""
        for attempt in range(ATTEMPTS):
            try:
                return change(self._open())
            except TableNotFoundError:
                return None
            except CommitFailedError:
                if attempt == ATTEMPTS - 1:
                    raise
                back_off(attempt)
        raise AssertionError("not reached")


def _files(table: DeltaTable) -> list[StoredFile]:
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "partition.date", "size_bytes", "num_records", "min.timestamp", "max.timestamp")
    return [StoredFile(*row) for row in zip(*(actions[column].to_pylist() for column in columns), strict=True)]


def _rows_by_day(files: list[StoredFile]) -> Mapping[str, int]:
    rows = Counter[str]()
    for file in files:
        rows[file.date.isoformat()] += file.rows
    return rows


def _sorted(rows: pa.Table) -> pa.Table:
    """By metric type, name, service and time, which compresses well: five million records take 15 bytes each.

    Texts repeat: the few that there are get ranks, and numbers sort in a fraction of the time of texts.
    """
    place = np.zeros(rows.num_rows, np.int64)
    for column in ("metric_type", "name", "service"):
        texts = rows[column].combine_chunks().dictionary_encode()
        ranks = np.argsort(np.argsort(texts.dictionary.to_numpy(zero_copy_only=False)))
        place = place * len(ranks) + ranks[texts.indices.to_numpy()]
    place = place.astype(np.min_scalar_type(place.max(initial=0)))  # 16 bits sort in a seventh of the time of 64
    return rows.take(np.lexsort((rows["timestamp"].to_numpy(), place)))


def _dated(rows: pa.Table) -> pa.Table:
    """The rows with the UTC day that each belongs to."""
    days = (rows["timestamp"].to_numpy() // DAY_NS).astype("datetime64[D]")
    return rows.append_column(_DATE, pa.array(days, pa.date32()))


def back_off(attempt: int) -> None:
    """Give the others time: they were faster."""
    time.sleep(random.uniform(0.5, 1.5) * min(0.005 * 2**attempt, 0.25))
