"""Into PostgreSQL: a shipper's batches by COPY, beside batched INSERT through SQLAlchemy of the same rows into the same
table, with its partitions and indexes. And the questions for which a table of records usually has one index more.
"""

import sys
import time
from pathlib import Path
from typing import Any

from bench import Row, workload
from tallymark.batch import Batch
from tallymark.query import Query
from tallymark.shipper import BATCH_ROWS

SETTINGS = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=2GB")
"""As a server has them, but for its memory."""


def run(quick: bool = False) -> list[Row]:
    """Each turn fills a new database whose partitions are there already; the best of some counts."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from services.postgres import postgres_server
    from stores.postgres_stores import Databases

    records = BATCH_ROWS // 4 if quick else BATCH_ROWS
    batches = list(workload.batches(records, BATCH_ROWS))
    rows = [batch.table.to_pylist() for batch in workload.batches(records, 10_000)]
    with postgres_server(*SETTINGS) as server:
        databases = Databases(server)
        ours, bytes_each, theirs = [], 0.0, []
        for _ in range(1 if quick else 3):
            url = databases.prepared()
            took, bytes_each = _by_copy(url, batches)
            ours.append(took / records * 1e9)
            theirs.append(_by_insert(databases.prepared(), rows, batches) / records * 1e9)
        questions = _asked(url)
    note = f"{1e9 / min(ours):,.0f} records/s, with three indexes; {bytes_each:.0f} bytes each"
    return [
        Row("a record into PostgreSQL", min(ours), "ns", "INSERT by SQLAlchemy", min(theirs), 0.2, note),
        *(Row(f"PostgreSQL, {records:,} records: {what}", took * 1e3, "ms") for what, took in questions.items()),
    ]


def _asked(url: str) -> dict[str, float]:
    """Seconds for the newest records, the best of some."""
    from tallymark.stores.postgres.store import Postgres

    questions: dict[str, dict[str, Any]] = {
        "the newest 100 of all": {},
        "the newest 100 of one name": {"name": workload.ROUTES[3]},
        "a trace that is not there": {"trace_id": "none"},
    }
    found = {}
    with Postgres(url) as store:
        for what, question in questions.items():
            took = []
            for _ in range(5):
                started = time.perf_counter()
                store.scan(Query.build(agg=(), limit=100, **question))
                took.append(time.perf_counter() - started)
            found[what] = min(took)
    return found


def _by_copy(url: str, batches: list[Batch]) -> tuple[float, float]:
    """Seconds, and bytes for each record."""
    from tallymark.stores.postgres.store import Postgres
    from tallymark.stores.postgres.writing import days_of

    with Postgres(url) as store:
        for batch in batches:
            store._make_parts(days_of(batch.table))
        started = time.perf_counter()
        for batch in batches:
            store.write(batch)
        took = time.perf_counter() - started
        info = store.info()
    if info.stored != sum(batch.table.num_rows for batch in batches):
        raise RuntimeError(f"not everything was stored: {info}")
    return took, info.bytes / info.stored


def _by_insert(url: str, rows: list[list[dict[str, Any]]], batches: list[Batch]) -> float:
    """Seconds, for a transaction for each list of rows."""
    from sqlalchemy import MetaData, Table, create_engine, insert

    from tallymark.stores.postgres.store import Postgres
    from tallymark.stores.postgres.writing import days_of

    with Postgres(url) as store:
        for some in batches:
            store._make_parts(days_of(some.table))
    # Metadata is a text already.
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), json_serializer=str)
    table = Table("records", MetaData(), schema="tallymark", autoload_with=engine)
    started = time.perf_counter()
    for each in rows:
        with engine.begin() as connection:
            connection.execute(insert(table), each)
    took = time.perf_counter() - started
    engine.dispose()
    return took
