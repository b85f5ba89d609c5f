"""What the tests of rollups share, whatever the store: records, questions, and a look at the answers."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tallymark.query import AGGREGATES, Filter, Op, Query, percentile
from tallymark.store import Origin, Store, origin_of
from tallymark.stores.rollups import SERIES
from tallymark.testing import oracle
from tallymark.testing.oracle import Row
from tallymark.testing.questions import texts
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, row

HOUR = 60 * MINUTE
MIDNIGHT = NOON // DAY * DAY


def spread(count: int, first: int = MIDNIGHT, last: int = MIDNIGHT + DAY, **given: Any) -> list[Row]:
    """Records at even distances, of two services and three names, some of them with an outcome."""
    return [
        row(
            seq,
            timestamp=first + (last - first) * seq // count,
            service=("shop", "web")[seq % 2],
            name=("a", "b", "c")[seq % 3],
            success=(True, False, None)[seq % 5 % 3],
            value=1.5 ** (seq % 37),
            **given,
        )
        for seq in range(count)
    ]


def assert_answers(store: Store, rows: Sequence[Row], query: Query, source: str | None = None) -> Origin:
    """The answer is that of the oracle, percentiles within what it says."""
    found = store.aggregate(query)
    origin = origin_of(found)
    assert found.column_names == list(query.output)
    expected = oracle.aggregate(rows, query)
    got = found.to_pylist()
    keys = [*query.keys, "samples"]
    assert [[one[key] for key in keys] for one in got] == [[one[key] for key in keys] for one in expected]
    scale = sum(abs(one["value"]) for one in rows)
    for left, right in zip(got, expected, strict=True):
        for name in query.aggregates:
            if percentile(name) is None or origin.relative_error is None:
                assert oracle.close(left[name], right[name], scale), (name, left, right)
            else:
                assert abs(left[name] - right[name]) <= origin.relative_error * abs(right[name]), (name, left, right)
    if source is not None:
        assert origin.source == source
    return origin


# On the borders of stretches of time, one beside them, and anywhere.
moments = st.builds(
    lambda steps, beside: MIDNIGHT + steps * 10 * MINUTE + beside,
    st.integers(-200, 400),
    st.sampled_from([0, 0, -1, 1, 7 * MINUTE]),
)
sizes = st.sampled_from([0.0, 1.0, 2.0, 1e-300]) | st.floats(1e-3, 1e6)


@st.composite
def some_records(draw: st.DrawFn) -> list[Row]:
    """All of one sign: then the bound of a percentile is a share of itself."""
    sign = draw(st.sampled_from([1, -1]))
    return [
        row(
            seq,
            journal=draw(st.sampled_from(JOURNALS[:2])),
            timestamp=draw(moments),
            service=draw(st.sampled_from(["shop", "web"])),
            metric_type=draw(st.sampled_from(["operation", "tallymark", "Ω"])),
            name=draw(texts),
            unit=draw(st.sampled_from(["ms", "'"])),
            value=sign * draw(sizes),
            success=draw(st.none() | st.booleans()),
            metadata={"a": draw(st.booleans())},
        )
        for seq in range(draw(st.integers(0, 40)))
    ]


@st.composite
def conditions(draw: st.DrawFn) -> Filter:
    order: st.SearchStrategy[Op] = st.sampled_from(["=", "!=", "<", ">="])
    equality: st.SearchStrategy[Op] = st.sampled_from(["=", "!="])
    match draw(st.sampled_from(["text", "few", "success", "in", "metadata"])):
        case "text":
            return Filter("name", draw(order), draw(texts))
        case "few":
            return Filter(draw(st.sampled_from(["service", "metric_type", "unit"])), draw(order), "shop")
        case "success":
            return Filter("success", draw(equality), draw(st.none() | st.booleans()))
        case "in":
            return Filter("metric_type", "in", ("operation", "tallymark"))
        case _:
            return Filter("metadata.a", "=", True)


@st.composite
def questions(draw: st.DrawFn) -> Query:
    start, end = draw(st.none() | moments), draw(st.none() | moments)
    if start is not None and end is not None and start > end:
        start, end = end, start
    names = st.sampled_from([*AGGREGATES, "p0", "p50", "p90", "p99.9"])
    aggregates = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    window = draw(st.sampled_from([None, MINUTE, 10 * MINUTE, HOUR, 4 * HOUR, 12 * HOUR, DAY, 7 * DAY]))
    if "rate" in aggregates and window is None and (start is None or end is None):
        aggregates = ["count"]
    group_by = tuple(draw(st.lists(st.sampled_from([*SERIES, "metadata.a"]), max_size=2, unique=True)))
    question: dict[str, Any] = {"start": start, "end": end, "window": window, "group_by": group_by}
    question["filters"] = tuple(draw(st.lists(conditions(), max_size=2)))
    order = draw(st.sampled_from([(), ("-samples",)]))
    limit = draw(st.none() | st.integers(1, 5))
    return Query(**question, aggregates=tuple(aggregates), order_by=order, limit=limit)
