"""The lake: what is asked of it, while others write, compact and delete."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import oracle
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Row

from tallymark.batch import CLOSED, SCHEMA, Batch, record_id
from tallymark.errors import ConfigError, QueryError, StoreError
from tallymark.query import AGGREGATES, TEXT_COLUMNS, Cursor, Filter, Op, Query
from tallymark.store import open_store
from tallymark.stores import lake as lake_module
from tallymark.stores.lake import Lake

MINUTE = 60_000_000_000
DAY = 1_440 * MINUTE
NOON = int(datetime(2025, 1, 31, 12, tzinfo=UTC).timestamp()) * 1_000_000_000
JOURNALS = [f"{number:022x}{'0' * 10}" for number in range(1, 4)]


def row(seq: int, **given: Any) -> Row:
    """A record as a row, with something in every column that has to have it."""
    metadata = given.pop("metadata", {})
    return {
        "journal": JOURNALS[0],
        "seq": seq,
        "timestamp": NOON + seq,
        "service": "shop",
        "metric_type": "operation",
        "name": "checkout",
        "value": 1.0,
        "unit": "ms",
        "success": None,
        "error": None,
        "trace_id": None,
        "session_id": None,
        "metadata": json.dumps(metadata, ensure_ascii=False),
        "description": None,
    } | given


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def of_journal(rows: Sequence[Row], journal: str) -> list[Row]:
    return [one for one in rows if one["journal"] == journal]


def batch(rows: Sequence[Row], **positions: int) -> Batch:
    """Rows, and the positions behind the last of each journal."""
    ends: dict[str, int] = {}
    for one in rows:
        ends[one["journal"]] = max(ends.get(one["journal"], 0), one["seq"] + 1)
    return Batch(table(rows), ends | positions)


@dataclass
class Live:
    """A journal in memory, in place of one in a file."""

    journal: str
    table: pa.Table
    dropped: dict[str, int] = field(default_factory=dict)

    def rows(self, start: int) -> pa.Table:
        return self.table.filter(pa.array(self.table["seq"].to_numpy() >= start))

    def pending(self, start: int) -> int:
        return self.rows(start).num_rows


def lake_with(folder: Path, live: Sequence[Live] = ()) -> Lake:
    return Lake(folder, live=lambda _: list(live))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = lake_with(tmp_path / "metrics")
    yield lake
    lake.close()


def count(lake: Lake, **question: Any) -> int:
    return sum(group["count"] for group in lake.aggregate(Query.build(**question)).to_pylist())


# -- against the oracle --------------------------------------------------------------------------------------

HOSTILE = [
    "",
    "'",
    '"; DROP TABLE live; --',
    "nul\x00inside",
    "🧾 \u202e",
    "%_\\*?[x]$1 {}",
    "null",
    "true",
    "1e3",
    " 7 ",
    "x" * 5_000,
]
texts = st.sampled_from(["a", "b", "Ω"]) | st.sampled_from(HOSTILE) | st.text(max_size=5)
keys = st.sampled_from(["a", "b", "0", "a.b", "/", "~1", "*", *HOSTILE[:7]])
# Floats whose spelling all engines agree on; their size is what `value` is for.
numbers = st.integers(-(2**53), 2**53) | st.integers(-40, 40).map(lambda quarters: quarters / 4)
scalars = st.none() | st.booleans() | numbers | texts
nested = st.recursive(scalars, lambda some: st.lists(some, max_size=2) | st.dictionaries(keys, some, max_size=2))
metadata = st.dictionaries(keys, nested)
values = st.integers(-5, 5).map(float) | st.floats(-1e300, 1e300)
paths = st.lists(keys, min_size=1, max_size=2)
fields = paths.map(lambda path: "metadata" + "".join(f".{json.dumps(key)}" for key in path))
columns = st.sampled_from(sorted(TEXT_COLUMNS))


@st.composite
def records(draw: st.DrawFn) -> list[Row]:
    number = draw(st.integers(0, 25))
    optional = st.none() | texts
    return [
        row(
            seq,
            journal=draw(st.sampled_from(JOURNALS)),
            timestamp=NOON + draw(st.integers(-20, 20)) * draw(st.sampled_from([1, MINUTE, DAY // 8])),
            service=draw(texts),
            metric_type=draw(texts | st.just("tallymark")),
            name=draw(texts),
            value=draw(values),
            unit=draw(texts),
            success=draw(st.none() | st.booleans()),
            error=draw(optional),
            trace_id=draw(optional),
            session_id=draw(optional),
            description=draw(optional),
            metadata=draw(metadata),
        )
        for seq in range(number)
    ]


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    order: st.SearchStrategy[Op] = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
    equality: st.SearchStrategy[Op] = st.sampled_from(["=", "!="])
    kinds = ["text", "own", "value", "timestamp", "success", "id", "metadata", "null", "in"]
    match draw(st.sampled_from(kinds)):
        case "text":
            return Filter(draw(columns | fields), draw(order), draw(texts))
        case "own":
            return Filter("metric_type", "=", "tallymark")
        case "value":
            return Filter("value", draw(order), draw(values))
        case "timestamp":
            return Filter("timestamp", draw(order), NOON + draw(st.integers(-20, 20)))
        case "success":
            return Filter("success", draw(equality), draw(st.none() | st.booleans()))
        case "id":
            identifier = record_id(draw(st.sampled_from(JOURNALS)), draw(st.integers(0, 25)))
            return Filter("id", draw(equality), str(identifier))
        case "metadata":
            return Filter(draw(fields), draw(order), draw(numbers))
        case "null":
            return Filter(draw(fields | columns), draw(equality), None)
        case _:
            return Filter(draw(fields), "in", tuple(draw(st.lists(scalars, min_size=1, max_size=3))))


times = st.none() | st.integers(-20, 20).map(lambda minutes: NOON + minutes * MINUTE + minutes)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    start, end = draw(times), draw(times)
    if start is not None and end is not None and start > end:
        start, end = end, start
    return {"start": start, "end": end, "filters": tuple(draw(st.lists(filters(), max_size=2)))}


@st.composite
def aggregations(draw: st.DrawFn) -> Query:
    names = st.sampled_from([*AGGREGATES, "p0", "p50", "p90", "p99", "p99.9", "p12.345"])
    question = draw(ranges())
    question["window"] = draw(st.none() | st.sampled_from([1_000_000, MINUTE, DAY, 7 * DAY]))
    keys = st.lists(columns | fields | st.just("success"), max_size=3, unique=True)
    question["group_by"] = tuple(draw(keys))
    aggregates = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    bounded = question["start"] is not None and question["end"] is not None
    if "rate" in aggregates and not bounded and question["window"] is None:
        aggregates.remove("rate")
        aggregates = aggregates or ["count"]
    question["aggregates"] = tuple(aggregates)
    # Only by what is the same to the last bit in both.
    exact = {"count", "min", "max", "last", "last_timestamp", "samples"}
    output = [name for name in Query(**question).output if name in (*Query(**question).keys, *exact)]
    order = draw(st.lists(st.sampled_from(output), max_size=2, unique=True))
    question["order_by"] = tuple(draw(st.sampled_from(["", "-"])) + name for name in order)
    return Query(**question, limit=draw(st.none() | st.integers(1, 5)))


@st.composite
def scans(draw: st.DrawFn) -> Query:
    cursor = st.builds(Cursor, times.map(lambda t: t or NOON), st.sampled_from(JOURNALS), st.integers(0, 25))
    return Query(
        **draw(ranges()),
        order_by=draw(st.sampled_from([(), ("timestamp",), ("-timestamp",)])),
        limit=draw(st.none() | st.integers(1, 5)),
        cursor=draw(st.none() | cursor.map(str)),
    )


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    rows=records(),
    shares=st.tuples(st.integers(0, 25), st.integers(0, 25)),
    questions=st.lists(aggregations() | scans(), min_size=6, max_size=12),
    compacted=st.booleans(),
)
def test_every_answer_is_that_of_the_oracle(
    rows: list[Row], shares: tuple[int, int], questions: list[Query], compacted: bool
) -> None:
    """Some rows are in one Parquet file, some in another, some in journals, some of these stored already."""
    first, second = sorted(shares)
    live = [Live(journal, table(of_journal(rows, journal))) for journal in JOURNALS]
    with TemporaryDirectory() as folder:
        lake = lake_with(Path(folder), live)
        for part in (rows[:first], rows[first:second]):
            lake.write(batch(part))
        if compacted:
            lake._delta.compact(sorted(lake._delta.file_sizes()), 1 << 20)
        for query in questions:
            if query.aggregates:
                assert_same_groups(lake.aggregate(query), oracle.aggregate(rows, query), query, rows)
            else:
                assert lake.scan(query).to_pylist() == oracle.scan(rows, query)
        lake.close()


def assert_same_groups(found: pa.Table, expected: list[Row], query: Query, rows: list[Row]) -> None:
    assert found.column_names == list(query.output)
    got = found.to_pylist()
    scale = sum(abs(one["value"]) for one in rows)
    keys = [*query.keys, "samples"]
    assert [[one[key] for key in keys] for one in got] == [[one[key] for key in keys] for one in expected]
    for left, right in zip(got, expected, strict=True):
        for name in query.aggregates:
            assert oracle.close(left[name], right[name], scale), (name, left, right)


# -- semantics, one at a time --------------------------------------------------------------------------------


def test_a_sum_beyond_float64_is_null(lake: Lake) -> None:
    lake.write(batch([row(0, value=1.7e308), row(1, value=1.7e308)]))
    (found,) = lake.aggregate(Query.build(agg=["sum", "avg", "max", "p50"])).to_pylist()
    assert found == {"sum": None, "avg": None, "max": 1.7e308, "p50": 1.7e308, "samples": 2}


def test_a_rate_counts_only_the_seconds_inside_the_range(lake: Lake) -> None:
    lake.write(batch([row(number) for number in range(30)]))
    half = Query.build(since=NOON, until=NOON + 30_000_000_000, window="1m", agg="rate")
    assert lake.aggregate(half)["rate"].to_pylist() == [1.0]
    whole = Query.build(since=NOON, until=NOON + DAY, window="1m", agg="rate")
    assert lake.aggregate(whole)["rate"].to_pylist() == [0.5]


def test_numbers_match_numbers_and_their_spelling(lake: Lake) -> None:
    found = [404, "404", 404.0, "404 ", "0x194", "four", None, True, [404]]
    lake.write(batch([row(seq, metadata={"code": code}) for seq, code in enumerate(found)]))
    assert count(lake, where=["metadata.code=404"]) == 3
    assert count(lake, where={"metadata.code": "404"}) == 2
    assert count(lake, where=["metadata.code!=404"]) == 6
    assert count(lake, where=["metadata.code>=404"]) == 3
    assert count(lake, where=["metadata.code=null"]) == 1
    assert count(lake, where=["metadata.code=true"]) == 1


def test_an_answer_with_too_many_rows_is_an_error_unless_it_is_limited(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_module, "MAX_ROWS", 3)
    lake.write(batch([row(seq, name=f"n{seq}") for seq in range(4)]))
    with pytest.raises(QueryError, match="more than 3 rows"):
        lake.aggregate(Query.build(group_by="name"))
    assert lake.aggregate(Query.build(group_by="name", limit=2)).num_rows == 2


# -- writing -------------------------------------------------------------------------------------------------


def test_a_lake_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "nothing")
    assert lake.scan(Query()).schema == SCHEMA
    assert lake.aggregate(Query.build(window="1h")).to_pylist() == []
    assert lake.aggregate(Query.build()).to_pylist() == []
    assert lake.info().recorded == 0
    assert lake.positions(JOURNALS) == {}
    assert (lake.delete(Query()), lake.compact(), lake.vacuum(), lake.maintain().deleted) == (0, 0, 0, 0)
    assert not (tmp_path / "nothing").exists()


def test_writing_a_batch_again_changes_nothing(lake: Lake) -> None:
    rows = [row(seq, journal=JOURNALS[seq % 2]) for seq in range(10)]
    for _ in range(2):
        lake.write(batch(rows))
    lake.write(batch([*rows, row(10)]))
    assert [one["seq"] for one in lake.scan(Query(order_by=("timestamp",))).to_pylist()] == list(range(11))
    assert lake.positions([*JOURNALS]) == {JOURNALS[0]: 11, JOURNALS[1]: 10}


def test_a_closed_journal_gives_nothing_and_takes_nothing(tmp_path: Path) -> None:
    rows = [row(seq) for seq in range(3)]
    live = Live(JOURNALS[0], table(rows), {"full": 2})
    lake = lake_with(tmp_path, [live])
    assert lake.info().dropped == {"full": 2}
    own = row(99, service="tallymark", metric_type="tallymark", name="dropped", value=2.0, unit="1")
    own["metadata"] = json.dumps({"reason": "full"})
    closing = batch([*rows, own], **{JOURNALS[0]: CLOSED})
    for _ in range(2):
        lake.write(closing)
    info = lake.info()
    assert (info.stored, info.pending, info.dropped, info.recorded) == (3, 0, {"full": 2}, 5)
    assert count(lake) == 3
    assert count(lake, metric_type="tallymark") == 1
    assert lake.positions([JOURNALS[0]]) == {JOURNALS[0]: CLOSED}


def test_positions_alone_are_kept_too(lake: Lake) -> None:
    lake.write(Batch(SCHEMA.empty_table(), {JOURNALS[0]: CLOSED}))
    assert lake.positions(JOURNALS) == {JOURNALS[0]: CLOSED}


def test_files_say_what_is_in_them_to_anything_that_reads_delta(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0, name="quote ' and \x00"), row(1, timestamp=NOON + DAY)]))
    found = pa.table(DeltaTable(tmp_path / "metrics" / "table").to_pyarrow_table())
    days = [datetime(2025, 1, 31).date(), datetime(2025, 2, 1).date()]
    assert sorted(one["date"] for one in found.to_pylist()) == days
    assert "quote ' and \x00" in found["name"].to_pylist()


@pytest.mark.parametrize("name", ["a b", "ü日本", "a'b", "a*b", "a?b", "{a}", "a#b&c;d"])
def test_a_folder_may_have_almost_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "axb").mkdir()
    for folder in ("axb", name):
        lake = lake_with(tmp_path / folder)
        lake.write(batch([row(0)]))
        lake.write(batch([row(1)]))
        assert count(lake) == 2, folder


@pytest.mark.parametrize("name", ["a%20b", "a[1]", "a\\b", "a^b", "a|b", "a\nb"])
def test_a_folder_that_delta_cannot_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot hold"):
        Lake(tmp_path / name)


def test_errors_of_the_driver_become_store_errors(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("in the way")
    with pytest.raises(StoreError, match=f"cannot write to {tmp_path}") as caught:
        Lake(tmp_path).write(batch([row(0)]))
    assert caught.value.__cause__ is not None


def test_a_missing_file_is_an_error_and_not_an_endless_loop(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0)]))
    (only,) = (tmp_path / "metrics").rglob("*.parquet")
    only.unlink()
    with pytest.raises(StoreError, match="cannot read"):
        count(lake)


def test_a_lake_may_be_removed_and_made_anew(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0), row(1)]))
    assert count(lake) == 2
    shutil.rmtree(tmp_path / "metrics")
    assert count(lake) == 0
    lake.write(batch([row(0)]))
    assert count(lake) == 1
    shutil.rmtree(tmp_path / "metrics")
    # As many versions as there were, but other files.
    lake_with(tmp_path / "metrics").write(batch([row(0), row(1), row(2)]))
    assert count(lake) == 3


# -- upkeep --------------------------------------------------------------------------------------------------


def test_delete_forgets_what_is_older(lake: Lake) -> None:
    lake.write(batch([row(seq, timestamp=NOON + seq * DAY // 2) for seq in range(10)]))
    assert lake.delete(Query(end=NOON + DAY // 2)) == 1
    assert lake.delete(Query(end=NOON // DAY * DAY + 2 * DAY)) == 2
    assert lake.delete(Query(end=NOON // DAY * DAY + 2 * DAY)) == 0
    assert count(lake) == 7
    assert lake.positions(JOURNALS) == {JOURNALS[0]: 10}


def test_compaction_pays_for_days_that_are_over_and_for_many_small_files(lake: Lake) -> None:
    for seq in range(3):
        lake.write(batch([row(seq)]))
    assert lake.compact(NOON) == 0
    assert lake.compact(NOON + DAY) == 3
    assert lake.compact(NOON + DAY) == 0
    for seq in range(3, 3 + lake_module.MANY_FILES):
        lake.write(batch([row(seq)]))
    assert lake.compact(NOON) > lake_module.MANY_FILES
    assert count(lake) == 3 + lake_module.MANY_FILES


def test_vacuum_leaves_files_that_a_query_may_be_reading(lake: Lake, tmp_path: Path) -> None:
    for seq in range(2):
        lake.write(batch([row(seq)]))
    lake.compact(NOON + DAY)
    assert lake.vacuum() == 0
    assert lake.vacuum(0) == 2
    assert len(list((tmp_path / "metrics").rglob("*.parquet"))) == 1
    assert count(lake) == 2


def test_vacuum_takes_what_a_dead_writer_left_once_it_is_old(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0)]))
    (kept,) = (tmp_path / "metrics").rglob("*.parquet")
    old, new = kept.with_name("old.parquet"), kept.with_name("new.parquet")
    for stray in (old, new):
        stray.write_bytes(b"half a file")
    os.utime(old, (0, 0))
    assert lake.vacuum() == 0
    assert lake.vacuum(strays=True) == 1
    assert (old.exists(), new.exists(), kept.exists()) == (False, True, True)


# -- at the same time ----------------------------------------------------------------------------------------


def test_a_query_survives_the_removal_of_its_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the table and the reading, the files are replaced and removed."""
    for seq in range(4):
        lake.write(batch([row(seq)]))
    run, times = lake._engine.run, 0

    def late(*arguments: Any) -> pa.Table:
        nonlocal times
        times += 1
        if times == 1:
            lake.compact(NOON + DAY)
            lake.vacuum(0)
        return run(*arguments)

    monkeypatch.setattr(lake._engine, "run", late)
    assert count(lake) == 4
    assert times == 2


def test_every_reader_sees_every_record_once_while_others_ship_and_compact(tmp_path: Path) -> None:
    """The journals shrink by their deletion only; what is shipped is in both for a moment."""
    rows = [row(number // 3, journal=JOURNALS[number % 3]) for number in range(90)]
    live = {journal: Live(journal, table(of_journal(rows, journal))) for journal in JOURNALS}
    shared = Lake(tmp_path, live=lambda _: list(live.values()))
    done = threading.Event()
    failures: list[object] = []

    def ship(journal: str) -> None:
        writer = lake_with(tmp_path)
        own = of_journal(rows, journal)
        for start in range(0, 30, 5):
            writer.write(batch(own[start : start + 5]))
        writer.write(Batch(SCHEMA.empty_table(), {journal: CLOSED}))
        live.pop(journal)

    def read(lake: Lake) -> None:
        while not done.is_set():
            seen = lake.scan(Query()).select(["journal", "seq"]).to_pylist()
            if len(seen) != 90 or len({(one["journal"], one["seq"]) for one in seen}) != 90:
                failures.append(len(seen))

    def keep() -> None:
        keeper = lake_with(tmp_path)
        while not done.is_set():
            keeper.compact(NOON + DAY)
            keeper.vacuum(0)

    def guarded(target: Any, *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                failures.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    others = [guarded(read, shared), guarded(read, shared), guarded(keep)]
    for thread in [guarded(ship, journal) for journal in JOURNALS]:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert failures == []
    assert not live
    assert count(shared) == 90
    assert shared.info().stored == 90


def test_two_writers_of_the_same_batch_keep_it_once(tmp_path: Path) -> None:
    rows = [row(seq) for seq in range(20)]
    barrier = threading.Barrier(4)

    def write() -> None:
        lake = lake_with(tmp_path)
        barrier.wait()
        lake.write(batch(rows))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(lake_with(tmp_path)) == 20


# -- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "lake:"])
def test_a_store_is_found_by_its_url(tmp_path: Path, prefix: str) -> None:
    url = f"{prefix}{tmp_path}/metrics"
    store = open_store(url)
    store.write(batch([row(0)]))
    assert store.info().url == url
    assert (tmp_path / "metrics" / "table").is_dir()


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "mysql:x", "lake:", ""])
def test_another_kind_of_url_is_refused_without_telling_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="lake:") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.delitem(sys.modules, "tallymark.stores.lake")
    monkeypatch.delitem(sys.modules, "tallymark.stores.delta")
    with pytest.raises(ConfigError, match=r'deltalake.*pip install "tallymark\[lake\]"'):
        open_store("./metrics")
