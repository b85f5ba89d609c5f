"""Rollups of stores that keep their records by day, in tables, and not in files.

A day (UTC) is what a Parquet file is to the lake: it has a number of records, a range of times, and a *version*. Every
transaction that changes a day gives it another version, at random, so that none ever comes again: not in a store that
was brought back from a copy either. A sidecar is named after the day and the version, and is believed by those only who
see that very version in the transaction in which they look at the records.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from tallymark import log
from tallymark.batch import SCHEMA
from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.store import Origin, with_origin
from tallymark.stores import rollups
from tallymark.stores.duck import Engine, FileGone
from tallymark.stores.plan import Plan, plan
from tallymark.stores.rolled import Rolled, relative_error
from tallymark.stores.rollups import SERIES, Rollups
from tallymark.times import utc_day

QUIET_NS: Final = 600_000_000_000
"""For how long nothing has changed in a day that gets a sidecar: what an import brings would make each out of date."""

NEEDED: Final = frozenset({*SERIES, "timestamp", "value", "journal", "seq"})
"""The columns that sidecars are made of."""

MAKING: Final = "rollups-"
"""How the names of folders begin in which a sidecar is made."""

_FIELDS: Final[list[Any]] = [pa.field(field.name, field.type) for field in SCHEMA]
_RECORDS: Final = pa.schema(_FIELDS)
"""The columns of a file with the records of a day: null where they are not needed."""


class NotNow(Exception):
    """The sidecar of a day is not made: the day has changed meanwhile, or another is at it."""


class Day(NamedTuple):
    """A day of a store, or what it keeps together in its place.

    Attributes:
        first: where its range of timestamps begins (ns).
        until: where it is over.
        rows: how many records it has.
        version: of what is in it.
        changed: when it got that (ns), by the clock of who wrote.
    """

    first: int
    until: int
    rows: int
    version: int
    changed: int

    @property
    def last(self) -> int:
        """No timestamp is after this."""
        return self.until - 1

    @property
    def name(self) -> str:
        """Of this version of it."""
        return f"{utc_day(self.first)}-{self.version:016x}"

    def may_hold(self, start: int | None, end: int | None) -> bool:
        """Whether there may be a timestamp in [start, end)."""
        return (start is None or self.until > start) and (end is None or self.first < end)

    def is_due(self, now: int) -> bool:
        """Whether it is to have a sidecar at a time (ns): it is over and large, and nothing changes any more."""
        # A clock that was put back does not make it wait for years.
        quiet = abs(now - self.changed) >= QUIET_NS
        return quiet and self.until <= now and self.rows >= rollups.MIN_RECORDS


def new_version() -> int:
    """A version that there never was."""
    return int.from_bytes(os.urandom(8), "big") >> 1


class RolledDays:
    """The sidecars of days on this machine, and answers from them. Any method may be called from any thread.

    Args:
        folder: what belongs to the store on this machine. It is made when there is something to put into it.
        engine: runs the SQL.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder = folder
        self._rolled = Rolled(engine)
        self._making: Rollups | None = None
        self._closed = False
        self.sidecars = Rollups(folder / "rollups")

    def path(self, day: Day) -> Path:
        """Where the sidecar of a day is, if it is."""
        return self._folder / "rollups" / rollups.sidecar_of(day.name)

    def answer(
        self, query: Query, days: Iterable[Day], chosen: Plan, fetch: Callable[[Query], pa.Table]
    ) -> pa.Table | None:
        """The answer to an aggregation by a plan; None where a sidecar cannot be read, and so the records should be.

        Args:
            days: those that the plan was made of.
            fetch: gives the records that a query finds, as far as its aggregates need them.
        """
        stretches = _stretches(query, chosen, {day.name: day for day in days})
        rows = [fetch(replace(query, start=start, end=end)) for start, end in stretches]
        pieces = [piece for piece in chosen.pieces if piece.level]
        try:
            found = self._rolled.answer(
                query, replace(chosen, pieces=pieces, raw=[]), pa.concat_tables(rows or [SCHEMA.empty_table()])
            )
        except FileGone as error:
            log.warning("without rollups: %s", error)
            return None
        return with_origin(found, Origin(chosen.source, chosen.scanned, relative_error(query)))

    @contextlib.contextmanager
    def made(self, day: Day, records: Generator[pa.Table]) -> Iterator[Path | None]:
        """The sidecar of a day, new, for as long as the block lasts; None where there is none.

        Args:
            records: all that the day has, some at a time; the columns in :data:`NEEDED`, anything in the others.

        Raises:
            NotNow: ``records`` raises it; then there is no sidecar now.
            StoreError: closed meanwhile.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(records))
            sidecar = None
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Not in the system's folder for such files: that may be in memory.
                folder = stack.enter_context(TemporaryDirectory(prefix=MAKING, dir=self._folder))
                file = os.path.join(folder, f"{day.name}.parquet")
                self._write(file, records)
                self._making = Rollups(Path(folder))
                sidecar = self._making.make(file)
            except (OSError, pa.ArrowException) as error:
                log.warning("no rollups of %s: %s", day.name, error)
            finally:
                self._making = None
            yield sidecar

    def _write(self, file: str, records: Iterable[pa.Table]) -> None:
        with parquet.ParquetWriter(file, _RECORDS) as writer:
            for table in records:
                if self._closed:
                    raise StoreError(f"no rollups in {self._folder}: closed meanwhile")
                writer.write_table(table.cast(_RECORDS))

    def tidy(self, days: Iterable[Day]) -> None:
        """Remove what is of none of these days, and what was left half made. Nobody else makes any meanwhile.

        Raises:
            OSError: it cannot be removed.
        """
        self._closed = False
        self.sidecars.remove_others(day.name for day in days)
        for folder in self._folder.glob(f"{MAKING}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def keep_only(self, names: Set[str]) -> None:
        """Remove the sidecars that have none of these names.

        Raises:
            OSError: they cannot be removed.
        """
        for name, path in self.sidecars.paths().items():
            if name not in names:
                Path(path).unlink(missing_ok=True)

    def forget(self, days: Iterable[int]) -> None:
        """Remove the sidecars of every version of days that begin at these times (ns).

        Raises:
            OSError: they cannot be removed.
        """
        names = set(map(utc_day, days))
        for name, path in self.sidecars.paths().items():
            if name.rpartition("-")[0] in names:
                Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        """End what is being made: it raises StoreError."""
        self._closed = True
        making = self._making
        if making is not None:
            making.close()


def choose(query: Query, days: Iterable[Day], sidecars: Mapping[str, str]) -> Plan | None:
    """How rollups help to answer; None where the records should be read.

    Args:
        sidecars: the files with rollups, by the names of the days.
    """
    return plan(query, {day.name: day for day in days}, sidecars)


def share_read(query: Query, days: Collection[Day], chosen: Plan) -> float:
    """The share of the records in the range of a query that a plan reads, if they are spread evenly over their days."""

    def records(start: int, end: int) -> float:
        overlaps = ((day, min(end, day.until) - max(start, day.first)) for day in days)
        return sum(day.rows * length / (day.until - day.first) for day, length in overlaps if length > 0)

    stretches = _stretches(query, chosen, {day.name: day for day in days})
    last = max(day.until for day in days) if query.end is None else query.end
    return sum(records(start, end) for start, end in stretches) / records(query.start or 0, last)


def _stretches(query: Query, chosen: Plan, days: Mapping[str, Day]) -> list[tuple[int, int]]:
    """The ranges of time of which a plan reads every record, in order and apart."""
    pieces = [(name, piece.start, piece.end) for piece in chosen.pieces if not piece.level for name in piece.files]
    start = 0 if query.start is None else query.start
    pieces += [(name, start, days[name].until if query.end is None else query.end) for name in chosen.raw]
    ordered = sorted(days.values())
    # From the end of the one before: several are asked for together, where no other lies in between.
    begins = {day.name: before.until for before, day in itertools.pairwise(ordered)} | {ordered[0].name: 0}
    found: list[tuple[int, int]] = []
    for start, end in sorted((max(start, begins[name]), min(end, days[name].until)) for name, start, end in pieces):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        elif start < end:
            found.append((start, end))
    return found
