"""``tallymark tail``."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from recording import DEADLINE_SECONDS

from tallymark import Metrics

from .conftest import Program, eventually

WRITER = """
import sys
from tallymark import Metrics
with Metrics(sys.argv[1], service="writer") as metrics:
    for number in range(200):
        metrics.record("job", sys.argv[2], float(number))
"""


class Followed:
    """The lines of a process that is still running, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.lines)]

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(DEADLINE_SECONDS)
        self._reading.join(DEADLINE_SECONDS)
        return code


@pytest.mark.usefixtures("shop")
def test_the_last_records_oldest_first(tallymark: Program) -> None:
    rows = tallymark.rows("tail", "-n", "12")
    assert [row["value"] for row in rows] == [18.0, 19.0, *(5.0 + number for number in range(10))]
    assert rows[-1] == {
        "id": rows[-1]["id"],
        "timestamp": rows[-1]["timestamp"],
        "service": "shop",
        "metric_type": "checkout",
        "name": "pay",
        "value": 14.0,
        "unit": "ms",
        "success": False,
        "error": "declined",
        "trace_id": None,
        "session_id": None,
        "metadata": {},
        "description": None,
    }
    assert len(tallymark.rows("tail", "--where", "success=true", "-n", "100")) == 20


@pytest.mark.usefixtures("shop")
def test_lines_for_people(tallymark: Program) -> None:
    lines = tallymark("tail", "-n", "11").stdout.splitlines()
    assert len(lines) == 11
    assert '  shop  api_request  GET /items/{id}  19.0 ms  ok  {"region": "eu"}' in lines[0]
    assert lines[-1].endswith("  shop  checkout  pay  14.0 ms  failed: declined")


@pytest.mark.usefixtures("shop")
def test_nothing_to_show_is_said(tallymark: Program) -> None:
    done = tallymark("tail", "--name", "nothing")
    assert done.stdout == ""
    assert "no record matches" in done.stderr


def test_follow_shows_each_record_of_several_processes_once(tallymark: Program, shop: Path) -> None:
    followed = Followed(tallymark.start("tail", "-f", "-n", "3", "--json"))
    eventually(lambda: len(followed.lines) == 3)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(shop), name]) for name in ("first", "second", "third")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    eventually(lambda: len(followed.lines) >= 603)
    with Metrics(shop, service="end") as metrics:
        metrics.record("job", "end", 1.0)
        eventually(lambda: followed.rows()[-1]["name"] == "end")
    assert followed.interrupt() == 130
    rows = followed.rows()
    assert Counter(row["name"] for row in rows) == {
        "pay": 3,
        "first": 200,
        "second": 200,
        "third": 200,
        "end": 1,
    }
    assert len({row["id"] for row in rows}) == len(rows)
    for name in ("first", "second", "third"):
        assert [row["value"] for row in rows if row["name"] == name] == [float(number) for number in range(200)]


def test_follow_from_now(tallymark: Program, shop: Path) -> None:
    followed = Followed(tallymark.start("tail", "-f", "-n", "0", "--where", "value>1", "--json"))
    with Metrics(shop, service="late") as metrics:

        def recorded_and_seen() -> bool:
            metrics.record("job", "no", 1.0)
            metrics.record("job", "yes", 2.0)
            return bool(followed.lines)

        eventually(recorded_and_seen)
    assert followed.interrupt() == 130
    assert {row["name"] for row in followed.rows()} == {"yes"}
    assert followed.process.stderr is not None
    assert followed.process.stderr.read() == ""
