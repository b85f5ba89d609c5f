"""What is to be deleted, as DataFusion SQL for the table.

Delta keeps the condition of a deletion in its log, as text. So only what names nobody becomes part of one: times and
metric types. Whatever else a query asks for is looked up first, and the records that it found are deleted by their ids.
That also gives every condition, those on metadata too, exactly the meaning that it has in a query.
"""

from dataclasses import replace
from typing import Final

from tallymark.errors import QueryError
from tallymark.model import RESERVED_TYPE
from tallymark.query import Filter, Query
from tallymark.stores.retention import DAY_NS

MAX_IDS: Final = 250_000
"""So many records are deleted by their ids in one commit; each takes some memory."""

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
