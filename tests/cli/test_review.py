"""``tallymark review`` and ``tallymark pseudonym``."""

import csv
import shutil
import subprocess
from pathlib import Path

import pytest

from tallymark import Metrics
from tallymark.review import CorrectionType, MetricsService, ProcessingStage, Pseudonyms

from .conftest import HOSTILE, PROGRAM, Program


@pytest.fixture(scope="session")
def recorded_bot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bot") / "metrics"
    with Metrics(folder, service="bot") as metrics:
        service = MetricsService(metrics)
        for number in range(10):
            session_id = service.create_session(number, 1)
            for stage in (ProcessingStage.QUERY_RECEIVED, HOSTILE):
                with service.timer(session_id, number, 1, stage):
                    pass
            if number < 6:
                service.record_correction(
                    session_id, number % 2, 5, CorrectionType.REJECTION, "one", "two", 100, admin_satisfaction=4
                )
        service.label_admin(1, HOSTILE)
    return folder


@pytest.fixture
def bot(recorded_bot: Path, tmp_path: Path) -> Path:
    """A store with ten sessions, six of them corrected by two admins."""
    return shutil.copytree(recorded_bot, tmp_path / "metrics")


@pytest.mark.usefixtures("bot")
class TestReview:
    def test_tables(self, tallymark: Program) -> None:
        text = tallymark("review").stdout
        assert all(line.isprintable() for line in text.splitlines())
        assert "query_received" in text
        assert "rejection" in text
        assert "[red]x[/red]\\x1b]0;owned" in text
        assert "too few days" in text
        assert "High correction rate detected: 60.0%" in text
        assert "bottleneck: " in text

    def test_json(self, tallymark: Program, bot: Path) -> None:
        (report,) = tallymark.rows("review")
        assert report["overview"]["total_requests"] == 10
        assert report["overview"]["total_corrections"] == 6
        admin = Pseudonyms(bot).known("admin", 1)
        assert report["corrections"]["by_admin"][admin]["label"] == HOSTILE
        assert report["admin_performance"]["admins"][admin]["total_corrections"] == 3
        assert [alert["type"] for alert in report["alerts"]] == ["high_correction_rate"]

    def test_the_thresholds_are_settings(self, tallymark: Program) -> None:
        tallymark.environment["TALLYMARK_CORRECTION_RATE_PERCENT"] = "61"
        assert tallymark.rows("review", "--hours", "0.5")[0]["alerts"] == []

    def test_csv(self, tallymark: Program, tmp_path: Path) -> None:
        done = tallymark("review", "--csv", "report")
        assert done.stdout == ""
        assert "wrote report/stages.csv" in done.stderr
        with (tmp_path / "report" / "stages.csv").open(newline="") as file:
            assert {row["stage"] for row in csv.DictReader(file)} == {"query_received", HOSTILE}
        (tmp_path / "file").touch()
        assert "hint: name another folder" in tallymark("review", "--csv", "file", code=1).stderr

    @pytest.mark.parametrize("options", [("--hours", "nan"), ("--days", "0"), ("--json", "--csv", "x")])
    def test_what_makes_no_sense(self, tallymark: Program, options: tuple[str, ...]) -> None:
        assert "Invalid value" in tallymark("review", *options, code=2).stderr

    def test_a_store_without_any(self, tallymark: Program, tmp_path: Path) -> None:
        with Metrics(tmp_path / "other") as metrics:
            metrics.record("x", "y", 1.0)
        done = tallymark("review", "other")
        assert done.stdout == ""
        assert "no stage and no correction" in done.stderr
        assert "there is no store" in tallymark("review", "nowhere", code=1).stderr


@pytest.mark.usefixtures("bot")
class TestPseudonym:
    def test_one_kind_or_all(self, tallymark: Program, bot: Path) -> None:
        known = Pseudonyms(bot)
        assert tallymark("pseudonym", "--kind", "admin", "1").stdout == f"{known.known('admin', 1)}\n"
        lines = tallymark("pseudonym", "1").stdout.splitlines()
        assert lines == [known.known(kind, 1) for kind in ("user", "chat", "admin", "message")]

    def test_it_finds_what_was_recorded_and_erases_it(self, tallymark: Program, bot: Path) -> None:
        found = tallymark("pseudonym", "--kind", "user", "3").stdout.strip()
        where = ("--where", f"metadata.user={found}")
        (row,) = tallymark.rows("query", *where, "--type", "processing_session")
        assert row["count"] == 1
        tallymark("erase", *where, "--yes")
        assert tallymark.rows("query", *where) == []
        assert found.encode() not in b"".join(path.read_bytes() for path in bot.rglob("*") if path.is_file())
        assert tallymark.rows("review")[0]["overview"]["total_sessions"] == 9

    def test_negative_ids_are_no_options(self, tallymark: Program, bot: Path) -> None:
        expected = Pseudonyms(bot).known("chat", -100200300)
        assert tallymark("pseudonym", "--kind", "chat", "-100200300").stdout.strip() == expected

    def test_from_stdin(self, bot: Path) -> None:
        command = [*PROGRAM, "pseudonym", "--store", str(bot), "--kind", "user", "-"]
        done = subprocess.run(command, input="3\n", capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.strip() == Pseudonyms(bot).known("user", 3)

    def test_with_the_key_of_the_settings(self, tallymark: Program) -> None:
        tallymark.environment["TALLYMARK_PSEUDONYM_KEY"] = "a secret"
        assert tallymark("pseudonym", "--kind", "admin", "12345").stdout == "admin_rbpgkskldgcbspggqklf\n"

    def test_raw_ids(self, tallymark: Program) -> None:
        tallymark.environment["TALLYMARK_RAW_IDS"] = "true"
        done = tallymark("pseudonym", "--kind", "admin", HOSTILE)
        assert done.stdout.startswith("admin_[red]")
        assert "stored as they are" in done.stderr
        assert done.stdout[:-1].isprintable()

    def test_what_cannot_be_answered(self, tallymark: Program) -> None:
        assert "there is no such kind" in tallymark("pseudonym", "1", "--kind", "dog", code=2).stderr
        assert "must not be empty" in tallymark("pseudonym", " ", code=2).stderr
        assert "there is no key at" in tallymark("pseudonym", "1", "--store", "nowhere", code=1).stderr
        assert not (tallymark.folder / "nowhere").exists()
