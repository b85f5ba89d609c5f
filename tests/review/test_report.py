"""The reports: their shape, and every number against the plainest Python."""

import asyncio
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import output, python, recording, ship

import tallymark
from tallymark import Metrics
from tallymark.review import CorrectionType, MetricsService, ProcessingStage
from tallymark.review.alerts import performance_alerts
from tallymark.review.corrections import difference
from tallymark.review.report import admin_performance, dashboard
from tallymark.review.trend import trend
from tallymark.stores.retention import DAY_NS
from tallymark.testing import ManualClock

HOSTILE = "=1+1\x1b[2J\u202e,\n\"'🎉"
STAGES = [ProcessingStage.USER_DELIVERY, ProcessingStage.QUERY_RECEIVED, "own stage", HOSTILE]
TYPES = [CorrectionType.REJECTION, CorrectionType.VOICE_CORRECTION, HOSTILE]

Event = dict[str, Any]


def correct(service: MetricsService, admin: int | None = 7, ms: float = 100.0, **more: Any) -> None:
    service.record_correction("s", admin, 1, more.pop("kind", "text_correction"), "one", "two", ms, **more)


class TestShape:
    def test_it_is_that_of_the_interface_documents(self, service: MetricsService) -> None:
        session_id = service.create_session(1, 2)
        with service.timer(session_id, 1, 2, ProcessingStage.QUERY_RECEIVED):
            pass
        correct(service, admin_satisfaction=4)
        found = service.get_dashboard_data(hours=24)
        assert list(found)[:3] == ["overview", "processing_by_stage", "corrections"]
        assert list(found["overview"])[:4] == [
            "total_requests",
            "avg_total_processing_time_ms",
            "overall_success_rate",
            "total_corrections",
        ]
        assert list(found["processing_by_stage"]["query_received"])[:2] == ["avg_duration_ms", "success_rate"]
        assert list(found["corrections"]) == ["by_type", "by_admin"]
        assert list(found["corrections"]["by_type"]["text_correction"])[:2] == ["total_count", "avg_processing_time_ms"]
        ((admin, row),) = found["corrections"]["by_admin"].items()
        assert admin.startswith("admin_")
        assert list(row)[:2] == ["total_corrections", "avg_satisfaction"]

    def test_of_nothing(self, service: MetricsService) -> None:
        found = service.get_dashboard_data()
        assert found["overview"] == {
            "total_requests": 0,
            "avg_total_processing_time_ms": None,
            "overall_success_rate": None,
            "total_corrections": 0,
            "total_sessions": 0,
        }
        assert found["processing_by_stage"] == found["system_metrics"] == {}
        assert found["corrections"] == {"by_type": {}, "by_admin": {}}
        assert (found["alerts"], found["bottleneck"]) == ([], None)
        assert service.get_admin_performance()["admins"] == {}

    def test_stages_come_in_the_order_of_the_workflow(self, service: MetricsService) -> None:
        for stage in ["zzz", "aaa", *reversed(ProcessingStage)]:
            with service.timer("s", 1, 2, stage):
                pass
        assert list(service.get_dashboard_data()["processing_by_stage"]) == [*ProcessingStage, "aaa", "zzz"]

    @pytest.mark.parametrize("hours", [0, -1, math.nan, math.inf, True, "24", 1e9, None])
    def test_hours_that_make_no_sense(self, service: MetricsService, hours: Any) -> None:
        with pytest.raises(ValueError, match="hours"):
            service.get_dashboard_data(hours)

    @pytest.mark.parametrize("days", [0, -1, 367, 1.5, True, "7", None])
    def test_days_that_make_no_sense(self, service: MetricsService, days: Any) -> None:
        with pytest.raises(ValueError, match="days"):
            service.get_admin_performance(days)

    def test_in_a_thread_beside_an_event_loop(self, service: MetricsService) -> None:
        service.create_session(1, 2)
        found = asyncio.run(asyncio.to_thread(service.get_dashboard_data))
        assert found["overview"]["total_sessions"] == 1


EVENTS = st.one_of(
    st.fixed_dictionaries(
        {
            "is": st.just("timing"),
            "stage": st.sampled_from(STAGES),
            "ms": st.integers(0, 10**7),
            "success": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {
            "is": st.just("correction"),
            "kind": st.sampled_from(TYPES),
            "admin": st.sampled_from([1, 2, None]),
            "ms": st.integers(0, 10**6),
            "rating": st.none() | st.integers(1, 5),
            "voice": st.none() | st.integers(0, 5000),
            "texts": st.tuples(st.text("ab", max_size=5), st.text("ab", max_size=5)),
        }
    ),
    st.just({"is": "session"}),
    st.fixed_dictionaries({"is": st.just("system"), "value": st.integers(-5, 5)}),
    st.fixed_dictionaries({"is": st.just("pause"), "seconds": st.sampled_from([1, 1800, 3600])}),
)


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def oracle(events: list[Event], name: Callable[[int], str]) -> Event:
    """The dashboard of these events, without a store."""
    timings = [event for event in events if event["is"] == "timing"]
    corrections = [event for event in events if event["is"] == "correction"]
    sessions = sum(event["is"] == "session" for event in events)
    requests = sum(event["stage"] == "query_received" for event in timings) or sessions

    def rate(own: list[Event]) -> float | None:
        return mean([100.0 * event["success"] for event in own])

    def where(rows: list[Event], key: str) -> dict[Any, list[Event]]:
        return {value: [row for row in rows if row[key] == value] for value in {row[key] for row in rows} - {None}}

    stages = where(timings, "stage")
    totals = {stage: sum(row["ms"] for row in own) for stage, own in stages.items()}
    values = [event["value"] for event in events if event["is"] == "system"]
    return {
        "overview": {
            "total_requests": requests,
            "avg_total_processing_time_ms": sum(row["ms"] for row in timings) / requests if requests else None,
            "overall_success_rate": rate(timings),
            "total_corrections": len(corrections),
            "total_sessions": sessions,
        },
        "processing_by_stage": {
            stage: {
                "avg_duration_ms": mean([row["ms"] for row in own]),
                "success_rate": rate(own),
                "total_count": len(own),
                "max_duration_ms": max(row["ms"] for row in own),
            }
            for stage, own in stages.items()
        },
        "by_type": {
            kind: {
                "total_count": len(own),
                "avg_processing_time_ms": mean([row["ms"] for row in own]),
                "avg_satisfaction": mean([row["rating"] for row in own if row["rating"] is not None]),
                "avg_voice_transcription_time_ms": mean([row["voice"] for row in own if row["voice"] is not None]),
                "avg_ai_correction_time_ms": None,
                "avg_similarity": mean([difference(*row["texts"]).similarity for row in own]),
                "avg_retry_count": 0.0,
            }
            for kind, own in where(corrections, "kind").items()
        },
        "by_admin": {
            name(admin): {
                "total_corrections": len(own),
                "avg_satisfaction": mean([row["rating"] for row in own if row["rating"] is not None]),
                "avg_processing_time_ms": mean([row["ms"] for row in own]),
                "label": None,
            }
            for admin, own in where(corrections, "admin").items()
        },
        "share_of_time": 100 * max(totals.values()) / sum(totals.values()) if sum(totals.values()) else None,
        "system_metrics": {"queue": {"last": values[-1], "avg": mean(values), "max": max(values), "count": len(values)}}
        if values
        else {},
    }


def play(service: MetricsService, clock: ManualClock, event: Event) -> None:
    match event["is"]:
        case "timing":
            timing = service.timer("s", 1, 2, event["stage"]).start()
            clock.advance(event["ms"] / 1e3)
            timing.stop(event["success"])
        case "correction":
            service.record_correction(
                "s",
                event["admin"],
                1,
                event["kind"],
                event["texts"][0],
                event["texts"][1],
                event["ms"],
                voice_transcription_time_ms=event["voice"],
                admin_satisfaction=event["rating"],
            )
        case "session":
            service.create_session(1, 2)
        case "system":
            clock.advance(0.001)  # the newest is the last one
            service.record_system_metric("queue", event["value"])
        case "pause":
            clock.advance(event["seconds"])


@settings(max_examples=25, deadline=None)
@given(st.lists(EVENTS, max_size=25), st.sampled_from([1, 2.5, 10_000]), st.booleans())
def test_every_number_is_that_of_the_oracle(events: list[Event], hours: float, shipped: bool) -> None:
    clock = ManualClock()
    times = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "metrics"
        with recording(folder, clock=clock) as metrics:
            service = MetricsService(metrics, pseudonym_key="a secret")
            for number, event in enumerate(events):
                play(service, clock, event)
                times.append(clock.time_ns())
                if shipped and number == len(events) // 2:
                    ship(folder)
            now = clock.time_ns() + 1
            with tallymark.open(str(folder)) as reader:
                found = dashboard(reader, hours, now=now)
    since = now - int(hours * 3_600_000_000_000)
    inside = [event for event, when in zip(events, times, strict=True) if when >= since]
    expected = oracle(inside, lambda admin: service.pseudonym("admin", admin))
    corrections, bottleneck = found["corrections"], found["bottleneck"]
    for row in found["processing_by_stage"].values():
        assert 0 <= row.pop("p95_duration_ms") <= row["max_duration_ms"]
    same(found["overview"], expected["overview"])
    same(found["processing_by_stage"], expected["processing_by_stage"])
    same(corrections["by_type"], expected["by_type"])
    same(corrections["by_admin"], expected["by_admin"])
    same(bottleneck and bottleneck["share_of_time"], expected["share_of_time"])
    same(found["system_metrics"], expected["system_metrics"])
    assert found["alerts"] == performance_alerts(found)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=1e-9)


DOCUMENT: Event = {
    "overview": {"total_requests": 1000, "total_corrections": 352},
    "processing_by_stage": {
        "query_received": {"avg_duration_ms": 45.2},
        "ai_processing": {"avg_duration_ms": 12000.0},
    },
}


class TestAlerts:
    def test_they_are_worded_as_in_the_interface_documents(self) -> None:
        assert performance_alerts(DOCUMENT) == [
            {
                "type": "slow_processing",
                "severity": "warning",
                "message": "Slow processing detected in ai_processing: 12000ms average",
                "stage": "ai_processing",
            },
            {
                "type": "high_correction_rate",
                "severity": "warning",
                "message": "High correction rate detected: 35.2%",
                "correction_rate": 35.2,
            },
        ]

    def test_a_threshold_has_to_be_passed(self) -> None:
        assert performance_alerts(DOCUMENT, 12_000, 35.2) == []
        assert [alert["severity"] for alert in performance_alerts(DOCUMENT, 6_000, 17.6)] == ["critical"] * 2
        assert [alert["severity"] for alert in performance_alerts(DOCUMENT, 6_001, 17.7)] == ["warning"] * 2

    def test_the_slowest_comes_first(self) -> None:
        stages = [alert.get("stage") for alert in performance_alerts(DOCUMENT, 1, 100)]
        assert stages == ["ai_processing", "query_received"]

    def test_where_nothing_is_known_nothing_is_wrong(self) -> None:
        nothing = {"overview": {"total_requests": 0, "total_corrections": 5}, "processing_by_stage": {}}
        assert performance_alerts(nothing) == []

    def test_the_thresholds_of_a_service(self, metrics: Metrics, clock: ManualClock) -> None:
        service = MetricsService(metrics, slow_stage_ms=10, correction_rate_percent=100)
        with service.timer("s", 1, 2, ProcessingStage.QUERY_RECEIVED):
            clock.advance(0.011)
        correct(service)
        with tallymark.open(metrics.store) as reader:
            found = dashboard(
                reader,
                now=clock.time_ns() + 1,
                slow_stage_ms=service.slow_stage_ms,
                correction_rate_percent=service.correction_rate_percent,
            )
        assert [alert["type"] for alert in found["alerts"]] == ["slow_processing"]


class TestBottleneck:
    def test_it_is_where_the_time_goes_and_not_the_slowest(self, service: MetricsService, clock: ManualClock) -> None:
        for stage, seconds, times in (("rare", 5, 1), ("often", 1, 15)):
            for _ in range(times):
                with service.timer("s", 1, 2, stage):
                    clock.advance(seconds)
        with tallymark.open(service.metrics.store) as reader:
            found = dashboard(reader, now=clock.time_ns() + 1)
        assert found["bottleneck"] == {"stage": "often", "avg_duration_ms": 1000.0, "share_of_time": 75.0}


class TestNumbersThatOthersRecorded:
    """Anybody may record under these names, by way of the API too."""

    @pytest.mark.parametrize("value", [1e308, -1e308])
    def test_what_leaves_the_range_of_numbers(self, service: MetricsService, value: float) -> None:
        for kind in ("processing", "correction", "system_metric"):
            for _ in range(3):
                service.metrics.record(kind, "x", value, "ms", metadata={"admin": "x", "admin_satisfaction": value})
        found = service.get_dashboard_data()
        assert found["processing_by_stage"]["x"]["avg_duration_ms"] is None
        assert found["overview"]["overall_success_rate"] is None
        assert service.get_admin_performance()["admins"]["x"]["total_corrections"] == 3

    def test_what_is_no_number(self, service: MetricsService) -> None:
        for rating in ("nan", "inf", "a word", [1], {"a": 1}, None, True):
            service.metrics.record("correction", "x", 1.0, metadata={"admin": [1], "admin_satisfaction": rating})
        service.metrics.record("admin_label", "label", 1.0, metadata={"admin": None})
        by_admin = service.get_dashboard_data()["corrections"]["by_admin"]
        assert by_admin["[1]"]["avg_satisfaction"] is None
        assert by_admin["[1]"]["total_corrections"] == 7


class TestAdminPerformance:
    def work(self, service: MetricsService, clock: ManualClock, days: int, change: float) -> None:
        """So many days until now, on each of which admin 1 gets that much slower and admin 2 does as ever."""
        clock.set((clock.time_ns() // DAY_NS - days) * DAY_NS + DAY_NS // 2)
        for day in range(days):
            clock.advance(86_400)
            for part in (-1, 1):
                correct(service, 1, 10_000 + day * change + part, admin_satisfaction=1 + day * 4 // days)
                correct(service, 2, 10_000 + (day % 2) * 500, admin_satisfaction=3)

    def found(self, service: MetricsService, clock: ManualClock, days: int) -> Event:
        with tallymark.open(service.metrics.store) as reader:
            return admin_performance(reader, days, now=clock.time_ns() + 1)

    @pytest.mark.parametrize(("change", "direction"), [(200, "declining"), (-200, "improving"), (0, "steady")])
    def test_directions(self, service: MetricsService, clock: ManualClock, change: float, direction: str) -> None:
        self.work(service, clock, 14, change)
        found = self.found(service, clock, 14)
        first = found["admins"][service.pseudonym("admin", 1)]
        second = found["admins"][service.pseudonym("admin", 2)]
        assert (first["total_corrections"], first["corrections_per_day"]) == (28, 2.0)
        assert first["avg_processing_time_ms"] == pytest.approx(10_000 + 6.5 * change)
        assert first["speed"]["direction"] == direction
        assert first["speed"]["slope_per_day"] == pytest.approx(change)
        assert first["satisfaction"]["direction"] == "improving"
        assert (second["speed"]["direction"], second["satisfaction"]["direction"]) == ("steady", "steady")
        assert (second["avg_satisfaction"], second["rated_corrections"]) == (3.0, 28)
        assert found["team"]["total_corrections"] == 56
        assert found["period"]["window"] == "day"

    def test_weeks_beyond_sixty_days(self, service: MetricsService, clock: ManualClock) -> None:
        self.work(service, clock, 70, 10)
        found = self.found(service, clock, 70)
        speed = found["admins"][service.pseudonym("admin", 1)]["speed"]
        assert found["period"]["window"] == "week"
        assert 10 <= speed["points"] <= 11
        assert speed["direction"] == "declining"

    def test_too_few_days_to_tell(self, service: MetricsService, clock: ManualClock) -> None:
        self.work(service, clock, 4, 1000)
        speed = self.found(service, clock, 28)["admins"][service.pseudonym("admin", 1)]["speed"]
        assert (speed["direction"], speed["p_value"], speed["points"]) == (None, None, 4)
        assert speed["slope_per_day"] == pytest.approx(1000)


class TestTrend:
    def test_against_the_definition(self) -> None:
        # S = 15 - 0, Var = 6 * 5 * 17 / 18; z = 14 / sqrt(28.333) = 2.6301, p = 0.008535
        found = trend([(day, day * 2.0) for day in range(6)], better="higher")
        assert found == {
            "direction": "improving",
            "slope_per_day": 2.0,
            "p_value": pytest.approx(0.008535, abs=1e-6),
            "points": 6,
        }

    def test_one_day_out_of_line_makes_no_trend(self) -> None:
        values = [5.0, 5.1, 4.9, 5.0, 5.1, 4.9, 5.0, 900.0]
        assert trend(list(enumerate(values)), better="lower")["direction"] == "steady"

    def test_days_without_work_count_as_time(self) -> None:
        assert trend([(0, 0), (1, 1), (10, 10)], better="higher")["slope_per_day"] == 1.0

    def test_no_change_at_all(self) -> None:
        assert trend([(day, 3.0) for day in range(10)], better="lower")["p_value"] == 1.0

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=12))
    def test_any_numbers(self, values: list[float]) -> None:
        found = trend(list(enumerate(values)), better="lower")
        assert found["slope_per_day"] is None or math.isfinite(found["slope_per_day"])
        assert found["p_value"] is None or 0 <= found["p_value"] <= 1
        falling = trend(list(enumerate(values)), better="higher")
        swapped = {"improving": "declining", "declining": "improving"}
        assert falling["direction"] == swapped.get(found["direction"], found["direction"])


LIGHT = """
import sys
from tallymark import Metrics
from tallymark.review import CorrectionType, MetricsService, ProcessingStage

with Metrics(sys.argv[1]) as metrics:
    service = MetricsService(metrics)
    session_id = service.create_session(1, 2)
    with service.timer(session_id, 1, 2, ProcessingStage.AI_PROCESSING):
        pass
    service.record_correction(session_id, 1, 2, CorrectionType.REJECTION, "a", "b", 5)
    heavy = {"numpy", "pyarrow", "duckdb", "deltalake", "pydantic", "typer", "rich", "asyncio", "statistics"}
    assert not (found := heavy & set(sys.modules)), found
"""


def test_recording_loads_nothing_heavy(folder: Path) -> None:
    output(python("-c", LIGHT, str(folder)), 120)
