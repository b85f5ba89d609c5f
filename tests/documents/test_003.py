"""The samples of the interface document 003, "Enhanced Metrics System".

Changed are the imports; ``sender_cache``, ``telegram_manager`` and ``config`` are small classes of the test that stand
for the application's own. Where a sample has an ellipsis in place of code, a line of work stands there. The document's
own implementation and its unit tests are not shown in it; what its "Tests cover" lists is in
``tests/test_pipeline.py``, ``tests/test_pipeline_output.py`` and ``tests/test_resource_monitor.py``.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recording import live, recording

from tallymark.default import set_default
from tallymark.pipeline import MetricsCollector, PipelineRun, ResourceMonitor, get_metrics_collector
from tallymark.pipeline import run as pipeline

logger = logging.getLogger("exporter")

STATISTICS = {"hits": 800, "misses": 200, "evictions": 10, "size_bytes": 5 * 2**20}


@pytest.fixture(autouse=True)
def collector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no collector yet."""
    monkeypatch.setattr(pipeline, "_collectors", {})
    with recording(folder, service="exporter") as metrics:
        set_default(metrics)
        yield
        for each in pipeline._collectors.values():
            each.finish()
        set_default(None)


def test_stage_recording(folder: Path) -> None:
    # Data Flow, 1. Stage Recording
    metrics = get_metrics_collector()

    start = time.time()
    # ... do work ...
    duration = time.time() - start

    metrics.record_stage("fetch", duration, error=False)

    assert metrics.stages["fetch"].count == 1
    assert metrics is get_metrics_collector()
    (row,) = live(folder)
    assert (row["metric_type"], row["name"], row["value"], row["unit"]) == ("stage", "fetch", duration * 1000, "ms")


def test_resource_sampling() -> None:
    async def main() -> None:
        # Data Flow, 2. Resource Sampling
        monitor = ResourceMonitor(interval_s=5.0)
        await monitor.start()
        # ... monitor runs in background ...
        await asyncio.sleep(0.15)
        await monitor.stop()

    asyncio.run(main())
    assert get_metrics_collector().resources.memory_samples == 1


def test_cache_metrics() -> None:
    metrics = get_metrics_collector()
    sender_cache = SimpleNamespace(get_metrics=lambda: STATISTICS)

    # Data Flow, 3. Cache Metrics
    cache_stats = sender_cache.get_metrics()
    metrics.record_cache(
        "sender_cache",
        hits=cache_stats["hits"],
        misses=cache_stats["misses"],
        evictions=cache_stats["evictions"],
        size_bytes=cache_stats["size_bytes"],
    )

    assert metrics.caches["sender_cache"].hit_rate_pct == 80.0


# JSON Output Format: the document, its ellipses filled in.
DOCUMENT = """
{
  "start_time": "2025-01-21T15:30:00.123456",
  "duration_s": 120.5,
  "stages": {
    "fetch": {
      "count": 1000,
      "total_duration_s": 50.0,
      "avg_duration_s": 0.05,
      "min_duration_s": 0.01,
      "max_duration_s": 0.2,
      "throughput_per_s": 20.0,
      "errors": 0
    }
  },
  "resources": {
    "avg_cpu_percent": 55.0,
    "avg_memory_mb": 1024.0,
    "avg_disk_io_mb": 100.0,
    "avg_network_io_mb": 50.0,
    "cpu_samples": 24,
    "memory_samples": 24
  },
  "caches": {
    "sender_cache": {
      "hits": 800,
      "misses": 200,
      "hit_rate_pct": 80.0,
      "evictions": 10,
      "size_mb": 5.0
    }
  }
}
"""


def shape(value: Any) -> Any:
    """The keys of a document in their order, and the types of what they hold."""
    return [(key, shape(item)) for key, item in value.items()] if isinstance(value, dict) else type(value)


def test_export_to_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = get_metrics_collector()
    # 1,000 passes that take 50 s in all, 0.01 s at least and 0.2 s at most
    for duration in [0.01, 0.2] + [49.79 / 998] * 998:
        metrics.record_stage("fetch", duration)
    for _ in range(24):
        metrics.record_resources(55, 1024, 100, 50)
    metrics.record_cache("sender_cache", **STATISTICS)

    # Data Flow, 4. Export to JSON
    metrics.export_json(Path("monitoring/metrics_123.json"))

    written = json.loads(Path("monitoring/metrics_123.json").read_text())
    expected = json.loads(DOCUMENT)
    assert shape(written) == shape(expected)
    assert written["stages"]["fetch"] == pytest.approx(expected["stages"]["fetch"], rel=1e-12)
    assert written["resources"] == expected["resources"]
    assert written["caches"] == expected["caches"]


class Exporter:
    """Integration Plan, Step 1: Integrate into Exporter."""

    def __init__(self, folder: Path) -> None:
        self.telegram_manager = SimpleNamespace(
            get_sender_cache_metrics=lambda: STATISTICS, fetch_messages=self.fetch_messages
        )
        self.config = SimpleNamespace(monitoring_path=folder / "monitoring")
        self.fetched = 0

    async def fetch_messages(self) -> list[str]:
        await asyncio.sleep(0)
        self.fetched += 1
        if self.fetched > 100:
            raise EOFError
        return ["message"]

    async def run_export(self, entity_id: int) -> None:
        """Export with metrics collection."""
        metrics = get_metrics_collector()
        resource_monitor = ResourceMonitor(interval_s=5.0)

        try:
            await resource_monitor.start()

            # ... existing export logic ...
            await self._fetcher()

        finally:
            await resource_monitor.stop()

            # Record cache metrics
            sender_stats = self.telegram_manager.get_sender_cache_metrics()
            metrics.record_cache(
                "sender_cache",
                hits=sender_stats["hits"],
                misses=sender_stats["misses"],
                evictions=sender_stats["evictions"],
                size_bytes=sender_stats["size_bytes"],
            )

            # Export metrics
            metrics_path = self.config.monitoring_path / f"metrics_{entity_id}.json"
            metrics.export_json(metrics_path)

            # Log summary
            self._log_metrics_summary(metrics)

    # Integration Plan, Step 2: Integrate into AsyncPipeline
    async def _fetcher(self) -> None:
        metrics = get_metrics_collector()

        while True:
            start = time.time()
            try:
                messages = await self.telegram_manager.fetch_messages()
                # ... rest of fetcher ...
                assert messages
            finally:
                duration = time.time() - start
                metrics.record_stage("fetch", duration)

    # Integration Plan, Step 3: Add Metrics Logging
    def _log_metrics_summary(self, metrics: MetricsCollector) -> None:
        """Log metrics summary to console."""
        logger.info("📊 === Performance Metrics ===")

        for stage_name, stage in metrics.stages.items():
            logger.info(
                f"  {stage_name}: {stage.throughput_per_s:.1f} ops/s (avg: {stage.avg_duration_s * 1000:.1f}ms)"
            )

        logger.info(f"  CPU: {metrics.resources.avg_cpu_percent:.1f}%")
        logger.info(f"  Memory: {metrics.resources.avg_memory_mb:.1f} MB")

        for cache_name, cache in metrics.caches.items():
            logger.info(
                f"  {cache_name}: {cache.hit_rate_pct:.1f}% hit rate ({cache.hits} hits, {cache.misses} misses)"
            )


def test_the_integration_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exporter = Exporter(tmp_path)
    with pytest.raises(EOFError):  # how this one ends
        asyncio.run(exporter.run_export(123))
    document = json.loads((tmp_path / "monitoring" / "metrics_123.json").read_text())
    assert document["stages"]["fetch"]["count"] == 101
    assert document["caches"]["sender_cache"]["size_mb"] == 5.0
    said = [record.message for record in caplog.records if record.name == "exporter"]
    assert said[0] == "📊 === Performance Metrics ==="
    assert said[-1] == "  sender_cache: 80.0% hit rate (800 hits, 200 misses)"

    # and what log_summary() says is the same, and names the bottleneck
    caplog.clear()
    get_metrics_collector().log_summary()
    assert [record.message for record in caplog.records][:-1] == said
    assert caplog.records[-1].message.startswith("  Bottleneck: fetch (100.0%")


def test_the_example_of_the_throughput() -> None:
    """1,000 items in 50 s are 20 a second."""
    run = PipelineRun()
    for _ in range(1000):
        run.record_stage("fetch", 0.05)
    assert run.stages["fetch"].throughput_per_s == pytest.approx(20.0)
