"""The partitions of the records: one for each day (UTC), as far as that goes.

There is none for everything else (DEFAULT): rows in such a one are in the way of the partition that they belong to.
What a batch needs is made for it, in transactions of their own that stop neither readers nor writers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from psycopg import sql

from tallymark.stores.postgres.link import Cursor
from tallymark.stores.retention import DAY_NS

AHEAD: Final = 3
"""Partitions are made so many days ahead."""

NEAR: Final = 35
"""Days that are no further from today than this always have a partition each."""

MOST: Final = 400
"""Where there are more partitions than this, what is not near shares one for a year: a clock that is wrong, or an
import of decades, must not make more tables than a query can lock.
"""

LOCK: Final = 0x74616C6C79_01
"""The advisory lock of whoever changes the schema or the partitions."""

_ATTACHED: Final = (
    "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tallymark.records'::regclass "
    "AND inhrelid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)"
)


class Part(NamedTuple):
    """A partition: where its range of timestamps begins (ns), where it is over, and how many rows it has."""

    first: int
    until: int
    rows: int = 0

    @property
    def name(self) -> str:
        """Of its table."""
        return f"records_{_day(self.first):%Y%m%d}"


def find(cursor: Cursor, start: int | None = None, end: int | None = None, has_rows: bool | None = None) -> list[Part]:
    """The partitions that may hold timestamps in [start, end), the oldest first.

    Args:
        has_rows: only those that have some, or only those that have none.
    """
    terms = {"until > %s": start, "first < %s": end, "(rows > 0) = %s": has_rows}
    given = {term: value for term, value in terms.items() if value is not None}
    where = " AND ".join(["true", *given])
    cursor.execute(f"SELECT first, until, rows FROM tallymark.parts WHERE {where} ORDER BY first", list(given.values()))
    return [Part(*row) for row in cursor.fetchall()]


def make(cursor: Cursor, days: Sequence[int], today: int) -> None:
    """Make the partitions that are missing.

    Args:
        days: which begin at these times (ns).
        today: the beginning of this day.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    cursor.execute("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'tallymark.records'::regclass")
    ((owner,),) = cursor.fetchall()
    for part in missing(find(cursor), days, today):
        names = {
            "table": sql.Identifier("tallymark", part.name),
            "owner": sql.Identifier(owner),
            "first": sql.Literal(part.first),
            "until": sql.Literal(part.until),
        }
        # To attach a table stops nobody; to create it as a partition would wait for every query, and stop all others.
        for statement in (
            "CREATE TABLE {table} (LIKE tallymark.records INCLUDING ALL EXCLUDING INDEXES)",
            # Whoever may write to the one may write to the other.
            "ALTER TABLE {table} OWNER TO {owner}",
            "ALTER TABLE tallymark.records ATTACH PARTITION {table} FOR VALUES FROM ({first}) TO ({until})",
        ):
            cursor.execute(sql.SQL(statement).format(**names))
        cursor.execute(
            "INSERT INTO tallymark.parts (name, first, until) VALUES (%s, %s, %s)", [part.name, part.first, part.until]
        )


def all_attached(cursor: Cursor, parts: Sequence[Part]) -> bool:
    """Whether all of these are partitions still: somebody may have detached one."""
    cursor.execute(_ATTACHED, [[f"tallymark.{part.name}" for part in parts]])
    return cursor.fetchall() == [(len(parts),)]


def missing(parts: Sequence[Part], days: Sequence[int], today: int, most: int | None = None) -> list[Part]:
    """What has to be made so that there is a partition for each of some days."""
    found = sorted(parts)
    made: list[Part] = []
    for day in days:
        if any(part.first <= day < part.until for part in found):
            continue
        part = Part(day, day + DAY_NS)
        if abs(day - today) > NEAR * DAY_NS and len(found) >= (MOST if most is None else most):
            year = _day(day).year
            begin = max([_start(year), *(one.until for one in found if one.until <= day)])
            end = min([_start(year + 1), *(one.first for one in found if one.first > day)])
            part = Part(begin, end)
        made.append(part)
        found.append(part)
    return made


def _day(timestamp: int) -> datetime:
    return datetime.fromtimestamp(timestamp // 1_000_000_000, UTC)


def _start(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000_000
