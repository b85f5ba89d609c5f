"""``tallymark query`` and ``tallymark info``."""

import csv
import io
import json
import os
import pty
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from tallymark import Metrics

from .conftest import HOSTILE, PROGRAM, Program


@pytest.mark.usefixtures("shop")
class TestQuery:
    def test_without_options_it_lists_the_series_the_busiest_first(self, tallymark: Program) -> None:
        rows = tallymark.rows("query")
        assert [(row["name"], row["unit"], row["count"]) for row in rows] == [
            ("GET /items/{id}", "ms", 20),
            ("pay", "ms", 10),
        ]
        assert rows[0]["avg"] == pytest.approx(9.5)
        assert rows[0]["p95"] == pytest.approx(18.05)
        assert [row["error_rate"] for row in rows] == [0.0, 100.0]

    def test_table(self, tallymark: Program) -> None:
        done = tallymark("query")
        header, first, second = done.stdout.splitlines()
        assert header.split()[:4] == ["service", "metric_type", "name", "unit"]
        assert "GET /items/{id}" in first
        assert "pay" in second
        assert "2 rows from 30 records, exact" in done.stderr

    def test_filters(self, tallymark: Program) -> None:
        def count(*options: str) -> int:
            return sum(row["count"] for row in tallymark.rows("query", "--agg", "count", *options))

        assert count("--type", "checkout") == 10
        assert count("--name", "pay", "--name", "GET /items/{id}") == 30
        assert count("--service", "other") == 0
        assert count("--where", "success=false") == 10
        assert count("--where", "metadata.region=eu", "--where", "value>=10") == 5
        assert count("--until", "now-1h", "--since", "now-2h") == 0

    def test_groups_windows_order_and_limit(self, tallymark: Program) -> None:
        rows = tallymark.rows(
            *("query", "--type", "api_request", "--group-by", "name,metadata.region"),
            *("--agg", "count,max", "--order-by", "-max"),
        )
        assert [(row["metadata.region"], row["max"]) for row in rows] == [("eu", 19.0), ("us", 18.0)]
        (row,) = tallymark.rows("query", "--window", "1d", "--agg", "count", "--order-by", "-count", "--limit", "1")
        start = datetime.fromisoformat(row["window_start"])
        assert row["window_start"].endswith("Z")
        assert (start.hour, start.minute) == (0, 0)

    def test_a_table_shows_windows_in_the_local_time_zone(self, tallymark: Program) -> None:
        tallymark.environment["TZ"] = "Asia/Kolkata"
        assert "05:30:00 IST" in tallymark("query", "--window", "1d").stdout

    def test_a_table_says_when_there_is_more(self, tallymark: Program, shop: Path) -> None:
        with Metrics(shop) as metrics:
            for number in range(101):
                metrics.record("many", f"series {number}", 1.0)
        done = tallymark("query", "--type", "many")
        assert len(done.stdout.splitlines()) == 101
        assert "these are the first 100 rows, there are more; hint: --limit N" in done.stderr
        assert len(tallymark.rows("query", "--type", "many")) == 101
        assert "101 rows from 101 records" in tallymark("query", "--type", "many", "--limit", "500").stderr

    def test_csv(self, tallymark: Program) -> None:
        rows = list(csv.DictReader(io.StringIO(tallymark("query", "--csv").stdout)))
        assert [row["name"] for row in rows] == ["GET /items/{id}", "pay"]
        assert float(rows[1]["avg"]) == pytest.approx(9.5)
        tallymark("query", "--csv", "--json", code=2)

    def test_no_match_is_said_and_no_error(self, tallymark: Program) -> None:
        done = tallymark("query", "--name", "nothing")
        assert done.stdout == ""
        assert "no record matches; hint: " in done.stderr

    @pytest.mark.parametrize(
        "options",
        [["--where", "nonsense"], ["--agg", "median"], ["--since", "yesterday"], ["--group-by", "colour"]],
    )
    def test_a_query_that_makes_no_sense_is_wrong_usage(self, tallymark: Program, options: list[str]) -> None:
        assert tallymark("query", *options, code=2).stderr.startswith("error: ")

    def test_a_reader_that_goes_away_is_no_error(self, tallymark: Program) -> None:
        command = " ".join([*PROGRAM, "query", "--json"])
        done = subprocess.run(
            ["sh", "-c", f"{command} | true"],
            cwd=tallymark.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stderr == "" or "Traceback" not in done.stderr

    def test_info(self, tallymark: Program) -> None:
        (books,) = tallymark.rows("info")
        assert books["recorded"] == books["stored"] + books["pending"] + sum(books["dropped"].values()) == 30
        assert "30" in tallymark("info").stdout


@pytest.fixture
def hostile_store(tmp_path: Path) -> Path:
    folder = tmp_path / "metrics"
    with Metrics(folder, service=HOSTILE) as metrics:
        metrics.record(HOSTILE, HOSTILE, 1.0, HOSTILE, error=HOSTILE, success=False, metadata={HOSTILE: HOSTILE})
    return folder


@pytest.mark.usefixtures("hostile_store")
class TestHostileText:
    @pytest.mark.parametrize("command", ["query", "tail"])
    def test_json_escapes_it_and_brings_it_back(self, tallymark: Program, command: str) -> None:
        line = tallymark(command, "--json").stdout
        assert line.isascii()
        assert line.removesuffix("\n").isprintable()
        assert json.loads(line)["name"] == HOSTILE

    @pytest.mark.parametrize("options", [["query"], ["query", "--csv"], ["tail"], ["query", "--group-by", "error"]])
    def test_it_is_shown_and_not_obeyed(self, tallymark: Program, options: list[str]) -> None:
        text = tallymark(*options).stdout
        assert all(line.isprintable() for line in text.splitlines())
        assert "[red]x[/red]\\x1b]0;owned\\x07\\x1b[2J\\u202eevil\\nnext\\x7f\\x9b31m" in text

    @pytest.mark.parametrize("command", ["query", "tail"])
    def test_nor_on_a_terminal(self, tallymark: Program, command: str) -> None:
        text = _on_a_terminal(tallymark, command)
        assert "\x1b]" not in text
        assert "\x1b[2J" not in text
        assert "[red]" in text
        assert not set("\u202e\x07\x7f\x9b") & set(text)


def _on_a_terminal(program: Program, command: str) -> str:
    """What a command sends to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, command],
        cwd=program.folder,
        env=os.environ | {"COLUMNS": "1000", "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    sent = b""
    try:
        while chunk := os.read(ours, 65_536):
            sent += chunk
    except OSError:
        pass  # how Linux says that the other end was closed
    os.close(ours)
    assert process.wait(120) == 0
    return sent.decode()
