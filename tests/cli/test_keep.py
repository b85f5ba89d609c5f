"""``tallymark prune`` and ``tallymark erase``."""

import json
import os
import pty
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tallymark import Metrics
from tallymark.stores.retention import STEADY_NS, boot_id

from .conftest import HOSTILE, PROGRAM, Program

DAY_NS = 86_400_000_000_000


@pytest.fixture(scope="session")
def recorded_long_ago(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "metrics"
    now = time.time_ns()
    with Metrics(folder, service="shop") as metrics:
        for ago in range(50):
            for metric_type in ("api_request", "audit"):
                metrics.ingest(metric_type, "x", 1.0, timestamp=now - ago * DAY_NS, session_id=f"session-{ago}")
    return folder


@pytest.fixture
def old(recorded_long_ago: Path, tmp_path: Path) -> Path:
    """Records of 50 days, one a day and type, and no server that forgot any."""
    return shutil.copytree(recorded_long_ago, tmp_path / "metrics")


def watched(folder: Path, ahead: int = 0) -> None:
    """The clock has been watched for a day; and then it jumped."""
    look = {"boot": boot_id(), "wall": time.time_ns() - ahead, "monotonic": time.perf_counter_ns()}
    (folder / "clock.json").write_text(json.dumps({**look, "steady": STEADY_NS}))


def count(tallymark: Program, **only: str) -> int:
    where = [part for name, value in only.items() for part in ("--where", f"{name}={value}")]
    return sum(row["count"] for row in tallymark.rows("query", "--since", "now-100d", "--agg", "count", *where))


@pytest.mark.usefixtures("old")
class TestPrune:
    def test_dry_run(self, tallymark: Program) -> None:
        (found,) = tallymark.rows("prune", "--older-than", "39d12h", "--dry-run")
        assert (found["records"], found["by_type"], found["deleted"]) == (20, {"api_request": 10, "audit": 10}, 0)
        assert found["oldest_day"] < found["newest_day"]
        done = tallymark("prune", "--older-than", "39d12h", "--type", "audit", "--dry-run")
        assert [line.split() for line in done.stdout.splitlines()] == [["metric_type", "records"], ["audit", "10"]]
        assert f"10 records, of {found['oldest_day']} to {found['newest_day']}" in done.stderr
        assert count(tallymark) == 100

    def test_what_was_said_is_forgotten(self, tallymark: Program, old: Path) -> None:
        watched(old)
        (done,) = tallymark.rows("prune", "--older-than", "39d12h", "--type", "audit", "--yes")
        assert (done["records"], done["deleted"], done["dry_run"]) == (10, 10, False)
        assert count(tallymark) == 90
        assert "nothing is that old" in tallymark("prune", "--older-than", "39d12h", "--type", "audit", "--yes").stderr
        (books,) = tallymark.rows("info")
        assert (books["stored"], books["pending"]) == (90, 0)

    def test_the_settings_say_how_long(self, tallymark: Program, old: Path) -> None:
        watched(old)
        tallymark.environment |= {"TALLYMARK_RETENTION_DAYS": "20", "TALLYMARK_RETENTION": "audit=0"}
        done = tallymark("prune", "--yes")
        # The day in which the twentieth day ends is kept whole.
        assert "29 records are forgotten" in done.stderr
        assert (count(tallymark, metric_type="audit"), count(tallymark, metric_type="api_request")) == (50, 21)

    def test_a_clock_that_jumped_deletes_nothing(self, tallymark: Program, old: Path) -> None:
        watched(old, ahead=3_650 * DAY_NS)
        done = tallymark("prune", "--older-than", "10d", "--yes", code=1)
        assert "nothing was deleted: the clock" in done.stderr
        assert "--trust-clock" in done.stderr
        assert count(tallymark) == 100
        assert "records are forgotten" in tallymark("prune", "--older-than", "10d", "--yes", "--trust-clock").stderr
        assert count(tallymark) < 100

    def test_without_a_terminal_it_wants_to_be_told(self, tallymark: Program, old: Path) -> None:
        watched(old)
        assert "no terminal" in tallymark("prune", "--older-than", "10d", code=1).stderr
        assert count(tallymark) == 100

    @pytest.mark.parametrize("length", ["nonsense", "0s", "-1d"])
    def test_a_length_that_is_none(self, tallymark: Program, length: str) -> None:
        assert "older-than" in tallymark("prune", f"--older-than={length}", "--yes", code=2).stderr

    def test_on_a_terminal_it_asks(self, tallymark: Program, old: Path) -> None:
        watched(old)
        code, said = _answer(tallymark, "n\n", "prune", "--older-than", "10d")
        assert (code, "for ever? [y/N]" in said, "nothing was deleted" in said) == (1, True, True)
        assert count(tallymark) == 100
        assert _answer(tallymark, "y\n", "prune", "--older-than", "10d")[0] == 0
        assert count(tallymark) < 100


@pytest.mark.usefixtures("old")
class TestErase:
    def test_one_session(self, tallymark: Program, old: Path) -> None:
        done = tallymark("erase", "--session", "session-7", "--yes")
        assert "2 records are erased" in done.stderr
        assert count(tallymark) == 98
        assert count(tallymark, session_id="session-7") == 0
        for file in old.rglob("*"):
            assert not file.is_file() or b"session-7" not in file.read_bytes(), file

    def test_dry_run_and_json(self, tallymark: Program) -> None:
        (found,) = tallymark.rows("erase", "--session", "session-7", "--dry-run")
        assert (found["records"], found["deleted"], found["dry_run"]) == (2, 0, True)
        (done,) = tallymark.rows("erase", "--session", "session-7", "--where", "metric_type=audit", "--yes")
        assert (done["records"], done["deleted"], done["left"], done["newer"]) == (1, 1, [], 0)
        assert count(tallymark) == 99

    def test_the_structured_log(self, tallymark: Program, old: Path) -> None:
        log = old / "logs" / "metrics.jsonl"
        log.parent.mkdir()
        other = json.dumps({"session_id": "session-8"}) + "\n"
        log.write_text(other + json.dumps({"session_id": "session-7"}) + "\n")
        assert "1 lines of the structured log" in tallymark("erase", "--session", "session-7", "--yes").stderr
        assert log.read_text() == other

    def test_what_is_left_is_said(self, tallymark: Program, old: Path) -> None:
        (old / "journals" / "x.journal").write_bytes(b"damaged")
        assert "left: " in tallymark("erase", "--session", "session-7", "--yes", code=1).stderr

    def test_a_subject_has_to_be_named(self, tallymark: Program) -> None:
        assert "name --session" in tallymark("erase", "--yes", code=2).stderr
        assert "metadata.KEY" in tallymark("erase", "--where", "user=7", "--yes", code=2).stderr
        assert "no terminal" in tallymark("erase", "--session", "session-7", code=1).stderr
        assert count(tallymark) == 100

    def test_a_hostile_subject(self, tallymark: Program, old: Path) -> None:
        with Metrics(old) as metrics:
            metrics.record(HOSTILE, "x", 1.0, session_id=HOSTILE)
        done = tallymark("erase", "--session", HOSTILE, "--yes")
        assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())
        assert count(tallymark) == 100


@pytest.mark.parametrize("command", [["prune", "--older-than", "1d"], ["erase", "--session", "x"]])
def test_a_store_that_is_not_there(tallymark: Program, tmp_path: Path, command: list[str]) -> None:
    assert "there is no store" in tallymark(*command, "--yes", code=1).stderr
    assert not (tmp_path / "metrics").exists()
    other = tmp_path / "other"  # a folder that somebody mistyped
    other.mkdir()
    assert "there is no store" in tallymark(*command, str(other), "--yes", code=1).stderr
    assert list(other.iterdir()) == []


def _answer(program: Program, answer: str, *arguments: Any) -> tuple[int, str]:
    """The exit code of a command, and what it says, on a terminal where somebody types this."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=program.folder,
        env=os.environ | program.environment,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    _, said = process.communicate(timeout=120)
    os.close(ours)
    return process.returncode, said
