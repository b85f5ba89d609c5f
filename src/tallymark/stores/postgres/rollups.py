"""Rollups of partitions in PostgreSQL: one machine makes them for all, and who reads keeps copies of those he needs.

They are in the table ``tallymark.rollups``, and go in the transaction that deletes from their partition.
"""

import contextlib
import os
from collections.abc import Generator, Iterable, Mapping, Set
from typing import Any, Final

import pyarrow as pa

from tallymark.batch import SCHEMA
from tallymark.query import Query
from tallymark.stores.days import NEEDED, Day, NotNow, RolledDays, choose, share_read
from tallymark.stores.postgres import by_time
from tallymark.stores.postgres.link import Cursor
from tallymark.stores.postgres.sql import RECORDS, PostgresStatement, answer, blocks
from tallymark.stores.retention import DAY_NS
from tallymark.stores.rollups import FORMAT
from tallymark.stores.sql import fields_of

LOCK: Final = 0x74616C6C79 << 24
"""The advisory lock of who makes the rollups of the first day there is; those of later days follow."""

MOST_READ: Final = 0.3
"""Where more than this share of the records has to be fetched, all of them are aggregated in the database: to fetch
takes about three times the CPU.
"""

MOST_FETCHED: Final = 10_000_000
"""The same where more records than this would have to be fetched: each takes 50 to 100 bytes of memory."""

_DAYS: Final = f"""
SELECT parts.first, until, rows, parts.version, changed, format
FROM tallymark.parts
LEFT JOIN tallymark.rollups ON rollups.first = parts.first AND rollups.version = parts.version
WHERE rows > 0 AND until > coalesce(%s, 0) AND parts.first < coalesce(%s, {2**63 - 1})
ORDER BY parts.first
"""
_LISTED: Final = "SELECT first, version FROM tallymark.rollups WHERE format = %s"
_COPY: Final = "SELECT data FROM tallymark.rollups WHERE first = %s AND version = %s AND format = %s"
_KEEP: Final = """
INSERT INTO tallymark.rollups (first, version, format, data) VALUES (%s, %s, %s, %s)
ON CONFLICT (first) DO UPDATE SET version = excluded.version, format = excluded.format, data = excluded.data
"""


def days(cursor: Cursor, start: int | None = None, end: int | None = None) -> dict[Day, int]:
    """The partitions with rows that may hold timestamps in [start, end), the oldest first; each with the format of
    its rollups, or zero where there are none.
    """
    cursor.execute(_DAYS, [start, end])
    return {Day(*day): found or 0 for *day, found in cursor.fetchall()}


def aggregate(cursor: Cursor, query: Query, found: Mapping[Day, int], rolled: RolledDays) -> pa.Table | None:
    """The answer to an aggregation with the help of rollups; None where the records should be read.

    Args:
        found: what :func:`days` gave, in the same transaction.
        rolled: has the copies on this machine.

    Raises:
        OSError: there can be no copies on this machine.
    """
    paths = {day: str(rolled.path(day)) for day, form in found.items() if form == FORMAT}
    chosen = choose(query, found, {day.name: path for day, path in paths.items()})
    if chosen is None or chosen.scanned > MOST_FETCHED or share_read(query, found, chosen) > MOST_READ:
        return None
    needed = [day for day, path in paths.items() if path in chosen.sidecars]
    for _ in range(2):
        _bring(cursor, needed, rolled)
        table = rolled.answer(query, found, chosen, lambda part: _fetch(cursor, part, found))
        if table is not None:
            return table
        rolled.forget(day.first for day in needed)  # one of them is damaged
    return None


def _bring(cursor: Cursor, needed: Iterable[Day], rolled: RolledDays) -> None:
    """Have a copy of the rollups of some partitions, and none of what is not listed any more."""
    missing = [day for day in needed if not rolled.path(day).exists()]
    for day in missing:
        path = rolled.path(day)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the database asks for a password
        draft = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
        try:
            with draft.open("xb") as file:
                cursor.execute(_COPY, [day.first, day.version, FORMAT], binary=True)
                ((data,),) = cursor.fetchall()
                file.write(data)
            with contextlib.suppress(FileNotFoundError):  # somebody tidied up just now; it is brought again
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    if missing:
        cursor.execute(_LISTED, [FORMAT])
        rolled.keep_only({Day(first, 0, 0, version, 0).name for first, version in cursor.fetchall()})


def _fetch(cursor: Cursor, query: Query, found: Iterable[Day]) -> pa.Table:
    """The records that match, with the columns that the aggregates of a query need, and nothing in the others."""
    types = by_time.types(cursor, query, [day for day in found if day.may_hold(query.start, query.end)])
    statement, columns = PostgresStatement(types), _columns(fields_of(query))
    sql = f"SELECT {', '.join(columns.names)} FROM {RECORDS} WHERE {statement.where(query)}"
    return _whole(answer(cursor, statement, sql, columns))


def records(cursor: Cursor, day: Day) -> Generator[pa.Table]:
    """All that a partition has, some at a time, for its rollups.

    Raises:
        NotNow: it is not as it was, it has some, or another transaction is reading it for the same.
    """
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK + day.first // DAY_NS])
    ((free,),) = cursor.fetchall()
    if not free or days(cursor, day.first, day.until).get(day, FORMAT) >= FORMAT:
        raise NotNow
    statement = PostgresStatement()
    columns = _columns(NEEDED)
    sql = f"SELECT {', '.join(columns.names)} FROM {RECORDS} WHERE {statement.inside(day.first, day.until)}"
    yield from map(_whole, blocks(cursor, statement, sql, columns))


def keep(cursor: Cursor, day: Day, data: bytes) -> None:
    """Keep the rollups of a partition, if it is as it was; who deletes from it meanwhile waits for the end of this."""
    cursor.execute("SELECT version FROM tallymark.parts WHERE first = %s FOR SHARE", [day.first])
    if cursor.fetchall() == [(day.version,)]:
        cursor.execute(_KEEP, [day.first, day.version, FORMAT, data])


def forget(cursor: Cursor, first: int) -> None:
    """Remove the rollups of a partition. It has to be locked, or its row in ``parts`` changed, before."""
    cursor.execute("DELETE FROM tallymark.rollups WHERE first = %s", [first])


def write_anew(cursor: Cursor) -> None:
    """Give back what was deleted from the table of rollups; who reads them meanwhile waits."""
    cursor.execute("SELECT pg_relation_size('tallymark.rollups') > 0")
    if cursor.fetchall() == [(True,)]:
        cursor.execute("CLUSTER tallymark.rollups USING rollups_pkey")


def _columns(names: Set[str]) -> pa.Schema:
    return pa.schema([field for field in SCHEMA if field.name in names])


def _whole(table: pa.Table) -> pa.Table:
    """The table with all columns of records, and nothing in those that it did not have."""
    made: dict[str, Any] = dict.fromkeys(SCHEMA.names, pa.nulls(table.num_rows))
    return pa.table(made | {name: table[name] for name in table.column_names})
