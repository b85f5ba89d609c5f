"""The real program, as a process, on real folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from recording import DEADLINE_SECONDS

from tallymark import Metrics

PROGRAM = [sys.executable, "-m", "tallymark"]

HOSTILE = "[red]x[/red]\x1b]0;owned\x07\x1b[2J\u202eevil\nnext\x7f\x9b31m"
"""Markup, a terminal's title, a cleared screen, text turned around, a line break, DEL and an 8-bit CSI."""


@dataclass
class Program:
    """Runs ``tallymark`` in a folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run to the end; the exit code has to be this."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints as JSON, line by line."""
        return [json.loads(line) for line in self(*arguments, "--json").stdout.splitlines()]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it in a process group of its own, as a shell does."""
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.started.append(process)
        return process


@pytest.fixture
def tallymark(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    for process in program.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def recorded_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "metrics"
    with Metrics(folder, service="shop") as metrics:
        for number in range(20):
            metadata = {"region": "eu" if number % 2 else "us"}
            metrics.record_operation("api_request", "GET /items/{id}", float(number), metadata=metadata)
        for number in range(10):
            metrics.record_operation("checkout", "pay", 5.0 + number, success=False, error_message="declined")
    return folder


@pytest.fixture
def shop(recorded_shop: Path, tmp_path: Path) -> Path:
    """A store with 30 records of two series, ten of them failures."""
    return shutil.copytree(recorded_shop, tmp_path / "metrics")


def eventually(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
