"""All records of a store that match, page by page, the oldest first: as many as there are in little memory.

One question for each page would have the store look for the oldest of all the rest every time. So the records are
counted first, and each page asks for a range of time that holds about as many as it takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from tallymark.model import RESERVED_TYPE
from tallymark.query import Cursor, Filter, Query
from tallymark.store import Store
from tallymark.stores.retention import DAY_NS

PAGE_ROWS: Final = 50_000
"""Most records of a page."""

_FINER: Final = {
    DAY_NS: 3_600_000_000_000,
    3_600_000_000_000: 60_000_000_000,
    60_000_000_000: 1_000_000_000,
    1_000_000_000: 1_000_000,
}
"""Windows, and the next smaller ones."""

OWN: Final = Filter("metric_type", "=", RESERVED_TYPE)
"""What shows the store's own rows, in place of records."""


@dataclass(frozen=True)
class Span:
    """A range of time [start, end), in ns, and how many records were in it when they were counted."""

    start: int
    end: int
    records: int


def by_day(store: Store, query: Query) -> dict[int, int]:
    """How many records match, for each day (its start, ns) that has any."""
    return {span.start // DAY_NS * DAY_NS: span.records for span in _counted(store, query, DAY_NS)}


def until_newest(store: Store, query: Query) -> Query:
    """The same query, ended behind the newest record that there is now: what comes later is not waited for."""
    found = store.aggregate(_counting(query, ("last_timestamp",))).to_pylist()
    newest = found[0]["last_timestamp"] + 1 if found else query.start or 0
    return replace(query, end=newest if query.end is None else min(newest, query.end))


def pages(store: Store, query: Query, most: int = PAGE_ROWS) -> Iterator[pa.Table]:
    """The records that match, the oldest first, in pages that are not empty.

    Args:
        query: a range of time and conditions; with a cursor, what follows it.
    """
    after = query.after
    if after is not None:
        query = replace(query, start=max(query.start or 0, after.timestamp))
    for span in _spans(store, query, most):
        cursor = query.cursor
        while True:
            part = replace(query, start=span.start, end=span.end, order_by=("timestamp",), limit=most, cursor=cursor)
            page = store.scan(part)
            if page.num_rows:
                yield page
            if page.num_rows < most:
                break
            cursor = place_of_last(page)


def place_of_last(page: pa.Table) -> str:
    """The cursor behind the last record of a page."""
    timestamp, journal, seq = (page[name][page.num_rows - 1].as_py() for name in Cursor._fields)
    return str(Cursor(timestamp, journal, seq))


def _spans(store: Store, query: Query, most: int) -> Iterator[Span]:
    """Ranges of time that hold at most so many records, unless a millisecond holds more."""
    waiting: Span | None = None
    for span in _split(store, query, DAY_NS, most):
        if waiting is not None and waiting.records + span.records <= most:
            waiting = Span(waiting.start, span.end, waiting.records + span.records)
            continue
        if waiting is not None:
            yield waiting
        waiting = span
    if waiting is not None:
        yield waiting


def _split(store: Store, query: Query, window: int, most: int) -> Iterator[Span]:
    for span in _counted(store, query, window):
        if span.records > most and window in _FINER:
            yield from _split(store, replace(query, start=span.start, end=span.end), _FINER[window], most)
        else:
            yield span


def _counted(store: Store, query: Query, window: int) -> Iterator[Span]:
    """The windows that hold records, cut to the range of the query."""
    first = query.start or 0
    for row in store.aggregate(replace(_counting(query, ("count",)), window=window)).to_pylist():
        end = row["window_start"] + window
        yield Span(max(row["window_start"], first), end if query.end is None else min(end, query.end), row["count"])


def _counting(query: Query, aggregates: tuple[str, ...]) -> Query:
    return replace(query, aggregates=aggregates, order_by=(), limit=None, cursor=None)
