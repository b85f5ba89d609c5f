"""Records as CSV, NDJSON and Parquet: what a file of each looks like.

CSV has a header, and cells as :func:`cell` has them. NDJSON is that of :mod:`tallymark.ndjson`. Parquet has the columns
of :data:`tallymark.batch.SCHEMA`.
"""

import csv
import io
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallymark import ndjson
from tallymark.batch import SCHEMA, record_id
from tallymark.errors import QueryError
from tallymark.record import COLUMNS

Format = Literal["csv", "ndjson", "parquet"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)

ENDINGS: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
}

PARQUET_SCHEMA: Final = SCHEMA.with_metadata({"tallymark.records": "1"})
"""Of an exported file: the columns of a batch, and what says that it is one."""

# A spreadsheet takes what begins so for a formula; the rest is what makes the rule one that can be undone.
_MARKED: Final = "^([=+\\-@\t\r\n']|$)"


def format_of(path: str, given: str | None) -> Format:
    """The format of a file: as it was said, else by its ending; NDJSON for ``-``.

    Raises:
        QueryError: it is none.
    """
    known = ", ".join(FORMATS)
    if given is not None:
        for each in FORMATS:
            if each == given.lower():
                return each
        raise QueryError(f"format: there is no {given!r}; use {known}")
    if path == "-":
        return "ndjson"
    found = ENDINGS.get(Path(path).suffix.lower())
    if found is None and "://" in path:
        raise QueryError("format: this is a store, not a file; name a file too: tallymark export STORE FILE")
    if found is None:
        raise QueryError(
            f"format: the ending of {path!r} says none; use one of {' '.join(ENDINGS)}, or --format {known}"
        )
    return found


def csv_header() -> bytes:
    """The first line."""
    return (",".join(COLUMNS) + "\r\n").encode()


def csv_rows(rows: pa.Table) -> bytes:
    """Records as lines of CSV (RFC 4180, UTF-8).

    An apostrophe stands before a text that is empty, or begins with an apostrophe or with what begins a formula;
    spreadsheets mark texts with it. So an empty cell is null, and each cell means one value.
    """
    text = io.StringIO()
    columns = [_cells(rows, name) for name in COLUMNS]
    csv.writer(text).writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _cells(rows: pa.Table, name: str) -> list[Any]:
    if name == "id":
        journals: Any = rows["journal"]
        starts = {journal: str(record_id(journal, 0))[:-10] for journal in journals.unique().to_pylist()}
        # As str(record_id(…)), in a fifth of its time.
        pairs = zip(journals.to_pylist(), rows["seq"].to_pylist(), strict=True)
        return [f"{starts[journal]}{seq:010x}" for journal, seq in pairs]
    column: Any = rows[name]
    if name == "timestamp":
        return [f"{text}Z" for text in np.datetime_as_string(column.to_numpy().view("datetime64[ns]"))]
    if name == "success":
        return [None if value is None else "true" if value else "false" for value in column.to_pylist()]
    if pa.types.is_string(column.type):
        marked = pc.match_substring_regex(column, _MARKED)
        column = pc.if_else(marked, pc.binary_join_element_wise("'", column, ""), column)
    values: list[Any] = column.to_pylist()
    return values


def ndjson_rows(rows: pa.Table) -> bytes:
    """Records as lines of JSON."""
    return b"".join(ndjson.encode(_in_one_line(row)) for row in rows.to_pylist())


def _in_one_line(row: dict[str, Any]) -> dict[str, Any]:
    """The row; where metadata has white space between its parts, which came from elsewhere, without it."""
    if "\n" in row["metadata"] or "\r" in row["metadata"]:
        return row | {"metadata": msgspec.json.format(row["metadata"], indent=-1)}
    return row
