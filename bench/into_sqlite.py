"""Into SQLite: batches as a shipper hands them over, beside the same rows by ``executemany`` through SQLAlchemy."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from sqlalchemy import BigInteger, Boolean, Column, Float, MetaData, String, Table, create_engine, event, insert

from bench import Row, workload
from tallymark.batch import SCHEMA
from tallymark.query import Query
from tallymark.stores.sqlite.store import Sqlite

LIMIT_NS = 1e9 / 150_000
"""At least 150,000 records a second."""

HOUR = 3_600_000_000_000


def run(quick: bool = False) -> list[Row]:
    """Every commit is on the disk when it returns, in both."""
    records = 500_000 if quick else 1_000_000
    batches = list(workload.batches(records, 250_000))
    best, cpu, peer, size = float("inf"), float("inf"), float("inf"), 0.0
    for _ in range(2 if quick else 3):  # in turns
        with TemporaryDirectory(prefix="tallymark-bench-") as folder:
            started, used = time.perf_counter(), time.process_time()
            with Sqlite(Path(folder) / "metrics.db") as store:
                store.write(batches[0])  # makes the tables
                started, used = time.perf_counter(), time.process_time()
                for batch in batches[1:]:
                    store.write(batch)
                timed = records - batches[0].table.num_rows
                best = min(best, (time.perf_counter() - started) / timed)
                cpu = min(cpu, (time.process_time() - used) / timed)
                asked = {what: _seconds(store, query) for what, query in QUERIES.items()}
            size = (Path(folder) / "metrics.db").stat().st_size / records
        with TemporaryDirectory(prefix="tallymark-bench-") as folder:
            peer = min(peer, _by_sqlalchemy(Path(folder) / "metrics.db", batches[1].table))
    rows = [
        Row("into SQLite, a record", best * 1e9, "ns", limit=LIMIT_NS, note=f"{1 / best:,.0f} records/s"),
        Row("of that, CPU", cpu * 1e9, "ns", note=f"{1 / cpu:,.0f} records/s"),
        Row("into SQLite beside SQLAlchemy", best * 1e9, "ns", "executemany, one index", peer * 1e9, 1.0),
        Row("a record in SQLite", size, "bytes"),
    ]
    return rows + [Row(f"SQLite, {records:,} records: {what}", seconds * 1e3, "ms") for what, seconds in asked.items()]


QUERIES = {
    "count, mean and error rate": Query.build(agg=["count", "avg", "error_rate"]),
    "5 minutes and series": Query.build(window="5m", group_by="name", agg=["count", "avg"]),
    "5 minutes and series, p50, p95 and p99": Query.build(window="5m", group_by="name", agg=["p50", "p95", "p99"]),
    "a metadata key, one series": Query.build(name=workload.ROUTES[0], group_by="metadata.region"),
    "the last hour, by minute, p95": Query.build(since=workload.END - HOUR, window="1m", agg=["count", "p95"]),
    "the newest 100": Query(limit=100),
}


def _seconds(store: Sqlite, query: Query) -> float:
    """The best of a few, warm."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (store.aggregate if query.aggregates else store.scan)(query)
        best = min(best, time.perf_counter() - started)
    return best


def _by_sqlalchemy(path: Path, rows: pa.Table) -> float:
    """Seconds for a record, in batches of 10,000 that are dictionaries already."""
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def prepare(connection: object, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[attr-defined]
        connection.execute("PRAGMA synchronous = FULL")  # type: ignore[attr-defined]

    kinds = {pa.int64(): BigInteger, pa.float64(): Float, pa.bool_(): Boolean}
    columns: list[Column[Any]] = [Column(field.name, kinds.get(field.type, String)) for field in SCHEMA]
    table = Table("records", MetaData(), *columns)
    columns[SCHEMA.names.index("timestamp")].index = True
    table.metadata.create_all(engine)
    dictionaries = rows.to_pylist()
    started = time.perf_counter()
    for first in range(0, len(dictionaries), 10_000):
        with engine.begin() as connection:
            connection.execute(insert(table), dictionaries[first : first + 10_000])
    engine.dispose()
    return (time.perf_counter() - started) / len(dictionaries)
