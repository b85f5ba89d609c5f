"""What is PostgreSQL's own in the SQL of a query, and its answers as columns."""

import io
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Final

import psycopg
import pyarrow as pa
from pyarrow import csv

from tallymark.query import Filter, Query
from tallymark.stores.sql import NUMBER, Statement

RECORDS: Final = "tallymark.records"

BLOCK: Final = 4 << 20
"""Bytes of text that are turned into columns at a time; more than any row has."""

HASHED: Final = frozenset({"metric_type", "name"})
"""Columns whose indexes have a hash in place of the text."""

_TYPES: Final = {bool: "boolean", int: "bigint", float: "float8", str: "text", list: "float8[]"}

# What #> takes for the number of an item of a list, and what a query does.
_INTEGER: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")
_INDEX: Final = re.compile(r"0|[1-9][0-9]*")

# Numbers that are surely in the range of a float8; a cast refuses any other.
_PLAIN: Final = "^-?(0|[1-9][0-9]{0,19})([.][0-9]{1,20})?([eE][+-]?[0-9]{1,2})?$"

# The sum of float8 is an error where it leaves their range. So those that could bring it there are divided by 2^600.
_SCALE: Final = "2.409919865102884e-181"
_HUGE: Final = "1e290"
_SUM: Final = (
    "CASE WHEN huge IS NULL THEN total "
    # All but the last billionth of the range, so that the smaller ones cannot make it an error.
    "WHEN abs(huge) < 4.332296393e127 THEN huge * 4.149515568880993e180 + coalesce(total, 0) END"
)
_PARTS: Final = (
    f"sum(value) FILTER (WHERE abs(value) < {_HUGE}) AS total, "
    f"sum(value * {_SCALE}) FILTER (WHERE abs(value) >= {_HUGE}) AS huge"
)
# A quotient is an error where it is so small that it becomes zero.
_AVERAGE: Final = (
    f"CASE WHEN abs({_SUM}) >= 1e-290 THEN ({_SUM}) / n "
    f"WHEN abs({_SUM}) * 1.0715086071862673e301 / n > 2.646977960169689e-23 THEN ({_SUM}) / n "
    f"WHEN ({_SUM}) IS NOT NULL THEN 0 END"
)


class PostgresStatement(Statement):
    """SQL of PostgreSQL, with parameters in the form that psycopg takes.

    Args:
        types: the hashes of all types that may be found; None for any.
    """

    partials: ClassVar[Mapping[str, str]] = {
        **Statement.partials,
        "sum": _PARTS,
        "avg": _PARTS,
        # Arrays and rows are compared in C and without a sort, also by several processes.
        "last": "max(ARRAY[ROW(timestamp, journal, seq, value)::tallymark.place]) AS newest",
    }
    finals: ClassVar[Mapping[str, str]] = {
        **Statement.finals,
        "sum": _SUM,
        "avg": _AVERAGE,
        "last": "(newest[1]).value",
    }

    def __init__(self, types: Sequence[int] | None = None) -> None:
        super().__init__()
        self._types = types

    def where(self, query: Query) -> str:
        found = super().where(query)
        if self._types is None:
            return found
        return f"{found} AND hashtext(metric_type) IN ({', '.join(map(str, self._types))})"

    def bind(self, value: Any) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"(%({name})s)::{_TYPES[type(value)]}"

    def inside(self, first: int, until: int) -> str:
        """The condition that a record is in a partition; by its time, which any role that reads records may ask for."""
        return f"timestamp >= {self.bind(first)} AND timestamp < {self.bind(until)}"

    def condition(self, condition: Filter) -> str:
        found = super().condition(condition)
        if condition.field not in HASHED or condition.op not in ("=", "in") or None in condition.values:
            return found
        # The hash is what the index has. That both say the same the planner does not know: of the other one it must not
        # see that it is rarely true.
        hashes = ", ".join(f"hashtext({self.bind(value)})" for value in condition.values)
        return f"(hashtext({condition.field}) IN ({hashes}) AND coalesce({found}, false))"

    def metadata(self, path: tuple[str, ...]) -> str:
        expression = "metadata"
        for number, key in enumerate(path, 1):
            text = ">" if number == len(path) else ""
            if _INTEGER.fullmatch(key) and not _INDEX.fullmatch(key):  # -1, the last item: for us a key
                expression = f"({expression} ->{text} {self.bind(key)})"
            else:
                expression = f"({expression} #>{text} ARRAY[{self.bind(key)}])"
        return f'{expression} COLLATE "C"'

    def number(self, text: str) -> str:
        return (
            f"CASE WHEN {text} ~ '{_PLAIN}' THEN ({text})::float8 "
            f"WHEN {text} ~ '^{NUMBER}$' THEN tallymark.number({text}) END"
        )

    def percentiles(self, shares: list[float]) -> tuple[str, list[str]]:
        each = [f"percentiles[{number}]" for number in range(1, len(shares) + 1)]
        return f"percentile_cont({self.bind(shares)}) WITHIN GROUP (ORDER BY value) AS percentiles", each


def answer(cursor: "psycopg.Cursor[Any]", statement: Statement, sql: str, schema: pa.Schema) -> pa.Table:
    """What some SQL gives, as columns."""
    return pa.concat_tables(blocks(cursor, statement, sql, schema))


def blocks(cursor: "psycopg.Cursor[Any]", statement: Statement, sql: str, schema: pa.Schema) -> Generator[pa.Table]:
    """The same, some at a time. By COPY, as text: that takes a third of the time that rows would."""
    # Named by number: a name could be anything.
    names = [f"c{number}" for number in range(len(schema))]
    header = ",".join(names).encode() + b"\n"
    options = csv.ConvertOptions(
        column_types=dict(zip(names, schema.types, strict=True)),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        true_values=["t"],
        false_values=["f"],
    )

    def take(rows: list[bytes]) -> pa.Table:
        table = csv.read_csv(
            io.BytesIO(header + b"".join(rows)),
            read_options=csv.ReadOptions(use_threads=False, block_size=2 * BLOCK),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=options,
        )
        return table.rename_columns(schema.names).cast(schema)

    rows: list[bytes] = []
    size = 0
    with cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT csv)", statement.parameters) as copy:
        for row in copy:
            rows.append(bytes(row))
            size += len(row)
            if size >= BLOCK:
                yield take(rows)
                rows, size = [], 0
    yield take(rows)
