"""From one store to another: the same content, once, and it is seen where it is not."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tallymark.batch import CLOSED, SCHEMA, Batch
from tallymark.errors import RefusedError, StoreError
from tallymark.moving import arrivals, pages
from tallymark.moving.migrate import Migrated, migrate
from tallymark.query import Query
from tallymark.store import Store
from tallymark.stores.lake.store import Lake
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

from .conftest import KINDS, NewStore
from .rows import content, filled, in_order, some_rows


def run(source: Store, target: Store, stop_after: int | None = None, **question: Any) -> Migrated:
    """Migrate, or stop when so much was told."""
    told = 0

    def progress(_what: str, done: int, total: int | None) -> None:
        nonlocal told
        assert total is not None
        assert 0 <= done <= total
        told += 1
        if told == stop_after:
            raise KeyboardInterrupt

    return migrate(source, target, Query.build(agg=(), **question), progress)


def dropped(number: int, reason: str, seq: int = 90_000, **given: Any) -> Row:
    """A row of the store's own: what was dropped."""
    about = {"service": "tallymark", "metric_type": "tallymark", "name": "dropped", "unit": "1", "value": float(number)}
    return row(seq, **about | given) | {"metadata": json.dumps({"reason": reason}, separators=(",", ":"))}


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of ten records."""
    monkeypatch.setattr(pages.pages, "__defaults__", (10,))
    monkeypatch.setattr(arrivals, "PAGE_ROWS", 10)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_again(new_store: NewStore, kind: str) -> None:
    rows = some_rows(150)
    own = [dropped(3, "full"), dropped(4, "corrupt", 90_001, timestamp=NOON - 3 * DAY)]
    first, middle, last = new_store("lake"), new_store(kind), new_store("lake")
    filled(first, [*rows, *own])
    for source, target in ((first, middle), (middle, last)):
        done = run(source, target)
        assert (done.brought.written, done.brought.present, done.differing, done.others) == (152, 0, [], 0)
        assert (done.records, len(done.windows)) == (152, 8)
        assert list(map(repr, content(target))) == list(map(repr, in_order(rows)))
        assert content(target, metric_type="tallymark") == in_order(own)
        info = target.info()
        assert (info.stored, info.dropped, info.recorded) == (150, {"full": 3, "corrupt": 4}, 157)
    again = run(first, middle)
    assert (again.brought.written, again.differing, again.records) == (0, [], 152)
    back = run(last, first)
    assert (back.brought.written, back.differing) == (0, [])
    assert count(first) == 150


def test_nothing(new_store: NewStore) -> None:
    done = run(new_store("lake"), new_store("lake"))
    assert (done.windows, done.records, done.others, done.brought.written) == ([], 0, 0, 0)


def test_a_range_of_time(new_store: NewStore) -> None:
    source, target = new_store("lake"), new_store("lake")
    filled(source, [row(seq, timestamp=NOON + seq * DAY) for seq in range(10)])
    done = run(source, target, since=NOON + 2 * DAY, until=NOON + 4 * DAY + 1)
    assert [one["seq"] for one in content(target)] == [2, 3, 4]
    assert (done.records, len(done.windows)) == (3, 3)


@pytest.mark.usefixtures("small_pages")
def test_it_goes_on_wherever_it_was_stopped(new_store: NewStore) -> None:
    rows = [*some_rows(60), dropped(1, "full")]
    source = filled(new_store("lake"), rows)
    target, written = new_store("lake"), 0
    for stop_after in range(1, 100):
        before = target.info().stored
        try:
            done = run(source, target, stop_after=stop_after if stop_after < 8 else None)
        except KeyboardInterrupt:
            assert target.info().stored >= before
            continue
        written += 1
        assert done.differing == []
        break
    assert written == 1
    assert content(target) == in_order(rows[:-1])
    assert target.info().dropped == {"full": 1}


@pytest.mark.usefixtures("small_pages")
def test_a_store_that_fails_half_way_and_after_it_has_written(new_store: NewStore, tmp_path: Any) -> None:
    class Flaky(Lake):
        writes = 0

        def write(self, batch: Batch) -> None:
            self.writes += 1
            if self.writes % 3 == 1:
                raise StoreError("away")
            super().write(batch)
            if self.writes % 3 == 2:
                raise StoreError("the answer was lost")

    rows = some_rows(80)
    source = filled(new_store("lake"), rows)
    with Flaky(tmp_path / "flaky") as target:
        for _ in range(200):
            try:
                done = run(source, target)
            except StoreError:
                continue
            break
        assert done.differing == []
        assert content(target) == in_order(rows)
        assert target.writes > 6


def test_others_in_the_target_stay_and_are_counted(new_store: NewStore) -> None:
    rows = some_rows(30)
    others = [row(500 + seq, name="other") for seq in range(7)]
    source, target = filled(new_store("lake"), rows), filled(new_store("lake"), [*others, *rows[:10]])
    done = run(source, target)
    assert (done.brought.written, done.others, done.differing) == (20, 7, [])
    assert content(target) == in_order([*rows, *others])


def test_as_many_but_others(new_store: NewStore) -> None:
    """By its count the day looks as if it were there."""
    source, target = filled(new_store("lake"), [row(1)]), filled(new_store("lake"), [row(0)])
    done = run(source, target)
    assert (done.brought.written, done.others, done.differing) == (1, 1, [])
    assert [one["seq"] for one in content(target)] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [{"value": 1.0000000000000002}, {"metadata": '{"a": 1}'}, {"error": ""}, {"success": True}, {"name": "checkout "}],
    ids=str,
)
def test_a_record_that_is_not_as_it_was(new_store: NewStore, change: dict[str, Any]) -> None:
    rows = [row(seq, timestamp=NOON + seq * DAY) | {"metadata": '{"a":1}'} for seq in range(3)]
    source, target = filled(new_store("lake"), rows), filled(new_store("lake"), [rows[1] | change])
    done = run(source, target)
    assert [window.day for window in done.differing] == [(NOON + DAY) // DAY * DAY]
    (window,) = done.differing
    assert (window.source.records, window.target.records) == (1, 1)
    assert str(window.source) != str(window.target)
    assert done.brought.written == 2


def test_a_record_that_is_there_twice(new_store: NewStore) -> None:
    source, target = filled(new_store("lake"), some_rows(5)), new_store("lake")
    run(source, target)
    target.write(Batch(pa.Table.from_pylist(some_rows(5)[:1], schema=SCHEMA)))
    done = run(source, target)
    assert [(window.source.records, window.target.records) for window in done.differing] == [(1, 2)]


def test_records_that_a_target_loses(new_store: NewStore, tmp_path: Any) -> None:
    class Forgetful(Lake):
        def write(self, batch: Batch) -> None:
            super().write(Batch(batch.table.slice(1), batch.positions))

    source = filled(new_store("lake"), [row(seq) for seq in range(20)])
    with Forgetful(tmp_path / "forgetful") as target:
        done = run(source, target)
        # One at each round.
        missing = 20 - count(target)
        assert [window.source.records - window.target.records for window in done.differing] == [missing]
        assert missing > 0


def test_a_record_that_the_target_refuses(new_store: NewStore, tmp_path: Any) -> None:
    class Picky(Lake):
        def write(self, batch: Batch) -> None:
            if 7 in batch.table["seq"].to_pylist():
                raise RefusedError("no seven")
            super().write(batch)

    source = filled(new_store("lake"), [row(seq) for seq in range(20)])
    with Picky(tmp_path / "picky") as target:
        done = run(source, target)
        assert count(target) == 19
        assert "no seven" in done.brought.refused[0]
        assert len(done.brought.refused) == 1
        assert [(window.source.records, window.target.records) for window in done.differing] == [(20, 19)]


def test_records_that_come_while_it_runs(new_store: NewStore) -> None:
    """Newer ones are for the next time; older ones, that are seen when both are compared, are brought too."""
    source, target = filled(new_store("lake"), [row(seq) for seq in range(10)]), new_store("lake")
    told: list[str] = []

    def progress(what: str, _done: int, _total: int | None) -> None:
        if what == "copying" and not told:
            filled(source, [row(100, journal=JOURNALS[1], timestamp=NOON + 5)])
            filled(source, [row(100, journal=JOURNALS[2], timestamp=NOON + DAY)])
        told.append(what)

    done = migrate(source, target, Query(), progress)
    assert done.differing == []
    assert count(target) == 11
    assert run(source, target).brought.written == 1
    assert content(source) == content(target)


def test_what_is_pending_moves_and_is_not_doubled_by_the_shipper(new_store: NewStore, tmp_path: Any) -> None:
    """A lake's live journals are read too; when they are shipped nothing is left to bring."""
    from lakes import Live, lake_with

    rows = [row(seq) for seq in range(20)]
    live = [Live(JOURNALS[0], pa.Table.from_pylist(rows, schema=SCHEMA))]
    target = new_store("sqlite")
    with lake_with(tmp_path / "live", live) as source:
        source.write(batch(rows[:5]))
        assert run(source, target).brought.written == 20
        source.write(batch(rows, **{JOURNALS[0]: CLOSED}))
        assert (run(source, target).brought.written, count(target), count(source)) == (0, 20, 20)


def test_two_hundred_thousand(new_store: NewStore) -> None:
    number = 200_000
    seqs = np.arange(number)
    numbers: Any = pa.array
    texts: Any = pa.array([f"n{each}" for each in range(50)])
    columns: dict[str, Any] = {
        "journal": pa.array(JOURNALS).take(numbers(seqs // 80_000)),
        "seq": seqs % 80_000,
        "timestamp": NOON + seqs * 1_500_000_000,
        "service": pa.repeat("shop", number),
        "metric_type": pa.repeat("operation", number),
        "name": texts.take(numbers(seqs % 50)),
        "value": np.random.default_rng(1).lognormal(3, 1, number),
        "unit": pa.repeat("ms", number),
        "trace_id": pa.array([f"{each:032x}" for each in range(number)]),
        "metadata": pa.array([f'{{"n":{each % 640}}}' for each in range(number)]),
    }
    empty = pa.nulls(number, pa.string())
    rows = pa.table(
        [
            columns.get(field.name, pa.nulls(number, pa.bool_()) if field.name == "success" else empty)
            for field in SCHEMA
        ],
        schema=SCHEMA,
    )
    first, middle, last = new_store("lake"), new_store("postgresql"), new_store("lake")
    first.write(Batch(rows))
    assert run(first, middle).differing == []
    done = run(middle, last)
    assert (done.differing, done.records, done.brought.written, done.others) == ([], number, number, 0)
    assert count(last) == number
