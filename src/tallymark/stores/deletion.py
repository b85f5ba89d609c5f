"""What is to be deleted, as DataFusion SQL for the table.

Delta keeps the condition of a deletion in its log, as text. So only what names nobody becomes part of one: times and
metric types. Whatever else a query asks for is looked up first, and the records that it found are deleted by their ids.
That also gives every condition, those on metadata too, exactly the meaning that it has in a query.
"""

from collections import Counter
from dataclasses import replace
from typing import Final

import pyarrow as pa

from tallymark.errors import QueryError
from tallymark.model import RESERVED_TYPE
from tallymark.query import Filter, Query
from tallymark.stores.delta import DAY_NS, utc_day

MAX_IDS: Final = 50_000
"""So many records are deleted by their ids in one commit: its text is in the log for an hour or more."""

MAX_JOURNALS: Final = 64
"""Of so many journals: the time that DataFusion takes for a condition grows faster than its length."""

_OWN: Final = Filter("metric_type", "!=", RESERVED_TYPE)


def by_day(query: Query) -> Query:
    """How many records match on each day; the store's own are never among them.

    Raises:
        QueryError: it is more than a time range and conditions.
    """
    if query.aggregates or query.order_by or query.limit is not None or query.cursor is not None:
        raise QueryError("delete: a query with since, until and where only")
    return replace(query, filters=(*query.filters, _OWN), window=DAY_NS, aggregates=("count",))


def condition(query: Query) -> str | None:
    """The condition of a query as SQL; None where it may not be in a log."""
    terms = [f"metric_type <> '{RESERVED_TYPE}'"]
    for found in query.filters:
        if found == _OWN:
            continue
        if found.field != "metric_type" or found.op not in ("=", "!=", "in"):
            return None
        # Where others write meanwhile, delta-rs reads a text again that it has written itself, and gets some wrong. For
        # the same reason there is nothing but comparisons in any condition.
        if any(character in str(value) for value in found.values for character in "'\\"):
            return None
        texts = ", ".join(f"'{value}'" for value in found.values)
        terms.append(f"metric_type {'NOT ' if found.op == '!=' else ''}IN ({texts})")
    if query.start is not None:
        terms.append(f"timestamp >= {query.start}")
    if query.end is not None:
        terms.append(f"timestamp < {query.end}")
    return " AND ".join(terms)


def these(ids: pa.Table) -> tuple[str, dict[str, int]]:
    """The condition that is true for the first of these records (journal, seq, timestamp; in the order of time), and
    how many of them are of each day: as many as one commit deletes well.
    """
    numbers: dict[str, list[int]] = {}
    times = []
    columns = (ids[column].to_pylist() for column in ("journal", "seq", "timestamp"))
    for journal, seq, timestamp in zip(*columns, strict=True):
        if journal not in numbers and len(numbers) == MAX_JOURNALS:
            break
        numbers.setdefault(journal, []).append(seq)
        times.append(timestamp)
    terms = (f"(journal = '{journal}' AND seq IN ({', '.join(map(str, seqs))}))" for journal, seqs in numbers.items())
    sql = f"timestamp >= {times[0]} AND timestamp <= {times[-1]} AND ({' OR '.join(terms)})"
    return sql, Counter(map(utc_day, times))
