"""Runs of pipelines: what is collected, and what is recorded."""

import asyncio
import contextlib
import gc
import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from recording import end_alarm, in_threads, live, output, python, recording, stored

import tallymark
from tallymark import BufferFull, Metrics
from tallymark.pipeline import CacheMetrics, MetricsCollector, PipelineRun, ResourceMetrics, StageMetrics
from tallymark.pipeline.run import MAX_STAGES, OTHERS
from tallymark.pipeline.runs import list_runs
from tallymark.testing import ManualClock

HOSTILE = "\x1b]0;owned\x07\x7f\u202e\n名前 \ud83d"


@pytest.fixture
def run() -> PipelineRun:
    return PipelineRun()


class TestStages:
    def test_the_figures_of_a_stage(self, run: PipelineRun) -> None:
        for duration in [0.04] * 998 + [0.01, 0.2]:
            run.record_stage("fetch", duration)
        run.record_stage("process", 1.5, error=True)
        run.record_stage("process", 0.5)
        fetch, process = run.stages["fetch"], run.stages["process"]
        assert (fetch.count, fetch.min_duration_s, fetch.max_duration_s, fetch.errors) == (1000, 0.01, 0.2, 0)
        assert fetch.total_duration_s == pytest.approx(40.13, rel=1e-12)
        assert process == StageMetrics(2, 2.0, 0.5, 1.5, errors=1)
        assert (process.avg_duration_s, process.throughput_per_s) == (1.0, 1.0)
        assert list(run.stages) == ["fetch", "process"]

    def test_throughput_is_count_by_total_duration(self, run: PipelineRun) -> None:
        for _ in range(1000):
            run.record_stage("fetch", 0.05)
        fetch = run.stages["fetch"]
        assert fetch.total_duration_s == pytest.approx(50.0, rel=1e-14)
        assert fetch.throughput_per_s == pytest.approx(20.0, rel=1e-14)

    def test_zeros_divide_nothing(self, run: PipelineRun) -> None:
        assert (StageMetrics().avg_duration_s, StageMetrics().throughput_per_s) == (0.0, 0.0)
        assert CacheMetrics().hit_rate_pct == 0.0
        assert ResourceMetrics().avg_cpu_percent == ResourceMetrics().avg_network_io_mb == 0.0
        run.record_stage("instant", 0.0)
        assert run.stages["instant"] == StageMetrics(1)
        assert run.stages["instant"].throughput_per_s == 0.0
        assert run.bottleneck is None

    def test_the_bottleneck_and_its_share(self, run: PipelineRun) -> None:
        assert run.bottleneck is None
        run.record_stage("fetch", 0.5)
        run.record_stage("process", 1.0)
        run.record_stage("fetch", 2.5)
        assert run.bottleneck == ("fetch", 0.75)

    def test_a_block(self, folder: Path) -> None:
        clock = ManualClock()
        with recording(folder, clock=clock) as metrics:
            run = PipelineRun(metrics)
            with run.stage("write"):
                clock.advance(0.25)
            broken = ZeroDivisionError()
            with pytest.raises(ZeroDivisionError) as caught, run.stage("write"):  # noqa: PT012
                clock.advance(0.5)
                raise broken
            assert caught.value is broken
            assert run.stages["write"] == StageMetrics(2, 0.75, 0.25, 0.5, errors=1)
            assert [row["success"] for row in live(folder)] == [True, False]

    def test_an_async_block(self, run: PipelineRun) -> None:
        async def one(number: int) -> None:
            async with run.stage("fetch"):
                await asyncio.sleep(0)
                if number % 4 == 0:
                    raise asyncio.CancelledError

        async def main() -> None:
            await asyncio.gather(*map(one, range(100)), return_exceptions=True)

        asyncio.run(main())
        assert (run.stages["fetch"].count, run.stages["fetch"].errors) == (100, 25)

    @pytest.mark.parametrize("name", ["", " ", "x" * 201, 5, None, ["fetch"], b"fetch"])
    def test_a_name_that_is_none(self, run: PipelineRun, name: Any) -> None:
        with pytest.raises(ValueError, match="name"):
            run.record_stage(name, 1.0)
        with pytest.raises(ValueError, match="name"):
            run.stage(name)
        assert run.stages == {}

    @pytest.mark.parametrize("duration", [-1e-9, math.nan, math.inf, True, "1", None, 1e12, 10**400])
    def test_a_duration_that_is_none(self, run: PipelineRun, duration: Any) -> None:
        run.record_stage("fetch", 1.0)
        with pytest.raises(ValueError, match="duration_s"):
            run.record_stage("fetch", duration)
        assert run.stages["fetch"].count == 1

    @pytest.mark.parametrize("error", [None, 1, "no", ValueError()])
    def test_an_outcome_that_is_none(self, run: PipelineRun, error: Any) -> None:
        with pytest.raises(ValueError, match="error must be True or False"):
            run.record_stage("fetch", 1.0, error)
        assert run.stages == {}

    def test_integers_are_durations(self, run: PipelineRun) -> None:
        run.record_stage("fetch", 2)
        assert run.stages["fetch"] == StageMetrics(1, 2.0, 2.0, 2.0)
        assert type(run.stages["fetch"].total_duration_s) is float

    def test_memory_does_not_grow(self, run: PipelineRun) -> None:
        for number in range(20_000):
            run.record_stage("fetch", number / 1e4)
            run.record_resources(cpu=1.0)
        assert len(run._new_stages) < 1_000
        assert len(run._new_samples) < 1_000
        for number in range(2 * MAX_STAGES):
            run.record_stage(f"page {number}", 1.0)
            run.record_cache(f"cache {number}", 1, 1)
        assert len(run.stages) <= MAX_STAGES + 1
        assert run.stages[OTHERS].count > 0
        assert sum(stage.count for stage in run.stages.values()) == 20_000 + 2 * MAX_STAGES
        assert len(run.caches) <= MAX_STAGES + 1


class TestCachesAndResources:
    def test_a_cache(self, run: PipelineRun) -> None:
        run.record_cache("sender_cache", hits=1, misses=1, evictions=0, size_bytes=10)
        run.record_cache("sender_cache", hits=800, misses=200, evictions=10, size_bytes=5 * 2**20)
        cache = run.caches["sender_cache"]
        assert cache == CacheMetrics(800, 200, 10, 5 * 2**20)
        assert (cache.hit_rate_pct, cache.size_mb) == (80.0, 5.0)

    def test_averages_of_what_was_seen(self, run: PipelineRun) -> None:
        run.record_resources(50.0, 1000.0, 90.0, 40.0)
        run.record_resources(cpu=60.0, mem=1048.0, disk=110.0, net=60.0)
        run.record_resources(cpu=None, mem=1024)
        found = run.resources
        assert (found.avg_cpu_percent, found.avg_memory_mb) == (55.0, 1024.0)
        assert (found.avg_disk_io_mb, found.avg_network_io_mb) == (100.0, 50.0)
        assert (found.cpu_samples, found.memory_samples) == (2, 3)

    @pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1e16, "1", True, 10**400])
    def test_what_is_no_amount(self, run: PipelineRun, value: Any) -> None:
        with pytest.raises(ValueError, match="net"):
            run.record_resources(1.0, 1.0, 1.0, value)
        with pytest.raises(ValueError, match="misses"):
            run.record_cache("c", 1, value)
        with pytest.raises(ValueError, match="name"):
            run.record_cache("", 1, 1)
        assert run.resources == ResourceMetrics()
        assert run.caches == {}


class TestRecords:
    def test_every_call_is_a_record_of_the_run(self, metrics: Metrics, folder: Path) -> None:
        with PipelineRun(metrics, "export") as run:
            run.record_stage("fetch", 0.25)
            run.record_stage("fetch", 0.75, error=True)
            run.record_cache("sender_cache", 3, 1, 0, 10)
            run.record_resources(12.5, 100.0, None, 0.0)
        rows = live(folder)
        assert {row["session_id"] for row in rows} == {run.run_id}
        assert [(row["metric_type"], row["name"], row["value"], row["unit"], row["success"]) for row in rows[:-1]] == [
            ("stage", "fetch", 250.0, "ms", True),
            ("stage", "fetch", 750.0, "ms", False),
            ("cache", "sender_cache", 75.0, "%", None),
            ("resource_usage", "cpu_percent", 12.5, "%", None),
            ("resource_usage", "memory_mb", 100.0, "MiBy", None),
            ("resource_usage", "network_io_mb", 0.0, "MiBy", None),
        ]
        end = rows[-1]
        assert (end["metric_type"], end["name"], end["unit"], end["success"]) == ("run", "export", "ms", True)
        assert end["value"] == run.duration_s * 1000
        assert json.loads(end["metadata"]) == {
            "stages": 1,
            "items": 2,
            "errors": 1,
            "bottleneck": "fetch",
            "bottleneck_share": 1.0,
        }
        assert json.loads(rows[2]["metadata"]) == {"hits": 3, "misses": 1, "evictions": 0, "size_bytes": 10}

    def test_a_run_that_fails(self, metrics: Metrics, folder: Path) -> None:
        async def main() -> None:
            async with PipelineRun(metrics, "export", "run-7"):
                raise KeyError("x")

        with pytest.raises(KeyError):
            asyncio.run(main())
        (row,) = live(folder)
        assert (row["success"], row["error"], row["session_id"]) == (False, "KeyError: 'x'", "run-7")
        assert json.loads(row["metadata"])["bottleneck"] is None

    def test_it_finishes_once_and_the_duration_stands_still(self, folder: Path) -> None:
        clock = ManualClock()
        with recording(folder, clock=clock) as metrics:
            run = PipelineRun(metrics)
            clock.advance(2)
            run.finish()
            clock.advance(1)
            run.finish(success=False)
            assert run.duration_s == 2.0
            assert [(row["value"], row["success"]) for row in live(folder)] == [(2000.0, True)]

    def test_a_killed_run_leaves_its_stages(self, folder: Path) -> None:
        code = (
            "import os, signal, sys; from tallymark import Metrics; from tallymark.pipeline import PipelineRun\n"
            "metrics = Metrics(sys.argv[1], service='job'); metrics.start()\n"
            "run = PipelineRun(metrics, 'export', 'killed')\n"
            "run.record_stage('fetch', 1.0); run.record_stage('fetch', 2)\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        process = python("-c", code, str(folder))
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        records = stored(folder)
        assert [(record.name, record.value, record.session_id) for record in records] == [
            ("fetch", 1000.0, "killed"),
            ("fetch", 2000.0, "killed"),
        ]
        assert records[0].metadata == {"run": "export"}

    @pytest.mark.parametrize(("name", "run_id"), [("", None), ("x", ""), ("x", "y" * 129), (5, None), ("x", 5)])
    def test_names_that_are_none(self, name: Any, run_id: Any) -> None:
        with pytest.raises(ValueError, match=r"name|run_id"):
            PipelineRun(None, name, run_id)

    def test_the_place_of_a_store_is_no_recorder(self, folder: Path) -> None:
        for place in (folder, str(folder)):
            with pytest.raises(TypeError, match="metrics must be a recorder"):
                PipelineRun(place)  # type: ignore[arg-type]

    def test_a_recorder_that_has_stopped_costs_the_job_nothing(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with recording(folder) as metrics:
            run = PipelineRun(metrics)
        for _ in range(3):
            with run.stage("fetch"):
                pass
        run.record_cache("c", 1, 1)
        run.finish()
        assert run.stages["fetch"].count == 3
        assert [record.message for record in caplog.records if "no longer recorded" in record.message] == [
            "the run 'pipeline' is no longer recorded: the recorder is not running: call start(), "
            "or use it in a with block"
        ]


class TestPrivacy:
    @pytest.mark.parametrize("is_recorded", [True, False])
    def test_it_is_masked_in_whatever_is_kept(self, folder: Path, tmp_path: Path, is_recorded: bool) -> None:
        with recording(folder) as metrics:
            run = PipelineRun(metrics if is_recorded else None, "of ada@example.org", "ada@example.org")
            run.record_stage("mail ada@example.org", 1.0)
            with run.stage("mail ada@example.org"):
                pass
            run.record_cache("of ada@example.org", 1, 1)
            run.finish()
            assert (run.name, run.run_id) == ("of [email]", "[email]")
            assert run.stages["mail [email]"].count == 2
            assert list(run.caches) == ["of [email]"]
            run.export_json(tmp_path / "m.json")
            assert "example.org" not in (tmp_path / "m.json").read_text()
            rows = live(folder)
            assert {row["session_id"] for row in rows} == ({run.run_id} if is_recorded else set())
            assert "example.org" not in str(rows)

    def test_what_is_rejected_does_not_fail_the_job(self, folder: Path) -> None:
        with recording(folder, pii="reject") as metrics:
            with pytest.raises(ValueError, match="name"):
                PipelineRun(metrics, "of ada@example.org")
            run = PipelineRun(metrics, "export")
            with pytest.raises(ValueError, match="name"):
                run.record_stage("mail ada@example.org", 1.0)
            with run.stage("mail ada@example.org"):
                done = True
            with pytest.raises(KeyError), run:
                raise KeyError("ada@example.org")
            assert done
            assert run.stages == {}
            assert metrics.get_stats().dropped == {"invalid": 2}

    def test_a_recorder_that_is_switched_off(self, folder: Path, tmp_path: Path) -> None:
        with Metrics(folder, enabled=False) as metrics, PipelineRun(metrics) as run:
            with run.stage("fetch"):
                pass
            run.record_stage("fetch", "nonsense")  # type: ignore[arg-type]
            run.record_cache("c", 1, 1)
            run.record_resources(cpu=1.0)
        assert (run.stages, run.caches, run.resources) == ({}, {}, ResourceMetrics())
        assert not folder.exists()

    def test_a_generator_that_is_closed_early_has_not_failed(self, metrics: Metrics, folder: Path) -> None:
        def items() -> Generator[int, None, None]:
            with PipelineRun(metrics, "export") as run, run.stage("fetch"):
                yield 1

        with contextlib.closing(items()) as early:
            next(early)
        assert {record["metric_type"]: record["success"] for record in live(folder)} == {"stage": True, "run": True}

    def test_a_journal_that_is_full_does_not_hide_the_error_of_the_job(self, folder: Path) -> None:
        with recording(folder, max_queue_size=1, on_full="raise") as metrics:
            run = PipelineRun(metrics)
            with pytest.raises(BufferFull):  # noqa: PT012
                while True:
                    run.record_stage("fetch", 1.0)
            with pytest.raises(KeyError), run, run.stage("fetch"):
                raise KeyError


class TestThreads:
    def test_nothing_is_lost_and_every_look_is_consistent(self, run: PipelineRun, tmp_path: Path) -> None:
        """Every pass takes a quarter of a second, which floats add up exactly."""
        done = threading.Event()
        seen: list[dict[str, Any]] = []

        def look() -> None:
            while not done.is_set():
                run.export_json(tmp_path / "figures.json")
                seen.append(json.loads((tmp_path / "figures.json").read_text()))

        def work() -> None:
            for number in range(10_000):
                run.record_stage("fetch", 0.25, error=number % 4 == 0)
                run.record_stage("write", 0.25)

        looking = threading.Thread(target=look)
        looking.start()
        in_threads(work, 4)
        done.set()
        looking.join()
        assert run.stages["fetch"] == StageMetrics(40_000, 10_000.0, 0.25, 0.25, errors=10_000)
        assert run.stages["write"].count == 40_000
        assert seen
        for document in seen:
            for stage in document["stages"].values():
                assert stage["total_duration_s"] == stage["count"] * 0.25
                assert stage["errors"] <= stage["count"]
                assert stage["throughput_per_s"] == 4.0
            counts = [document["stages"].get(name, {"count": 0})["count"] for name in ("fetch", "write")]
            assert counts[1] <= counts[0] <= counts[1] + 4  # one cut through the calls of four threads

    def test_signal_handlers_may_come_in_anywhere(self, run: PipelineRun) -> None:
        handled = 0

        def handler(number: int, frame: Any) -> None:
            nonlocal handled
            handled += 1
            run.record_stage("signal", 0.25)
            assert run.stages.keys() <= {"work", "signal"}

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        try:
            for _ in range(100_000):
                run.record_stage("work", 0.25)
        finally:
            end_alarm(before)
        assert handled
        assert run.stages["work"] == StageMetrics(100_000, 25_000.0, 0.25, 0.25)
        assert run.stages["signal"].count == handled

    def test_finalisers_may_come_in_anywhere(self, run: PipelineRun) -> None:
        class Finalised:
            def __init__(self) -> None:
                self.cycle = self

            def __del__(self) -> None:
                run.record_stage("finaliser", 0.25)

        before = gc.get_threshold()
        gc.set_threshold(10)
        try:
            for _ in range(5_000):
                Finalised()
                run.record_stage("work", 0.25)
                run.stages  # noqa: B018
        finally:
            gc.set_threshold(*before)
        gc.collect()
        assert run.stages["finaliser"].count == run.stages["work"].count == 5_000

    def test_a_forked_child_goes_on_by_itself(self, folder: Path) -> None:
        code = """
import os, sys, threading
import tallymark
from tallymark import BufferFull, Metrics
from tallymark.pipeline import PipelineRun
with Metrics(sys.argv[1], service="job") as metrics:
    run = PipelineRun(metrics, "export", "forked")
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            run.record_stage("parent", 0.25)
            run.stages
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads: thread.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            for _ in range(2000):
                run.record_stage("child", 0.25)
            os._exit(0 if run.stages["child"].count == 2000 else 1)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    for thread in threads: thread.join()
    assert "child" not in run.stages
"""
        output(python("-W", "ignore::DeprecationWarning", "-c", code, str(folder)), 120)
        records = [record for record in stored(folder) if record.name == "child"]
        assert len(records) == 40_000
        assert {record.session_id for record in records} == {"forked"}


def test_the_page_about_pipelines(tmp_path: Path) -> None:
    """docs/pipelines.md: its code runs as it is written there, and its commands exist."""
    page = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=tmp_path, check=True, timeout=120)
    with tallymark.open(tmp_path / "metrics") as store:
        assert {run.name for run in list_runs(store)} == {"export", "pipeline"}
        names = {record.name for record in store.records(metric_type=("processing_time", "success_rate")).records}
        assert names == {"download_time", "download_success_rate"}
    for command in re.findall(r"^\$ tallymark (\w+ \w+)", page, re.MULTILINE):
        assert "Usage" in output(python("-m", "tallymark", *command.split(), "--help"), 120)


class TestTheCollectorOfTheProcess:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
        monkeypatch.setenv("TALLYMARK_STORE", str(folder))
        monkeypatch.setenv("TALLYMARK_SERVICE", "job")
        return iter(())

    def test_its_name_in_the_document(self) -> None:
        assert MetricsCollector is PipelineRun

    def test_there_is_one_and_it_finishes_with_the_process(self, folder: Path) -> None:
        code = """
import os, threading
from tallymark.pipeline import get_metrics_collector
found = []
threads = [threading.Thread(target=lambda: found.append(get_metrics_collector())) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len({id(each) for each in found}) == 1 and get_metrics_collector() is found[0]
get_metrics_collector().record_stage("fetch", 0.5)
if not (child := os.fork()):
    raise SystemExit
os.waitpid(child, 0)
"""
        output(python("-c", code), 120)
        records = stored(folder)
        assert [(record.metric_type, record.name, record.service) for record in records] == [
            ("stage", "fetch", "job"),
            ("run", "pipeline", "job"),
        ]
        assert len({record.session_id for record in records}) == 1

    def test_one_that_is_not_used_records_nothing(self, folder: Path) -> None:
        output(python("-c", "from tallymark.pipeline import get_metrics_collector; get_metrics_collector()"), 120)
        assert not folder.exists() or stored(folder) == []

    def test_what_does_not_use_it_does_not_load_it(self) -> None:
        code = """
import sys, threading
import tallymark
assert not [name for name in sys.modules if name.startswith("tallymark.pipeline")]
import tallymark.pipeline, tallymark.processing
run = tallymark.pipeline.PipelineRun()
with run.stage("x"): pass
assert not {"psutil", "rich", "numpy", "asyncio", "tallymark.default"} & set(sys.modules)
assert threading.active_count() == 1
"""
        output(python("-c", code))
