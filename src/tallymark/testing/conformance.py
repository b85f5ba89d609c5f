"""What every store has to do, as tests: for those that tallymark ships, and for your own.

A subclass in a file of tests, with one fixture, is all that it takes::

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def new_store(self, tmp_path):
            return lambda: MyStore(tmp_path / uuid.uuid4().hex)

It needs pytest, hypothesis and pyarrow.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallymark.batch import CLOSED, SCHEMA, Batch
from tallymark.errors import QueryError
from tallymark.query import Query
from tallymark.store import Store
from tallymark.stores.retention import Retention
from tallymark.testing import oracle
from tallymark.testing.oracle import Row
from tallymark.testing.questions import SUBJECTS, aggregations, ranges, records, scans
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, batch, count, row

NewStore = Callable[[], Store]

_settings = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def assert_same_groups(found: pa.Table, expected: list[Row], query: Query, rows: list[Row]) -> None:
    """Whether an aggregation gave what the oracle did, but for the rounding of sums."""
    assert found.column_names == list(query.output)
    scale = sum(abs(one["value"]) for one in rows)
    keys = [*query.keys, "samples"]
    got = found.to_pylist()
    assert [[_canonical(one[key]) for key in keys] for one in got] == [
        [_canonical(one[key]) for key in keys] for one in expected
    ]
    for left, right in zip(got, expected, strict=True):
        for name in query.aggregates:
            assert oracle.close(left[name], right[name], scale), (name, left, right)


def _canonical(value: Any) -> Any:
    return oracle.same_escapes(value) if isinstance(value, str) else value


class StoreConformance:
    """Subclass it, and give the fixture ``new_store``: a callable that gives an empty store each time."""

    @pytest.fixture
    def new_store(self) -> NewStore:
        """An empty store each time it is called."""
        raise NotImplementedError("give a fixture new_store")

    @pytest.fixture
    def store(self, new_store: NewStore) -> Iterator[Store]:
        """One empty store."""
        with new_store() as store:
            yield store

    # -- answers ---------------------------------------------------------------------------------------------

    @_settings
    @given(
        rows=records(),
        share=st.integers(0, 25),
        questions=st.lists(aggregations() | scans(), min_size=6, max_size=12),
    )
    def test_every_answer_is_that_of_the_oracle(
        self, new_store: NewStore, rows: list[Row], share: int, questions: list[Query]
    ) -> None:
        with new_store() as store:
            store.write(batch(rows[:share]))
            store.write(batch(rows[share:]))
            for query in questions:
                if query.aggregates:
                    assert_same_groups(store.aggregate(query), oracle.aggregate(rows, query), query, rows)
                else:
                    assert store.scan(query).to_pylist() == oracle.scan(rows, query)

    def test_a_store_that_is_empty_answers_too(self, store: Store) -> None:
        assert store.scan(Query()).schema == SCHEMA
        assert store.aggregate(Query.build(window="1h")).to_pylist() == []
        assert store.aggregate(Query.build(agg=["count", "p50"], group_by="name")).to_pylist() == []
        assert store.info().recorded == 0
        assert store.positions(JOURNALS) == {}
        assert store.delete(Query()) == 0
        assert store.maintain(NOON, Retention()).deleted == 0
        store.purge(NOON)

    def test_answers_have_the_types_that_are_promised(self, store: Store) -> None:
        store.write(batch([row(0, success=True), row(1, success=None, metadata={"a": 1})]))
        query = Query.build(
            agg=["count", "avg", "last_timestamp", "p99", "success_rate"],
            window="1m",
            group_by=["name", "success", "metadata.a"],
        )
        integers = {"window_start", "count", "last_timestamp", "samples"}
        for field in store.aggregate(query).schema:
            keys = {"name": pa.string(), "metadata.a": pa.string(), "success": pa.bool_()}
            expected: Any = keys.get(field.name, pa.int64() if field.name in integers else pa.float64())
            assert field.type == expected, field.name
        assert store.scan(Query()).schema == SCHEMA

    def test_a_sum_beyond_float64_is_null(self, store: Store) -> None:
        store.write(batch([row(0, value=1.7e308), row(1, value=1.7e308)]))
        (found,) = store.aggregate(Query.build(agg=["sum", "avg", "max", "p50"])).to_pylist()
        assert found == {"sum": None, "avg": None, "max": 1.7e308, "p50": 1.7e308, "samples": 2}

    def test_a_rate_counts_only_the_seconds_inside_the_range(self, store: Store) -> None:
        store.write(batch([row(number) for number in range(30)]))
        half = Query.build(since=NOON, until=NOON + 30_000_000_000, window="1m", agg="rate")
        assert store.aggregate(half)["rate"].to_pylist() == [1.0]
        whole = Query.build(since=NOON, until=NOON + DAY, window="1m", agg="rate")
        assert store.aggregate(whole)["rate"].to_pylist() == [0.5]

    def test_numbers_match_numbers_and_their_spelling(self, store: Store) -> None:
        found = [404, "404", 404.0, "404 ", "0x194", "four", None, True, [404]]
        store.write(batch([row(seq, metadata={"code": code}) for seq, code in enumerate(found)]))
        assert count(store, where=["metadata.code=404"]) == 3
        assert count(store, where={"metadata.code": "404"}) == 2
        assert count(store, where=["metadata.code!=404"]) == 6
        assert count(store, where=["metadata.code>=404"]) == 3
        assert count(store, where=["metadata.code=null"]) == 1
        assert count(store, where=["metadata.code=true"]) == 1

    def test_metadata_stays_as_it_was_recorded(self, store: Store) -> None:
        texts = [
            '{"b":1,"a":1.0,"c":1e3}',
            '{"a":"\\u0007\\n","Ω":[1,{"x":null}]}',
            '{"big":12345678901234567890}',
            "{}",
        ]
        store.write(batch([row(seq) | {"metadata": text} for seq, text in enumerate(texts)]))
        assert store.scan(Query(order_by=("timestamp",)))["metadata"].to_pylist() == texts

    def test_values_stay_to_the_last_bit(self, store: Store) -> None:
        values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, -1e-300, 2.0**53 + 2]
        store.write(batch([row(seq, value=value) for seq, value in enumerate(values)]))
        found = store.scan(Query(order_by=("timestamp",)))["value"].to_pylist()
        assert list(map(repr, found)) == list(map(repr, values))

    def test_pages_follow_each_other_without_a_gap(self, store: Store) -> None:
        rows = [row(seq, journal=JOURNALS[seq % 3], timestamp=NOON + seq // 5) for seq in range(50)]
        store.write(batch(rows))
        for order in ("timestamp", "-timestamp"):
            seen: list[Row] = []
            cursor: str | None = None
            while page := store.scan(Query(order_by=(order,), limit=7, cursor=cursor)).to_pylist():
                seen += page
                cursor = f"{page[-1]['timestamp']}-{page[-1]['journal']}-{page[-1]['seq']}"
            assert seen == oracle.scan(rows, Query(order_by=(order,)))

    def test_an_answer_with_too_many_rows_is_an_error_unless_it_is_limited(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tallymark.stores.sql.MAX_ROWS", 3)
        store.write(batch([row(seq, name=f"n{seq}") for seq in range(4)]))
        with pytest.raises(QueryError, match="more than 3 rows"):
            store.aggregate(Query.build(group_by="name"))
        assert store.aggregate(Query.build(group_by="name", limit=2)).num_rows == 2

    # -- writing ---------------------------------------------------------------------------------------------

    def test_writing_a_batch_again_changes_nothing(self, store: Store) -> None:
        rows = [row(seq, journal=JOURNALS[seq % 2]) for seq in range(10)]
        for _ in range(2):
            store.write(batch(rows))
        store.write(batch([*rows, row(10)]))
        assert [one["seq"] for one in store.scan(Query(order_by=("timestamp",))).to_pylist()] == list(range(11))
        assert store.positions([*JOURNALS]) == {JOURNALS[0]: 11, JOURNALS[1]: 10}
        assert store.info().stored == 11

    def test_a_closed_journal_takes_nothing_more(self, store: Store) -> None:
        own = row(99, service="tallymark", metric_type="tallymark", name="dropped", value=2.0, unit="1")
        own["metadata"] = json.dumps({"reason": "full"})
        closing = batch([*(row(seq) for seq in range(3)), own], **{JOURNALS[0]: CLOSED})
        for _ in range(2):
            store.write(closing)
        store.write(batch([row(5)]))
        info = store.info()
        assert (info.stored, info.pending, info.dropped, info.recorded) == (3, 0, {"full": 2}, 5)
        assert (count(store), count(store, metric_type="tallymark")) == (3, 1)
        assert store.positions([JOURNALS[0]]) == {JOURNALS[0]: CLOSED}

    def test_positions_alone_are_kept_too(self, store: Store) -> None:
        store.write(Batch(SCHEMA.empty_table(), {JOURNALS[0]: CLOSED}))
        assert store.positions(JOURNALS) == {JOURNALS[0]: CLOSED}

    def test_two_writers_of_the_same_batch_keep_it_once(self, store: Store) -> None:
        """One store, several threads: any method may be called from any."""
        barrier = threading.Barrier(4)
        failures: list[BaseException] = []

        def write() -> None:
            barrier.wait()
            try:
                store.write(batch([row(seq) for seq in range(20)]))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert (count(store), store.info().stored) == (20, 20)

    def test_a_large_batch_is_written_as_a_whole(self, store: Store) -> None:
        rows = [row(seq, timestamp=NOON + seq * MINUTE, name=f"n{seq % 7}", value=float(seq)) for seq in range(20_000)]
        store.write(batch(rows))
        found = store.aggregate(Query.build(group_by="name", agg=["count", "sum", "p50"])).to_pylist()
        assert sum(one["count"] for one in found) == 20_000
        assert sum(one["sum"] for one in found) == sum(range(20_000))
        assert store.info().stored == 20_000

    # -- forgetting ------------------------------------------------------------------------------------------

    @_settings
    @given(rows=records(), question=ranges(), share=st.integers(0, 25))
    def test_what_a_query_finds_is_deleted_and_nothing_else(
        self, new_store: NewStore, rows: list[Row], question: dict[str, Any], share: int
    ) -> None:
        query = Query(**question)
        gone = [one for one in oracle.scan(rows, query) if one["metric_type"] != "tallymark"]
        own = [one for one in rows if one["metric_type"] == "tallymark"]
        with new_store() as store:
            store.write(batch(rows[:share]))
            store.write(batch(rows[share:]))
            assert store.delete(query) == len(gone)
            left = store.scan(Query()).to_pylist()
            left += store.scan(Query.build(agg=(), metric_type="tallymark")).to_pylist()
            assert sorted(one["seq"] for one in left) == sorted(one["seq"] for one in rows if one not in gone)
            info = store.info()
            assert (info.stored, info.deleted) == (len(rows) - len(own) - len(gone), len(gone))
            assert store.delete(query) == 0

    def test_hostile_ids_and_types_delete_their_own_records(self, store: Store) -> None:
        rows = [row(seq, session_id=text, metric_type=text, name=f"n{seq}") for seq, text in enumerate(SUBJECTS)]
        store.write(batch([*rows, row(100, session_id=None, name="none")]))
        for number, text in enumerate(SUBJECTS):
            by_type = {"metric_type": [text, "never"]}
            assert store.delete(Query.build(agg=(), **(by_type if number % 2 else {"session_id": text}))) == 1, text
            assert count(store) == len(SUBJECTS) - number
        found = store.aggregate(Query.build(group_by="name")).to_pylist()
        assert Counter({one["name"]: one["count"] for one in found}) == {"none": 1}

    def test_the_stores_own_rows_stay(self, store: Store) -> None:
        own = row(9, service="tallymark", metric_type="tallymark", name="dropped", value=2.0, unit="1")
        own["metadata"] = json.dumps({"reason": "full"})
        store.write(batch([row(0), row(1), own]))
        assert store.delete(Query.build(agg=(), metric_type="tallymark")) == 0
        assert store.delete(Query.build(agg=(), metric_type=["tallymark", "operation"], where=["value=1"])) == 2
        assert store.delete(Query()) == 0
        info = store.info()
        assert (info.stored, info.dropped, info.deleted, info.recorded) == (0, {"full": 2}, 2, 4)
        assert store.positions(JOURNALS) == {JOURNALS[0]: 10}

    def test_what_was_deleted_stays_so_when_it_is_written_again(self, store: Store) -> None:
        rows = [row(seq, session_id="s" if seq % 2 else "t") for seq in range(10)]
        store.write(batch(rows))
        assert store.delete(Query.build(agg=(), session_id="s")) == 5
        info = store.info()
        assert (info.stored, info.deleted, info.recorded) == (5, 5, 10)
        store.write(batch(rows))
        after = store.info()
        assert (after.stored, after.deleted, count(store)) == (5, 5, 5)

    def test_upkeep_deletes_whole_days_that_are_too_old(self, store: Store) -> None:
        ages = [*range(40), -3_000, 10_000]
        store.write(batch([row(seq, timestamp=NOON - ago * DAY) for seq, ago in enumerate(ages)]))
        assert store.maintain(NOON, None).deleted == 0
        assert store.maintain(NOON, Retention(30)).deleted == 10
        assert store.maintain(NOON, Retention(30)).deleted == 0
        store.purge(NOON)
        assert (count(store), store.info().stored, store.info().deleted) == (32, 32, 10)

    @pytest.mark.parametrize(
        "more",
        [{"aggregates": ("count",)}, {"limit": 1}, {"order_by": ("timestamp",)}, {"cursor": f"1-{JOURNALS[0]}-1"}],
        ids=lambda more: next(iter(more)),
    )
    def test_a_deletion_that_asks_for_more_is_refused(self, store: Store, more: dict[str, Any]) -> None:
        store.write(batch([row(0)]))
        with pytest.raises(QueryError, match=r"^delete: "):
            store.delete(Query(**more))
        assert count(store) == 1
