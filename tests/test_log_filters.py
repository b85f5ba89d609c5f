"""Which lines of the structured log are wanted."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tallymark.logs import LogFilter

START = datetime(2026, 1, 1, tzinfo=UTC)

FIELDS = {
    "timestamp": "2026-01-01T12:00:00.000000Z",
    "level": "warning",
    "message": "Correction Recorded: Straße",
    "trace_id": "4bf92f35",
    "session_id": "abc123",
    "deep": {"Key": [1, {"x": "Found\nHere"}]},
    "took_ms": 5000,
    "flag": True,
    "nothing": None,
}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True),
        ({"level": "debug"}, True),
        ({"level": "warning"}, True),
        ({"level": "error"}, False),
        ({"text": "correction recorded"}, True),
        ({"text": "STRASSE"}, True),
        ({"text": "found\nhere"}, True),
        ({"text": "KEY"}, True),
        ({"text": "5000"}, True),
        ({"text": "elsewhere"}, False),
        ({"text": "true"}, False),
        ({"trace_id": "4bf92f35"}, True),
        ({"trace_id": "4bf9"}, False),
        ({"session_id": "abc123", "level": "info"}, True),
        ({"session_id": "abc123", "level": "critical"}, False),
        ({"since": datetime(2026, 1, 1, 12, tzinfo=UTC)}, True),
        ({"since": datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC)}, False),
    ],
    ids=str,
)
def test_filters(wanted: dict[str, Any], expected: bool) -> None:
    assert LogFilter(**wanted).matches(FIELDS) is expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", False),
        ("info", False),
        ("metric", True),
        ("METRIC", True),
        ("critical", True),
        ("level 26", True),
        ("level 24", False),
        ("level ²", False),
        ("notice", False),
        (None, False),
        (["error"], False),
    ],
)
def test_metric_and_above(level: object, expected: bool) -> None:
    assert LogFilter(level="metric").matches({"level": level}) is expected


@pytest.mark.parametrize("timestamp", [None, 5, "", "yesterday", "2026-13-01T00:00:00Z", [1]])
def test_lines_without_a_time_are_not_recent(timestamp: object) -> None:
    assert not LogFilter(since=START).matches({"timestamp": timestamp})


def test_times_without_a_zone_are_utc() -> None:
    assert LogFilter(since=START).matches({"timestamp": "2026-01-01T00:00:00.000000"})


def test_filters_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"level must be one of debug, .*critical"):
        LogFilter(level="loud")
    with pytest.raises(ValueError, match="time zone"):
        LogFilter(since=datetime(2026, 1, 1))
