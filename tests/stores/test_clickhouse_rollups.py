"""What ClickHouse sums up by the hour, and the answers that come from it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores.clickhouse_stores import Databases
from tallymark.batch import CLOSED
from tallymark.percentile import RELATIVE_ERROR
from tallymark.query import Query
from tallymark.store import origin_of
from tallymark.stores.clickhouse import rollups
from tallymark.stores.clickhouse.tables import HOURS
from tallymark.stores.retention import Retention
from tallymark.testing import oracle
from tallymark.testing.conformance import assert_same_groups
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, MINUTE, NOON, batch, row

from .rolling import MIDNIGHT, assert_answers, questions, some_records, spread


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(rows=some_records(), share=st.integers(0, 40), asked=st.lists(questions(), min_size=4, max_size=8))
def test_whatever_hours_can_answer_is_answered_by_them(
    databases: Databases, rows: list[Row], share: int, asked: list[Query]
) -> None:
    with databases.store() as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollups, "MANY_RECORDS", 1)
        patch.setattr(rollups, "MANY_IN_AN_HOUR", 0)
        store.write(batch(rows[:share]))
        store.write(batch(rows[share:]))
        for query in asked:
            assert_answers(store, rows, query)


def test_percentiles_of_hours(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "MANY_RECORDS", 20)
    monkeypatch.setattr(rollups, "MANY_IN_AN_HOUR", 4)
    store = databases.store()
    rows = spread(4_000, MIDNIGHT, MIDNIGHT + 2 * DAY)
    for one, value in zip(rows[:60], [0.0, 1.0, 8.0, 1e-300, 1e300, 1.7976931348623157e308] * 10, strict=True):
        one["value"] = value
    store.write(batch(rows))
    for question in (
        {"agg": ["p0", "p50", "p99.9", "max", "count"]},
        {"agg": ["p50", "p95", "last", "last_timestamp"], "window": "1h", "group_by": ["name", "success"]},
        {"agg": "p90", "since": MIDNIGHT + 7 * MINUTE, "until": MIDNIGHT + DAY + 7 * MINUTE, "group_by": "service"},
        {"agg": "p95", "window": "6h", "group_by": "name", "order_by": ["-p95"], "limit": 5},
    ):
        origin = assert_answers(store, rows, Query.build(**question), "1h rollups and raw")
        assert origin.relative_error == RELATIVE_ERROR
    # 4,000 records in 864 rows: of 48 hours, six series and three outcomes.
    monkeypatch.setattr(rollups, "MANY_IN_AN_HOUR", 5)
    assert_answers(store, rows, Query.build(agg=["p50", "count"]), "raw")
    assert_answers(store, rows, Query.build(agg=["min", "count"]), "1h rollups and raw")


def test_the_newest_of_an_hour_is_by_time_journal_and_number(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "MANY_RECORDS", 1)
    ends = ("00000000000000000000010000000000", "7" + "f" * 21 + "0" * 10, "f" * 22 + "0" * 10)
    places = [(NOON, journal, seq) for journal in ends for seq in (0, 3, CLOSED - 1)] + [(NOON + 1, ends[0], 1)]
    rows = [
        row(seq, journal=journal, timestamp=when, value=float(number), name=f"until {count}")
        for count in range(1, len(places) + 1)
        for number, (when, journal, seq) in enumerate(places[:count])
    ]
    store = databases.store()
    store.write(batch(rows[::-1]))
    for count in range(1, len(places) + 1):
        answer = store.aggregate(Query.build(agg=["last", "last_timestamp"], name=f"until {count}"))
        assert origin_of(answer).source == "1h rollups and raw"
        (found,) = answer.to_pylist()
        assert (found["last"], found["last_timestamp"]) == (count - 1, places[count - 1][0])


def test_hours_are_believed_only_while_they_are_right(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "MANY_RECORDS", 20)
    store = databases.store()
    rows = [
        row(
            seq,
            timestamp=NOON + seq * DAY // 24,
            value=float(seq % 7),
            name=f"n{seq % 3}",
            success=[None, True, False][seq % 3],
        )
        for seq in range(120)
    ]
    store.write(batch(rows))
    every = ["count", "sum", "avg", "min", "max", "last", "last_timestamp", "rate", "success_rate", "error_rate"]
    queries = [
        Query.build(agg=every[:7], group_by=["name", "success"]),
        Query.build(agg=every, window="1h", group_by="name"),
        Query.build(agg=every, window="1d", order_by=["-count"], limit=3),
        Query.build(agg=every, since=NOON + 1, until=NOON + 4 * DAY + 12_345, where=["success=true"]),
        Query.build(agg=every, since=NOON + DAY // 5, until=NOON + 3 * DAY, name=["n0", "n2"], window="4h"),
    ]

    def check(left: list[dict[str, Any]], source: str) -> None:
        for query in queries:
            found = store.aggregate(query)
            assert_same_groups(found, oracle.aggregate(left, query), query, left)
            assert origin_of(found).source == source

    check(rows, "1h rollups and raw")
    for query in (Query.build(window="90m"), Query.build(group_by="metadata.a")):
        assert origin_of(store.aggregate(query)).source == "raw"
    # Hours that miss what a dying server had not summed up, in every day.
    store._command(f"TRUNCATE TABLE {HOURS}")
    check(rows, "raw")
    assert store.maintain(NOON, Retention(30)).deleted == 0
    check(rows, "1h rollups and raw")
    # Deleted records are summed up still.
    left = [one for one in rows if one["value"] != 3]
    assert store.delete(Query.build(agg=(), where=["value=3"])) == len(rows) - len(left)
    check(left, "raw")
    store.maintain(NOON, None)
    check(left, "raw")
    store.maintain(NOON, Retention(30))
    check(left, "1h rollups and raw")
