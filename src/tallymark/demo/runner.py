"""Several processes as one: what ``tallymark demo`` starts, and how all of it ends together.

Every child runs in a session of its own, so that Ctrl-C reaches the supervisor alone and each child gets
exactly one SIGTERM. A child also holds the reading end of a pipe whose writing end only the supervisor
has: when the supervisor is gone, however it went, the pipe ends and the child ends itself.

``python -m tallymark.demo.runner MODULE [ARGUMENT…]`` is the child's side.
"""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from tallymark.errors import ConfigError, TallymarkError

GRACE_SECONDS = 2.4
"""How long the children may take together to end by themselves, before they are killed."""

START_SECONDS = 60.0
"""How long a child may take until it answers."""

HOST = "127.0.0.1"


class ChildEnded(TallymarkError):
    """A child ended although nobody asked it to."""


@dataclass(frozen=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]


class Supervisor:
    """Starts children and ends all of them, in the reverse order, when the ``with`` block is left.

    Within the block SIGINT, SIGTERM and SIGHUP only set a flag: :meth:`wait` returns, and :meth:`until`
    raises ``KeyboardInterrupt``.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._children: list[_Child] = []
        self._stop = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Supervisor":
        for number in self._SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The handlers stay until the children are gone: a second Ctrl-C must not leave one behind.
        try:
            self._end_all()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def start(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Run ``python -m module arguments…`` as a child; its output goes where ours goes."""
        command = [sys.executable, "-m", __name__, module, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._children.append(_Child(name, process))

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until something is true.

        Raises:
            ChildEnded: a child ended first.
            TallymarkError: it took too long.
            KeyboardInterrupt: a signal asked for the end.
        """
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            self._check_children()
            if self._stop.wait(0.05):
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise TallymarkError(f"{what} did not answer within {START_SECONDS:.0f} s")

    def wait(self) -> None:
        """Wait until a signal asks for the end.

        Raises:
            ChildEnded: a child ended first.
        """
        while not self._stop.wait(0.2):
            self._check_children()

    def _check_children(self) -> None:
        for child in self._children:
            code = child.process.poll()
            if code is None:
                continue
            if self._stop.is_set():
                return
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise ChildEnded(f"the {child.name} {how}")

    def _end_all(self) -> None:
        # One after the other, the last started first: the load before the shop, and the server when nobody
        # records any more. What one does not need of its time is left for the next.
        started = time.monotonic()
        for number, child in enumerate(self._children[::-1], 1):
            child.process.terminate()
            deadline = started + GRACE_SECONDS * number / len(self._children)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            _kill_group(child.process)
            child.process.wait()
            if child.process.stdin is not None:
                child.process.stdin.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a child and of what it started: it leads a session, its group has its number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    """Whether a GET of this URL is answered with success right now."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            return 200 <= int(response.status) < 300
    except (urllib.error.URLError, OSError):
        return False


def accepts(port: int) -> bool:
    """Whether anybody listens on this port of this machine."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def demo(store: Path, port: int) -> Iterator[Supervisor]:
    """The server, the shop and its load, up and answering; all of them end with the block.

    Raises:
        ConfigError: the port is in use.
        ChildEnded: one of them did not stay up.
    """
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise ConfigError(
            f"port {port} of {HOST} cannot be used ({error.strerror}); "
            f"hint: end what listens there, or choose another: --port {free_port()}"
        ) from error
    shop_port = free_port()
    with Supervisor() as supervisor:
        supervisor.start("server", "tallymark", ["serve", str(store), "--host", HOST, "--port", str(port)])
        supervisor.start("shop", "tallymark.demo.shop", ["--store", str(store), "--port", str(shop_port)])
        supervisor.until(lambda: accepts(shop_port), "the shop")
        supervisor.start("load generator", "tallymark.demo.load", ["--url", f"http://{HOST}:{shop_port}"])
        supervisor.until(lambda: answers(f"http://{HOST}:{port}/livez"), "the server")
        yield supervisor


def _end_with_supervisor() -> None:
    """Wait until the supervisor is gone, then end this process and whatever it started."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _child(module: str, arguments: list[str]) -> None:
    threading.Thread(target=_end_with_supervisor, name="supervisor-watch", daemon=True).start()
    # A handler rather than the default, so that `finally` and `atexit` of the child's own still run.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2:])
