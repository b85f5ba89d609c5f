"""Records and queries that hypothesis makes up, hostile ones too."""

import json
from typing import Any, Final

from hypothesis import strategies as st

from tallymark.batch import record_id
from tallymark.query import AGGREGATES, TEXT_COLUMNS, Cursor, Filter, Op, Query
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, row

HOSTILE: Final = [
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
"""Texts that quoting, patterns or parsers could get wrong."""

SUBJECTS: Final = [
    *HOSTILE[1:],
    *("a\\", "\\'", "''", "a'b", "--", "/* */", "$1", "?", "a%", "_", "x' OR 'a'='a", "\n", "ü"),
    *("%s", "%(p0)s", ":p0", "{p0:String}"),
]
"""More of them, as ids and metric types."""

written = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
texts = st.sampled_from(["a", "b", "Ω"]) | st.sampled_from(HOSTILE) | written
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
    """Up to 25 records of three journals."""
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
    """One condition."""
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
    """A time range and conditions, as arguments of a Query."""
    start, end = draw(times), draw(times)
    if start is not None and end is not None and start > end:
        start, end = end, start
    return {"start": start, "end": end, "filters": tuple(draw(st.lists(filters(), max_size=2)))}


@st.composite
def aggregations(draw: st.DrawFn) -> Query:
    """A query with aggregates."""
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
    """A query for records."""
    cursor = st.builds(Cursor, times.map(lambda t: t or NOON), st.sampled_from(JOURNALS), st.integers(0, 25))
    return Query(
        **draw(ranges()),
        order_by=draw(st.sampled_from([(), ("timestamp",), ("-timestamp",)])),
        limit=draw(st.none() | st.integers(1, 5)),
        cursor=draw(st.none() | cursor.map(str)),
    )
