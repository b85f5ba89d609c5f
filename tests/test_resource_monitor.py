"""Sampling what the process takes of the machine while a job runs."""

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from recording import eventually, live

from tallymark import Metrics
from tallymark.pipeline import PipelineRun, ResourceMonitor

THREAD = "tallymark-resource-monitor"


def is_sampling() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


@pytest.fixture
def run() -> PipelineRun:
    return PipelineRun()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not is_sampling()


def test_it_starts_and_stops_in_an_event_loop(run: PipelineRun) -> None:
    async def main() -> None:
        monitor = ResourceMonitor(interval_s=0.1, run=run)
        assert not is_sampling()
        await monitor.start()
        assert is_sampling()
        while run.resources.cpu_samples < 2:
            await asyncio.sleep(0.01)
        await monitor.stop()
        assert not is_sampling()

    asyncio.run(main())


def test_it_starts_and_stops_without_one(run: PipelineRun) -> None:
    monitor = ResourceMonitor(0.1, run)
    monitor.start()
    eventually(lambda: run.resources.memory_samples >= 2)
    monitor.stop()
    assert not is_sampling()
    before = run.resources
    monitor.start()
    eventually(lambda: run.resources.memory_samples > before.memory_samples)
    monitor.stop()


def test_what_it_sees(run: PipelineRun, tmp_path: Path) -> None:
    with ResourceMonitor(0.1, run):
        began = time.process_time()
        while time.process_time() - began < 0.5:  # half a second of work
            math.factorial(500)
        with (tmp_path / "file").open("wb") as file:
            file.write(os.urandom(2**20))
            os.fsync(file.fileno())
        eventually(lambda: run.resources.disk_samples > 0)
    found = run.resources
    assert 1 < found.avg_cpu_percent <= 100 * (os.cpu_count() or 1) + 10
    assert found.avg_memory_mb == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.5)
    assert found.disk_io_mb >= 0
    assert found.avg_network_io_mb >= 0
    assert found.cpu_samples == found.memory_samples


def test_a_job_that_is_shorter_than_the_interval_has_a_sample(run: PipelineRun) -> None:
    with ResourceMonitor(3600.0, run):
        began = time.monotonic()
        while time.monotonic() - began < 0.15:
            math.factorial(100)
    assert run.resources.cpu_samples == 1


def test_samples_are_recorded(metrics: Metrics, folder: Path) -> None:
    run = PipelineRun(metrics)

    async def main() -> None:
        async with ResourceMonitor(0.1, run):
            while not run.resources.cpu_samples:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    rows = live(folder)
    assert {"cpu_percent", "memory_mb"} <= {row["name"] for row in rows}
    assert {(row["metric_type"], row["session_id"]) for row in rows} == {("resource_usage", run.run_id)}


def test_a_second_start_is_only_a_warning(run: PipelineRun, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        monitor = ResourceMonitor(run=run)
        await monitor.start()
        await monitor.start()
        assert sum(thread.name == THREAD for thread in threading.enumerate()) == 1
        await monitor.stop()

    asyncio.run(main())
    (warning,) = caplog.records
    assert (warning.levelno, warning.message) == (logging.WARNING, "The resource monitor is running already")


def test_a_stop_without_a_start_is_safe(run: PipelineRun) -> None:
    monitor = ResourceMonitor(run=run)
    monitor.stop()

    async def main() -> None:
        await monitor.stop()
        await monitor.start()
        await monitor.stop()
        await monitor.stop()

    asyncio.run(main())


def test_what_cannot_be_read_is_left_out(
    run: PipelineRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system refuses, as it does in some containers."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(psutil, "net_io_counters", refuse)
    with ResourceMonitor(0.1, run):
        eventually(lambda: run.resources.cpu_samples >= 3)
    assert run.resources.network_samples == 0
    assert run.resources.memory_samples >= 3
    complaints = [record.message for record in caplog.records if "network" in record.message]
    assert len(complaints) <= 2  # once for each start
    assert complaints


def test_a_sample_that_fails_as_a_whole_does_not_end_it(
    run: PipelineRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def refuse(*arguments: Any) -> None:
        tried.append(arguments)
        raise OSError("not now")

    with monkeypatch.context() as patch, ResourceMonitor(0.1, run) as monitor:
        patch.setattr(monitor._system, "status", refuse)
        eventually(lambda: len(tried) >= 3)
        patch.undo()
        eventually(lambda: run.resources.cpu_samples > 0)
    assert [record.message for record in caplog.records] == [
        "The resource monitor goes on without a sample: OSError: not now"
    ]


@pytest.mark.parametrize("interval", [0, 0.09, -1, math.nan, math.inf, "5", None, True])
def test_an_interval_that_is_none(run: PipelineRun, interval: Any) -> None:
    with pytest.raises(ValueError, match="interval_s"):
        ResourceMonitor(interval, run)
