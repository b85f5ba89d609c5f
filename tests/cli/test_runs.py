"""``tallymark runs``, ``runs show`` and ``runs diff``, and the statistics of the last.

The commands run in this process where it makes no difference: starting a program takes a second.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import recording

import tallymark as package
from tallymark.cli import app
from tallymark.config import settings
from tallymark.pipeline import PipelineRun
from tallymark.pipeline.compare import (
    Mean,
    StageComparison,
    compare_runs,
    mean_of,
    mean_of_windows,
    ratio_interval,
    t_quantile,
)
from tallymark.pipeline.metrics import StageMetrics
from tallymark.pipeline.runs import find_run, list_runs, read_file
from tallymark.reader import Reader

from .conftest import HOSTILE, Program


@dataclass
class Done:
    """How a command ended."""

    stdout: str
    stderr: str


@dataclass
class Commands:
    """Runs ``tallymark`` in this process, as :class:`Program` does in another."""

    captured: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, code: int = 0) -> Done:
        self.captured.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(arguments, prog_name="tallymark")
        done = Done(*self.captured.readouterr())
        assert ended.value.code == code, done.stderr
        return done

    def rows(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """What a command prints as JSON, line by line."""
        return [json.loads(line) for line in self(*arguments, "--json", code=code).stdout.splitlines()]


@pytest.fixture
def tallymark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Commands]:
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield Commands(capsys)
    settings.cache_clear()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``one``, ``two`` (as fast), ``three`` (fetch takes 1.5 times as long), and ``killed``, which has no end."""
    folder = tmp_path_factory.mktemp("runs") / "metrics"
    random = np.random.default_rng(3)
    with recording(folder, service="exporter") as metrics:
        for run_id, factor in (("one", 1.0), ("two", 1.0), ("three", 1.5)):
            with PipelineRun(metrics, "export", f"run-{run_id}") as run:
                for fetch, process in random.lognormal(-3.0, 0.5, (300, 2)).tolist():
                    run.record_stage("fetch", fetch * factor)
                    run.record_stage("process", process / 2, error=process > 0.1)
                run.record_stage("commit", 0.5)
                if run_id == "three":
                    run.record_stage("upload", 1.0)
                if run_id == "one":
                    run.record_stage("check", 1.0)
                run.record_cache("senders", 8, 2, 1, 2**20)
                run.record_resources(50.0, 100.0, 2.0, 1.0)
                run.export_json(folder.parent / f"{run_id}.json")
        killed = PipelineRun(metrics, "import", "killed-run")
        killed.record_stage("read", 2.0, error=True)
        killed.record_stage("read", 3.0)
        metrics.record("workflow", "session", 1.0, session_id="no-run")
    return folder


@pytest.fixture(scope="module")
def reader(recorded: Path) -> Reader:
    return package.open(recorded)


class TestList:
    def test_the_runs_that_were_at_work_last(self, tallymark: Commands, recorded: Path) -> None:
        rows = tallymark.rows("runs", str(recorded))
        assert [row["run_id"] for row in rows] == ["killed-run", "run-three", "run-two", "run-one"]
        killed, three = rows[:2]
        assert (killed["finished"], killed["duration_s"], killed["success"]) == (False, None, None)
        assert (killed["name"], killed["services"], killed["errors"]) == ("import", ["exporter"], 1)
        assert (killed["bottleneck"], killed["bottleneck_share"]) == ("read", 1.0)
        assert (three["finished"], three["success"], three["name"], three["stage_count"]) == (True, True, "export", 4)
        assert three["bottleneck"] == "fetch"
        assert 0.5 < three["bottleneck_share"] < 1
        assert three["start_time"].endswith("Z")
        assert [row["run_id"] for row in tallymark.rows("runs", "list", str(recorded), "--limit", "2")] == [
            "killed-run",
            "run-three",
        ]

    def test_the_table(self, tallymark: Commands, recorded: Path) -> None:
        lines = tallymark("runs", str(recorded)).stdout.splitlines()
        assert lines[0].split()[:4] == ["run", "name", "service", "start"]
        assert "unfinished" in lines[1]
        assert "read 100%" in lines[1]
        assert "run-three" in lines[2]
        assert " ok " in lines[2]

    def test_since(self, tallymark: Commands, recorded: Path) -> None:
        assert len(tallymark.rows("runs", str(recorded), "--since", "now-1d")) == 4
        done = tallymark("runs", str(recorded), "--since", "now+1d")
        assert done.stdout == ""
        assert "there is no run" in done.stderr
        tallymark("runs", str(recorded), "--since", "once", code=2)

    def test_the_store_of_the_settings(
        self, tallymark: Commands, recorded: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TALLYMARK_STORE", str(recorded))
        assert len(tallymark.rows("runs")) == 4

    def test_there_is_no_store(self, tallymark: Commands) -> None:
        assert "there is no store" in tallymark("runs", "nowhere", code=1).stderr

    def test_help(self, tallymark: Commands) -> None:
        assert "diff" in tallymark("runs", "--help").stdout
        for command in ("list", "show", "diff"):
            assert "Examples" in tallymark("runs", command, "-h").stdout


class TestShow:
    def test_json(self, tallymark: Commands, recorded: Path) -> None:
        (run,) = tallymark.rows("runs", "show", "run-one", str(recorded))
        assert run["run_id"] == "run-one"
        exported = json.loads((recorded.parent / "one.json").read_text())
        assert run["stages"].keys() == exported["stages"].keys()
        for name, stage in exported["stages"].items():
            assert {key: run["stages"][name][key] for key in stage} == pytest.approx(stage, rel=1e-9)
            assert stage["min_duration_s"] <= run["stages"][name]["p50_s"] <= stage["max_duration_s"]
        assert run["resources"] == exported["resources"]
        assert run["caches"] == {
            "senders": {"hits": 8, "misses": 2, "evictions": 1, "size_bytes": 2**20, "hit_rate_pct": 80.0}
        }

    def test_the_table(self, tallymark: Commands, recorded: Path) -> None:
        done = tallymark("runs", "show", "run-one", str(recorded))
        assert "p95 ms" in done.stdout.splitlines()[0]
        assert "bottleneck  fetch" in done.stdout
        assert "senders" in done.stdout
        assert "CPU 50.0 %" in done.stdout

    def test_a_file(self, tallymark: Commands, recorded: Path) -> None:
        path = recorded.parent / "one.json"
        (run,) = tallymark.rows("runs", "show", str(path), "nowhere")
        assert run["stages"]["fetch"]["count"] == 300
        assert run["finished"]
        assert "fetch" in tallymark("runs", "show", str(path)).stdout

    def test_a_run_without_stages(self, tallymark: Commands, tmp_path: Path) -> None:
        with recording(tmp_path / "metrics") as metrics, PipelineRun(metrics, "idle", "idle"):
            pass
        assert "no stage ran" in tallymark("runs", "show", "latest").stdout
        (row,) = tallymark.rows("runs")
        assert (row["stage_count"], row["bottleneck"]) == (0, None)
        assert "neither run has a stage" in tallymark("runs", "diff", "latest", "latest").stderr


class TestNamesOfRuns:
    @pytest.mark.parametrize(
        ("text", "run_id"),
        [
            ("run-one", "run-one"),
            ("run-o", "run-one"),
            ("k", "killed-run"),
            ("latest", "killed-run"),
            ("latest~1", "run-three"),
            ("latest~3", "run-one"),
        ],
    )
    def test_found(self, reader: Reader, text: str, run_id: str) -> None:
        assert find_run(reader, text).run_id == run_id

    @pytest.mark.parametrize("text", ["", "x", "run-oneX", "latest~4", "latest~x", "no-run", HOSTILE, "x" * 5_000])
    def test_not_found(self, reader: Reader, text: str) -> None:
        with pytest.raises(package.QueryError, match="there is no run"):
            find_run(reader, text)

    def test_several(self, reader: Reader) -> None:
        with pytest.raises(package.QueryError, match="several runs begin with 'run-'"):
            find_run(reader, "run-")

    def test_an_id_that_others_begin_with(self, tmp_path: Path) -> None:
        with recording(tmp_path) as metrics:
            for run_id in ("a", "ab", "abc"):
                PipelineRun(metrics, run_id=run_id).record_stage("x", 1.0)
        with package.open(tmp_path) as reader:
            assert find_run(reader, "a").run_id == "a"
            assert find_run(reader, "ab").run_id == "ab"

    @pytest.mark.parametrize("command", [["show", "zz"], ["diff", "zz", "run-one"], ["diff", "run-one", "zz"]])
    def test_the_exit_code(self, tallymark: Commands, recorded: Path, command: list[str]) -> None:
        assert "there is no run 'zz'" in tallymark("runs", *command, str(recorded), code=2).stderr

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"stages": 5}',
            b'{"stages": {"x": {}}, "start_time": "2025-01-21T15:30:00", "duration_s": 1}',
            b'{"stages": {}, "start_time": "soon", "duration_s": 1}',
            b'{"stages": {}, "start_time": "2025-01-21T15:30:00", "duration_s": NaN}',
            b'{"stages": {}, "start_time": "2025-01-21T15:30:00", "duration_s": "1"}',
            b"[" * 100_000,
            b"\xff\xfe\x00",
        ],
    )
    def test_files_that_are_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.json").write_bytes(content)
        with pytest.raises(package.QueryError, match="no file that export_json wrote"):
            read_file(tmp_path / "m.json")

    def test_a_file_that_is_not_there(self, tallymark: Commands) -> None:
        assert "cannot be read" in tallymark("runs", "show", "./m.json", code=2).stderr


class TestDiff:
    def test_a_stage_got_slower(self, program: Program, recorded: Path) -> None:
        """The real program: its exit code is what CI sees."""
        done = program("runs", "diff", "run-two", "run-three", str(recorded), code=1)
        assert "slower by more than 10 %: fetch" in done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("fetch"))
        assert line.split()[-1] == "slower"
        program("runs", "diff", "run-one", "run-two", str(recorded))

    def test_json(self, tallymark: Commands, recorded: Path) -> None:
        (found,) = tallymark.rows("runs", "diff", "run-two", "run-three", str(recorded), code=1)
        assert (found["regression"], found["threshold_pct"]) == (True, 10.0)
        assert (found["before"]["run_id"], found["after"]["run_id"]) == ("run-two", "run-three")
        stages = {stage["stage"]: stage for stage in found["stages"]}
        assert list(stages) == ["fetch", "process", "upload", "commit"]
        fetch = stages["fetch"]
        means = [fetch[which]["avg_duration_s"] for which in ("before", "after")]
        assert fetch["ratio"] == pytest.approx(means[1] / means[0])
        assert 1.3 < fetch["ratio_low"] < fetch["ratio"] < fetch["ratio_high"] < 1.8
        assert fetch["before"]["p95_s"] < fetch["after"]["p95_s"]
        assert (fetch["verdict"], fetch["regression"]) == ("slower", True)
        assert stages["process"]["verdict"] == "no difference seen"
        assert (stages["commit"]["verdict"], stages["commit"]["ratio_low"]) == ("no interval", None)
        assert (stages["upload"]["verdict"], stages["upload"]["before"]) == ("only in the second", None)

    def test_no_stage_got_slower(self, tallymark: Commands, recorded: Path) -> None:
        same = tallymark("runs", "diff", "run-one", "run-two", str(recorded))
        assert "only in the first" in same.stdout
        faster = tallymark("runs", "diff", "run-three", "run-two", str(recorded))
        assert "faster" in faster.stdout

    def test_the_threshold(self, tallymark: Commands, recorded: Path) -> None:
        done = tallymark("runs", "diff", "run-two", "run-three", str(recorded), "--threshold", "100")
        assert "slower, within the threshold" in done.stdout
        tallymark("runs", "diff", "run-two", "run-three", "--threshold", "-1", code=2)

    @pytest.mark.parametrize(
        ("before", "after"), [("two.json", "run-three"), ("run-two", "three.json"), ("two.json", "three.json")]
    )
    def test_files_have_no_interval(self, tallymark: Commands, recorded: Path, before: str, after: str) -> None:
        runs = [str(recorded.parent / run) if run.endswith(".json") else run for run in (before, after)]
        done = tallymark("runs", "diff", *runs, str(recorded))
        assert "no interval is possible" in done.stderr
        assert "fetch" in done.stdout
        (found,) = tallymark.rows("runs", "diff", *runs, str(recorded))
        assert not found["regression"]
        fetch = found["stages"][0]
        assert 1.3 < fetch["ratio"] < 1.8
        assert (fetch["ratio_low"], fetch["verdict"]) == (None, "no interval")

    def test_two_files_need_no_store(self, tallymark: Commands, recorded: Path) -> None:
        folder = recorded.parent
        tallymark("runs", "diff", str(folder / "one.json"), str(folder / "two.json"), "nowhere")

    def test_no_store_is_not_a_regression(self, tallymark: Commands) -> None:
        assert "there is no store" in tallymark("runs", "diff", "a", "b", "nowhere", code=2).stderr

    def test_runs_of_two_jobs(self, tallymark: Commands, recorded: Path) -> None:
        done = tallymark("runs", "diff", "killed-run", "run-one", str(recorded))
        assert "these are runs of two jobs: import and export" in done.stderr


class TestHostileText:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        folder = tmp_path / "metrics"
        with recording(folder, service=HOSTILE) as metrics:
            for _ in range(2):
                with PipelineRun(metrics, HOSTILE, HOSTILE) as run:
                    run.record_stage(HOSTILE, 0.5, error=True)
                    run.record_stage("x" * 200, 0.25)
                    run.record_cache(HOSTILE, 1, 1)
        return folder

    @pytest.mark.parametrize("command", [["runs"], ["runs", "show", "latest"], ["runs", "diff", "latest", "latest"]])
    def test_no_terminal_obeys_it(self, tallymark: Commands, store: Path, command: list[str]) -> None:
        done = tallymark(*command, str(store))
        for text in (done.stdout, done.stderr):
            assert text.replace("\n", "").isprintable()
        assert "[red]x[/red]\\x1b" in done.stdout
        line = tallymark(*command, str(store), "--json").stdout.splitlines()[0]
        assert line.isprintable()
        assert json.dumps(HOSTILE).replace("\x7f", "\\u007f") in line

    def test_records_of_others(self, tallymark: Commands, tmp_path: Path) -> None:
        """Whatever looks like a stage, a run or a cache, recorded by hand."""
        with recording(tmp_path / "metrics") as metrics:
            for value in (-1e308, 1e308, 1e308, 0.0):
                metrics.record("stage", "x", value, "ms", session_id="odd")
                metrics.record("run", "x", value, "ms", session_id="odd")
            metrics.record("stage", "x", 1.0, "ms")
            metrics.record("stage", "x", 1.0, "s", session_id="seconds")
            metrics.record("cache", "x", 1.0, "%", session_id="odd", metadata={"hits": "many"})
            metrics.record("stage", "y", 1.0, "ms", session_id="other", metadata={"run": [1]})
        assert {row["run_id"] for row in tallymark.rows("runs")} == {"odd", "other"}
        tallymark("runs")
        tallymark("runs", "show", "odd")
        tallymark("runs", "diff", "odd", "odd")
        tallymark("runs", "diff", "odd", "other", "--json")


def compared(reader: Reader, before: str, after: str, loaded: int) -> dict[str, StageComparison]:
    stages = compare_runs(find_run(reader, before), find_run(reader, after), reader, loaded=loaded)
    return {stage.stage: stage for stage in stages}


class TestManyDurations:
    """Beyond a number of durations, only sums over windows of time are asked for."""

    def test_both_ways_agree(self, tmp_path: Path) -> None:
        random = np.random.default_rng(5)
        start = 1_700_000_000_000_000_000
        with recording(tmp_path, max_queue_size=100_000) as metrics:
            for run_id, factor in (("a", 1.0), ("b", 1.3)):
                for number, value in enumerate(random.lognormal(-3, 0.5, 4_000).tolist()):
                    metrics.ingest(
                        *("stage", "fetch", 1000 * value * factor, "ms"),
                        timestamp=start + number * 10_000_000,
                        session_id=run_id,
                    )
                for number in range(2):
                    metrics.ingest(
                        "stage", "rare", 1000.0 * (1 + number), "ms", timestamp=start + number, session_id=run_id
                    )
        with package.open(tmp_path) as reader:
            one, other = compared(reader, "a", "b", 10_000), compared(reader, "a", "b", 100)
            for stages in (one, other):
                fetch = stages["fetch"]
                assert fetch.ratio is not None
                assert fetch.interval is not None
                assert fetch.interval.low < 1.3 < fetch.interval.high
                assert fetch.is_regression
                assert stages["rare"].interval is not None
            widths = [math.log(s["fetch"].interval.high / s["fetch"].interval.low) for s in (one, other)]  # type: ignore[union-attr]
            assert widths[1] == pytest.approx(widths[0], rel=0.2)
            assert one["rare"] == other["rare"]

    def test_durations_that_go_together_make_it_wider(self) -> None:
        """Where a slow phase lasts, 2,000 durations say less than 2,000 independent ones."""
        random = np.random.default_rng(9)
        phases = np.repeat(random.lognormal(0, 0.5, 40), 50) * random.lognormal(0, 0.1, 2_000)
        independent = mean_of(phases.tolist())
        windows = mean_of_windows([50] * 40, phases.reshape(40, 50).sum(axis=1).tolist())
        assert independent is not None
        assert windows is not None
        assert windows.value == pytest.approx(independent.value)
        assert windows.variance > 10 * independent.variance


class TestTheInterval:
    @pytest.mark.parametrize(
        ("before", "after", "sigma", "windows"),
        [(30, 30, 0.5, 0), (100, 100, 0.8, 0), (50, 200, 0.5, 0), (1_000, 1_000, 1.0, 0), (2_000, 2_000, 0.8, 50)],
    )
    def test_it_holds_the_truth_as_often_as_it_says(self, before: int, after: int, sigma: float, windows: int) -> None:
        random = np.random.default_rng(7)

        def mean(count: int, factor: float) -> Mean:
            values = random.lognormal(0.0, sigma, count) * factor
            if windows:
                sums = values.reshape(windows, -1).sum(axis=1)
                found = mean_of_windows([count // windows] * windows, sums.tolist())
            else:
                found = mean_of(values.tolist())
            assert found is not None
            return found

        held = 0
        for _ in range(1_000):
            interval = ratio_interval(mean(before, 1.0), mean(after, 1.3))
            assert interval is not None
            held += interval.low <= 1.3 <= interval.high
        assert 920 <= held <= 980

    @pytest.mark.parametrize(
        ("freedom", "t"),
        [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (30, 2.0423), (120, 1.9799), (1e3, 1.9623), (1e9, 1.96)],
    )
    def test_quantiles_of_t(self, freedom: float, t: float) -> None:
        """As the tables have them."""
        assert t_quantile(freedom) == pytest.approx(t, abs=1e-4)

    def test_what_has_none(self) -> None:
        assert mean_of([]) is mean_of([1.0]) is None
        assert mean_of_windows([], []) is mean_of_windows([5], [1.0]) is None
        assert mean_of([1e300, -1e300]) is None
        assert mean_of_windows([1, 1], [1e300, -1e300]) is None
        some = Mean(1.0, 0.1, 3)
        assert ratio_interval(Mean(0.0, 0.0, 3), some) is ratio_interval(some, Mean(-1.0, 0.1, 3)) is None

    def test_its_limits(self) -> None:
        exact = ratio_interval(Mean(2.0, 0.0, 3), Mean(3.0, 0.0, 3))
        assert exact is not None
        assert exact.low == exact.high == pytest.approx(1.5)
        unknown = ratio_interval(Mean(1e-200, 1.0, 1), Mean(1.0, 1.0, 1))
        assert unknown is None or (unknown.low, unknown.high) == (0.0, math.inf)

    def test_two_runs_of_one_duration_each(self, tmp_path: Path) -> None:
        with recording(tmp_path) as metrics:
            for run_id, value in (("a", 1.0), ("b", 5.0)):
                PipelineRun(metrics, run_id=run_id).record_stage("x", value)
        with package.open(tmp_path) as reader:
            stage = compared(reader, "a", "b", 100)["x"]
        assert (stage.ratio, stage.interval, stage.is_regression) == (5.0, None, False)

    def test_stages_that_take_no_time(self, tmp_path: Path) -> None:
        with recording(tmp_path) as metrics:
            for run_id in ("a", "b"):
                run = PipelineRun(metrics, run_id=run_id)
                run.record_stage("x", 0.0)
                run.record_stage("x", 0.0)
        with package.open(tmp_path) as reader:
            stage = compared(reader, "a", "b", 100)["x"]
        assert (stage.ratio, stage.interval, stage.verdict) == (None, None, "took no time")


def test_runs_of_several_processes(tmp_path: Path) -> None:
    with recording(tmp_path, service="a") as metrics:
        PipelineRun(metrics, "export", "shared").record_stage("x", 1.0)
    with recording(tmp_path, service="b") as metrics:
        PipelineRun(metrics, "export", "shared").record_stage("x", 3.0, error=True)
    with package.open(tmp_path) as reader:
        (run,) = list_runs(reader)
    assert run.services == ("a", "b")
    assert run.stages == {"x": StageMetrics(2, 4.0, 1.0, 3.0, errors=1)}


def test_a_limit_that_is_none(reader: Reader) -> None:
    limits: list[Any] = [0, 1_001]
    for limit in limits:
        with pytest.raises(package.QueryError, match="limit"):
            list_runs(reader, limit=limit)
