"""A query as SQL, and DuckDB to run it.

Nothing that a caller gave becomes part of the SQL: values, metadata keys and file names are bound as
parameters, columns come from fixed sets, and names of results are numbered.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from tallymark.batch import SCHEMA, split_id
from tallymark.errors import StoreError
from tallymark.query import Cursor, Filter, Query, Scalar, metadata_path, percentile

if TYPE_CHECKING:
    import duckdb

LIVE: Final = "live"
"""The name of the table with the records that are still in journals."""

# What JSON calls a number; TRY_CAST alone also takes "1_000", "inf" and " 1".
_NUMBER: Final = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"

_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": "false",  # Parquet and JSON are built in; nothing is fetched
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a table in SQL is never a variable of Python
    "preserve_insertion_order": "false",
    "enable_external_file_cache": "false",  # the page cache of the system has them
}

_ALL: Final = ", ".join(SCHEMA.names)
_NEVER_NULL: Final = frozenset(field.name for field in SCHEMA if not field.nullable)


class FileGone(Exception):
    """A Parquet file could not be read; a newer version of the table may do without it."""


class Engine:
    """DuckDB inside this process. Any method may be called from any thread.

    It is loaded by the first query: that takes 0.2 s, and who only writes does without.
    """

    def __init__(self) -> None:
        self._opening = Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._running: list[duckdb.DuckDBPyConnection] = []

    def run(self, statement: "Statement", sql: str, live: pa.Table) -> pa.Table:
        """The result of some SQL over Parquet files and the live table.

        Raises:
            FileGone: a Parquet file could not be read.
            StoreError: DuckDB refuses.
        """
        import duckdb

        with self._cursor() as cursor:
            self._running.append(cursor)
            try:
                cursor.register(LIVE, live)
                table: pa.Table = cursor.sql(sql, params=statement.parameters).to_arrow_table()
                return table
            except duckdb.IOException as error:
                raise FileGone(str(error)) from error
            except duckdb.Error as error:
                raise StoreError(f"the query failed: {error}") from error
            finally:
                self._running.remove(cursor)

    def close(self) -> None:
        """Give the memory back; a query that is running ends with StoreError, one afterwards opens it anew."""
        if self._connection is None:
            return  # and DuckDB was never loaded
        import duckdb

        with self._opening:
            for cursor in list(self._running):
                cursor.interrupt()
            if self._connection is not None:
                with contextlib.suppress(duckdb.Error):  # a cursor is still on its way out
                    self._connection.close()
            self._connection = None

    def _cursor(self) -> "duckdb.DuckDBPyConnection":
        import duckdb

        with self._opening:
            if self._connection is None:
                spill = os.path.join(tempfile.gettempdir(), f"tallymark-{os.getpid()}")
                self._connection = duckdb.connect(config=_SETTINGS | {"temp_directory": spill})
                # The files of a table never change.
                self._connection.execute("SET parquet_metadata_cache = true")
            return self._connection.cursor()


class Statement:
    """SQL that is being put together, and what is bound to it."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def bind(self, value: Any) -> str:
        """The placeholder of a value."""
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"

    def records(self, files: Sequence[str]) -> str:
        """The relation of the records in Parquet files and in the live table."""
        relation = f"SELECT {_ALL} FROM {LIVE}"
        if files:
            # DuckDB takes a path for a pattern.
            paths = [path.replace("*", "[*]").replace("?", "[?]") for path in files]
            parquet = f"read_parquet({self.bind(paths)}, hive_partitioning = false)"
            relation = f"SELECT {_ALL} FROM {parquet} UNION ALL {relation}"
        return f"({relation}) AS records"

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
        if field in _NEVER_NULL:  # bare, so that row groups can be skipped
            return f"({field} {op} {self.bind(value)})"
        if metadata_path(field) is not None and not isinstance(value, str):
            text = f"CASE WHEN regexp_full_match({text}, '{_NUMBER}') THEN TRY_CAST({text} AS DOUBLE) END"
        return f"coalesce({text} {op} {self.bind(value)}, false)"

    def text(self, field: str) -> str:
        """A column as it is, a metadata value as its text."""
        path = metadata_path(field)
        if path is None:
            return field
        # A JSON pointer, because JSONPath has wildcards.
        pointer = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)
        return f"json_extract_string(metadata, {self.bind(pointer)})"


def scan_sql(statement: Statement, records: str, query: Query, limit: int) -> str:
    """The records that match, in order, at most ``limit``."""
    where, direction = statement.where(query), "ASC" if query.oldest_first else "DESC"
    if query.after is not None:
        where += f" AND {_behind(statement, query.after, '>' if query.oldest_first else '<')}"
    order = ", ".join(f"{column} {direction}" for column in ("timestamp", "journal", "seq"))
    return f"SELECT {_ALL} FROM {records} WHERE {where} ORDER BY {order} LIMIT {statement.bind(limit)}"


def ids_sql(statement: Statement, records: str, query: Query, limit: int) -> str:
    """Journal, sequence number and timestamp of records that match, the oldest first, at most ``limit``."""
    where = statement.where(query)
    return (
        f"SELECT journal, seq, timestamp FROM {records} WHERE {where} ORDER BY timestamp LIMIT {statement.bind(limit)}"
    )


def _behind(statement: Statement, place: Cursor, comparison: str) -> str:
    timestamp, journal, seq = (statement.bind(part) for part in place)
    # The first term says nothing new; it is what lets row groups be skipped.
    return (
        f"timestamp {comparison}= {timestamp} AND (timestamp {comparison} {timestamp}"
        f" OR journal {comparison} {journal} OR (journal = {journal} AND seq {comparison} {seq}))"
    )


def aggregate_sql(statement: Statement, records: str, query: Query, limit: int) -> str:
    """One row for each window and group, in order, at most ``limit``.

    The columns are those of ``query.output``, named c0, c1, …
    """
    keys = [f"k{number}" for number in range(len(query.keys))]
    inner = [
        f"{_window(statement, query) if key == 'window_start' else statement.text(key)} AS {name}"
        for key, name in zip(query.keys, keys, strict=True)
    ]
    shares = [share for share in map(percentile, query.aggregates) if share is not None]
    inner += ["count(*) AS n", *_partials(query)]
    if shares:
        inner.append(f"quantile_cont(value, {statement.bind(shares)}) AS percentiles")
    outer = [*keys, *_finals(statement, query), "n"]
    shown = ", ".join(f"{expression} AS c{number}" for number, expression in enumerate(outer))
    places = {name: f"c{number}" for number, name in enumerate(query.output)}
    order = ", ".join(f"{places[name]} {'DESC' if down else 'ASC'} NULLS LAST" for name, down in query.order)
    return (
        f"SELECT {shown} FROM ("
        f"SELECT {', '.join(inner)} FROM {records} WHERE {statement.where(query)}"
        f"{' GROUP BY ' + ', '.join(keys) if keys else ''} HAVING count(*) > 0)"
        f"{' ORDER BY ' + order if order else ''} LIMIT {statement.bind(limit)}"
    )


def _window(statement: Statement, query: Query) -> str:
    window = statement.bind(query.window)
    return f"timestamp // {window} * {window}"


_PARTIALS: Final = {
    "sum": "sum(value) AS total",
    "avg": "sum(value) AS total",
    "min": "min(value) AS smallest",
    "max": "max(value) AS largest",
    "last": "arg_max(value, (timestamp, journal, seq)) AS newest",
    "last_timestamp": "max(timestamp) AS newest_at",
    "success_rate": "count_if(success) AS successes, count(success) AS outcomes",
    "error_rate": "count_if(success) AS successes, count(success) AS outcomes",
}

_FINALS: Final = {
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


def _partials(query: Query) -> list[str]:
    """What is computed over records; two aggregates may need the same."""
    return list(dict.fromkeys(_PARTIALS[name] for name in query.aggregates if name in _PARTIALS))


def _finals(statement: Statement, query: Query) -> list[str]:
    """The aggregates in their order, from what was computed."""
    finals, percentiles = [], 0
    for name in query.aggregates:
        if percentile(name) is not None:
            percentiles += 1
            finals.append(f"percentiles[{percentiles}]")
        elif name == "rate":
            finals.append(f"n * 1e9 / nullif({_covered(statement, query)}, 0)")
        else:
            finals.append(_FINALS[name])
    return finals


def _covered(statement: Statement, query: Query) -> str:
    """How much of the window, in ns, lies inside the range of the query."""
    if query.window is None:
        start, end = query.start or 0, query.end or 0
        return statement.bind(end - start)
    first, last = "k0", f"k0 + {statement.bind(query.window)}"
    if query.start is not None:
        first = f"greatest({first}, {statement.bind(query.start)})"
    if query.end is not None:
        last = f"least({last}, {statement.bind(query.end)})"
    return f"({last} - {first})"
