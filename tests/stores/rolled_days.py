"""What rollups of days have to do, whatever the store that keeps its records by day: a class to be subclassed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallymark.batch import Batch
from tallymark.errors import StoreError
from tallymark.percentile import RELATIVE_ERROR
from tallymark.query import Query
from tallymark.store import Origin, Store, origin_of
from tallymark.stores import plan as plan_module
from tallymark.stores import rollups as rollups_module
from tallymark.stores.days import RolledDays
from tallymark.stores.retention import Retention
from tallymark.stores.rollups import Rollups
from tallymark.testing import oracle
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, batch, row

from .rolling import HOUR, MIDNIGHT, assert_answers, questions, some_records, spread

LATER = NOON + 30 * DAY
TOTAL = Query.build(agg=["count", "sum", "p95"])
BY_NAME = Query.build(group_by="name", window="1h", agg=["count", "last", "p50", "error_rate"])

NewStore = Callable[[], Store]


@pytest.fixture(autouse=True)
def every_day_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollups are made of small days too, and used for few records."""
    monkeypatch.setattr(rollups_module, "MIN_RECORDS", 1)
    monkeypatch.setattr(plan_module, "MANY_RECORDS", 0)


def late(rows: Sequence[Row], when: int = NOON, count: int = 20) -> list[Row]:
    """Records that come later than others of the same day."""
    first = max(one["seq"] for one in rows) + 1
    return [
        row(first + number, timestamp=when + number * MINUTE, value=500.0 * (number + 1)) for number in range(count)
    ]


def in_the_middle(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something when the records of a day were read, and its sidecar is about to be made; once."""
    make = Rollups.make
    left = [do]

    def instead(self: Rollups, file: str) -> Any:
        if left:
            left.pop()()
        return make(self, file)

    monkeypatch.setattr(Rollups, "make", instead)


class RolledDaysContract:
    """Subclass it, and give the fixture ``new_store``, and ``made``."""

    @pytest.fixture
    def new_store(self) -> NewStore:
        """An empty store each time it is called."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, new_store: NewStore) -> Iterator[Store]:
        with new_store() as found:
            yield found

    def made(self, store: Store) -> list[str]:
        """The days (``20250131``) that have a sidecar, sorted; one for each sidecar that there is."""
        raise NotImplementedError

    # -- answers ---------------------------------------------------------------------------------------------

    @settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck))
    @given(
        rows=some_records(),
        shares=st.tuples(st.integers(0, 40), st.integers(0, 40)),
        asked=st.lists(questions(), min_size=3, max_size=6),
        today=st.integers(-2, 5),
        gone=st.sampled_from([{"name": "a"}, {"service": "web"}, {"where": ["metadata.a=true"]}, {"since": NOON}]),
    )
    def test_every_answer_is_that_of_the_oracle(
        self,
        new_store: NewStore,
        rows: list[Row],
        shares: tuple[int, int],
        asked: list[Query],
        today: int,
        gone: dict[str, Any],
    ) -> None:
        """Before and after upkeep, late records, and deletion."""
        rows = [one | {"journal": JOURNALS[0]} for one in rows]
        first, second = sorted(shares)
        deletion = Query.build(agg=(), **gone)
        steps: list[tuple[Callable[[], object], list[Row]]] = [
            (lambda: store.roll_up(MIDNIGHT + today * DAY), rows[:first]),
            (lambda: store.write(batch(rows[first:second])), rows[:second]),
            (lambda: store.roll_up(LATER), rows[:second]),
            (lambda: store.write(batch(rows[second:])), rows),
        ]
        with new_store() as store:
            store.write(batch(rows[:first]))
            for step, held in steps:
                step()
                for query in asked:
                    assert_answers(store, held, query)
            deleted = [one["seq"] for one in oracle.scan(rows, deletion) if one["metric_type"] != "tallymark"]
            assert store.delete(deletion) == len(deleted)
            for upkeep in (False, True):
                if upkeep:
                    store.roll_up(LATER)
                for query in asked:
                    assert_answers(store, [one for one in rows if one["seq"] not in deleted], query)

    @pytest.mark.parametrize(
        ("question", "source", "scanned"),
        [
            ({"group_by": "name"}, "1d rollups and raw", 100),
            ({"window": "8h", "until": MIDNIGHT + 3 * DAY}, "4h rollups and raw", 0),
            ({"window": "1h", "since": MIDNIGHT + 70 * MINUTE + 1}, "10m, 1h rollups and raw", 200),
            ({"window": "5m"}, "raw", 400),
            ({"where": "value>3"}, "raw", 400),
            ({"group_by": "metadata.region"}, "raw", 400),
            ({"since": MIDNIGHT + 3 * DAY}, "raw", 100),
        ],
        ids=str,
    )
    def test_what_answers_and_what_it_says_of_it(
        self, store: Store, question: dict[str, Any], source: str, scanned: int
    ) -> None:
        """Three days are over, one is not."""
        rows = spread(400, last=MIDNIGHT + 4 * DAY)
        store.write(batch(rows))
        store.roll_up(MIDNIGHT + 3 * DAY)
        error = None if source == "raw" else RELATIVE_ERROR
        query = Query.build(**question, agg=["count", "p50", "last"])
        assert assert_answers(store, rows, query) == Origin(source, scanned, error)

    def test_few_records_are_read_themselves(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = spread(300)
        store.write(batch(rows))
        store.roll_up(LATER)
        monkeypatch.setattr(plan_module, "MANY_RECORDS", 301)
        assert assert_answers(store, rows, TOTAL) == Origin("raw", 300)

    # -- which days have rollups -----------------------------------------------------------------------------

    def test_days_that_are_over_and_large_get_rollups_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rollups_module, "MIN_RECORDS", 100)
        rows = spread(300, last=MIDNIGHT + 2 * DAY)
        rows += late(rows, when=MIDNIGHT - DAY, count=99)
        store.write(batch(rows))
        store.roll_up(MIDNIGHT + DAY - 1)
        assert self.made(store) == []
        store.roll_up(MIDNIGHT + DAY)
        assert self.made(store) == ["20250131"]
        store.roll_up(MIDNIGHT + 2 * DAY)
        assert self.made(store) == ["20250131", "20250201"]
        in_the_middle(monkeypatch, lambda: pytest.fail("there is nothing to do"))
        store.roll_up(LATER)
        assert_answers(store, rows, BY_NAME, "1h rollups and raw")

    def test_a_day_that_was_just_changed_waits(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = spread(100)
        with monkeypatch.context() as patched:
            patched.setattr("time.time_ns", lambda: LATER)
            store.write(batch(rows))
        store.roll_up(LATER + 9 * MINUTE)
        assert self.made(store) == []
        store.roll_up(LATER + 10 * MINUTE)
        assert self.made(store) == ["20250131"]
        assert_answers(store, rows, TOTAL, "1d rollups and raw")

    def test_the_stores_own_rows_are_in_rollups_too(self, store: Store) -> None:
        own = row(100, service="tallymark", metric_type="tallymark", name="dropped", value=2.0, unit="1")
        rows = [*spread(100), own | {"metadata": '{"reason":"full"}'}]
        store.write(batch(rows))
        store.roll_up(LATER)
        assert_answers(store, rows, Query.build(metric_type="tallymark"), "1d rollups and raw")
        assert_answers(store, rows, TOTAL, "1d rollups and raw")

    # -- what changes ----------------------------------------------------------------------------------------

    def test_late_records_are_seen(self, store: Store) -> None:
        rows = spread(300, last=MIDNIGHT + 3 * DAY)
        store.write(batch(rows))
        store.roll_up(LATER)
        assert assert_answers(store, rows, TOTAL, "1d rollups and raw").scanned == 0
        more = late(rows)
        store.write(batch(more))
        assert assert_answers(store, rows + more, TOTAL, "1d rollups and raw").scanned == 120
        store.roll_up(LATER)
        assert self.made(store) == ["20250131", "20250201", "20250202"]
        assert assert_answers(store, rows + more, TOTAL, "1d rollups and raw").scanned == 0

    def test_a_batch_that_was_written_before_changes_nothing(self, store: Store) -> None:
        rows = spread(100)
        store.write(batch(rows))
        store.roll_up(LATER)
        store.write(batch(rows))
        store.write(Batch(batch([]).table, {JOURNALS[1]: 5}))
        assert assert_answers(store, rows, TOTAL, "1d rollups and raw").scanned == 0

    def test_deletion_leaves_no_rollups_of_what_is_gone(self, store: Store) -> None:
        rows = spread(400, last=MIDNIGHT + 4 * DAY)
        rows[150] |= {"session_id": "s-1", "value": 123456.0}
        store.write(batch(rows))
        store.roll_up(LATER)
        assert self.made(store) == ["20250131", "20250201", "20250202", "20250203"]
        assert store.delete(Query.build(agg=(), session_id="s-1")) == 1
        assert self.made(store) == ["20250131", "20250202", "20250203"]
        assert store.delete(Query(start=MIDNIGHT + 3 * DAY)) == 100
        assert self.made(store) == ["20250131", "20250202"]
        assert store.delete(Query.build(agg=(), session_id="s-1")) == 0
        left = [*rows[:150], *rows[151:300]]
        assert_answers(store, left, TOTAL, "1d rollups and raw")
        assert store.purge(LATER) == []
        assert self.made(store) == ["20250131", "20250202"]
        store.roll_up(LATER)
        assert self.made(store) == ["20250131", "20250201", "20250202"]
        assert_answers(store, left, TOTAL, "1d rollups and raw")

    def test_retention_leaves_no_rollups_of_what_is_gone(self, store: Store) -> None:
        rows = spread(300, last=MIDNIGHT + 3 * DAY)
        store.write(batch(rows))
        store.roll_up(MIDNIGHT + 3 * DAY)
        assert store.maintain(MIDNIGHT + 4 * DAY, Retention(2)).deleted == 200
        assert self.made(store) == ["20250202"]
        assert_answers(store, rows[200:], TOTAL, "1d rollups and raw")
        assert store.delete(Query()) == 100
        assert self.made(store) == []
        assert store.aggregate(TOTAL).num_rows == 0

    def test_a_day_that_comes_again_is_another(self, store: Store) -> None:
        rows = spread(100)
        store.write(batch(rows))
        store.roll_up(LATER)
        store.delete(Query())
        more = late(rows)
        store.write(batch(more))
        assert_answers(store, more, TOTAL, "raw")

    # -- at the same time ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("what", ["write", "delete", "delete all"])
    def test_what_changes_while_rollups_are_made(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        rows = spread(100)
        more = late(rows)
        store.write(batch(rows))
        left = {
            "write": rows + more,
            "delete": [one for one in rows if one["name"] != "a"],
            "delete all": [],
        }
        actions: dict[str, Callable[[], object]] = {
            "write": lambda: store.write(batch(more)),
            "delete": lambda: store.delete(Query.build(agg=(), name="a")),
            "delete all": lambda: store.delete(Query()),
        }
        in_the_middle(monkeypatch, actions[what])
        store.roll_up(LATER)
        assert self.made(store) == []
        assert_answers(store, left[what], TOTAL, "raw")
        store.roll_up(LATER)
        assert_answers(store, left[what], TOTAL, "1d rollups and raw" if left[what] else "raw")

    def test_a_store_that_is_closed_meanwhile_says_so(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = spread(10)
        store.write(batch(rows))
        endless = "(SELECT sum(range) FROM range(100000000000))::INTEGER"
        monkeypatch.setattr(rollups_module, "bucket_sql", lambda _: endless)
        made = threading.Event()
        in_the_middle(monkeypatch, made.set)

        def close() -> None:
            made.wait(60)
            while not failed.wait(0.1):  # what is interrupted has to have begun
                store.close()

        failed = threading.Event()
        closer = threading.Thread(target=close)
        closer.start()
        try:
            with pytest.raises(StoreError, match="closed meanwhile"):
                store.roll_up(LATER)
        finally:
            failed.set()
            closer.join()
        assert self.made(store) == []
        assert_answers(store, rows, TOTAL, "raw")

    def test_a_sidecar_that_cannot_be_made_costs_nothing_else(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = spread(200, last=MIDNIGHT + 2 * DAY)
        store.write(batch(rows))

        def fail() -> None:
            raise OSError("no room")

        make = Rollups._make
        monkeypatch.setattr(
            Rollups, "_make", lambda self, *given: fail() if "2025-01-31" in given[1] else make(self, *given)
        )
        store.roll_up(LATER)
        assert "no room" in caplog.text
        assert self.made(store) == ["20250201"]
        assert assert_answers(store, rows, TOTAL, "1d rollups and raw").scanned == 100

    def test_a_disk_that_is_full_costs_nothing_else(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = spread(10)
        store.write(batch(rows))

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(RolledDays, "_write", fail)
        store.roll_up(LATER)
        assert "No space left" in caplog.text
        assert self.made(store) == []
        assert_answers(store, rows, TOTAL, "raw")

    def test_an_empty_answer_has_its_columns(self, store: Store) -> None:
        store.write(batch(spread(10)))
        store.roll_up(LATER)
        query = Query.build(name="none", group_by="name", window="1h", agg=["count", "p50", "last"])
        found = store.aggregate(query)
        assert origin_of(found).source == "1h rollups and raw"
        assert list(map(str, found.schema.types)) == ["int64", "string", "int64", "double", "double", "int64"]
        assert found.column_names == ["window_start", "name", "count", "p50", "last", "samples"]
        assert found.num_rows == 0

    def test_few_minutes_of_a_day_with_rollups_are_read_themselves(self, store: Store) -> None:
        rows = spread(3000)
        store.write(batch(rows))
        store.roll_up(LATER)
        start = MIDNIGHT + 5 * HOUR + 3 * MINUTE
        assert_answers(store, rows, Query.build(since=start, until=start + 5 * MINUTE, agg=["count", "p50"]), "raw")
