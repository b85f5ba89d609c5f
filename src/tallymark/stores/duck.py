"""DuckDB, and what is its own in the SQL of a query: it reads Parquet files and tables in memory."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pyarrow as pa

from tallymark.batch import SCHEMA
from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.stores.objects import SCANNED, Objects, said
from tallymark.stores.sql import COLUMNS, NUMBER, Statement, aggregate_sql, check_rows, ids_sql, scan_sql

if TYPE_CHECKING:
    import duckdb
    from pyarrow.dataset import Dataset

LIVE: Final = "live"
"""The name of the table with the records that are still in journals."""

SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": "false",  # Parquet and JSON are built in; nothing is fetched
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a table in SQL is never a variable of Python
    "preserve_insertion_order": "false",
    "enable_external_file_cache": "false",  # the page cache of the system has them
}
"""Of every DuckDB."""


class FileGone(Exception):
    """A Parquet file could not be read; a newer version of the table may do without it."""


class Engine:
    """DuckDB inside this process. Any method may be called from any thread.

    It is loaded by the first query: that takes 0.2 s, and who only writes does without.

    Args:
        objects: reads the Parquet files, where they are not on this machine.
    """

    def __init__(self, objects: Objects | None = None) -> None:
        self.objects = objects
        self._opening = Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._running: list[duckdb.DuckDBPyConnection] = []

    def run(self, statement: "DuckStatement", sql: str, live: pa.Table) -> pa.Table:
        """The result of some SQL over Parquet files and the live table.

        Raises:
            FileGone: a Parquet file could not be read.
            StoreError: DuckDB refuses.
        """
        import duckdb

        # The second is a damaged file, and how DuckDB passes on what a source of its in Python raised.
        gone = (duckdb.IOException, duckdb.InvalidInputException)
        with self._cursor() as cursor:
            self._running.append(cursor)
            try:
                cursor.register(LIVE, live)
                for name, table in statement.tables.items():
                    cursor.register(name, table)
                found: pa.Table = cursor.sql(sql, params=statement.parameters).to_arrow_table()
                return found
            except gone as error:
                raise FileGone(said(error)) from error
            except duckdb.Error as error:
                raise StoreError(f"the query failed: {error}") from error
            except RuntimeError as error:
                # What DuckDB makes of Ctrl-C.
                if "interrupted" in str(error).lower() and threading.current_thread() is threading.main_thread():
                    raise KeyboardInterrupt from error
                raise
            finally:
                self._running.remove(cursor)

    def answer(self, query: Query, rows: pa.Table, files: Sequence[str] = ()) -> pa.Table:
        """What a query finds in the live table and in Parquet files: as :meth:`tallymark.store.Store.scan` or
        ``aggregate``.

        Raises:
            FileGone: a Parquet file could not be read.
            QueryError: the answer has more rows than one may have.
        """
        statement = DuckStatement(self.objects)
        records = statement.records(files)
        if not query.aggregates:
            return self.run(statement, scan_sql(statement, records, query), rows).cast(SCHEMA)
        table = self.run(statement, aggregate_sql(statement, records, query), rows)
        check_rows(table.num_rows)
        return table.rename_columns(list(query.output))

    def ids(self, query: Query, rows: pa.Table, files: Sequence[str] = (), limit: int | None = None) -> pa.Table:
        """Journal, sequence number and timestamp of those among the rows and files that match, the oldest first."""
        statement = DuckStatement(self.objects)
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
                self._connection = duckdb.connect(config=SETTINGS | {"temp_directory": spill})
                # The files of a table never change.
                self._connection.execute("SET parquet_metadata_cache = true")
            return self._connection.cursor()


class DuckStatement(Statement):
    """SQL of DuckDB.

    Attributes:
        tables: what some names in the SQL stand for, beside the live table.
    """

    partials: ClassVar = {**Statement.partials, "last": "arg_max(value, (timestamp, journal, seq)) AS newest"}

    def __init__(self, objects: Objects | None = None) -> None:
        super().__init__()
        self._objects = objects
        self.tables: dict[str, pa.Table | Dataset] = {}

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

    def records(self, files: Sequence[str], *, live: bool = True) -> str:
        """The relation of the records in Parquet files and, unless told otherwise, in the live table."""
        relations = [f"SELECT {COLUMNS} FROM {LIVE}"] if live else []
        if files and self._objects is not None:
            name = f"stored{len(self.tables)}"
            self.tables[name] = self._objects.dataset(files)
            relations.append(f"SELECT {SCANNED} FROM {name}")
        elif files:
            relations.append(f"SELECT {COLUMNS} FROM {self.parquet(files)}")
        return f"({' UNION ALL '.join(relations)}) AS records"

    def parquet(self, files: Sequence[str]) -> str:
        """The relation of some Parquet files on this machine."""
        # DuckDB takes a path for a pattern.
        paths = [path.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]") for path in files]
        return f"read_parquet({self.bind(paths)}, hive_partitioning = false)"
