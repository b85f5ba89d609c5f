"""Answers put together from rollups and from records.

Both become *parts*, rows of one shape, which are merged: everything but percentiles comes out as from the records.
What a level says about some files never changes, so it is kept in memory for the next one who asks the same.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallymark.batch import SCHEMA
from tallymark.percentile import RELATIVE_ERROR, Buckets, bucket_sql, merged, percentiles
from tallymark.query import Query, percentile
from tallymark.stores.duck import LIVE, DuckStatement, Engine
from tallymark.stores.plan import Piece, Plan
from tallymark.stores.sql import check_rows, finals_sql, order_sql, window_sql

KEPT_BYTES: Final = 32 << 20
"""Of parts that are kept. All those of a dashboard take about two megabytes."""

PARTS: Final = "parts"
"""The name of the table of parts that are in memory."""

_BUCKETS: Final = ("buckets", "counts")
_NOTHING: Final = SCHEMA.empty_table()


@dataclass(frozen=True)
class _Figure:
    """A column of the parts: from records, from rows of a level, and merged."""

    name: str
    records: str
    rollup: str
    merged: str


_N: Final = _Figure("n", "count(*)", "n", "CAST(sum(n) AS BIGINT)")
_TOTAL: Final = _Figure("total", "sum(value)", "total", "sum(total)")
_SMALLEST: Final = _Figure("smallest", "min(value)", "smallest", "min(smallest)")
_LARGEST: Final = _Figure("largest", "max(value)", "largest", "max(largest)")
_NEWEST_AT: Final = _Figure("newest_at", "max(timestamp)", "newest_at", "max(newest_at)")
_LATEST: Final = _Figure(
    "latest",
    "max({t: timestamp, j: journal, s: seq, v: value})",
    "{t: newest_at, j: newest_journal, s: newest_seq, v: newest}",
    "max(latest)",
)
_OUTCOMES: Final = (
    _Figure(
        "successes",
        "count(*) FILTER (WHERE success)",
        "CASE WHEN success THEN n ELSE 0 END",
        "CAST(sum(successes) AS BIGINT)",
    ),
    _Figure(
        "outcomes",
        "count(success)",
        "CASE WHEN success IS NULL THEN 0 ELSE n END",
        "CAST(sum(outcomes) AS BIGINT)",
    ),
)
_FIGURES: Final[Mapping[str, tuple[_Figure, ...]]] = {
    "sum": (_TOTAL,),
    "avg": (_TOTAL,),
    "min": (_SMALLEST,),
    "max": (_LARGEST,),
    "last": (_LATEST,),
    "last_timestamp": (_NEWEST_AT,),
    "success_rate": _OUTCOMES,
    "error_rate": _OUTCOMES,
}


class Rolled:
    """Answers by plans. Any method may be called from any thread.

    Args:
        engine: runs the SQL.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = Lock()
        self._kept: OrderedDict[str, pa.Table] = OrderedDict()
        self._bytes = 0

    def answer(self, query: Query, plan: Plan, rows: pa.Table) -> pa.Table:
        """What a query finds by a plan, as :meth:`tallymark.store.Store.aggregate`.

        Args:
            rows: the live table.

        Raises:
            FileGone: a file could not be read.
            QueryError: the answer has more rows than one may have.
        """
        shares = [share for share in map(percentile, query.aggregates) if share is not None]
        columns = _columns(query, bool(shares))
        parts = [self._part(query, piece, columns) for piece in plan.pieces]
        statement = DuckStatement(self._engine.objects)
        statement.tables[PARTS] = pa.concat_tables(parts)
        raw = columns.raw_sql(statement, query, statement.records(plan.raw))
        names = ", ".join(columns.names)
        groups = columns.merged_sql(f"SELECT {names} FROM ({raw}) UNION ALL SELECT {names} FROM {PARTS}")
        places: list[str] = []
        if shares:
            # Buckets are added up here in a tenth of the time that joins and windows of SQL take.
            rows, places = _with_percentiles(self._engine.run(statement, groups, rows), shares)
            statement, groups = DuckStatement(), f"SELECT * FROM {LIVE}"
        outer = [*columns.keys, *finals_sql(statement, query, places), "n"]
        shown = ", ".join(f"{expression} AS c{number}" for number, expression in enumerate(outer))
        latest = "*, latest.v AS newest" if _LATEST in columns.figures else "*"
        sql = f"SELECT {shown} FROM (SELECT {latest} FROM ({groups})) AS groups{order_sql(statement, query)}"
        found = self._engine.run(statement, sql, rows)
        check_rows(found.num_rows)
        return found.rename_columns(list(query.output))

    def _part(self, query: Query, piece: Piece, columns: "_Columns") -> pa.Table:
        """The groups of what one piece holds."""
        statement = DuckStatement(self._engine.objects)
        inside = replace(query, start=piece.start, end=piece.end)
        if piece.level is None:
            return self._run(
                statement, columns, columns.raw_sql(statement, inside, statement.records(piece.files, live=False))
            )
        sql = columns.rollup_sql(statement, inside, piece)
        key = f"{sql} {statement.parameters}"  # the names of the files are in it
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        found = self._run(statement, columns, sql)
        with self._lock:
            if key not in self._kept:
                self._bytes += found.nbytes + len(key)
                self._kept[key] = found
            while self._bytes > KEPT_BYTES:
                old, table = self._kept.popitem(last=False)
                self._bytes -= table.nbytes + len(old)
        return found

    def _run(self, statement: DuckStatement, columns: "_Columns", sql: str) -> pa.Table:
        table = self._engine.run(statement, columns.merged_sql(sql), _NOTHING)
        return _merged(table) if columns.buckets else table


def relative_error(query: Query) -> float | None:
    """How far the percentiles of an answer may be off, as a share of them; None where it has none."""
    return RELATIVE_ERROR if any(percentile(name) is not None for name in query.aggregates) else None


@dataclass(frozen=True)
class _Columns:
    """The columns of parts: keys of groups, figures, and the buckets of the values where percentiles are asked for."""

    keys: list[str]
    figures: list[_Figure]
    buckets: bool

    @property
    def names(self) -> list[str]:
        return [*self.keys, *(figure.name for figure in self.figures), *(_BUCKETS if self.buckets else ())]

    @property
    def _merged(self) -> list[str]:
        return [*self.keys, *(f"{figure.merged} AS {figure.name}" for figure in self.figures)]

    def rollup_sql(self, statement: DuckStatement, query: Query, piece: Piece) -> str:
        """Rows of a level as parts."""
        assert piece.level is not None
        columns = [*self._grouped(statement, query), *(f"{figure.rollup} AS {figure.name}" for figure in self.figures)]
        columns += _BUCKETS if self.buckets else ()
        where = f"level = {piece.level.number} AND {statement.where(query)}"
        return f"SELECT {', '.join(columns)} FROM {statement.parquet(piece.files)} WHERE {where}"

    def raw_sql(self, statement: DuckStatement, query: Query, records: str) -> str:
        """Records as parts."""
        columns = [*self._grouped(statement, query), *(f"{figure.records} AS {figure.name}" for figure in self.figures)]
        if not self.buckets:
            return f"SELECT {', '.join(columns)} FROM {records} WHERE {statement.where(query)}{self._by()}"
        columns.append(f"{bucket_sql('value')} AS bucket")
        single = f"SELECT {', '.join(columns)} FROM {records} WHERE {statement.where(query)}{self._by('bucket')}"
        lists = ["list(bucket) AS buckets", "list(n) AS counts"]
        return f"SELECT {', '.join([*self._merged, *lists])} FROM ({single}){self._by()} HAVING sum(n) > 0"

    def merged_sql(self, parts: str) -> str:
        """Parts with one row for each group."""
        lists = [f"flatten(list({name})) AS {name}" for name in _BUCKETS] if self.buckets else []
        return f"SELECT {', '.join([*self._merged, *lists])} FROM ({parts}){self._by()} HAVING sum(n) > 0"

    def _grouped(self, statement: DuckStatement, query: Query) -> list[str]:
        # Records and rows of a level have the same columns for them.
        texts = (window_sql(statement, query) if key == "window_start" else key for key in query.keys)
        return [f"{text} AS {name}" for text, name in zip(texts, self.keys, strict=True)]

    def _by(self, *more: str) -> str:
        keys = [*self.keys, *more]
        return f" GROUP BY {', '.join(keys)}" if keys else ""


def _columns(query: Query, buckets: bool) -> _Columns:
    needed = [figure for name in query.aggregates for figure in _FIGURES.get(name, ())]
    figures = [_N, *needed, *((_SMALLEST, _LARGEST) if buckets else ())]
    return _Columns([f"k{number}" for number in range(len(query.keys))], list(dict.fromkeys(figures)), buckets)


def _histograms(table: pa.Table) -> Buckets:
    """The buckets of the rows of a table, each row a group."""
    keys, counts = (_combined(table[name]) for name in _BUCKETS)
    groups = np.repeat(np.arange(table.num_rows), np.diff(keys.offsets.to_numpy()))
    return merged(groups, keys.flatten().to_numpy(), counts.flatten().to_numpy())


def _combined(column: Any) -> Any:
    """A column in one piece, its offsets from 0."""
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _merged(table: pa.Table) -> pa.Table:
    """The same groups, with each of their buckets once."""
    found = _histograms(table)
    offsets: Any = pa.array(np.searchsorted(found.groups, np.arange(table.num_rows + 1)), pa.int32())
    for name, values in zip(_BUCKETS, (found.keys, found.counts), strict=True):
        lists = pa.ListArray.from_arrays(offsets, pa.array(values, pa.int64()))
        table = table.set_column(table.column_names.index(name), name, lists)
    return table


def _with_percentiles(table: pa.Table, shares: Sequence[float]) -> tuple[pa.Table, list[str]]:
    """The groups with percentiles in place of their buckets, and the names of these columns."""
    smallest, largest = (table[name].to_numpy() for name in ("smallest", "largest"))
    found = percentiles(_histograms(table), smallest, largest, shares)
    names = [f"percentile{number}" for number in range(len(shares))]
    table = table.drop_columns(list(_BUCKETS))
    for name, values in zip(names, found, strict=True):
        table = table.append_column(name, pa.array(values))
    return table, names
