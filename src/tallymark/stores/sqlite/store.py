"""The store behind ``sqlite:///metrics.db``: one file that any program reads which knows SQL.

Texts that make a series are kept once, rows in the order of time (``migrations/0001_records.sql``). Positions
and books change in the transaction that brings the rows. Rollups of days that are over are files beside it.
"""

import contextlib
import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallymark.batch import SCHEMA, Batch
from tallymark.errors import RefusedError, StoreError
from tallymark.files import size_of
from tallymark.location import local_folder
from tallymark.model import RESERVED_TYPE
from tallymark.query import MAX_ROWS, Query, metadata_path
from tallymark.store import Maintenance, Origin, Store, StoreInfo, with_origin
from tallymark.stores.days import NEEDED, Day, NotNow, RolledDays, choose, new_version
from tallymark.stores.deletion import by_day
from tallymark.stores.duck import Engine
from tallymark.stores.fresh import fresh
from tallymark.stores.retention import DAY_NS, Retention
from tallymark.stores.rollups import is_whole
from tallymark.stores.sql import aggregate_sql, fields_of, output_schema, scan_sql
from tallymark.stores.sqlite.link import Link
from tallymark.stores.sqlite.sql import (
    RECORDS,
    ROWS,
    SERIES,
    SqliteStatement,
    fetch,
    fetch_all,
    is_native,
    native,
    pages,
    to_table,
)

DELETED_AT_ONCE: Final = 50_000
"""So many records are forgotten in one transaction: the file is not held for long."""

FREED_AT_ONCE: Final = 16_384
"""So many free pages are given back by one upkeep: 64 MiB, which first have to go through the log."""

_DROPPED: Final = "dropped "

_INSERT: Final = (
    "INSERT INTO tallymark_rows"
    " (timestamp, journal, seq, series, value, success, error, trace_id, session_id, metadata)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class Sqlite(Store):
    """One SQLite file; see :class:`tallymark.store.Store`.

    Any number of processes may read; one of them writes at a time, and the others wait for it.

    Args:
        path: the file. It is made by the first write, and beside it a folder for the locks.
        url: what :meth:`info` calls it.
    """

    def __init__(self, path: Path, *, url: str | None = None) -> None:
        self._path = Path(path)
        self._url = url or f"sqlite:///{path}"
        self._link = Link(self._path, self._url)
        self._engine = Engine()
        self._rolled = RolledDays(local_folder(f"sqlite:{self._path}"), self._engine)

    def write(self, batch: Batch) -> None:
        """Keep a batch in one transaction, on the disk when this returns.

        Raises:
            RefusedError: a row is against a rule that somebody gave the file.
        """
        with self._errors("write to"):
            try:
                with self._link.writing() as connection:
                    new = fresh(batch, _positions(connection, list(batch.positions)))
                    journals = _journals(connection, new)
                    if new.table.num_rows:
                        own = np.asarray(new.table["metric_type"].to_numpy() == RESERVED_TYPE, bool)
                        _add(connection, "stored", int((~own).sum()))
                        for name, count in _dropped(new.table.filter(pa.array(own))).items():
                            _add(connection, name, count)
                        connection.executemany(_INSERT, _rows(connection, new.table, journals))
                        _change(connection, _count_days(new.table["timestamp"].to_numpy()))
            except (sqlite3.IntegrityError, sqlite3.DataError) as error:
                raise RefusedError(f"{self._url} refuses a record: {error}") from error

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is in the file."""
        with self._reading() as connection:
            return {} if connection is None else _positions(connection, journals)

    def scan(self, query: Query) -> pa.Table:
        """The records that match."""
        with self._reading() as connection:
            if connection is None:
                return SCHEMA.empty_table()
            if len(native(query).filters) == len(query.filters):
                return _scan(connection, query)
            limit = query.limit or MAX_ROWS
            found: list[pa.Table] = [SCHEMA.empty_table()]
            for page in pages(query, lambda part: _scan(connection, part)):
                found.append(self._engine.answer(replace(query, limit=limit), page))
                limit -= found[-1].num_rows
                if limit <= 0:
                    break
            return pa.concat_tables(found)

    def aggregate(self, query: Query) -> pa.Table:
        """The groups of the records that match."""
        with self._reading() as connection:
            days = [] if connection is None else _days(connection, query.start, query.end)
            chosen = choose(query, days, self._rolled.sidecars.paths())
            if connection is not None and chosen is not None:
                columns = fields_of(query)
                found = self._rolled.answer(query, days, chosen, lambda part: fetch(connection, part, columns))
                if found is not None:
                    return found
            origin = Origin(scanned=sum(day.rows for day in days))
            if connection is not None and is_native(query):
                statement = SqliteStatement()
                sql = aggregate_sql(statement, ROWS, query)
                groups = connection.execute(sql, statement.parameters).fetchall()
                return with_origin(to_table(groups, output_schema(query)), origin)
            rows = SCHEMA.empty_table() if connection is None else fetch(connection, query, fields_of(query))
        return with_origin(self._engine.answer(query, rows), origin)

    def delete(self, query: Query) -> int:
        """Forget what matches, in one transaction for each :data:`DELETED_AT_ONCE` records."""
        matching = replace(by_day(query), window=None, aggregates=())
        deleted = 0
        for keys in self._keys(matching):
            days = Counter[int]()
            with self._errors("delete from"), self._link.writing() as connection:
                for day, some in itertools.groupby(sorted(keys), lambda key: key[0] // DAY_NS):
                    days[day * DAY_NS] = connection.executemany(
                        "DELETE FROM tallymark_rows WHERE timestamp = ? AND journal = ? AND seq = ?", some
                    ).rowcount
                gone = days.total()
                _change(connection, {day: -rows for day, rows in days.items() if rows})
                _add(connection, "stored", -gone)
                _add(connection, "deleted", gone)
            with self._errors("remove rollups of"):
                self._rolled.forget(+days)
            deleted += gone
        return deleted

    def _keys(self, query: Query) -> Iterator[list[tuple[int, int, int]]]:
        """The keys of the rows that match, some at a time."""
        names = ["timestamp", "journal", "seq"]
        hard = tuple(item for item in query.filters if metadata_path(item.field) is not None)
        with self._reading() as connection:
            if connection is None:
                return
            statement = SqliteStatement()
            where = statement.where(native(query))
            sql = f"SELECT timestamp, journal_id, seq{', metadata' if hard else ''} FROM {ROWS} WHERE {where}"
            kinds = [(name, "i8") for name in names] + [("metadata", "O")] * bool(hard)
            found = np.fromiter(connection.execute(sql, statement.parameters), np.dtype(kinds))
        columns: list[Any] = [found[name] for name in names]
        if hard:
            # To DuckDB the number of a journal is its name; nothing is compared with it.
            made: dict[str, Any] = {name: pa.array(found[name]) for name in (*names, "metadata")}
            made["metric_type"] = pa.repeat("", len(found))
            nothing = pa.nulls(len(found))
            table = pa.table({name: made.get(name, nothing) for name in SCHEMA.names})
            ids = self._engine.ids(Query(filters=hard), table)
            columns = [ids[name].to_numpy() for name in names]
        for first in range(0, len(columns[0]), DELETED_AT_ONCE):
            part = slice(first, first + DELETED_AT_ONCE)
            yield list(zip(*(column[part].tolist() for column in columns), strict=True))

    def info(self) -> StoreInfo:
        """What is stored, from the books. Bytes are those of the file and of what waits to be merged into it."""
        with self._reading() as connection:
            if connection is None:
                return StoreInfo(self._url, 0, 0, {}, 0)
            books = dict(connection.execute("SELECT name, count FROM tallymark_books").fetchall())
        dropped = {name.removeprefix(_DROPPED): count for name, count in books.items() if name.startswith(_DROPPED)}
        size = sum(size_of(Path(f"{self._path}{end}")) for end in ("", "-wal"))
        return StoreInfo(self._url, books.get("stored", 0), 0, dropped, size, books.get("deleted", 0))

    def maintain(self, now: int, retention: Retention | None, *, strays: bool = False) -> Maintenance:
        """Delete what is too old, give room back that is free, and refresh what the planner knows."""
        done = super().maintain(now, retention, strays=strays)
        if self._link.exists():
            with self._errors("look after"), self._link.alone() as connection:
                # As a script: execute would take one step, which frees one page.
                connection.executescript(f"PRAGMA incremental_vacuum({FREED_AT_ONCE})")
                connection.execute("PRAGMA analysis_limit = 1000")
                connection.execute("PRAGMA optimize")
        return done

    def roll_up(self, now: int) -> int:
        """Make the rollups that are missing, and remove those of what is not any more; how many were made."""
        made = 0
        if not self._link.exists():
            return made
        with self._errors("make rollups of"):
            with self._reading() as connection:
                days = [] if connection is None else _days(connection)
            self._rolled.tidy(days)
            for day in days:
                path = self._rolled.path(day)
                if not day.is_due(now) or is_whole(str(path)):
                    continue
                with contextlib.suppress(NotNow), self._rolled.made(day, self._records_of(day)) as sidecar:
                    if sidecar is not None:
                        path.parent.mkdir(exist_ok=True)
                        sidecar.replace(path)
                        made += 1
                if not self._is_as(day):
                    path.unlink(missing_ok=True)  # who deleted from it meanwhile may have looked for the file before
        return made

    def _records_of(self, day: Day) -> Generator[pa.Table]:
        """All that a day has, some at a time, as long as it is as it was."""
        with self._reading() as connection:
            if connection is None or day not in _days(connection, day.first, day.until):
                raise NotNow
            yield from fetch_all(connection, day.first, day.until, NEEDED)

    def _is_as(self, day: Day) -> bool:
        with self._reading() as connection:
            return connection is not None and day in _days(connection, day.first, day.until)

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """Write the file anew, so that no byte of what was deleted is left in it or beside it."""
        if not self._link.exists():
            return []
        with self._reading() as connection:
            days = [] if connection is None else _days(connection)
        with self._errors("remove rollups of"):
            self._rolled.tidy(days)
        with self._errors("write anew"):
            with self._link.writing() as connection:
                connection.execute("DELETE FROM tallymark_series WHERE id NOT IN (SELECT series FROM tallymark_rows)")
            with self._link.alone() as connection:
                connection.execute("VACUUM")
                (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            return [f"{self._path}-wal: what was deleted is still in it, since somebody reads the file; try again"]
        return []

    def close(self) -> None:
        """Give everything back."""
        self._rolled.close()
        self._link.close()
        self._engine.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        with self._errors("read"), self._link.reading() as connection:
            yield connection

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot {doing} {self._url}: {error}") from error


def _scan(connection: sqlite3.Connection, query: Query) -> pa.Table:
    statement = SqliteStatement()
    sql = scan_sql(statement, RECORDS, query)
    return to_table(connection.execute(sql, statement.parameters).fetchall(), SCHEMA)


def _positions(connection: sqlite3.Connection, journals: Iterable[str]) -> dict[str, int]:
    found = {}
    for journal in journals:
        row = connection.execute("SELECT position FROM tallymark_journals WHERE journal = ?", [journal]).fetchone()
        if row is not None and row[0] is not None:
            found[journal] = row[0]
    return found


def _journals(connection: sqlite3.Connection, batch: Batch) -> Any:
    """Keep the positions of a batch; the number of the journal of each row."""
    connection.executemany(
        "INSERT INTO tallymark_journals (journal, position) VALUES (?, ?)"
        " ON CONFLICT (journal) DO UPDATE SET position = excluded.position",
        batch.positions.items(),
    )
    codes: Any = batch.table["journal"].combine_chunks().dictionary_encode()
    numbers = []
    for journal in codes.dictionary.to_pylist():
        connection.execute("INSERT INTO tallymark_journals (journal) VALUES (?) ON CONFLICT DO NOTHING", [journal])
        numbers += connection.execute("SELECT id FROM tallymark_journals WHERE journal = ?", [journal]).fetchone()
    return np.array(numbers, np.int64)[codes.indices.to_numpy()]


def _series(connection: sqlite3.Connection, rows: pa.Table) -> Any:
    """The number of the series of each row; those that are new are kept."""
    place = np.zeros(rows.num_rows, np.int64)
    columns: list[Any] = [rows[name].combine_chunks().dictionary_encode("encode") for name in SERIES]
    for column in columns:
        if len(column.dictionary) > 1:
            place = place * len(column.dictionary) + column.indices.to_numpy()
            # Numbered anew after each, or texts that are all different would leave the range of an integer.
            _, place = np.unique(place, return_inverse=True)
    _, first = np.unique(place, return_index=True)
    numbers = []
    for row in rows.select(SERIES).take(first).to_pylist():
        connection.execute(
            f"INSERT INTO tallymark_series ({', '.join(SERIES)}) VALUES ({', '.join('?' * len(SERIES))})"
            " ON CONFLICT DO NOTHING",
            list(row.values()),
        )
        numbers += connection.execute(
            f"SELECT id FROM tallymark_series WHERE {' AND '.join(f'{name} IS ?' for name in SERIES)}",
            list(row.values()),
        ).fetchone()
    return np.array(numbers, np.int64)[place]


def _rows(connection: sqlite3.Connection, rows: pa.Table, journals: Any) -> Iterator[tuple[Any, ...]]:
    """The rows as they are inserted: in the order of time, which is that of the table."""
    series = _series(connection, rows)
    order = np.lexsort((rows["seq"].to_numpy(), journals, rows["timestamp"].to_numpy()))
    rows = rows.take(order)
    return zip(
        rows["timestamp"].to_numpy().tolist(),
        journals[order].tolist(),
        rows["seq"].to_numpy().tolist(),
        series[order].tolist(),
        rows["value"].to_numpy().tolist(),
        *(_values(rows[name]) for name in ("success", "error", "trace_id", "session_id")),
        rows["metadata"].to_numpy().tolist(),
        strict=False,  # what is the same for all has no end
    )


def _values(column: Any) -> Iterable[Any]:
    if column.null_count == len(column):
        return itertools.repeat(None)
    values: list[Any] = column.to_numpy().tolist()
    return values


def _days(connection: sqlite3.Connection, start: int | None = None, end: int | None = None) -> list[Day]:
    """The days that may hold timestamps in [start, end), the oldest first."""
    rows = connection.execute("SELECT first, rows, version, changed FROM tallymark_days ORDER BY first")
    days = (Day(first, first + DAY_NS, *more) for first, *more in rows)
    return [day for day in days if day.may_hold(start, end)]


def _count_days(timestamps: Any) -> dict[int, int]:
    """How many timestamps are of which day, by its beginning."""
    days, counts = np.unique(timestamps // DAY_NS, return_counts=True)
    return dict(zip((days * DAY_NS).tolist(), counts.tolist(), strict=True))


def _change(connection: sqlite3.Connection, rows: Mapping[int, int]) -> None:
    """Count rows that came to days, or left them; each of them becomes another version."""
    version, changed = new_version(), time.time_ns()
    connection.executemany(
        "INSERT INTO tallymark_days (first, rows, version, changed) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (first) DO UPDATE SET"
        " rows = rows + excluded.rows, version = excluded.version, changed = excluded.changed",
        [(first, count, version, changed) for first, count in rows.items()],
    )
    connection.execute("DELETE FROM tallymark_days WHERE rows = 0")


def _dropped(own: pa.Table) -> Counter[str]:
    """How many records could not be kept, by what the store's own rows say."""
    found = Counter[str]()
    for row in own.to_pylist():
        if row["name"] == "dropped":
            found[_DROPPED + str(json.loads(row["metadata"]).get("reason"))] += int(row["value"])
    return found


def _add(connection: sqlite3.Connection, name: str, count: int) -> None:
    if count:
        connection.execute(
            "INSERT INTO tallymark_books (name, count) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET count = count + excluded.count",
            [name, count],
        )
