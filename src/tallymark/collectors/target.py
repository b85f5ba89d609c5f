"""Asking another server, which may be away, hang, or refuse: every answer comes in time, and none is an exception."""

import asyncio
import logging
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any

from tallymark.collectors.collector import Collector

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

TIMEOUT_SECONDS = 2.0
"""The most that an answer may take, unless told otherwise."""

FRESH_SECONDS = 1.0
"""An answer that is no older serves whoever looks: a hundred dashboards are one question to the target."""

Reading = dict[str, Any]
"""What a target said: its values by name, ``connected`` among them, and ``target``.

A value that is not to be had is None, and ``missing`` says why, by name. Where the target was not reached all of them
are, and ``reason`` says why.
"""

# What drivers say, in lower case, and how we put it. Their own words may quote the settings of the connection.
_REASONS = (
    (("refused",), "connection refused"),
    (("failed to resolve", "name or service", "name resolution", "nodename"), "the host's name is unknown"),
    (("timed out", "timeout"), "no answer in time"),
    (("password", "noauth", "authentication", "username", "not permitted to log in"), "authentication failed"),
    (("no pg_hba.conf entry",), "the server's pg_hba.conf does not let us in"),
    (("does not exist", "db index"), "no such database or role"),
    (("too many", "remaining connection slots", "max number of clients"), "the server has no connection left"),
    (("starting up", "shutting down", "loading the dataset", "recovery mode"), "the server is starting or stopping"),
    (("ssl", "certificate", "tls"), "TLS failed"),
    (("no such file", "unreachable", "no route"), "there is no way to the host"),
    (("closed", "reset", "broken pipe", "lost", "terminating", "eof"), "the connection was lost"),
)

_logger = logging.getLogger(__name__)


class Question(Future[Reading]):
    """A question to a target, and its answer once it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = monotonic()
        self.set_running_or_notify_cancel()  # who waits for it may give up; nobody takes it back


class TargetCollector(Collector):
    """A collector that asks one server over one connection, which it keeps, and makes again when it breaks.

    Subclasses connect, ask and let go. They do so in a thread made for the question, so that a name service, a
    handshake or an answer that never comes costs whoever asks no more than ``timeout_seconds``. Only one question is
    under way at a time; whoever asks meanwhile shares its answer.
    """

    units: Mapping[str, str]
    """The unit of each value that is recorded, by name. True and false are recorded as 1 and 0."""

    _question: "Question | None"

    def __init__(
        self, metrics: "Metrics | None", interval_seconds: float, timeout_seconds: float, kind: str, target: str
    ) -> None:
        super().__init__(metrics, interval_seconds, kind)
        if not (math.isfinite(timeout_seconds) and timeout_seconds > 0):
            raise ValueError("timeout_seconds: must be a positive number")
        self.target = target
        self._timeout = timeout_seconds
        self._was_connected = True
        self._inherited: list[Any] = []
        self._begin_anew()

    def status(self) -> Reading:
        """What the target says now, or said less than a second ago; not recorded. Never raises."""
        return self._wait(self.ask())

    async def status_async(self) -> Reading:
        """As :meth:`status`, for an event loop."""
        question = self.ask()
        try:
            reading: Reading = await asyncio.wait_for(asyncio.wrap_future(question), self._left(question))
        except TimeoutError:
            self._interrupt()
            return self._too_late()
        return dict(reading)

    def collect_once(self) -> Reading:
        """Ask the target now, record each value that it gave, and return its answer.

        Raises:
            RuntimeError: the recorder is not running.
        """
        metrics = self._recorder()
        reading = self._wait(self.ask(0.0))
        self._log_change(reading)
        self._record(metrics, reading)
        return reading

    def stop(self) -> None:
        """Take no more samples, and close the connection; the next question opens one again."""
        self._forget_parent()
        self._stop.set()
        if self._question is not None and not self._question.done():
            self._interrupt()
        super().stop()
        with self._lock:
            if self._question is None or self._question.done():
                self._disconnect()
            else:
                self._closing = True  # the one that is under way closes it

    def __del__(self) -> None:
        # Forgotten without a stop. A copy of another process leaves the connection alone.
        if getattr(self, "_pid", None) == os.getpid():
            self._disconnect()

    def ask(self, max_age: float = FRESH_SECONDS) -> "Question":
        """The question that is under way, or was answered not longer ago; else a new one. Does not wait."""
        self._forget_parent()
        with self._lock:
            question = self._question
            if question is None or (question.done() and monotonic() - question.asked >= max_age):
                question = self._question = Question()
                self._closing = False
                work = threading.Thread(
                    target=self._answer, args=(question,), name=f"tallymark-{self._kind}-ask", daemon=True
                )
                try:
                    work.start()
                except RuntimeError:  # there are too many threads, or the interpreter ends
                    question.set_result(self.unavailable("no thread to ask in"))
            return question

    def unavailable(self, reason: str) -> Reading:
        """The reading of a target that gave none."""
        return self._answered({"connected": False, "reason": reason})

    @abstractmethod
    def _read(self) -> Reading:
        """Connect where there is no connection, and return what the target says. May raise anything."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Make the question under way fail; called from another thread. Does nothing where it cannot."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connection, if there is one. Does not raise."""

    @abstractmethod
    def _forget_connection(self) -> object:
        """Give up the connection without closing it: it is that of the process that was forked."""

    def _record(self, metrics: "Metrics", reading: Reading) -> None:
        for name, unit in self.units.items():
            if reading[name] is not None:
                metrics.record(self._kind, name, float(reading[name]), unit, metadata={"target": self.target})

    def _answer(self, question: "Question") -> None:
        try:
            reading = self._answered(self._read())
        except Exception as error:
            self._disconnect()
            # Too late, it may have failed because we hung up.
            reading = self.unavailable(reason_for(error)) if self._left(question) else self._too_late()
        with self._lock:
            if self._closing:
                self._disconnect()
            question.set_result(reading)

    def _answered(self, values: Reading) -> Reading:
        empty: Reading = {
            **dict.fromkeys(self.units),
            "connected": True,
            "target": self.target,
            "reason": None,
            "missing": {},
        }
        return empty | values

    def _wait(self, question: "Question") -> Reading:
        try:
            return dict(question.result(self._left(question)))
        except TimeoutError:
            self._interrupt()
            return self._too_late()

    def _left(self, question: "Question") -> float:
        return max(0.0, question.asked + self._timeout - monotonic())

    def _too_late(self) -> Reading:
        return self.unavailable(f"no answer within {self._timeout:g} s")

    def _forget_parent(self) -> None:
        if self._pid != os.getpid():
            # What closes a connection says goodbye in the parent's name: it is kept, and not used.
            self._inherited.append(self._forget_connection())
            self._stop = threading.Event()
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._question = None
        self._closing = False

    def _log_change(self, reading: Reading) -> None:
        connected = bool(reading["connected"])
        if connected != self._was_connected:
            self._was_connected = connected
            if connected:
                _logger.info("The %s collector has reached %s again", self._kind, self.target)
            else:
                _logger.warning("The %s collector cannot ask %s: %s", self._kind, self.target, reading["reason"])


def reason_for(error: BaseException) -> str:
    """What went wrong, in a few words of our own: without hosts, names and passwords."""
    said = str(error).lower()
    for phrases, reason in _REASONS:
        if any(phrase in said for phrase in phrases):
            return reason
    return f"failed: {type(error).__name__}"
