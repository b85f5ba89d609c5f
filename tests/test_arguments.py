"""What a recorder refuses: with which words, and that nothing of it is stored."""

import math
from pathlib import Path
from typing import Any

import pytest
from recording import live

from tallymark import ConfigError, Metrics
from tallymark.model import MAX_ERROR_LENGTH, MAX_ID_LENGTH, MAX_NAME_LENGTH

pytestmark = pytest.mark.usefixtures("core")

SECRET = "s3cr3t-value"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("duration_ms", -0.001, "duration_ms must not be negative"),
        ("duration_ms", -math.inf, "duration_ms must be finite"),
        ("duration_ms", math.inf, "duration_ms must be finite"),
        ("duration_ms", math.nan, "duration_ms must be finite"),
        ("duration_ms", 10**400, "duration_ms must be finite"),
        ("duration_ms", 1.7e12, "duration_ms must be at most ten years"),
        ("duration_ms", True, "duration_ms must be a number, not bool"),
        ("duration_ms", SECRET, "duration_ms must be a number, not str"),
        ("duration_ms", None, "duration_ms must be a number, not NoneType"),
        ("operation_type", "", r"metric_type \(operation_type\) must not be empty"),
        ("operation_type", " \t", r"metric_type \(operation_type\) must not be empty"),
        ("operation_type", SECRET * 20, r"metric_type \(operation_type\) has 240 characters; at most 200"),
        ("operation_type", 5, r"metric_type \(operation_type\) must be text, not int"),
        ("operation_type", "tallymark", "metric_type 'tallymark' is reserved"),
        ("operation_type", Text("tallymark"), "metric_type 'tallymark' is reserved"),
        ("operation_name", "", r"name \(operation_name\) must not be empty"),
        ("operation_name", SECRET.encode(), r"name \(operation_name\) must be text, not bytes"),
        ("operation_name", [SECRET], r"name \(operation_name\) must be text, not list"),
        ("operation_name", None, r"name \(operation_name\) must be text, not NoneType"),
        ("success", 1, "success must be True, False or None, not int"),
        ("success", SECRET, "success must be True, False or None, not str"),
        ("error_message", ValueError(SECRET), r"error \(error_message\) must be text, not ValueError"),
        ("error_message", 404, r"error \(error_message\) must be text, not int"),
        ("metadata", [SECRET], "metadata must be a dict, not list"),
        ("metadata", {"user_id": SECRET}, "metadata has the forbidden key 'user_id'"),
        ("metadata", {"a": {"b": [{"clientId": SECRET}]}}, r"metadata\.a\.b\[0\] has the forbidden key 'clientId'"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_bad_operation(metrics: Metrics, folder: Path, field: str, value: Any, rule: str, warm: bool) -> None:
    good: dict[str, Any] = {
        "operation_type": "a",
        "operation_name": "b",
        "duration_ms": 1.0,
        "metadata": {"region": "eu"},
    }
    if warm:
        metrics.record_operation(**good)
    before = metrics.get_stats()
    with pytest.raises(ValueError, match=rule) as caught:
        metrics.record_operation(**good | {field: value})
    assert SECRET not in str(caught.value)
    assert metrics.get_stats() == before
    assert len(live(folder)) == warm


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("value", math.nan, "value must be finite"),
        ("value", -math.inf, "value must be finite"),
        ("value", False, "value must be a number, not bool"),
        ("value", "1", "value must be a number, not str"),
        ("unit", "", "unit must not be empty"),
        ("unit", None, "unit must be text, not NoneType"),
        ("unit", "x" * (MAX_NAME_LENGTH + 1), "unit has 201 characters; at most 200"),
        ("trace_id", "x" * (MAX_ID_LENGTH + 1), "trace_id has 129 characters; at most 128"),
        ("trace_id", "  ", "trace_id must not be empty"),
        ("trace_id", "", "trace_id must not be empty"),
        ("trace_id", 0, "trace_id must be text, not int"),
        ("session_id", "", "session_id must not be empty"),
        ("session_id", "\n", "session_id must not be empty"),
        ("session_id", b"abc", "session_id must be text, not bytes"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_bad_value(metrics: Metrics, folder: Path, field: str, value: Any, rule: str, warm: bool) -> None:
    good: dict[str, Any] = {"metric_type": "a", "name": "b", "value": 1.0}
    if warm:
        metrics.record(**good)
    with pytest.raises(ValueError, match=rule):
        metrics.record(**good | {field: value})
    with pytest.raises(ValueError, match=rule):
        metrics.ingest(**good | {field: value})
    assert metrics.get_stats().total_recorded == len(live(folder)) == warm


def test_a_wrong_call_is_a_type_error(metrics: Metrics) -> None:
    wrong: Any = metrics.record_operation
    for arguments, keywords in (
        (("a",), {}),
        (("a", "b", 1.0), {"nonsense": 1}),
        (("a", "b", 1.0), {"duration_ms": 1.0}),
    ):
        with pytest.raises(TypeError, match=r"record_operation\(\)"):
            wrong(*arguments, **keywords)
    assert metrics.get_stats().total_recorded == 0


def test_the_longest_texts_are_kept(metrics: Metrics, folder: Path) -> None:
    long = "😀" * MAX_NAME_LENGTH
    for _ in range(2):
        metrics.ingest(long, long, 1.0, long, service=long, description="d" * 1000, error="😀" * MAX_ERROR_LENGTH)
    for row in live(folder):
        assert [row[field] for field in ("service", "metric_type", "name", "unit")] == [long] * 4
        assert (row["description"], row["error"]) == ("d" * 1000, "😀" * MAX_ERROR_LENGTH)


@pytest.mark.parametrize("settings", [
    {"flush_interval_seconds": 0},
    {"flush_interval_seconds": "5"},
    {"flush_interval_seconds": math.nan},
    {"max_batch_size": 0},
    {"max_batch_size": True},
    {"max_queue_size": -1},
    {"on_full": "explode"},
    {"durability": "none"},
    {"store": "mysql://user:pw@host/db"},
    {"store": "sqlite:"},
])  # fmt: skip
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Metrics(**settings)


@pytest.mark.parametrize("service", ["", " ", 5, "x" * 201])
def test_a_bad_service(service: Any) -> None:
    with pytest.raises(ValueError, match="service"):
        Metrics(service=service)
