"""Rollups: the same answers as from the records, whatever becomes of the files; and the plans behind them."""

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lakes import Live, lake_with
from pyarrow import parquet

from tallymark import keeping
from tallymark.errors import StoreError
from tallymark.maintenance import maintain
from tallymark.percentile import RELATIVE_ERROR
from tallymark.query import Query
from tallymark.reader import Reader
from tallymark.stores import plan as plan_module
from tallymark.stores import rolled as rolled_module
from tallymark.stores import rollups as rollups_module
from tallymark.stores.lake.store import Lake
from tallymark.stores.plan import cover
from tallymark.stores.rollups import LEVELS, Level
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, batch, row, table

from .rolling import HOUR, MIDNIGHT, assert_answers, moments, questions, some_records, spread

NAMED = [level for level in LEVELS if level.named]
TOGETHER = [level for level in LEVELS if not level.named]


@pytest.fixture(autouse=True, scope="module")
def _every_file_counts() -> Any:
    """Rollups are made of small files too, and used for few records."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rollups_module, "MIN_RECORDS", 1)
        patched.setattr(plan_module, "MANY_RECORDS", 0)
        yield


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "rollups").glob("*"))


# -- against the oracle --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    rows=some_records(),
    shares=st.tuples(*[st.integers(0, 40)] * 3),
    asked=st.lists(questions(), min_size=4, max_size=8),
    compacted=st.booleans(),
)
def test_every_answer_is_that_of_the_oracle(
    rows: list[Row], shares: tuple[int, int, int], asked: list[Query], compacted: bool
) -> None:
    """Some records are in files with rollups, some in files without, some in journals."""
    first, second, third = sorted(shares)
    rows = [{**one, "journal": JOURNALS[2]} if place >= third else one for place, one in enumerate(rows)]
    with TemporaryDirectory() as folder:
        lake = lake_with(Path(folder), [Live(JOURNALS[2], table(rows[third:]))])
        for part in (rows[:first], rows[first:second]):
            lake.write(batch(part))
        if compacted:
            lake._delta.compact(sorted(lake._delta.file_sizes()), 1 << 20)
        lake.roll_up(NOON)
        # A batch leaves out what lies before the position that the one before it stored.
        stored = rows[:second] + unseen(rows[:second], rows[second:third])
        lake.write(batch(rows[second:third]))
        for query in asked:
            # The second time from what is kept in memory.
            assert_answers(lake, stored + rows[third:], query)
            assert_answers(lake, stored + rows[third:], query)
        lake.close()


def unseen(stored: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    ends = {name: max((one["seq"] for one in stored if one["journal"] == name), default=-1) for name in JOURNALS}
    return [one for one in more if one["seq"] > ends[one["journal"]]]


# -- what becomes of the files -------------------------------------------------------------------------------


def test_a_lake_makes_rollups_when_it_is_looked_after(lake: Lake, tmp_path: Path) -> None:
    rows = spread(500)
    lake.write(batch(rows))
    question = Query.build(group_by="name", window="1h", agg=["count", "last", "p50"])
    assert_answers(lake, rows, question, "raw")
    assert files_of(tmp_path / "metrics") == []
    maintain(lake, tmp_path / "metrics", retention=None, roll_up=False)
    assert_answers(lake, rows, question, "raw")
    maintain(lake, tmp_path / "metrics", retention=None)
    assert_answers(lake, rows, question, "1h rollups and raw")
    assert lake.roll_up(NOON) == 0


def test_late_records_are_seen(lake: Lake) -> None:
    rows = spread(500)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    total = Query.build(agg=["count", "sum", "p95"])
    assert_answers(lake, rows, total, "1d rollups and raw")
    rows += [row(1_000 + seq, timestamp=MIDNIGHT + 60 * seq * MINUTE, value=500.0 * seq) for seq in range(20)]
    lake.write(batch(rows[500:]))
    assert_answers(lake, rows, total, "1d rollups and raw")
    assert lake.roll_up(NOON) == 1
    assert_answers(lake, rows, total, "1d rollups and raw")


def test_compacted_files_get_rollups_anew(lake: Lake, tmp_path: Path) -> None:
    rows = spread(100) + spread(100, journal=JOURNALS[1])
    for part in (rows[:100], rows[100:]):
        lake.write(batch(part))
    assert lake.roll_up(NOON) == 2
    before = files_of(tmp_path / "metrics")
    assert lake.compact(NOON + DAY) == 2
    question = Query.build(agg=["count", "p50"])
    assert_answers(lake, rows, question, "raw")
    assert lake.roll_up(NOON) == 1
    assert_answers(lake, rows, question, "1d rollups and raw")
    assert len(files_of(tmp_path / "metrics")) == 1
    assert not set(before) & set(files_of(tmp_path / "metrics"))


def test_what_is_deleted_is_in_no_rollup(lake: Lake) -> None:
    rows = spread(300, last=MIDNIGHT + 3 * DAY)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    assert lake.delete(Query.build(agg=(), where={"session_id": None}, name="a", until=MIDNIGHT + DAY)) > 0
    assert lake.delete(Query(start=MIDNIGHT + 2 * DAY)) == 100
    left = [one for one in rows if one["timestamp"] < MIDNIGHT + 2 * DAY]
    left = [one for one in left if one["name"] != "a" or one["timestamp"] >= MIDNIGHT + DAY]
    assert_answers(lake, left, Query.build(group_by="name", agg=["count", "sum", "p50"]), "1d rollups and raw")


@pytest.mark.parametrize("how", ["erase", "prune"])
def test_rollups_do_not_outlive_their_file_when_records_are_erased(lake: Lake, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "metrics"
    lake.write(batch([*spread(50), row(60, session_id="s-1", value=123.456, timestamp=MIDNIGHT)]))
    lake.roll_up(NOON)
    (sidecar,) = files_of(folder)
    assert 123.456 in parquet.read_table(sidecar)["largest"].to_pylist()
    (folder / "journals").mkdir()
    query = Query.build(agg=(), session_id="s-1")
    if how == "erase":
        assert keeping.erase(lake, folder, query, lambda _: None).records == 1
    else:
        assert keeping.prune(lake, folder, [query], lambda _: None) == 1
    assert files_of(folder) == []


def test_no_column_says_whom_records_are_about(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0, session_id="s-1", trace_id="t-1", error="e-1", metadata={"k": "m-1"}, description="d-1")]))
    lake.roll_up(NOON)
    (sidecar,) = files_of(tmp_path / "metrics")
    text = str(parquet.read_table(sidecar).to_pylist())
    assert "checkout" in text
    assert not [hidden for hidden in ("s-1", "t-1", "e-1", "m-1", "d-1") if hidden in text]


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage"])
def test_a_damaged_rollup_costs_time_only(
    lake: Lake, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = spread(200)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    (sidecar,) = files_of(tmp_path / "metrics")
    whole = sidecar.read_bytes()
    contents = {"empty": b"", "cut": whole[:-20], "garbage": bytes(200) + whole[200:-50] + bytes(50)}
    if damage == "gone":
        sidecar.unlink()
    else:
        sidecar.write_bytes(contents[damage])
    question = Query.build(agg=["count", "p50"])
    assert_answers(lake, rows, question, "raw")
    assert ("without rollups" in caplog.text) == (damage != "gone")
    assert lake.roll_up(NOON) == 1
    assert_answers(lake, rows, question, "1d rollups and raw")


def test_what_a_dead_maker_left_is_removed(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch(spread(10)))
    (tmp_path / "metrics" / "rollups").mkdir()
    for stray in ("old.1.parquet.new", "part-of-nothing.1.parquet", "of-another-version.0.parquet"):
        (tmp_path / "metrics" / "rollups" / stray).write_bytes(b"half")
    assert lake.roll_up(NOON) == 1
    assert len(files_of(tmp_path / "metrics")) == 1


def test_a_file_that_cannot_be_read_gets_no_rollup_and_the_others_do(
    lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lake.write(batch(spread(10)))
    (damaged,) = (tmp_path / "metrics" / "table").rglob("*.parquet")
    lake.write(batch(spread(10, journal=JOURNALS[1])))
    damaged.write_bytes(b"no Parquet")
    assert lake.roll_up(NOON) == 1
    assert "no rollups of" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_lake_that_is_closed_meanwhile_says_so(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.write(batch(spread(10)))
    monkeypatch.setattr(rollups_module, "bucket_sql", lambda _: "(SELECT sum(range) FROM range(100000000000))::INTEGER")
    closer = threading.Timer(0.3, lake.close)
    closer.start()
    with pytest.raises(StoreError, match="rollups"):
        lake.roll_up(NOON)
    closer.join()


# -- plans ---------------------------------------------------------------------------------------------------


@given(moments, moments)
def test_a_cover_is_the_range_without_gaps_and_overlaps(one: int, other: int) -> None:
    start, end = sorted((one, other))
    for levels in (NAMED, TOGETHER, NAMED[:1], []):
        pieces = cover(start, end, levels)
        edges = [edge for _, first, last in pieces for edge in (first, last)]
        assert edges == sorted(edges)
        assert sum(last - first for _, first, last in pieces) == end - start
        if pieces:
            assert (pieces[0][1], pieces[-1][2]) == (start, end)
        for level, first, last in pieces:
            assert level is None or first % level.length == last % level.length == 0
        # No piece could be of a longer level, and what is left for the records is no longer than the shortest.
        for level, first, last in pieces:
            for longer in levels:
                if level is None or longer.length > level.length:
                    assert -(-first // longer.length) >= last // longer.length


def test_levels_divide_each_other_and_a_day() -> None:
    for levels in (NAMED, TOGETHER):
        lengths = [level.length for level in sorted(levels, key=lambda level: level.length)]
        assert all(longer % shorter == 0 for shorter, longer in zip(lengths, [*lengths[1:], DAY], strict=True))
    assert [level.number for level in LEVELS] == list(range(len(LEVELS)))
    sources: list[Level] = [LEVELS[level.source] for level in LEVELS]
    assert all(level.length % source.length == 0 for level, source in zip(LEVELS, sources, strict=True))


@pytest.mark.parametrize(
    ("question", "source"),
    [
        ({"group_by": "name"}, "1d rollups and raw"),
        ({"window": "1h"}, "1h rollups and raw"),
        ({"window": "8h"}, "4h rollups and raw"),
        ({"window": "8h", "group_by": "name"}, "1h rollups and raw"),
        ({"window": "20m"}, "10m rollups and raw"),
        ({"window": "1d", "since": MIDNIGHT + 70 * MINUTE}, "10m, 1h, 4h rollups and raw"),
        ({"window": "5m"}, "raw"),
        ({"window": "7d"}, "1d rollups and raw"),
        ({"where": "value>3"}, "raw"),
        ({"where": "metadata.region=eu"}, "raw"),
        ({"where": {"timestamp": NOON}}, "raw"),
        ({"group_by": "metadata.region"}, "raw"),
        ({"group_by": ["name", "session_id"]}, "raw"),
        ({"success": True, "unit": "ms", "service": "shop", "metric_type": "operation"}, "1d rollups and raw"),
    ],
)
def test_which_level_answers(lake: Lake, question: dict[str, Any], source: str) -> None:
    rows = spread(300)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    assert_answers(lake, rows, Query.build(**question, agg=["count", "p50", "last"]), source)


def test_an_answer_says_how_far_it_may_be_off_and_what_was_scanned(lake: Lake) -> None:
    rows = spread(300)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    day: dict[str, Any] = {"since": MIDNIGHT, "until": MIDNIGHT + DAY}
    with Reader(lake) as reader:
        found = reader.query(**day, agg=["count", "p50"])
        assert (found.exact, found.relative_error, found.scanned, found.samples) == (False, RELATIVE_ERROR, 0, 300)
        found = reader.query(**day, agg=["count", "sum", "last", "error_rate"])
        assert (found.exact, found.relative_error, found.source) == (True, None, "1d rollups and raw")
        found = reader.query(**day, agg=["count", "p50"], group_by="metadata.region", name="a")
        assert (found.exact, found.source, found.scanned, found.samples) == (True, "raw", 300, 100)
        assert set(found.to_arrow().column_names) == {"metadata.region", "count", "p50"}


def test_few_records_are_read_themselves(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = spread(300)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    monkeypatch.setattr(plan_module, "MANY_RECORDS", 150)
    assert_answers(lake, rows, Query.build(since=MIDNIGHT, agg="p50"), "1d rollups and raw")
    assert_answers(lake, rows, Query.build(since=NOON + HOUR, agg="p50"), "raw")
    monkeypatch.setattr(rollups_module, "MIN_RECORDS", 301)
    assert lake.roll_up(NOON) == 0


def test_what_is_kept_in_memory_is_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = spread(300)
    lake.write(batch(rows))
    lake.roll_up(NOON)
    monkeypatch.setattr(rolled_module, "KEPT_BYTES", 5_000)
    for hours in range(1, 24):
        since = MIDNIGHT + hours * HOUR
        assert_answers(lake, rows, Query.build(since=since, group_by="name", agg=["count", "p50"]))
        kept = lake._rolled._kept
        assert lake._rolled._bytes == sum(len(key) + part.nbytes for key, part in kept.items()) <= 5_000


def test_order_and_limit_apply_to_percentiles(lake: Lake) -> None:
    rows = [row(seq, name=f"n{seq % 7}", value=float(seq % 7 + 1) * 10) for seq in range(70)]
    lake.write(batch(rows))
    lake.roll_up(NOON)
    query = Query.build(group_by="name", agg=["p95", "max"], order_by="-p95", limit=3)
    assert lake.aggregate(query)["name"].to_pylist() == ["n6", "n5", "n4"]


def test_sums_beyond_float64_are_null(lake: Lake) -> None:
    rows = [row(0, value=1.7e308), row(1, value=1.7e308)]
    lake.write(batch(rows))
    lake.roll_up(NOON)
    (found,) = lake.aggregate(Query.build(agg=["sum", "avg", "max", "p50"])).to_pylist()
    assert found == {"sum": None, "avg": None, "max": 1.7e308, "p50": found["p50"], "samples": 2}
    assert math.isclose(found["p50"], 1.7e308, rel_tol=RELATIVE_ERROR)


def test_an_empty_answer_has_its_columns(lake: Lake) -> None:
    lake.write(batch(spread(10)))
    lake.roll_up(NOON)
    found = lake.aggregate(Query.build(name="none", group_by="name", window="1h", agg=["count", "p50", "last"]))
    types = ["int64", "string", "int64", "double", "double", "int64"]
    assert list(map(str, found.schema.types)) == types
    assert found.column_names == ["window_start", "name", "count", "p50", "last", "samples"]
    assert found.num_rows == 0
    assert lake.aggregate(Query.build(name="none", agg=["p50"])).num_rows == 0
