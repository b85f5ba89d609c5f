"""Every answer of the lake, against an oracle, and the semantics one at a time."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import oracle
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lakes import DAY, JOURNALS, MINUTE, NOON, Live, batch, count, lake_with, of_journal, row, table
from oracle import Row

from tallymark.batch import record_id
from tallymark.errors import QueryError
from tallymark.query import AGGREGATES, TEXT_COLUMNS, Cursor, Filter, Op, Query
from tallymark.stores import sql
from tallymark.stores.lake import Lake

# -- against the oracle --------------------------------------------------------------------------------------

HOSTILE = [
    "",
    "'",
    '"; DROP TABLE live; --',
    "bell\x07inside",
    "🧾 \u202e",
    "%_\\*?[x]$1 {}",
    "null",
    "true",
    "1e3",
    " 7 ",
    "x" * 5_000,
]
texts = (
    st.sampled_from(["a", "b", "Ω"])
    | st.sampled_from(HOSTILE)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
)
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
    monkeypatch.setattr(sql, "MAX_ROWS", 3)
    lake.write(batch([row(seq, name=f"n{seq}") for seq in range(4)]))
    with pytest.raises(QueryError, match="more than 3 rows"):
        lake.aggregate(Query.build(group_by="name"))
    assert lake.aggregate(Query.build(group_by="name", limit=2)).num_rows == 2
