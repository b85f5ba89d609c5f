"""Has the journals of an application brought into its lake, by a process that is not the application.

Native runtimes and ``fork`` do not mix, and their imports are heavy, so nothing of the lake is ever loaded into the
process that records: a short-lived child does the work, or a ``tallymark serve`` on the same folder, if one runs.
"""

import _thread
import contextlib
import os
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from tallymark import log
from tallymark.files import is_locked
from tallymark.journal import Journal
from tallymark.lane import JOURNALS
from tallymark.location import absolute, local_folder, split

if TYPE_CHECKING:
    from pathlib import Path

    from tallymark.child import Child

LOCK_FILE: Final = ".shipping"
"""Locked, in the folder of the journals, by whoever ships."""
REQUEST_FILE: Final = ".ship-now"
"""Made, in the folder of the journals, by whoever wants a long-running shipper to ship at once."""
SEAL_SECONDS: Final = 60.0
"""Records are read from the journal as well as from the lake: short of a full lane, a child a minute is enough."""
SEEN_SECONDS: Final = 15.0
"""The same for every other store. A child takes about half a second of one core; ``tallymark ship`` does without."""
STORE_VARIABLE: Final = "TALLYMARK_STORE"
"""Tells a child where to ship to."""
BUSY: Final = 75
"""Exit code of a child that found somebody else shipping (EX_TEMPFAIL; gunicorn takes 3 and 4 for its own)."""
LONGEST_PAUSE: Final = 60.0
"""Seconds; children that fail are followed by the next after twice as long each time, up to this."""
MANY_FILES: Final = 8
"""So many journals, left behind by others too, are worth a child at any time."""


def somebody_ships(journals: "Path") -> bool:
    """Whether a shipper is at work, or on duty, on this folder."""
    return is_locked(journals / LOCK_FILE)


class Sealer:
    """Starts children that ship, when it is worth one."""

    def __init__(self, store: str, interval_seconds: float, batch_size: int) -> None:
        folder = local_folder(store)
        self.journals = folder / JOURNALS
        self._store = absolute(store)
        # Of a lake the journals are read too; of others only what is shipped is seen from other machines.
        self._rest = SEAL_SECONDS if split(store)[0] == "lake" else SEEN_SECONDS
        self._smallest = batch_size if split(store)[0] == "lake" else 1
        self._interval = interval_seconds
        self._child: Child | None = None
        self._started = 0  # children so far
        self._ended = 0  # the number of the newest child that came to an end without finding another shipper
        self._starting = _thread.allocate_lock()  # never waited for
        self._pid = os.getpid()
        self._looked = self._sealed = time.monotonic()
        self._failures = 0  # in a row
        self._rests_until = 0.0

    def look(self, journal: Journal) -> None:
        """Start a child where a batch is due and nobody else is shipping. Called often, by one thread."""
        self._notice_fork()
        now = time.monotonic()
        if self._is_busy() or now < self._rests_until:
            return
        if now - self._looked < self._interval and journal.complete_lanes < MANY_FILES // 2:
            return
        self._looked = now
        waiting = journal.stats().pending
        rested = now - self._sealed >= self._rest
        if journal.complete_lanes or (rested and waiting >= self._smallest) or (rested and self._crowded()):
            self._start_child()

    def seal(self, journal: Journal, deadline: float, *, final: bool = False) -> "Waiting":
        """Have everything that a journal holds now brought into the lake.

        Args:
            deadline: on the monotonic clock; waiting longer raises TimeoutError.
            final: the application is ending: where somebody else ships, leave it to them.
        """
        self._notice_fork()
        if not journal.stats().pending or (final and not self._is_busy() and somebody_ships(self.journals)):
            return Waiting(None)
        before = self._started
        if not self._is_busy():
            self._start_child()
        return Waiting(lambda: self._finish(journal, deadline, before, final))

    def _finish(self, journal: Journal, deadline: float, before: int, final: bool) -> None:
        """Wait until what is in the journal now is stored, or a child that began after ``before`` has done what it
        could; where that failed it said why, and that was logged.
        """
        wanted = journal.stats().recorded
        while True:
            child = self._child
            if child is not None:
                child.end_within(max(0.0, deadline - time.monotonic()))
            busy = self._is_busy()
            stats = journal.stats()
            if self._ended > before or stats.pending <= stats.recorded - wanted:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{stats.pending} records are not in the store yet; they are safe in {self.journals} "
                    "and will be shipped by the next process that records there, or by `tallymark serve`"
                )
            if busy or self._start_child():
                continue
            if final or not somebody_ships(self.journals):
                return  # it is left to others, or no child can be started, and that was logged
            with contextlib.suppress(OSError):
                (self.journals / REQUEST_FILE).touch()
            time.sleep(0.02)

    def _is_busy(self) -> bool:
        """Whether a child of ours is at work. What a finished one had to complain about is logged."""
        child = self._child
        if child is None:
            return False
        if child.poll() is None:
            return True
        if self._child is child:  # and not another thread's by now
            self._child = None
            self._bury(child)
        return False

    def _bury(self, child: "Child") -> None:
        complaint = child.complaint()
        if child.returncode >= 0 and child.returncode != BUSY:  # one that was killed is worth another
            self._ended = max(self._ended, child.number)  # another thread may have started the next by now
        if child.returncode == 0:
            self._failures = 0
        elif child.returncode != BUSY:
            self._fail(complaint or child.returncode)

    def _fail(self, complaint: object) -> None:
        log.warning("shipping failed, the journal keeps the records: %s", complaint)
        self._failures += 1
        # Up to half of it shorter: many processes may have found the store out of order at the same instant.
        pause = min(LONGEST_PAUSE, 0.5 * 2.0 ** min(self._failures, 10))
        self._rests_until = time.monotonic() + pause * (1 - int.from_bytes(os.urandom(1)) / 512)

    def _start_child(self) -> bool:
        if not sys.executable or somebody_ships(self.journals):
            return False
        if not self._starting.acquire(blocking=False):
            return True  # another thread does
        from tallymark.child import Child

        try:
            if self._is_busy():
                return True
            self._sealed = time.monotonic()
            self._started += 1
            # -P: not the modules of whatever folder the application runs in.
            # The URL not as an argument, which every user of the machine can see: it may hold a password.
            command = [sys.executable, "-P", "-m", "tallymark.shipper"]
            self._child = Child(command, {STORE_VARIABLE: self._store}, self._started)
        except OSError as error:
            self._fail(error)
            return False
        finally:
            self._starting.release()
        return True

    def _notice_fork(self) -> None:
        """In a forked child: the child that ships is the parent's."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._looked = self._sealed = time.monotonic()  # or all of many young children would ship at once
        self._starting = _thread.allocate_lock()
        child, self._child = self._child, None
        if child is not None:
            child.returncode = 0  # so that nobody waits for it here
            if child.stderr:
                child.stderr.close()

    def _crowded(self) -> bool:
        try:
            return len(os.listdir(self.journals)) > MANY_FILES
        except OSError:
            return False


class Waiting:
    """What ``stop`` and ``flush`` return. Outside an event loop it has waited already; inside one, await it."""

    def __init__(self, work: Any) -> None:
        self._work = work
        if work is not None and _running_loop() is None:
            self.wait()

    def wait(self) -> None:
        """Wait now, whatever runs.

        Raises:
            TimeoutError: the store did not have everything in time.
        """
        work, self._work = self._work, None
        if work is not None:
            work()

    def __await__(self) -> Generator[Any, None, None]:
        loop = _running_loop()
        if self._work is not None and loop is not None:
            yield from loop.run_in_executor(None, self.wait).__await__()


def _running_loop() -> Any:
    """The running asyncio loop; asyncio is not imported for the question."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()
