"""Questions to PostgreSQL that name no type and no name: there is no index on time alone."""

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallymark.query import Query
from tallymark.stores.postgres import by_time
from tallymark.stores.postgres.sql import RECORDS, PostgresStatement
from tallymark.stores.postgres.store import Postgres
from tallymark.stores.sql import scan_sql
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


@pytest.mark.parametrize(
    ("question", "condition"),
    [
        ({"name": "n7"}, "hashtext(name) ="),
        ({"metric_type": "operation"}, "hashtext(metric_type) ="),
        ({}, "hashtext(metric_type) ="),
        ({"where": "service=shop"}, "hashtext(metric_type) ="),
    ],
    ids=str,
)
def test_an_index_finds_the_newest_of_a_name_of_a_type_and_of_all(
    store: Postgres, database: str, question: dict[str, Any], condition: str
) -> None:
    store.write(batch([row(seq, name=f"n{seq % 50}", timestamp=NOON + seq % 2 * DAY + seq) for seq in range(20_000)]))
    query = Query.build(agg=(), limit=10, **question)
    with psycopg.connect(database) as connection:
        connection.execute("ANALYZE tallymark.records")
        stretch, types = next(by_time.stretches(connection.cursor(), query))
        statement = PostgresStatement(types)
        sql = scan_sql(statement, RECORDS, stretch)
        found = psycopg.ClientCursor(connection).execute(f"EXPLAIN {sql}", statement.parameters).fetchall()
    plan = "\n".join(line for (line,) in found)
    assert condition in plan
    assert "Seq Scan" not in plan


@given(rows=records(), questions=st.lists(aggregations() | scans(), min_size=4, max_size=8), sizes=st.integers(1, 8))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_scan_in_many_stretches_is_that_of_the_oracle(
    postgres: Databases, rows: list[Row], questions: list[Query], sizes: int
) -> None:
    with Postgres(postgres.prepared()) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_time, "FIRST_ROWS", 0)
        patch.setattr(by_time, "GROWTH", 2)
        patch.setattr(by_time, "MOST_TYPES", sizes)
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
    assert [len(types or []) for _, types in found] == [3] * 4
    spans = [(stretch.start or 0, stretch.end or 0) for stretch, _ in found]
    if order == "-timestamp":
        spans.reverse()
    assert spans[0][0] == times[50]
    assert spans[-1][1] == times[-1]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    counts = [sum(start <= when < end for when in times) for start, end in spans]
    assert counts == ([1050, 8100, 2800, 11950] if order == "timestamp" else [11950, 2800, 8100, 1050])
