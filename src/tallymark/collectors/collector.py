"""What every collector is: something to ask, whose answers are recorded at an interval."""

import logging
import math
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

_STOP_TIMEOUT_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class Collector(ABC):
    """Collects at an interval, from a daemon thread of its own, so that none waits for another.

    Args:
        metrics: where to record. None: only :meth:`status` works.
        interval_seconds: the time between two samples; the first is taken at once.
        kind: what it collects, in one word, for the log and the thread's name.

    Raises:
        ValueError: the interval is not a positive number.

    A forked child does not collect unless it calls :meth:`start`.
    """

    def __init__(self, metrics: "Metrics | None", interval_seconds: float, kind: str) -> None:
        if not (math.isfinite(interval_seconds) and interval_seconds > 0):
            raise ValueError("interval_seconds: must be a positive number")
        self._metrics = metrics
        self._interval = interval_seconds
        self._kind = kind
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._logged: set[str] = set()

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """What there is to see now, not recorded."""

    @abstractmethod
    def collect_once(self) -> dict[str, Any]:
        """Take a sample now, record each value, and return it.

        Raises:
            RuntimeError: the recorder is not running.
        """

    def start(self) -> None:
        """Begin to collect. A second start is only logged."""
        if self._thread is not None and self._thread.is_alive():
            _logger.warning("The %s collector is running already", self._kind)
            return
        # A new one: a fork may have copied the old one while its lock was held.
        self._stop = threading.Event()
        name = f"tallymark-{self._kind}"
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples; safe without a start."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            self._stop.set()
            thread.join(_STOP_TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _recorder(self) -> "Metrics":
        if self._metrics is None:
            raise RuntimeError("the collector has no recorder: give it one, or call status()")
        return self._metrics

    def _run(self, stop: threading.Event) -> None:
        while True:
            try:
                self.collect_once()
            except Exception as error:
                self._log_once("recording", error)
            if stop.wait(self._interval):
                return

    def _log_once(self, kind: str, error: Exception) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            _logger.warning(
                "The %s collector goes on without %s: %s: %s", self._kind, kind, type(error).__name__, error
            )
