"""Asking a store: ``tallymark.open("./metrics").query(...)``."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import msgspec

from tallymark.errors import QueryError
from tallymark.query import MAX_ROWS, Cursor, Filter, Query
from tallymark.record import COLUMNS, Record
from tallymark.store import Store, StoreInfo, open_store, origin_of

# What needs the extra "lake" is imported where it is used; without it open_store says what to install.
if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow as pa

SERIES = ("service", "metric_type", "name", "unit")
"""The columns that make a series."""

PAGE_SIZE = 100
"""Records of a page unless told otherwise."""

_TIMES = ("window_start", "last_timestamp")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Answer:
    """The rows of an aggregation, as columns.

    Attributes:
        samples: how many records the rows are made of.
        source: what was read: ``raw`` records, or ``10m, 1d rollups and raw``.
        relative_error: how far percentiles may be off, as a share of them; None where they are exact. All other
            figures always are.
        scanned: how many records were looked at one by one, at most; None where the store does not say.
    """

    def __init__(self, query: Query, table: "pa.Table") -> None:
        origin = origin_of(table)
        self.samples: int = sum(samples.as_py() for samples in table["samples"])
        self.source = origin.source
        self.relative_error = origin.relative_error
        self.scanned = origin.scanned
        self._table = table.select(list(query.output[:-1]))

    @property
    def exact(self) -> bool:
        """Whether percentiles are exact."""
        return self.relative_error is None

    def __len__(self) -> int:
        return self._table.num_rows

    def columns(self) -> dict[str, list[Any]]:
        """A list for each column; all of one length. Times are aware datetimes, to the microsecond."""
        return {
            name: [_moment(value) for value in values] if name in _TIMES else values
            for name, values in self._table.to_pydict().items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each row; times as in :meth:`columns`."""
        columns = self.columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_arrow(self) -> "pa.Table":
        """An Arrow table; times are timestamps in ns, UTC."""
        return _with_times(self._table, _TIMES)

    def to_pandas(self) -> "pandas.DataFrame":
        """A pandas DataFrame."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """A polars DataFrame."""
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame


@dataclass(frozen=True)
class Page:
    """Some records of a scan, in its order.

    Attributes:
        table: the records, in :data:`tallymark.batch.SCHEMA`.
        cursor: where the next page begins; hand it to :meth:`Reader.records` with the same conditions. None
            where nothing follows. Oldest first, something may always follow, so there it is None only while
            there are no records at all.
    """

    table: "pa.Table"
    cursor: str | None

    @property
    def records(self) -> list[Record]:
        """The records."""
        return [_record(row) for row in self.table.to_pylist()]

    def __len__(self) -> int:
        return self.table.num_rows

    def to_arrow(self) -> "pa.Table":
        """The records as an Arrow table: ``id`` as text, ``timestamp`` in ns UTC, ``metadata`` as JSON."""
        import pyarrow as pa

        from tallymark.batch import record_id

        pairs = self.table.select(["journal", "seq"]).to_pylist()
        ids = pa.array([str(record_id(pair["journal"], pair["seq"])) for pair in pairs], pa.string())
        table = self.table.drop_columns(["journal", "seq"]).add_column(0, "id", ids)
        return _with_times(table, ("timestamp",))

    def to_pandas(self) -> "pandas.DataFrame":
        """A pandas DataFrame, with the columns of :meth:`to_arrow`."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """A polars DataFrame, with the columns of :meth:`to_arrow`."""
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame


class Reader:
    """Asks a store, beside whoever writes to it. Any thread may use it; closing it is optional.

    Every method raises :class:`~tallymark.errors.QueryError` where the question makes no sense and
    :class:`~tallymark.errors.StoreError` where the store cannot answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def query(self, **question: Any) -> Answer:
        """Aggregates over records.

        Args:
            question: as :meth:`tallymark.query.Query.build`: ``since``, ``until``, ``where``, ``window``,
                ``group_by``, ``agg``, ``order_by``, ``limit``, and columns such as ``name``.

        Example::

            reader.query(since="now-1h", window="5m", group_by="name", agg=["count", "p95"], service="shop")
        """
        query = Query.build(**question)
        if not query.aggregates:
            raise QueryError("agg: name at least one; records() gives the records themselves")
        return Answer(query, self._store.aggregate(query))

    def records(self, *, limit: int = PAGE_SIZE, **question: Any) -> Page:
        """Records, the newest first; with ``order_by="timestamp"`` the oldest first.

        Args:
            limit: most records of the page.
            question: as :meth:`query`, but for ``window``, ``group_by`` and ``agg``; and ``cursor``, from the
                page before. Pages stay right while records arrive: none that was there comes twice or not at
                all.
        """
        query = Query.build(**question, agg=(), limit=limit)
        table = self._store.scan(query)
        if query.oldest_first:
            return Page(table, _cursor(table) or query.cursor)
        return Page(table, _cursor(table) if table.num_rows == (query.limit or MAX_ROWS) else None)

    def pages(self, *, limit: int = 10_000, **question: Any) -> Iterator[Page]:
        """Page after page of :meth:`records`, until there are no more."""
        page = self.records(limit=limit, **question)
        while len(page):
            yield page
            if len(page) < limit:
                return
            page = self.records(limit=limit, **{**question, "cursor": page.cursor})

    def get(self, identifier: uuid.UUID | str) -> Record | None:
        """The record with this id, if there is one."""
        query = Query(filters=(Filter("id", "=", str(identifier)),), limit=1)
        return next(iter(Page(self._store.scan(query), None).records), None)

    def series(self, **question: Any) -> Answer:
        """Every series: service, metric_type, name, unit, count, last, last_timestamp.

        Args:
            question: ``since``, ``until``, ``where`` and columns, as :meth:`query`.
        """
        return self.query(group_by=SERIES, agg=("count", "last", "last_timestamp"), **question)

    def info(self) -> StoreInfo:
        """The books: what is stored, pending and dropped."""
        return self._store.info()

    def close(self) -> None:
        """Give memory and files back."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_reader(url: str = "./metrics") -> Reader:
    """What :func:`tallymark.open` does."""
    return Reader(open_store(url))


def _cursor(table: "pa.Table") -> str | None:
    if not table.num_rows:
        return None
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    return str(Cursor(last["timestamp"], last["journal"], last["seq"]))


def _with_times(table: "pa.Table", names: tuple[str, ...]) -> "pa.Table":
    """The table with some columns of integers, where it has them, as timestamps."""
    import pyarrow as pa

    for place, name in enumerate(table.column_names):
        if name in names:
            table = table.set_column(place, name, table[name].cast(pa.timestamp("ns", "UTC")))
    return table


def _record(row: dict[str, Any]) -> Record:
    from tallymark.batch import record_id

    fields = {name: row[name] for name in COLUMNS if name not in ("id", "metadata")}
    return Record(id=record_id(row["journal"], row["seq"]), metadata=_decode(row["metadata"]), **fields)


def _moment(timestamp: int) -> datetime:
    return datetime.fromtimestamp(timestamp // 1_000_000_000, UTC).replace(
        microsecond=timestamp % 1_000_000_000 // 1_000
    )
