"""The store in PostgreSQL through a real pgbouncer that pools transactions: two sessions for everybody."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from services.pgbouncer import pgbouncer

import tallymark
from tallymark import Metrics
from tallymark.query import Query
from tallymark.stores.postgres.store import Postgres
from tallymark.stores.retention import Retention
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

from .postgres_stores import Databases


@pytest.fixture(scope="module")
def pooler(postgres: Databases) -> Iterator[Databases]:
    with pgbouncer(postgres.server) as url:
        yield Databases(url)


@pytest.fixture
def database(postgres: Databases, pooler: Databases) -> str:
    """The URL of an empty database behind the pooler."""
    return pooler.server.rpartition("/")[0] + "/" + postgres.empty().rpartition("/")[2]


def test_everything_works_through_it(database: str) -> None:
    """The schema is made through it too."""
    with Postgres(database) as store:
        assert store.info().recorded == 0
        rows = [row(seq, timestamp=NOON + seq * DAY, session_id=f"s{seq % 2}") for seq in range(4)]
        for _ in range(2):
            store.write(batch(rows))
        assert store.scan(Query(order_by=("timestamp",))).to_pylist() == rows
        assert count(store, where=["name=checkout"]) == 4
        assert store.positions(JOURNALS) == {JOURNALS[0]: 4}
        assert store.delete(Query.build(agg=(), session_id="s1")) == 2
        assert store.maintain(NOON + 40 * DAY, Retention(39)).deleted == 1
        assert store.purge(NOON) == []
        info = store.info()
        assert (info.stored, info.deleted) == (1, 3)


def test_nothing_stays_in_a_session(database: str) -> None:
    with Postgres(database) as store:
        store.write(batch([row(0)]))
        count(store)
        store.delete(Query())
    changed = "SELECT name FROM pg_settings WHERE source = 'session'"
    with psycopg.connect(database, autocommit=True, prepare_threshold=None) as connection:
        for _ in range(4):  # as many as there may be sessions, and more
            names = {name for (name,) in connection.execute(changed).fetchall()}
            assert names <= {
                "application_name",
                "client_encoding",
                "DateStyle",
                "TimeZone",
                "standard_conforming_strings",
            }
        for catalog in ("pg_prepared_statements", "pg_locks WHERE locktype = 'advisory'"):
            assert connection.execute(f"SELECT * FROM {catalog}").fetchall() == []


def test_many_writers_and_readers_share_two_sessions(database: str) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        journal = f"{number:022x}{'0' * 10}"
        try:
            with Postgres(database) as store:
                for seq in range(5):
                    store.write(batch([row(seq, journal=journal)]))
                    count(store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Postgres(database) as store:
        assert (count(store), store.info().stored) == (40, 40)


def test_an_application_records_through_it(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path))
    with Metrics(database, service="shop") as metrics:
        for number in range(100):
            metrics.record("order", "checkout", float(number))
        metrics.flush(timeout=60)
        assert metrics.get_stats().queue_size == 0
    with tallymark.open(database) as reader:
        assert reader.query(agg=["count", "sum"]).rows()[0] | {"samples": 0} == {
            "count": 100,
            "sum": 4950.0,
            "samples": 0,
        }
