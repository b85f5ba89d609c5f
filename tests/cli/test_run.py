"""``tallymark serve`` and ``tallymark demo``: they start, say where, and leave nothing behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import psutil
import pytest
from recording import DEADLINE_SECONDS
from services import free_port

from .conftest import Program, eventually


def _wait_for_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read messages until one matches."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.search(pattern, line):
            return found
    pytest.fail(f"it ended without saying {pattern!r}: {seen}")


def _get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as response:
        return int(response.status)


def test_serve_says_where_and_ends_with_ctrl_c(tallymark: Program) -> None:
    process = tallymark.start("serve", "store", "--port", str(free_port()))
    url = _wait_for_line(process, r"http://127\.0\.0\.1:\d+/")[0]
    assert _get(url) == 200
    assert _get(url + "livez") == 200
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 0
    assert process.stdout is not None
    assert process.stdout.read() == ""


def test_serve_takes_a_free_port(tallymark: Program) -> None:
    process = tallymark.start("serve", "store", "--port", "0")
    found = _wait_for_line(process, r"http://127\.0\.0\.1:(\d+)/")
    assert int(found[1]) > 0
    assert _get(found[0]) == 200


@pytest.mark.parametrize("command", [["serve", "store"], ["demo", "--store", "store"]])
def test_a_port_in_use(tallymark: Program, command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = tallymark(*command, "--port", str(port), code=1).stderr
    assert str(port) in error
    assert "error: " in error
    assert "another port" in error or "--port" in error


def test_serve_on_an_open_address_needs_a_key(tallymark: Program) -> None:
    done = tallymark("serve", "store", "--host", "0.0.0.0", "--port", str(free_port()), code=1)
    assert "key" in done.stderr


class Demo:
    """A running ``tallymark demo``, and every process that belongs to it."""

    def __init__(self, program: Program, folder: str) -> None:
        self.port = free_port()
        self.process = program.start("demo", "--store", folder, "--port", str(self.port))
        self.dashboard = _wait_for_line(self.process, r"dashboard +(\S+)")[1]
        self.api = _wait_for_line(self.process, r"API +(\S+)")[1]
        _wait_for_line(self.process, "^Ctrl-C ends it")
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def child(self, module: str) -> psutil.Process:
        return next(child for child in self.children if module in child.cmdline())

    def is_gone(self) -> bool:
        return not remaining(self.children)


def remaining(children: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    found = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two questions
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_demo_ends_with_ctrl_c_and_starts_again_on_the_same_folder(tallymark: Program) -> None:
    for _ in range(2):
        demo = Demo(tallymark, "demo")
        assert len(demo.children) >= 3
        assert _get(demo.dashboard) == _get(demo.api) == 200
        # A dashboard that stays open must not hold up the end.
        with urllib.request.urlopen(demo.dashboard + "api/v1/stream", timeout=DEADLINE_SECONDS):
            os.killpg(demo.process.pid, signal.SIGINT)
            os.killpg(demo.process.pid, signal.SIGINT)
            assert demo.process.wait(DEADLINE_SECONDS) == 0
        eventually(demo.is_gone)
        assert demo.process.stderr is not None
        assert "Traceback" not in demo.process.stderr.read()
    rows = tallymark.rows("query", "demo", "--group-by", "service", "--agg", "count")
    assert len(rows) >= 2  # the shop, and the server itself


def test_demo_leaves_nothing_behind_when_it_is_killed(tallymark: Program) -> None:
    demo = Demo(tallymark, "demo")
    demo.process.kill()
    eventually(demo.is_gone)


@pytest.mark.parametrize("module", ["tallymark.demo.shop", "tallymark.demo.load", "tallymark"])
def test_demo_ends_when_one_of_its_processes_does(tallymark: Program, module: str) -> None:
    demo = Demo(tallymark, "demo")
    demo.child(module).kill()
    assert demo.process.wait(DEADLINE_SECONDS) == 1
    assert demo.process.stderr is not None
    assert "was killed by SIGKILL" in demo.process.stderr.read()
    eventually(demo.is_gone)


def test_demo_ends_before_everything_is_up(tallymark: Program, tmp_path: Path) -> None:
    process = tallymark.start("demo", "--store", "demo", "--port", str(free_port()))
    _wait_for_line(process, "starting")
    eventually(lambda: len(psutil.Process(process.pid).children()) > 0)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 0
    eventually(lambda: not remaining(children))
