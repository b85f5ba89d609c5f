"""Real servers for the tests: each on free ports of this machine, in a folder of its own, gone when its block ends.

Where one is not installed, the tests that need it skip and say so; with CI set they fail.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

DEADLINE_SECONDS = 60.0

# Its input is a pipe from the tests. It ends after a word of theirs; when they are gone without one, it ends the server
# and takes its folder away. Not PR_SET_PDEATHSIG: that goes with the thread that started the server.
GUARD = """
read word && exit
signal=$1 server=$2 folder=$3
shift 3
kill -"$signal" "$server"
tries=0
while kill -0 "$server" && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -KILL -- "-$server"
"$@"
rm -rf -- "$folder"
"""


def find_program(name: str, *places: str) -> str:
    """The path of a server's program, first in the given places; without it the test skips, with CI set it fails."""
    for place in (*places, shutil.which(name)):
        if place and os.access(place, os.X_OK):
            return place
    missing = f"{name} is not installed; scripts/setup-services.sh does it"
    assert not os.environ.get("CI"), missing
    pytest.skip(missing)


_taken: list[socket.socket] = []
"""Bound, but not listening: who asks for any port, or connects to somewhere, gets another one."""


def free_port(*offsets: int) -> int:
    """A port that nobody listens on, nor on those that lie ``offsets`` above it.

    Until this process ends only who asks for it gets it, as servers do, which reuse addresses.
    """
    while True:
        first = _bound(0)
        assert first is not None
        port: int = first.getsockname()[1]
        others = [_bound(port + offset) for offset in offsets]
        if None not in others:
            _taken.extend(bound for bound in (first, *others) if bound is not None)
            return port
        for bound in (first, *others):
            if bound is not None:
                bound.close()


def _bound(port: int) -> socket.socket | None:
    if port > 65535:
        return None
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        return None
    return bound


@contextmanager
def serving(
    command: list[str],
    folder: Path,
    answers: Callable[[], bool],
    environment: dict[str, str] | None = None,
    *,
    stop: signal.Signals = signal.SIGTERM,
    afterwards: Sequence[str] = ("true",),
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server until the block ends; begin when it answers. What it prints is in ``output`` in its folder.

    Where the tests are killed it ends too, and its folder goes.

    Args:
        stop: what ends it without waiting for its clients.
        afterwards: a command for what the server leaves running, in every case.
    """
    with (folder / "output").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    guard = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", str(int(stop)), str(process.pid), str(folder), *afterwards],
        cwd="/",
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not answers():
            said = (folder / "output").read_text(errors="replace")[-4000:]
            assert process.poll() is None, f"{command[0]} ended: {said}"
            assert time.monotonic() < deadline, f"{command[0]} does not answer: {said}"
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(DEADLINE_SECONDS / 2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else is in this group
            process.wait()
        subprocess.run(afterwards, env=environment, capture_output=True, check=False)
        guard.communicate(b"done\n")
