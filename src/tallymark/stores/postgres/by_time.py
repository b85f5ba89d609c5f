"""Questions about time that name no type and no name.

There is no index on time alone: with one, a record would take a fifth longer to store. The index on type and time
serves those questions too, once all types that there are have been named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tallymark.query import MAX_ROWS, Query
from tallymark.stores.postgres import parts
from tallymark.stores.postgres.link import Cursor
from tallymark.stores.postgres.parts import Part
from tallymark.stores.postgres.sql import HASHED, RECORDS

MOST_TYPES: Final = 200
"""Where a stretch of time has more types than this, all of its partitions are read."""

FIRST_ROWS: Final = 1_000
"""How many records a scan looks at first, beside those that it wants: some may not match."""

MOST_ROWS: Final = 200_000
"""A scan that has to look at more goes on a partition at a time."""

GROWTH: Final = 8

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


def types(cursor: Cursor, query: Query) -> list[int] | None:
    """The hashes of all types that a query may find, where to name them helps; None where it does not."""
    if any(item.field in HASHED and item.op in ("=", "in") for item in query.filters):
        return None
    found = parts.find(cursor, query.start, query.end, has_rows=True)
    if not found or ((query.start or 0) <= found[0].first and (query.end is None or query.end >= found[-1].until)):
        return None  # whole partitions
    return _types_of(cursor, found)


def stretches(cursor: Cursor, query: Query) -> Iterator[tuple[Query, list[int] | None]]:
    """A scan as several of one stretch of time each, in its order; each with the types to name, if that helps.

    The first one has about as many records as the scan wants, later ones more and more, until it is whole partitions.
    """
    if any(item.field in HASHED and item.op == "=" and item.value is not None for item in query.filters):
        yield query, None  # in the order of an index
        return
    start, end = 0 if query.start is None else query.start, query.end
    if query.after is not None and query.oldest_first:
        start = max(start, query.after.timestamp)
    elif query.after is not None:
        end = min(query.after.timestamp + 1, query.after.timestamp + 1 if end is None else end)
    rows = (query.limit or MAX_ROWS) + FIRST_ROWS
    found = parts.find(cursor, start, end, has_rows=True)
    for part in found if query.oldest_first else reversed(found):
        first, until = max(start, part.first), part.until if end is None else min(end, part.until)
        known = _types_of(cursor, [part])
        while known is not None and rows <= MOST_ROWS:
            bound = _bound(cursor, known, first, until, rows, query.oldest_first)
            if bound is None:
                break
            if query.oldest_first:
                yield replace(query, start=first, end=bound + 1), known
                first = bound + 1
            else:
                yield replace(query, start=bound, end=until), known
                until = bound
            rows *= GROWTH
        if first < until:
            yield replace(query, start=first, end=until), known


def _types_of(cursor: Cursor, found: Sequence[Part]) -> list[int] | None:
    """The hashes of the types in partitions that follow each other; None where they are too many."""
    cursor.execute(_TYPES, {"first": found[0].first, "until": found[-1].until, "most": MOST_TYPES + 1})
    hashes = [found for (found,) in cursor.fetchall()]
    return hashes if len(hashes) <= MOST_TYPES else None


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
