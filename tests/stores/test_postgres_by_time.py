"""Questions to PostgreSQL that name no type and no name: there is no index on time alone."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallymark.query import Query
from tallymark.stores.postgres import by_time, rollups
from tallymark.stores.postgres.parts import Part
from tallymark.stores.postgres.sql import RECORDS, PostgresStatement
from tallymark.stores.postgres.store import Postgres
from tallymark.stores.sql import aggregate_sql, scan_sql
from tallymark.testing import oracle
from tallymark.testing.conformance import assert_same_groups
from tallymark.testing.oracle import Row
from tallymark.testing.questions import aggregations, records, scans
from tallymark.testing.rows import DAY, NOON, batch, row

from .postgres_stores import Databases


@pytest.fixture
def store(database: str) -> Iterator[Postgres]:
    with Postgres(database) as found:
        yield found


def plan_of(connection: "psycopg.Connection[Any]", statement: PostgresStatement, sql: str) -> str:
    connection.execute("ANALYZE tallymark.records")
    found = psycopg.ClientCursor(connection).execute(f"EXPLAIN {sql}", statement.parameters).fetchall()
    return "\n".join(line for (line,) in found)


@pytest.mark.parametrize(
    ("question", "condition"),
    [
        ({"name": "n7"}, "hashtext(name) ="),
        ({"metric_type": "t1"}, "hashtext(metric_type) ="),
        ({}, "hashtext(metric_type) = ANY"),
        ({"where": "service=shop"}, "hashtext(metric_type) = ANY"),
    ],
    ids=str,
)
def test_an_index_finds_the_newest_of_a_name_of_a_type_and_of_all(
    store: Postgres, database: str, question: dict[str, Any], condition: str
) -> None:
    store.write(batch(of_two_days(20_000)))
    query = Query.build(agg=(), limit=10, **question)
    with psycopg.connect(database) as connection:
        stretch, types = next(by_time.stretches(connection.cursor(), query))
        assert types is None if "=" in condition[-1] else len(types or []) == 5
        statement = PostgresStatement(types)
        plan = plan_of(connection, statement, scan_sql(statement, RECORDS, stretch))
    assert condition in plan
    assert "Seq Scan" not in plan


def of_two_days(count: int) -> list[Row]:
    """Of 50 names and 5 types."""
    return [
        row(seq, name=f"n{seq % 50}", metric_type=f"t{seq % 5}", timestamp=NOON + seq % 2 * DAY + seq)
        for seq in range(count)
    ]


def test_only_the_bound_of_a_stretch_is_read_for_it(store: Postgres, database: str) -> None:
    store.write(batch(of_two_days(20_000)))
    asked: list[tuple[str, Any]] = []

    class Watched(psycopg.ClientCursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            asked.append((query, params))
            return super().execute(query, params, **options)

    with psycopg.connect(database, cursor_factory=Watched) as connection:
        next(by_time.stretches(connection.cursor(), Query.build(agg=(), limit=10)))
        sql, parameters = asked[-1]
        connection.execute("ANALYZE tallymark.records")
        found = connection.execute(f"EXPLAIN ANALYZE {sql}", parameters).fetchall()
    plan = "\n".join(line for (line,) in found)
    assert "Merge Append" in plan
    read = [int(rows) for rows in re.findall(r"Index (?:Only )?Scan.*actual.* rows=(\d+)", plan)]
    assert 1_010 <= sum(read) <= 1_100


def test_part_of_a_day_is_found_by_an_index(store: Postgres, database: str) -> None:
    store.write(batch(of_two_days(20_000)))
    query = Query.build(since=NOON + 100, until=NOON + 400, group_by="metric_type")
    with psycopg.connect(database) as connection:
        days = list(rollups.days(connection.cursor(), query.start, query.end))
        statement = PostgresStatement(by_time.types(connection.cursor(), query, days))
        plan = plan_of(connection, statement, aggregate_sql(statement, RECORDS, query))
    assert "hashtext(metric_type) = ANY" in plan
    assert "Seq Scan" not in plan
    assert store.aggregate(query).to_pylist() == [
        {"metric_type": f"t{number}", "count": 30, "samples": 30} for number in range(5)
    ]


def test_types_are_named_where_that_helps(store: Postgres, database: str) -> None:
    store.write(batch(of_two_days(100)))
    midnight = NOON // DAY * DAY
    with psycopg.connect(database) as connection:

        def known(**question: Any) -> int:
            query = Query.build(**question)
            days = list(rollups.days(connection.cursor(), query.start, query.end))
            return len(by_time.types(connection.cursor(), query, days) or [])

        assert known(since=NOON) == 5
        assert known(since=midnight + 1, until=midnight + 2 * DAY) == 5
        assert known() == known(since=midnight, until=midnight + 2 * DAY) == 0  # whole days
        assert known(since=NOON, name="n1") == known(since=NOON, metric_type=["t1", "t2"]) == 0
        assert known(since=midnight + 5 * DAY) == 0


@pytest.mark.parametrize("emptied", ["ALTER TABLE tallymark.records DETACH PARTITION {}", "TRUNCATE {}"])
def test_a_partition_that_is_gone_is_no_error(postgres: Databases, emptied: str) -> None:
    """Somebody detached one, or it is being dropped; its rows are in the books still."""
    url = postgres.empty()
    with Postgres(url) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_time, "FIRST_ROWS", 0)
        store.write(batch(of_two_days(40)))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(emptied.format(f"tallymark.{Part(NOON, 0).name}").encode())
        for query in (Query(), Query(limit=3, order_by=("timestamp",)), Query(start=NOON + 5, limit=30)):
            found = store.scan(query).to_pylist()
            assert [one["timestamp"] // DAY for one in found] == [NOON // DAY + 1] * min(query.limit or 20, 20)
        assert sum(row["count"] for row in store.aggregate(Query.build(since=NOON + 1)).to_pylist()) == 20
        assert store.aggregate(Query.build(since=NOON + 1, until=NOON + 9)).num_rows == 0


@given(rows=records(), questions=st.lists(aggregations() | scans(), min_size=4, max_size=8), most=st.integers(1, 8))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_scan_in_many_stretches_is_that_of_the_oracle(
    postgres: Databases, rows: list[Row], questions: list[Query], most: int
) -> None:
    with Postgres(postgres.prepared()) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_time, "FIRST_ROWS", 0)
        patch.setattr(by_time, "GROWTH", 2)
        patch.setattr(by_time, "MOST_TYPES", most)
        store.write(batch(rows))
        for query in questions:
            if query.aggregates:
                assert_same_groups(store.aggregate(query), oracle.aggregate(rows, query), query, rows)
            else:
                assert store.scan(query).to_pylist() == oracle.scan(rows, query)


@pytest.mark.parametrize("order", ["timestamp", "-timestamp"])
def test_stretches_follow_each_other_and_grow(store: Postgres, database: str, order: str) -> None:
    """Of 24,000 records of 3 types in two days, many at one time."""
    times = [NOON + seq // 50 + seq // 12_000 * DAY for seq in range(24_000)]
    store.write(batch([row(seq, metric_type=f"t{seq % 3}", timestamp=when) for seq, when in enumerate(times)]))
    query = Query.build(agg=(), limit=10, order_by=order, since=times[50], until=times[-1])
    with psycopg.connect(database) as connection:
        found = list(by_time.stretches(connection.cursor(), query))
    assert [len(types or []) for _, types in found] == [3, 3, 0]
    spans = [(stretch.start or 0, stretch.end or 0) for stretch, _ in found]
    if order == "-timestamp":
        spans.reverse()
    assert spans[0][0] == times[50]
    assert spans[-1][1] == times[-1]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    counts = [sum(start <= when < end for when in times) for start, end in spans]
    assert counts == ([1050, 8100, 14_750] if order == "timestamp" else [14_750, 8100, 1050])


def test_a_large_limit_and_a_deep_search_take_partitions_as_they_are(
    store: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_time, "MOST_ROWS", 5_000)
    store.write(batch(of_two_days(40_000)))
    with psycopg.connect(database) as connection:

        def counts(limit: int) -> list[int]:
            found = by_time.stretches(connection.cursor(), Query(limit=limit))
            return [store.scan(replace(stretch, limit=None)).num_rows for stretch, _ in found]

        assert counts(10) == [1010, 18_990, 20_000]  # not 8,080 of the first
        assert counts(9_000) == [10_000, 30_000]
        assert counts(50_000) == [40_000]
