"""Runs of pipelines: what is written to files, to the log and to people."""

import json
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tallymark.pipeline import PipelineRun
from tallymark.pipeline.runs import read_file

HOSTILE = "\x1b]0;owned\x07\x7f\u202e\n名前 \ud83d"


@pytest.fixture
def run() -> PipelineRun:
    return PipelineRun()


class TestExport:
    def test_the_document(self, run: PipelineRun, tmp_path: Path) -> None:
        for _ in range(4):
            run.record_stage("fetch", 0.25)
        run.record_cache("sender_cache", 800, 200, 10, 5 * 2**20)
        run.record_resources(55, 1024, 100, 50)
        path = tmp_path / "monitoring" / "deep" / "metrics_123.json"
        run.export_json(path)
        document = json.loads(path.read_text("utf-8"))
        assert list(document) == ["start_time", "duration_s", "stages", "resources", "caches"]
        started = datetime.fromisoformat(document["start_time"])
        assert started.tzinfo is None
        assert len(document["start_time"]) == len("2025-01-21T15:30:00.123456")
        assert abs((datetime.now(UTC).replace(tzinfo=None) - started).total_seconds()) < 600
        assert isinstance(document["duration_s"], float)
        assert list(document["stages"]["fetch"].items()) == [
            ("count", 4),
            ("total_duration_s", 1.0),
            ("avg_duration_s", 0.25),
            ("min_duration_s", 0.25),
            ("max_duration_s", 0.25),
            ("throughput_per_s", 4.0),
            ("errors", 0),
        ]
        assert list(document["resources"].items()) == [
            ("avg_cpu_percent", 55.0),
            ("avg_memory_mb", 1024.0),
            ("avg_disk_io_mb", 100.0),
            ("avg_network_io_mb", 50.0),
            ("cpu_samples", 1),
            ("memory_samples", 1),
        ]
        assert list(document["caches"]["sender_cache"].items()) == [
            ("hits", 800),
            ("misses", 200),
            ("hit_rate_pct", 80.0),
            ("evictions", 10),
            ("size_mb", 5.0),
        ]

    def test_a_run_that_did_nothing(self, run: PipelineRun, tmp_path: Path) -> None:
        run.export_json(str(tmp_path / "m.json"))
        document = json.loads((tmp_path / "m.json").read_text())
        assert (document["stages"], document["caches"]) == ({}, {})
        assert document["resources"]["avg_cpu_percent"] == 0.0
        assert read_file(tmp_path / "m.json").stages == {}

    def test_nothing_is_rounded(self, run: PipelineRun, tmp_path: Path) -> None:
        run.record_stage("fetch", 1 / 3)
        run.record_stage("fetch", 1e-300)
        run.export_json(tmp_path / "m.json")
        stage = json.loads((tmp_path / "m.json").read_text())["stages"]["fetch"]
        assert (stage["max_duration_s"], stage["min_duration_s"]) == (1 / 3, 1e-300)
        assert read_file(tmp_path / "m.json").stages == run.stages

    def test_hostile_names_come_back_and_no_terminal_obeys_them(self, run: PipelineRun, tmp_path: Path) -> None:
        run.record_stage(HOSTILE, 1.0)
        run.record_cache(HOSTILE, 1, 1)
        path = tmp_path / "m.json"
        run.export_json(path)
        text = path.read_text("ascii")
        assert text.replace("\n", "").isprintable()
        assert list(json.loads(text)["stages"]) == [HOSTILE.replace("\ud83d", "\ufffd")]

    def test_it_replaces_a_file_at_once(self, run: PipelineRun, tmp_path: Path) -> None:
        path = tmp_path / "m.json"
        run.export_json(path)
        before = path.stat().st_ino
        with path.open() as old:
            run.record_stage("fetch", 1.0)
            run.export_json(path)
            assert json.load(old)["stages"] == {}
        assert path.stat().st_ino != before
        assert os.listdir(tmp_path) == ["m.json"]
        umask = os.umask(0o022)
        os.umask(umask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def test_a_file_that_cannot_be_written(self, run: PipelineRun, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(OSError, match="file"):
            run.export_json(tmp_path / "file" / "m.json")
        (tmp_path / "folder").mkdir()
        with pytest.raises(IsADirectoryError):
            run.export_json(tmp_path / "folder")
        assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


class TestSummaries:
    def test_the_log(self, run: PipelineRun, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(3):
            run.record_stage("fetch", 0.05)
        run.record_stage("a\nb\x1b[2J", 0.05)
        run.record_resources(55.04, 1024.0)
        run.record_cache("sender_cache", 800, 200)
        caplog.set_level(logging.INFO, "tallymark.pipeline")
        run.log_summary()
        assert [record.message for record in caplog.records] == [
            "📊 === Performance Metrics ===",
            "  fetch: 20.0 ops/s (avg: 50.0ms)",
            "  a\\nb\\x1b[2J: 20.0 ops/s (avg: 50.0ms)",
            "  CPU: 55.0%",
            "  Memory: 1024.0 MB",
            "  sender_cache: 80.0% hit rate (800 hits, 200 misses)",
            "  Bottleneck: fetch (75.0% of the time of all stages)",
        ]

    def test_the_log_of_the_caller(self, run: PipelineRun, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "exporter")
        run.log_summary(logging.getLogger("exporter"))
        assert {record.name for record in caplog.records} == {"exporter"}
        assert len(caplog.records) == 3

    def test_the_table(self, run: PipelineRun, capsys: pytest.CaptureFixture[str]) -> None:
        run.record_stage("fetch", 0.75)
        run.record_stage("[red]\x1b[2J", 0.25, error=True)
        run.record_cache("sender_cache", 4, 1)
        run.record_resources(55, 1024, 100, 50)
        run.print_summary()
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        assert "[red]\\x1b[2J" in printed
        assert "bottleneck  fetch, 75% of the time of all stages" in printed
        assert "CPU 55.0 %" in printed
        assert "sender_cache" in printed

    def test_the_table_of_nothing(self, run: PipelineRun, capsys: pytest.CaptureFixture[str]) -> None:
        run.print_summary()
        assert capsys.readouterr().out.startswith("no stage ran\n")
