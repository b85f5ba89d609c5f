"""How fast records come into ClickHouse's engine, what they take there, and how long questions take.

The engine is in this process, so there is no network in the figures, and it has the processors to share with it.
"""

import time
from tempfile import TemporaryDirectory
from typing import Any

import clickhouse_connect

from bench import Row, workload
from tallymark.batch import SCHEMA, Batch
from tallymark.query import Query
from tallymark.stores.clickhouse.store import ClickHouse
from tallymark.stores.clickhouse.tables import RECORDS

BATCH = 250_000
"""As many as a shipper writes at once."""

FEW = 25_000
"""Of a turn row by row."""


def run(quick: bool = False) -> list[Row]:
    """Nanoseconds of a record, the least of several batches: all of a write, with its positions and synced to the disk;
    against what ``insert`` of the same client takes for the same rows as Python objects, which is neither announced nor
    fenced, nor summed up.
    """
    records = 1_000_000 if quick else 5_000_000
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        client = clickhouse_connect.get_client(interface="chdb", path=folder)
        try:
            store = ClickHouse("clickhouse://bench/default", client=client)
            batches = list(workload.batches(records, BATCH))
            written = min(_elapsed(store, batch) for batch in batches)
            by_row = min(_by_row(client, batches[0]) for _ in range(3))
            client.command(f"TRUNCATE TABLE {RECORDS}_by_row")
            client.command(f"OPTIMIZE TABLE {RECORDS} FINAL")
            size = store.info().bytes / records
            return [
                Row("records written into ClickHouse's engine", written, "ns", limit=2_000, note="a record"),
                Row("the same", written, "ns", "insert() of rows of clickhouse-connect", by_row, note="rows only"),
                Row(f"{records:,} records in ClickHouse, merged", size, "bytes", limit=25, note="per record"),
                *_questions(store),
            ]
        finally:
            client.close()


def _elapsed(store: ClickHouse, batch: Batch) -> float:
    started = time.perf_counter()
    store.write(batch)
    return (time.perf_counter() - started) * 1e9 / batch.table.num_rows


def _by_row(client: Any, batch: Batch) -> float:
    table = f"{RECORDS}_by_row"
    client.command(f"CREATE TABLE IF NOT EXISTS {table} AS {RECORDS}")
    rows = [list(row.values()) for row in batch.table.slice(0, FEW).to_pylist()]
    started = time.perf_counter()
    client.insert(table, rows, column_names=SCHEMA.names)
    return (time.perf_counter() - started) * 1e9 / FEW


def _questions(store: ClickHouse) -> list[Row]:
    week: dict[str, Any] = {"since": workload.START, "until": workload.END}
    day: dict[str, Any] = {"since": workload.START + 3 * workload.DAY_NS, "until": workload.START + 4 * workload.DAY_NS}
    ask = {
        "one series, one day, by 5 minutes, exact p50 p95 p99": Query.build(
            **day, name=workload.ROUTES[3], window="5m", agg=("count", "avg", "p50", "p95", "p99")
        ),
        "all series, seven days, by the hour, count and avg": Query.build(
            **week, window="1h", group_by="name", agg=("count", "avg")
        ),
        "all series, seven days, by the hour, exact p50 p95 p99": Query.build(
            **week, window="1h", group_by="name", agg=("count", "p50", "p95", "p99")
        ),
        "one series, seven days, by a metadata key, exact p95": Query.build(
            **week, name=workload.ROUTES[0], group_by="metadata.region", agg=("count", "p95")
        ),
    }
    return [
        Row(f"ClickHouse: {what}", min(_asked(store, query) for _ in range(5)), "ms") for what, query in ask.items()
    ]


def _asked(store: ClickHouse, query: Query) -> float:
    started = time.perf_counter()
    store.aggregate(query)
    return (time.perf_counter() - started) * 1e3
