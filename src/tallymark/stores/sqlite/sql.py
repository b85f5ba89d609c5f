"""What is SQLite's own in the SQL of a query, and rows as columns.

SQLite has no percentiles, and another idea of what a path into JSON means. So where a query needs metadata,
percentiles, the newest value or groups, SQLite only finds the rows, and DuckDB answers from their columns: that gives
every answer the same meaning as everywhere, and groups are made in less time.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from tallymark.batch import SCHEMA, split_id
from tallymark.query import MAX_ROWS, Filter, Query, Scalar, metadata_path, percentile
from tallymark.stores.sql import Statement

SERIES: Final = ("service", "metric_type", "name", "unit", "description")
"""The columns of tallymark_series."""

ROWS: Final = "(SELECT *, journal AS journal_id FROM tallymark_rows) AS records"
"""The relation of the records as far as conditions need it: those on texts of a series, and on ids, ask for numbers."""

RECORDS: Final = f"""(
    SELECT r.timestamp, j.journal, r.seq, {", ".join(f"s.{column}" for column in SERIES)},
        r.value, r.success, r.error, r.trace_id, r.session_id, r.metadata, r.series, r.journal AS journal_id
    FROM tallymark_rows AS r
    LEFT JOIN tallymark_series AS s ON s.id = r.series
    LEFT JOIN tallymark_journals AS j ON j.id = r.journal
) AS records"""
"""The relation of the records with all of their columns. LEFT, so that the rows are read in their order."""

_TYPES: Final = {"timestamp": "i8", "series": "i8", "journal": "i8", "seq": "i8", "value": "f8", "success": "i1"}

_AT_ONCE: Final = 262_144
"""So many rows are in memory at a time, where all of them are asked for."""

_OPERANDS: Final = 30
"""So many terms are joined by OR at a time: a tree of SQLite's may be 1,000 deep."""


class SqliteStatement(Statement):
    """SQL of SQLite, for the columns of a record."""

    finals: ClassVar = {
        **Statement.finals,
        "sum": "CASE WHEN abs(total) < 9e999 THEN total END",
        "avg": "CASE WHEN abs(total) < 9e999 THEN total / n END",
    }

    def bind(self, value: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"

    def metadata(self, path: tuple[str, ...]) -> str:
        raise NotImplementedError("DuckDB does this")

    def number(self, text: str) -> str:
        raise NotImplementedError("DuckDB does this")

    def percentiles(self, shares: list[float]) -> tuple[str, list[str]]:
        raise NotImplementedError("DuckDB does this")

    def condition(self, condition: Filter) -> str:
        if condition.op not in ("=", "!=", "in"):
            return super().condition(condition)
        terms = [self._equal(condition.field, value) for value in condition.values]
        while len(terms) > 1:
            groups = [terms[first : first + _OPERANDS] for first in range(0, len(terms), _OPERANDS)]
            terms = [f"({' OR '.join(group)})" for group in groups]
        return f"NOT {terms[0]}" if condition.op == "!=" else terms[0]

    def _equal(self, field: str, value: Scalar) -> str:
        if field == "id":
            journal, seq = split_id(_uuid(value))
            known = f"SELECT id FROM tallymark_journals WHERE journal = {self.bind(journal)}"
            return f"(journal_id IN ({known}) AND seq = {self.bind(seq)})"
        return self._of_series(field, super()._equal(field, value))

    def _compare(self, field: str, op: str, value: Scalar) -> str:
        return self._of_series(field, super()._compare(field, op, value))

    @staticmethod
    def _of_series(field: str, condition: str) -> str:
        """There are few series: they are looked at once, and rows compared by a number."""
        if field not in SERIES or condition.startswith("(series IN"):
            return condition
        return f"(series IN (SELECT id FROM tallymark_series WHERE {condition}))"


def _uuid(value: Scalar) -> Any:
    import uuid

    return uuid.UUID(str(value))


def native(query: Query) -> Query:
    """What SQLite answers of a query: all but the conditions on metadata."""
    return replace(query, filters=tuple(item for item in query.filters if metadata_path(item.field) is None))


def is_native(query: Query) -> bool:
    """Whether SQLite answers all of an aggregation, and quickly."""
    hard = any(percentile(name) is not None or name == "last" for name in query.aggregates)
    return not query.keys and not hard and len(native(query).filters) == len(query.filters)


def fetch(connection: sqlite3.Connection, query: Query, columns: set[str]) -> pa.Table:
    """Every row that meets the conditions of a query, but for those on metadata: these columns of it, and nothing in
    the others.
    """
    statement = SqliteStatement()
    where = statement.where(native(query))
    sql, kinds = _select(columns, where)
    # Straight into columns; a list of rows would take twice the time and five times the memory.
    found = np.fromiter(connection.execute(sql, statement.parameters), kinds)
    return _as_table(connection, found, columns)


def fetch_all(connection: sqlite3.Connection, start: int, end: int, columns: frozenset[str]) -> Iterator[pa.Table]:
    """Every row with a timestamp in [start, end), the store's own too, some at a time: these columns of it."""
    sql, kinds = _select(columns, "timestamp >= ? AND timestamp < ?")
    rows = connection.execute(sql, [start, end])
    while len(found := np.fromiter(itertools.islice(rows, _AT_ONCE), kinds)):
        yield _as_table(connection, found, columns)


def _select(columns: Set[str], where: str) -> tuple[str, "np.dtype[Any]"]:
    """The query for some columns of rows, and what they are."""
    names = sorted({"series" if column in SERIES else column for column in columns})
    shown = {"success": "ifnull(success, -1)", "journal": "journal_id"}
    sql = f"SELECT {', '.join(shown.get(name, name) for name in names)} FROM {ROWS} WHERE {where}"
    return sql, np.dtype([(name, _TYPES.get(name, "O")) for name in names])


def _as_table(connection: sqlite3.Connection, found: Any, columns: Set[str]) -> pa.Table:
    """Rows as columns of records, with nothing in those that were not asked for."""
    made: dict[str, Any] = {}
    for name in found.dtype.names:
        if name == "success":
            made[name] = pa.array(found[name] == 1, mask=found[name] < 0)
        elif name == "series":
            made |= _dictionaries(connection, "tallymark_series", SERIES, found[name], columns)
        elif name == "journal":
            made |= _dictionaries(connection, "tallymark_journals", ("journal",), found[name], columns)
        else:
            made[name] = pa.array(found[name], SCHEMA.field(name).type)
    nothing = pa.nulls(len(found))
    return pa.table({name: made.get(name, nothing) for name in SCHEMA.names})


def _dictionaries(
    connection: sqlite3.Connection, table: str, names: tuple[str, ...], ids: Any, columns: Set[str]
) -> dict[str, Any]:
    """The texts that ids stand for, each text once."""
    known = connection.execute(f"SELECT id, {', '.join(names)} FROM {table}").fetchall()
    places = np.zeros(max((row[0] for row in known), default=0) + 1, np.int32)
    places[[row[0] for row in known]] = np.arange(len(known))
    made = {}
    for number, name in enumerate(names, 1):
        if name in columns:
            # Of different texts, as Arrow wants them.
            texts = pa.array([row[number] for row in known], pa.string()).dictionary_encode()
            indices: Any = texts.indices.take(pa.array(places[ids]))
            made[name] = pa.DictionaryArray.from_arrays(indices, texts.dictionary)
    return made


def to_table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows as columns."""
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [
        pa.array(
            [None if one is None else bool(one) for one in column] if field.type == pa.bool_() else column, field.type
        )
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def pages(query: Query, scan: Callable[[Query], pa.Table]) -> Iterator[pa.Table]:
    """The rows that meet the conditions of a scan but for those on metadata, in its order, more and more at a time."""
    size = 2_000
    while True:
        page = scan(replace(native(query), limit=size))
        yield page
        if page.num_rows < size:
            return
        last = page.slice(page.num_rows - 1).to_pylist()[0]
        query = replace(query, cursor=f"{last['timestamp']}-{last['journal']}-{last['seq']}")
        size = min(2 * size, 64_000, MAX_ROWS)
