"""DuckDB, and what is its own in the SQL of a query: it reads Parquet files and tables in memory."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pyarrow as pa

from tallymark.batch import SCHEMA
from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.stores.sql import COLUMNS, NUMBER, Statement, aggregate_sql, check_rows, ids_sql, scan_sql

if TYPE_CHECKING:
    import duckdb

LIVE: Final = "live"
"""The name of the table with the records that are still in journals."""

_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": "false",  # Parquet and JSON are built in; nothing is fetched
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a table in SQL is never a variable of Python
    "preserve_insertion_order": "false",
    "enable_external_file_cache": "false",  # the page cache of the system has them
}


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

    def run(self, statement: Statement, sql: str, live: pa.Table) -> pa.Table:
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

    def answer(self, query: Query, rows: pa.Table, files: Sequence[str] = ()) -> pa.Table:
        """What a query finds in the live table and in Parquet files: as :meth:`tallymark.store.Store.scan` or
        ``aggregate``.

        Raises:
            FileGone: a Parquet file could not be read.
            QueryError: the answer has more rows than one may have.
        """
        statement = DuckStatement()
        records = statement.records(files)
        if not query.aggregates:
            return self.run(statement, scan_sql(statement, records, query), rows).cast(SCHEMA)
        table = self.run(statement, aggregate_sql(statement, records, query), rows)
        check_rows(table.num_rows)
        return table.rename_columns(list(query.output))

    def ids(self, query: Query, rows: pa.Table, files: Sequence[str] = (), limit: int | None = None) -> pa.Table:
        """Journal, sequence number and timestamp of those among the rows and files that match, the oldest first."""
        statement = DuckStatement()
        sql = ids_sql(statement, statement.records(files), query, rows.num_rows if limit is None else limit)
        return self.run(statement, sql, rows)

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


class DuckStatement(Statement):
    """SQL of DuckDB."""

    partials: ClassVar = {**Statement.partials, "last": "arg_max(value, (timestamp, journal, seq)) AS newest"}

    def bind(self, value: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"

    def metadata(self, path: tuple[str, ...]) -> str:
        # A JSON pointer, because JSONPath has wildcards.
        pointer = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)
        return f"json_extract_string(metadata, {self.bind(pointer)})"

    def number(self, text: str) -> str:
        return f"CASE WHEN regexp_full_match({text}, '{NUMBER}') THEN TRY_CAST({text} AS DOUBLE) END"

    def percentiles(self, shares: list[float]) -> tuple[str, list[str]]:
        each = [f"percentiles[{number}]" for number in range(1, len(shares) + 1)]
        return f"quantile_cont(value, {self.bind(shares)}) AS percentiles", each

    def quotient(self, dividend: str, divisor: str) -> str:
        return f"({dividend} // {divisor})"

    def records(self, files: Sequence[str]) -> str:
        """The relation of the records in Parquet files and in the live table."""
        relation = f"SELECT {COLUMNS} FROM {LIVE}"
        if files:
            # DuckDB takes a path for a pattern.
            paths = [path.replace("*", "[*]").replace("?", "[?]") for path in files]
            parquet = f"read_parquet({self.bind(paths)}, hive_partitioning = false)"
            relation = f"SELECT {COLUMNS} FROM {parquet} UNION ALL {relation}"
        return f"({relation}) AS records"
