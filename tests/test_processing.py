"""Times, success rates and queues of operations."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from recording import live, recording, stored

from tallymark import Metrics
from tallymark.processing import MetricsCollector, track_processing_time, track_success_rate
from tallymark.testing import ManualClock


def rows(folder: Path) -> list[tuple[str, str, str, float, str]]:
    return [(row["service"], row["metric_type"], row["name"], row["value"], row["unit"]) for row in live(folder)]


@pytest.mark.parametrize("service", [None, "shop", "other"])
def test_processing_time(folder: Path, service: str | None) -> None:
    clock = ManualClock()
    with recording(folder, service="shop", clock=clock) as metrics:
        collector = MetricsCollector(metrics, service)

        async def main() -> None:
            async with collector.track_operation("download", metadata={"job_id": 123}) as timing:
                await asyncio.sleep(0)
                clock.advance(1.5)
                timing.metadata["pages"] = 7

        asyncio.run(main())
        with pytest.raises(ZeroDivisionError), collector.track_operation("upload"):
            raise ZeroDivisionError("by zero")
        assert rows(folder) == [
            (service or "shop", "processing_time", "download_time", 1500.0, "ms"),
            (service or "shop", "processing_time", "upload_time", 0.0, "ms"),
        ]
        download, upload = live(folder)
        assert (download["success"], json.loads(download["metadata"])) == (True, {"job_id": 123, "pages": 7})
        assert (upload["success"], upload["error"]) == (False, "ZeroDivisionError: by zero")


def test_the_functions(metrics: Metrics, folder: Path) -> None:
    with track_processing_time(metrics, "download", metadata={"job_id": 123}):
        pass

    async def main() -> None:
        async with track_processing_time(metrics, "validation"):
            pass
        await track_success_rate(metrics, "download", 80, 100, {"job_id": 123})

    asyncio.run(main())
    track_success_rate(metrics, "validation", 0, 3)
    found = rows(folder)
    assert [row[1:3] for row in found] == [
        ("processing_time", "download_time"),
        ("processing_time", "validation_time"),
        ("success_rate", "download_success_rate"),
        ("success_rate", "validation_success_rate"),
    ]
    assert [row[3:] for row in found[2:]] == [(80.0, "%"), (0.0, "%")]
    assert json.loads(live(folder)[2]["metadata"]) == {
        "job_id": 123,
        "operation": "download",
        "success_count": 80,
        "total_count": 100,
    }


def test_of_no_attempts_there_is_no_rate(metrics: Metrics, folder: Path) -> None:
    track_success_rate(metrics, "download", 0, 0)
    assert live(folder) == []


@pytest.mark.parametrize(
    ("operation", "successes", "total", "metadata", "named"),
    [
        ("download", 5, 4, None, "success_count"),
        ("download", 1, 0, None, "success_count"),
        ("download", -1, 4, None, "success_count"),
        ("download", 1, -4, None, "total_count"),
        ("download", 1.5, 4, None, "success_count"),
        ("download", 1, math.nan, None, "total_count"),
        ("download", True, 1, None, "success_count"),
        ("download", 1, 10**30, None, "total_count"),
        ("download", "1", 1, None, "success_count"),
        ("", 1, 1, None, "operation"),
        (None, 1, 1, None, "operation"),
        ("x" * 195, 1, 1, None, "operation"),
        ("download", 1, 1, {"email": "ada@example.org"}, "email"),
        ("download", 1, 1, ["a"], "metadata"),
    ],
)
def test_rates_that_are_none(
    metrics: Metrics, folder: Path, operation: Any, successes: Any, total: Any, metadata: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=named) as refused:
        track_success_rate(metrics, operation, successes, total, metadata)
    assert "example.org" not in str(refused.value)
    assert live(folder) == []


@pytest.mark.parametrize("service", [None, "other"])
@pytest.mark.parametrize(
    ("operation", "metadata", "named"),
    [("", None, "operation"), ("x", {"a": {1, 2}}, "metadata"), (5, None, "operation")],
)
def test_what_is_wrong_is_said_before_the_block_runs(
    metrics: Metrics, service: str | None, operation: Any, metadata: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        MetricsCollector(metrics, service).track_operation(operation, metadata)


@pytest.mark.parametrize("service", ["shop", "other"])
def test_metadata_that_goes_wrong_in_the_block_does_not_fail_it(metrics: Metrics, folder: Path, service: str) -> None:
    with MetricsCollector(metrics, service).track_operation("download") as timing:
        timing.metadata["bad"] = object()
    assert live(folder) == []
    assert metrics.get_stats().dropped == {"invalid": 1}


@pytest.mark.parametrize("service", [None, "other"])
def test_queues(metrics: Metrics, folder: Path, service: str | None) -> None:
    async def main() -> None:
        collector = MetricsCollector(metrics, service_name=service)
        await collector.record_queue_depth("celery", depth=5, wait_time_seconds=2.5)
        await collector.record_queue_depth("mail", 0)
        await collector.flush()

    asyncio.run(main())
    assert [
        (record.service, record.metric_type, record.name, record.value, record.unit, record.metadata)
        for record in stored(folder)
    ] == [
        (service or "shop", "queue_metrics", "queue_depth", 5.0, "1", {"queue": "celery"}),
        (service or "shop", "queue_metrics", "queue_wait_time", 2.5, "s", {"queue": "celery"}),
        (service or "shop", "queue_metrics", "queue_depth", 0.0, "1", {"queue": "mail"}),
    ]
    assert metrics.get_stats().queue_size == 0


@pytest.mark.parametrize(
    ("queue", "depth", "wait", "named"),
    [
        ("", 1, None, "queue"),
        ("q", -1, None, "depth"),
        ("q", 1.5, None, "depth"),
        ("q", 1, -0.1, "wait_time_seconds"),
        ("q", 1, math.inf, "wait_time_seconds"),
    ],
)
def test_queues_that_are_none(metrics: Metrics, folder: Path, queue: Any, depth: Any, wait: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MetricsCollector(metrics).record_queue_depth(queue, depth, wait)
    assert live(folder) == []


@pytest.mark.parametrize("service", ["", "x" * 201, 5])
def test_a_service_that_is_none(metrics: Metrics, service: Any) -> None:
    with pytest.raises(ValueError, match="service_name"):
        MetricsCollector(metrics, service)
