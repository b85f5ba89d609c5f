"""What the tests of the recording side share: reading back, shipping, and children that record."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from zlib import crc32

import tallymark
from tallymark import Metrics
from tallymark.lane import HEADER, HEADER_COPIES, JOURNALS, SUFFIX
from tallymark.lane_reader import lanes
from tallymark.model import RESERVED_TYPE
from tallymark.record import Record
from tallymark.shipper import Shipped, ship_once, shipping_lock
from tallymark.store import StoreInfo

DEADLINE_SECONDS = 120.0
"""For a machine that is busy with other things: who waits for an event does not wait longer than that takes."""


@contextlib.contextmanager
def recording(folder: Path, **settings: Any) -> Generator[Metrics]:
    """A recorder that runs; it leaves its journal to others, which takes no time."""
    metrics = Metrics(**{"store": folder, "service": "test", **settings})
    metrics.start()
    try:
        yield metrics
    finally:
        stop(metrics, folder)


def stop(metrics: Metrics, folder: Path) -> None:
    """End recording and leave the journal to others."""
    with shipping_lock(folder / JOURNALS):
        metrics.stop()


def live(folder: Path) -> list[dict[str, Any]]:
    """The records that any process finds in the journals now, lane by lane."""
    return [row for lane in lanes(folder / JOURNALS) for row in lane.rows(0).to_pylist()]


def ship(store: Path | str) -> Shipped:
    """Bring everything into a store, as soon as nobody else is doing so."""
    shipped: list[Shipped] = []

    def done() -> bool:
        result = ship_once(str(store))
        if result is not None:
            shipped.append(result)
        return result is not None

    eventually(done)
    return shipped[0]


def stored(folder: Path, *, oldest_first: bool = True) -> list[Record]:
    """Every record that a reader finds, in journals or in the store."""
    with tallymark.open(str(folder)) as reader:
        records = [record for page in reader.pages() for record in page.records]
    records = [record for record in records if record.metric_type != RESERVED_TYPE]
    return records[::-1] if oldest_first else records


def books(folder: Path) -> StoreInfo:
    """What the store says that it has."""
    with tallymark.open(str(folder)) as reader:
        return reader.info()


def clone(lane: Path, number: int) -> Path:
    """A copy of a lane as another process would have left it behind, with an id of its own."""
    content = bytearray(lane.read_bytes())
    for copy in HEADER_COPIES:
        fields = list(HEADER.unpack_from(content, copy))
        fields[6] = ident = number.to_bytes(4) + fields[6][4:]
        header = HEADER.pack(*fields)[:-4]
        content[copy : copy + HEADER.size] = header + crc32(header).to_bytes(4, "little")
    path = lane.with_name(ident.hex() + SUFFIX)
    path.write_bytes(content)
    return path


def python(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """Another interpreter, in whose modules warnings are errors as they are here."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent,
        **options,
    )


def output(process: "subprocess.Popen[str]", seconds: float = DEADLINE_SECONDS) -> str:
    """What a process printed; it has to end in time, well, and without a word of complaint."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end: {out}\n{err}") from None
    assert (process.returncode, err) == (0, ""), err
    return out


def eventually(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def end_alarm(before: Any) -> None:
    """End the timer of a test that made use of SIGALRM, and give the signal its handler back.

    One that the kernel has for another thread comes when that thread runs again: without a handler it ends the process,
    and for pytest-timeout, whose handler it may be, a test has taken too long.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    while signal.sigtimedwait({signal.SIGALRM}, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.signal(signal.SIGALRM, before)


def in_threads(work: Callable[[], object], count: int) -> None:
    """Run something in several threads at once, to the end."""
    failures: list[BaseException] = []
    together = threading.Barrier(count)

    def run() -> None:
        together.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
