"""Whatever is recorded comes back equal, whichever way it goes in, out of the journal and out of the store."""

import contextlib
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import live, recording, ship, stored

from tallymark import Metrics
from tallymark.model import MAX_DURATION_MS, MAX_ERROR_LENGTH, MAX_TIMESTAMP, clean_text
from tallymark.record import Record

LONE = [chr(code) for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)]

letters = st.characters() | st.sampled_from(
    ["\x00", "\\u0000", "\x7f", "\u2028", '"', "\\", "😀", "\ud83d\ude00", *LONE]
)
text = st.lists(letters, max_size=20).map("".join)
name = text.filter(lambda value: bool(value) and not value.isspace() and len(value) <= 200).filter(
    lambda value: value != "tallymark"
)
identifier = st.none() | name.filter(lambda value: len(value) <= 128)
value = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 2**53 + 1, 0.1 + 0.2])
)
scalar = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | text
number = st.floats(allow_nan=False, allow_infinity=False)
key = text.map(lambda value: "k" + value + "s")  # neither empty nor forbidden
nested = st.recursive(
    scalar | number,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=3),
    max_leaves=10,
)
metadata = st.none() | st.dictionaries(key, scalar | number, max_size=4) | st.dictionaries(key, nested, max_size=3)

operation = st.fixed_dictionaries(
    {
        "operation_type": name,
        "operation_name": name,
        "duration_ms": st.floats(0, MAX_DURATION_MS) | st.integers(0, 10**9),
        "success": st.booleans(),
        "error_message": st.none() | text,
        "metadata": metadata,
    }
)
record = st.fixed_dictionaries(
    {
        "metric_type": name,
        "name": name,
        "value": value,
        "unit": name,
        "success": st.none() | st.booleans(),
        "error": st.none() | text,
        "metadata": metadata,
        "trace_id": identifier,
        "session_id": identifier,
    }
)
foreign = st.fixed_dictionaries(
    {
        "metric_type": name,
        "name": name,
        "value": value,
        "service": st.none() | name,
        "timestamp": st.none() | st.integers(0, MAX_TIMESTAMP - 1),
        "description": st.none() | name,
    }
)
call = (
    st.tuples(st.just("record_operation"), operation)
    | st.tuples(st.just("record"), record)
    | st.tuples(st.just("ingest"), foreign)
    | st.tuples(st.just("ingest"), record)
)
calls = st.lists(call, max_size=12)

RENAMED = {
    "operation_type": "metric_type",
    "operation_name": "name",
    "duration_ms": "value",
    "error_message": "error",
}


def cleaned(given_: Any) -> Any:
    """As every store can hold it."""
    if isinstance(given_, str):
        return clean_text(given_)
    if isinstance(given_, list):
        return [cleaned(item) for item in given_]
    if isinstance(given_, dict):
        return {clean_text(key): cleaned(item) for key, item in given_.items()}
    return given_


def expected(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a call has to leave behind, but for id and timestamp."""
    fields = {RENAMED.get(key, key): cleaned(value) for key, value in arguments.items() if key != "timestamp"}
    fields["value"] = float(fields["value"])
    fields["error"] = (fields.get("error") or "")[:MAX_ERROR_LENGTH] or None
    fields["metadata"] = fields.get("metadata") or {}
    fields["unit"] = "ms" if method == "record_operation" else fields.get("unit", "1")
    fields["service"] = fields.get("service") or "test"
    return {name: fields.get(name) for name in Record.__struct_fields__ if name not in ("id", "timestamp")}


def found(records: list[Record]) -> list[dict[str, Any]]:
    return [
        {name: getattr(record, name) for name in Record.__struct_fields__ if name not in ("id", "timestamp")}
        for record in records
    ]


def same(left: Any, right: Any) -> bool:
    """Equal, and 1 is not 1.0 nor True, and -0.0 is not 0.0."""
    return repr(left) == repr(right)


def in_order(folder: Path) -> list[Record]:
    """In the order of the calls: all of them fit into one lane."""
    return sorted(stored(folder), key=lambda record: record.id.int)


def record_all(metrics: Metrics, given_: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Make the calls; those that were accepted."""
    accepted = []
    for method, arguments in given_:
        with contextlib.suppress(ValueError):  # what some made-up metadata is good for
            getattr(metrics, method)(**arguments)
            accepted.append((method, arguments))
    return accepted


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Folders, one after the other; hypothesis wants several in one test."""
    numbers = itertools.count()
    return lambda: tmp_path / f"metrics-{next(numbers)}"


@given(given_=calls)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_what_is_recorded_comes_back_equal(
    fresh: Callable[[], Path], core: str, given_: list[tuple[str, dict[str, Any]]]
) -> None:
    folder = fresh()
    with recording(folder, max_queue_size=4096, pii="allow") as metrics:
        accepted = record_all(metrics, given_)
        accepted += record_all(metrics, accepted)  # now everything is known
    wanted = [expected(*call) for call in accepted]
    assert same(found(in_order(folder)), wanted)
    for (_, arguments), record in zip(accepted, in_order(folder), strict=True):
        if arguments.get("timestamp") is not None:
            assert record.timestamp == arguments["timestamp"]
    shutil.rmtree(folder, ignore_errors=True)


@given(given_=st.lists(call, min_size=5, max_size=20))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_what_is_shipped_comes_back_equal(
    fresh: Callable[[], Path], core: str, given_: list[tuple[str, dict[str, Any]]]
) -> None:
    folder = fresh()
    with recording(folder, max_queue_size=4096, pii="allow") as metrics:
        accepted = record_all(metrics, given_)
        ship(folder)
        accepted += record_all(metrics, given_)
    before = in_order(folder)
    ship(folder)
    after = in_order(folder)
    assert same(after, before)
    assert same(found(after), [expected(*call) for call in accepted])
    assert live(folder) == []
    shutil.rmtree(folder, ignore_errors=True)


@given(given_=calls)
@settings(max_examples=100, deadline=None)
def test_both_ways_to_record_leave_the_same(given_: list[tuple[str, dict[str, Any]]]) -> None:
    left = []
    for pure in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            with recording(Path(folder), max_queue_size=4096) as metrics:
                record_all(metrics, given_)  # the compiled core leaves what is new to Python
                if pure:
                    metrics._pool.service = None
                record_all(metrics, given_)
            rows = live(Path(folder))
        for row in rows:
            assert not any("\0" in value for value in row.values() if isinstance(value, str))
            assert "\\u0000" not in row["metadata"].replace("\\\\", "")
            row["metadata"] = json.loads(row["metadata"])
            del row["journal"]
            timestamp = row.pop("timestamp")
            assert isinstance(timestamp, int)
        left.append(rows)
    assert same(*left)


@pytest.mark.parametrize("number", [0.1, 1 / 3, 1e16, 1e-5, 123456789.123456789, 5e-324, 1.7976931348623157e308, 1e22])
def test_floats_in_metadata_keep_every_bit(folder: Path, core: str, number: float) -> None:
    with recording(folder) as metrics:
        for _ in range(2):
            metrics.record("a", "b", number, metadata={"number": number, "negative": -number})
    for row in live(folder):
        assert row["value"] == number
        kept = json.loads(row["metadata"])
        assert (kept["number"], kept["negative"]) == (number, -number)
        assert math.copysign(1, kept["negative"]) == -1
