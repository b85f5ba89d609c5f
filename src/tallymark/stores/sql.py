"""A query as SQL. What engines spell differently is a few methods of :class:`Statement`.

Nothing that a caller gave becomes part of the SQL: values and metadata keys are bound as parameters, columns come from
fixed sets, and names of results are numbered.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import pyarrow as pa

from tallymark.batch import SCHEMA, split_id
from tallymark.errors import QueryError
from tallymark.query import MAX_ROWS, Cursor, Filter, Query, Scalar, metadata_path, percentile

COLUMNS: Final = ", ".join(SCHEMA.names)
"""Every column of a record, as SQL."""

NUMBER: Final = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
"""What JSON calls a number, as a regular expression: casts also take "1_000", "inf" and " 1"."""

_NEVER_NULL: Final = frozenset(field.name for field in SCHEMA if not field.nullable)


class Statement(ABC):
    """SQL that is being put together in the dialect of one engine, and what is bound to it."""

    partials: ClassVar[Mapping[str, str]] = {
        "sum": "sum(value) AS total",
        "avg": "sum(value) AS total",
        "min": "min(value) AS smallest",
        "max": "max(value) AS largest",
        "last_timestamp": "max(timestamp) AS newest_at",
        "success_rate": "count(*) FILTER (WHERE success) AS successes, count(success) AS outcomes",
        "error_rate": "count(*) FILTER (WHERE success) AS successes, count(success) AS outcomes",
    }
    """What an aggregate computes over records; ``last`` is the engine's own."""

    finals: ClassVar[Mapping[str, str]] = {
        "count": "n",
        "sum": "CASE WHEN isfinite(total) THEN total END",
        "avg": "CASE WHEN isfinite(total) THEN total / n END",
        "min": "smallest",
        "max": "largest",
        "last": "newest",
        "last_timestamp": "newest_at",
        "success_rate": "100.0 * successes / nullif(outcomes, 0)",
        "error_rate": "100.0 * (outcomes - successes) / nullif(outcomes, 0)",
    }
    """What an aggregate is, from that."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    @abstractmethod
    def bind(self, value: Any) -> str:
        """The placeholder of a value."""

    @abstractmethod
    def metadata(self, path: tuple[str, ...]) -> str:
        """The text of a metadata value; null where it is absent or null."""

    @abstractmethod
    def number(self, text: str) -> str:
        """A text as a float64; null where it is none by :data:`NUMBER`."""

    @abstractmethod
    def percentiles(self, shares: list[float]) -> tuple[str, list[str]]:
        """What several percentiles compute over records, and each of them from that."""

    def quotient(self, dividend: str, divisor: str) -> str:
        """The integer quotient of two integers that are not negative."""
        return f"({dividend} / {divisor})"

    # -- conditions ------------------------------------------------------------------------------------------

    def where(self, query: Query) -> str:
        """The conditions of a query on its records, as one expression."""
        terms = [self.condition(condition) for condition in query.conditions]
        if query.start is not None:
            terms.append(f"timestamp >= {self.bind(query.start)}")
        if query.end is not None:
            terms.append(f"timestamp < {self.bind(query.end)}")
        return " AND ".join(terms)

    def condition(self, condition: Filter) -> str:
        """One condition: never null, so that its opposite is NOT."""
        if condition.op in ("=", "!=", "in"):
            equal = " OR ".join(self._equal(condition.field, value) for value in condition.values)
            return f"NOT ({equal})" if condition.op == "!=" else f"({equal})"
        return self._compare(condition.field, condition.op, condition.values[0])

    def _equal(self, field: str, value: Scalar) -> str:
        if field == "id":
            journal, seq = split_id(uuid.UUID(str(value)))
            return f"(journal = {self.bind(journal)} AND seq = {self.bind(seq)})"
        if value is None:
            return f"({self.text(field)} IS NULL)"
        if isinstance(value, bool) and field != "success":
            value = "true" if value else "false"
        return self._compare(field, "=", value)

    def _compare(self, field: str, op: str, value: Scalar) -> str:
        text = self.text(field)
        if field in _NEVER_NULL:  # bare, so that an index or statistics can be used
            return f"({field} {op} {self.bind(value)})"
        if metadata_path(field) is not None and not isinstance(value, str):
            text = self.number(text)
        return f"coalesce({text} {op} {self.bind(value)}, false)"

    def text(self, field: str) -> str:
        """A column as it is, a metadata value as its text."""
        path = metadata_path(field)
        return field if path is None else self.metadata(path)


def scan_sql(statement: Statement, records: str, query: Query) -> str:
    """The records that match, in order, at most ``query.limit``.

    Args:
        records: what stands behind FROM.
    """
    where, direction = statement.where(query), "ASC" if query.oldest_first else "DESC"
    if query.after is not None:
        where += f" AND {_behind(statement, query.after, '>' if query.oldest_first else '<')}"
    order = ", ".join(f"{column} {direction}" for column in ("timestamp", "journal", "seq"))
    limit = statement.bind(query.limit or MAX_ROWS)
    return f"SELECT {COLUMNS} FROM {records} WHERE {where} ORDER BY {order} LIMIT {limit}"


def ids_sql(statement: Statement, records: str, query: Query, limit: int) -> str:
    """Journal, sequence number and timestamp of records that match, the oldest first, at most ``limit``."""
    where = statement.where(query)
    return (
        f"SELECT journal, seq, timestamp FROM {records} WHERE {where} ORDER BY timestamp LIMIT {statement.bind(limit)}"
    )


def _behind(statement: Statement, place: Cursor, comparison: str) -> str:
    timestamp, journal, seq = (statement.bind(part) for part in place)
    # The first term says nothing new; it is what lets an index or statistics be used.
    return (
        f"timestamp {comparison}= {timestamp} AND (timestamp {comparison} {timestamp}"
        f" OR journal {comparison} {journal} OR (journal = {journal} AND seq {comparison} {seq}))"
    )


def aggregate_sql(statement: Statement, records: str, query: Query) -> str:
    """One row for each window and group, in order: at most ``query.limit``, or one more than an answer may have.

    The columns are those of ``query.output``, named c0, c1, …
    """
    keys = [f"k{number}" for number in range(len(query.keys))]
    inner = [
        f"{window_sql(statement, query) if key == 'window_start' else statement.text(key)} AS {name}"
        for key, name in zip(query.keys, keys, strict=True)
    ]
    shares = [share for share in map(percentile, query.aggregates) if share is not None]
    partial, percentiles = statement.percentiles(shares) if shares else ("", [])
    inner += ["count(*) AS n", *_partials(statement, query), *([partial] if partial else [])]
    outer = [*keys, *finals_sql(statement, query, percentiles), "n"]
    shown = ", ".join(f"{expression} AS c{number}" for number, expression in enumerate(outer))
    return (
        f"SELECT {shown} FROM ("
        f"SELECT {', '.join(inner)} FROM {records} WHERE {statement.where(query)}"
        f"{' GROUP BY ' + ', '.join(keys) if keys else ''}) AS groups WHERE n > 0{order_sql(statement, query)}"
    )


def order_sql(statement: Statement, query: Query) -> str:
    """ORDER BY and LIMIT of an aggregation whose columns are named c0, c1, …"""
    places = {name: f"c{number}" for number, name in enumerate(query.output)}
    order = ", ".join(f"{places[name]} {'DESC' if down else 'ASC'} NULLS LAST" for name, down in query.order)
    # One more than there may be, to see that there are more.
    limit = statement.bind(query.limit or MAX_ROWS + 1)
    return f"{' ORDER BY ' + order if order else ''} LIMIT {limit}"


def output_schema(query: Query) -> pa.Schema:
    """The columns of an aggregation, with the types that :meth:`tallymark.store.Store.aggregate` promises."""
    integers = {"window_start", "count", "last_timestamp", "samples"}

    def kind(name: str) -> pa.DataType:
        if name in query.group_by:
            return pa.bool_() if name == "success" else pa.string()
        return pa.int64() if name in integers else pa.float64()

    return pa.schema([(name, kind(name)) for name in query.output])


def fields_of(query: Query) -> set[str]:
    """The columns that an aggregation, or the conditions of a scan, needs."""
    fields = {item.field for item in query.conditions} | set(query.group_by)
    columns = {"metadata" if metadata_path(field) else field for field in fields} | {"timestamp", "value"}
    if "id" in columns or "last" in query.aggregates:
        columns |= {"journal", "seq"}
    if {"success_rate", "error_rate"} & set(query.aggregates):
        columns.add("success")
    return columns & set(SCHEMA.names)


def check_rows(rows: int) -> None:
    """Refuse an answer that has more rows than one may have.

    Raises:
        QueryError: it has.
    """
    if rows > MAX_ROWS:
        hint = "longer windows, a shorter time, or a limit"
        raise QueryError(f"limit: the answer has more than {MAX_ROWS} rows; hint: {hint}")


def window_sql(statement: Statement, query: Query) -> str:
    """When the window of a record begins."""
    window = statement.bind(query.window)
    return f"{statement.quotient('timestamp', window)} * {window}"


def _partials(statement: Statement, query: Query) -> list[str]:
    """What is computed over records; two aggregates may need the same."""
    needed = (statement.partials[name] for name in query.aggregates if name in statement.partials)
    return list(dict.fromkeys(needed))


def finals_sql(statement: Statement, query: Query, percentiles: list[str]) -> list[str]:
    """The aggregates in their order, from what was computed."""
    finals = []
    remaining = iter(percentiles)
    for name in query.aggregates:
        if percentile(name) is not None:
            finals.append(next(remaining))
        elif name == "rate":
            finals.append(f"n * 1e9 / nullif({_covered(statement, query)}, 0)")
        else:
            finals.append(statement.finals[name])
    return finals


def _covered(statement: Statement, query: Query) -> str:
    """How much of the window, in ns, lies inside the range of the query."""
    if query.window is None:
        return statement.bind((query.end or 0) - (query.start or 0))
    first, last = "k0", f"k0 + {statement.bind(query.window)}"
    if query.start is not None:
        start = statement.bind(query.start)
        first = f"CASE WHEN {first} < {start} THEN {start} ELSE {first} END"
    if query.end is not None:
        end = statement.bind(query.end)
        last = f"CASE WHEN {last} > {end} THEN {end} ELSE {last} END"
    return f"({last} - {first})"
