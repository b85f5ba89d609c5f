"""Questions about time that name no type and no name.

There is no index on time alone: with one, a record would take a quarter longer to store. The index on type and time
serves those questions too, once all types that there are have been named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tallymark.query import MAX_ROWS, Query
from tallymark.stores.days import Day
from tallymark.stores.postgres import parts
from tallymark.stores.postgres.link import Cursor
from tallymark.stores.postgres.sql import HASHED, RECORDS

MOST_TYPES: Final = 200
"""Where there are more types than this, they are not named, and whole partitions are read."""

FIRST_ROWS: Final = 1_000
"""How many records a scan looks at first, beside those that it wants: some may not match."""

GROWTH: Final = 8
"""So many times as many it looks at next, and so on."""

MOST_ROWS: Final = 200_000
"""A partition is not cut for more than this, unless the scan wants them: to sort it takes no longer."""

_END: Final = 2**63 - 1
"""No time is after this."""

# A step for each type, and not for each record.
_TYPES: Final = f"""
WITH RECURSIVE types (hash) AS (
    (
        SELECT hashtext(metric_type) FROM {RECORDS} WHERE timestamp >= %(first)s AND timestamp < %(until)s
        ORDER BY hashtext(metric_type) LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT hashtext(metric_type) FROM {RECORDS}
        WHERE hashtext(metric_type) > hash AND timestamp >= %(first)s AND timestamp < %(until)s
        ORDER BY hashtext(metric_type) LIMIT 1
    ) FROM types WHERE hash IS NOT NULL
)
SELECT hash FROM types WHERE hash IS NOT NULL LIMIT %(most)s
"""


def types(cursor: Cursor, query: Query, days: Sequence[Day]) -> list[int] | None:
    """The hashes of all types that a query may find, where to name them helps; None where it does not.

    Args:
        days: the partitions with rows in the range of the query, the oldest first.
    """
    if any(item.field in HASHED and item.op in ("=", "in") for item in query.filters):
        return None
    if not days or ((query.start or 0) <= days[0].first and (query.end is None or query.end >= days[-1].until)):
        return None  # whole partitions
    return _types_of(cursor, days[0].first, days[-1].until)


def stretches(cursor: Cursor, query: Query) -> Iterator[tuple[Query, list[int] | None]]:
    """A scan as several of one stretch of time each, in its order; each with the types to name, if that helps.

    The first has about as many records as the scan wants, the next ones more and more: of a large partition a part, and
    small ones together.
    """
    if any(item.field in HASHED and item.op == "=" and item.value is not None for item in query.filters):
        yield query, None  # in the order of an index
        return
    start, end = query.start or 0, _END if query.end is None else query.end
    if query.after is not None and query.oldest_first:
        start = max(start, query.after.timestamp)
    elif query.after is not None:
        end = min(end, query.after.timestamp + 1)
    wanted = (query.limit or MAX_ROWS) + FIRST_ROWS
    most = max(MOST_ROWS, wanted)
    left = parts.find(cursor, start, end, has_rows=True) if start < end else []
    if not query.oldest_first:
        left.reverse()
    while left:
        count = rows = 0
        while count < len(left) and rows + left[count].rows <= wanted:
            rows += left[count].rows
            count += 1
        some = sorted(left[: count or 1])
        first, until = max(start, some[0].first), min(end, some[-1].until)
        known = bound = None
        if not count and wanted <= most:
            # Of the partition as a whole: to find those of a shorter time, the steps would pass by what is beside it.
            known = _types_of(cursor, some[0].first, some[0].until)
            if known is not None:
                bound = _bound(cursor, known, first, until, wanted, query.oldest_first)
        if bound is None:
            del left[: count or 1]
        elif query.oldest_first:
            start = until = bound + 1
        else:
            end = first = bound
        yield replace(query, start=first, end=until), known
        wanted *= GROWTH


def _types_of(cursor: Cursor, first: int, until: int) -> list[int] | None:
    """The hashes of the types in partitions that follow each other; None where they are too many, or none.

    There are none where a partition was emptied or detached, which the table of partitions does not show yet.
    """
    cursor.execute(_TYPES, {"first": first, "until": until, "most": MOST_TYPES + 1})
    hashes = [found for (found,) in cursor.fetchall()]
    return hashes if 0 < len(hashes) <= MOST_TYPES else None


def _bound(cursor: Cursor, known: Sequence[int], first: int, until: int, rows: int, oldest_first: bool) -> int | None:
    """The timestamp of the last of so many records in [first, until), in the order of a scan; None where there are
    fewer.
    """
    order = f"ORDER BY timestamp {'ASC' if oldest_first else 'DESC'}"
    # The limits make the planner merge what comes out of the index, and so no more of it is read than is needed.
    each = (
        f"(SELECT timestamp FROM {RECORDS} WHERE timestamp >= %(first)s AND timestamp < %(until)s "
        f"AND hashtext(metric_type) = {one} {order} LIMIT %(rows)s)"
        for one in known
    )
    cursor.execute(
        f"SELECT timestamp FROM ({' UNION ALL '.join(each)}) AS merged {order} OFFSET %(rows)s - 1 LIMIT 1",
        {"first": first, "until": until, "rows": rows},
    )
    for (timestamp,) in cursor.fetchall():
        return int(timestamp)
    return None
