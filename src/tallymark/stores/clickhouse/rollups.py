"""Hours of series, which ClickHouse sums up while rows come in, and which part of a question they can answer.

They have what adds up: counts, sums, extremes, the newest value, outcomes, and the buckets of the values
(:mod:`tallymark.percentile`), which add up to percentiles.

A view that sums up is no part of the insert: a server that dies may have done one and not the other. So nothing of a
day is believed before it was compared with the records: where a day has as many of them as were summed up, and none is
deleted, its hours are right; any other day is read as it is, until it is summed up anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from tallymark.percentile import GROWTH, OFFSET, SCALE
from tallymark.query import Query, percentile
from tallymark.stores.clickhouse.sql import ClickHouseStatement
from tallymark.stores.clickhouse.tables import FIGURES, HOURS, RECORDS, quoted
from tallymark.stores.retention import DAY_NS, HOUR_NS
from tallymark.stores.sql import finals_sql, order_sql, window_sql

MANY_RECORDS: Final = 1_000_000
"""With fewer records in the days that are right, all records are read."""

MANY_IN_AN_HOUR: Final = 500
"""With fewer records for each row of a day's hours, exact percentiles take less than merging the buckets: 20 ns for a
record, up to 10 µs for a row.
"""

MANY_PIECES: Final = 64
"""A question is not cut into more."""

DAYS_AT_ONCE: Final = 8
"""So many days are summed up anew in one turn."""

SERIES: Final = frozenset({"service", "metric_type", "name", "unit", "success"})

DAYS_SQL: Final = (
    "SELECT toInt64(toRelativeDayNum(toDate(partition))) AS day, rows, masked, summed, hours FROM"
    " (SELECT partition, toInt64(sum(rows)) AS rows, max(has_lightweight_delete) AS masked FROM system.parts"
    f" WHERE active AND database = currentDatabase() AND table = {quoted(RECORDS)} GROUP BY partition) AS stored"
    f" LEFT JOIN (SELECT toString(toDate(intDiv(start, 1000000000), 'UTC')) AS partition, sum(n) AS summed,"
    f" toInt64(count()) AS hours FROM {HOURS} GROUP BY partition) AS kept USING (partition) ORDER BY day"
)
"""How many records each day has, how many of them are summed up, and in how many rows."""

_HOURS: Final = (
    "(SELECT start AS timestamp, service, metric_type, name, unit,"
    " CAST(if(outcome < 0, NULL, outcome), 'Nullable(Bool)') AS success,"
    f" {', '.join(FIGURES)}, if(outcome = 1, n, 0) AS successes, if(outcome < 0, 0, n) AS outcomes FROM {HOURS})"
    " AS records"
)
_RECORDS: Final = {name: made for name, (_, made) in FIGURES.items()} | {
    "successes": "toInt64(countIf(success))",
    "outcomes": "toInt64(count(success))",
}
"""The figures of a piece that is read from the records."""

_MERGED: Final = {"smallest": "min", "largest": "max", "newest_at": "max", "newest": "argMaxMerge", "buckets": "sumMap"}
"""How the figures of pieces are merged: the others by their sum."""

# As tallymark.percentile.estimates; what lies beyond the extremes is cut off.
_ESTIMATES: Final = (
    "arrayMap(key -> greatest(smallest, least(largest,"
    f" if(key = 0, 0., sign(key) * exp2((abs(key) - {OFFSET}) / {1 << SCALE}) * {2 * GROWTH / (1 + GROWTH)!r}))),"
    " mapKeys(buckets))"
)


class Day(NamedTuple):
    """A day that has records: its number since 1970, how many, how many of them are summed up, and in how many rows."""

    day: int
    rows: int
    masked: bool
    summed: int
    hours: int

    @property
    def right(self) -> bool:
        """Whether its hours say what its records do."""
        return self.rows == self.summed and not self.masked


class Piece(NamedTuple):
    """A stretch of time that is read from one of the two."""

    summed: bool
    start: int | None
    end: int | None


def fits(query: Query) -> bool:
    """Whether hours have what is asked for."""
    fields = {*query.group_by, *(found.field for found in query.conditions)}
    return fields <= SERIES and (query.window is None or query.window % HOUR_NS == 0)


def cut(query: Query, days: Sequence[Day]) -> list[Piece]:
    """The range of a query, in order; all of it from the records where hours would not help."""
    whole = [Piece(False, query.start, query.end)]
    least = MANY_IN_AN_HOUR if any(percentile(name) is not None for name in query.aggregates) else 0
    inside: list[tuple[int, int]] = []
    records = 0
    for day in days:
        first, last = day.day * DAY_NS, (day.day + 1) * DAY_NS
        if query.start is not None:
            first = max(first, -(-query.start // HOUR_NS) * HOUR_NS)
        if query.end is not None:
            last = min(last, query.end // HOUR_NS * HOUR_NS)
        if not day.right or first >= last or day.rows < least * day.hours:
            continue
        records += day.rows * (last - first) // DAY_NS
        if inside and inside[-1][1] == first:
            inside[-1] = (inside[-1][0], last)
        else:
            inside.append((first, last))
    if records < MANY_RECORDS or len(inside) > MANY_PIECES // 2:
        return whole
    pieces, place = [], query.start
    for first, last in inside:
        pieces += [Piece(False, place, first)] * (place != first) + [Piece(True, first, last)]
        place = last
    return pieces + [Piece(False, place, query.end)] * (place != query.end)


def pieces_sql(statement: ClickHouseStatement, query: Query, pieces: Sequence[Piece]) -> str:
    """As :func:`tallymark.stores.sql.aggregate_sql`, of pieces."""
    keys = [f"k{number}" for number in range(len(query.keys))]
    by = f" GROUP BY {', '.join(keys)}" if keys else ""
    parts = []
    for piece in pieces:
        inside = replace(query, start=piece.start, end=piece.end)
        texts = [window_sql(statement, query) if key == "window_start" else key for key in query.keys]
        columns = [f"{text} AS {name}" for text, name in zip(texts, keys, strict=True)]
        columns += [f"{name if piece.summed else made} AS f_{name}" for name, made in _RECORDS.items()]
        source = _HOURS if piece.summed else f"{RECORDS} AS records"
        grouped = "" if piece.summed else f"{by} HAVING count() > 0"
        parts.append(f"SELECT {', '.join(columns)} FROM {source} WHERE {statement.where(inside)}{grouped}")
    merged = [*keys, *(f"{_MERGED.get(name, 'sum')}(f_{name}) AS {name}" for name in _RECORDS)]
    shares = [share for share in map(percentile, query.aggregates) if share is not None]
    extra = ""
    if shares:
        # Parameters of an aggregate function cannot be bound.
        function = f"quantilesExactWeightedInterpolated({', '.join(map(repr, shares))})"
        extra = f", arrayReduce('{function}', {_ESTIMATES}, mapValues(buckets)) AS percentiles"
    named = f"SELECT *{extra} FROM (SELECT {', '.join(merged)}"
    each = [f"percentiles[{number}]" for number in range(1, len(shares) + 1)]
    outer = [*keys, *finals_sql(statement, query, each), "n"]
    shown = ", ".join(f"{expression} AS c{number}" for number, expression in enumerate(outer))
    return (
        f"SELECT {shown} FROM ({named} FROM ({' UNION ALL '.join(parts)}){by})) AS groups"
        f" WHERE n > 0{order_sql(statement, query)}"
    )
