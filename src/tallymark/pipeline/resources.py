"""Samples what this process takes of the machine while a job runs."""

import logging
import math
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tallymark.collectors.system import SystemCollector
from tallymark.recorder import DONE, Done
from tallymark.sealer import Waiting

if TYPE_CHECKING:
    from tallymark.pipeline import PipelineRun

SHORTEST_SECONDS = 0.1
"""The kernel counts CPU time in ticks of 10 ms: a share over less would be noise."""

_STOP_TIMEOUT_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class ResourceMonitor:
    """Samples at an interval, from a daemon thread of its own: an event loop that is blocked is measured, too.

    ``start`` and ``stop`` may be awaited and need not be; as a context manager, sync or async, it calls both.

    Args:
        interval_s: seconds between two samples, at least 0.1.
        run: what the samples are for; by default :func:`tallymark.pipeline.get_metrics_collector`.

    Raises:
        ValueError: the interval is too short, or no number.
        ConfigError: psutil is not installed.

    A sample is the CPU of this process over the time since the last one (percent of one core), its resident memory,
    and what all disks and all networks but loopback moved since the last one (MB). The last sample is taken by
    ``stop``, so a job that is shorter than the interval has one. What cannot be read is left out, and logged once; the
    rest goes on. A forked child does not sample unless it calls ``start``.
    """

    def __init__(self, interval_s: float = 5.0, run: "PipelineRun | None" = None) -> None:
        if isinstance(interval_s, bool) or not isinstance(interval_s, int | float):
            raise ValueError(f"interval_s must be a number, not {type(interval_s).__name__}")
        if not (math.isfinite(interval_s) and interval_s >= SHORTEST_SECONDS):
            raise ValueError(f"interval_s must be at least {SHORTEST_SECONDS}")
        self._interval = min(interval_s, threading.TIMEOUT_MAX)
        self._system = SystemCollector(None)
        if run is None:
            from tallymark.pipeline import get_metrics_collector

            run = get_metrics_collector()
        self._run = run
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._complained = False

    def start(self) -> Done:
        """Begin to sample. A second start is only logged."""
        if self._thread is not None and self._thread.is_alive():
            _logger.warning("The resource monitor is running already")
            return DONE
        self._system = SystemCollector(None)  # what happened before is not counted
        # A new one: a fork may have copied the old one while its lock was held.
        self._stopping = threading.Event()
        arguments = (self._stopping, time.monotonic())
        thread = threading.Thread(target=self._work, args=arguments, name="tallymark-resource-monitor", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there may be no more threads, or the interpreter is shutting down
            _logger.warning("The resource monitor does not run: %s", error)
        else:
            self._thread = thread
        return DONE

    def stop(self) -> Waiting:
        """Take a last sample, and end; safe without a start. Inside an event loop, awaiting it waits for that."""
        thread, self._thread = self._thread, None
        if thread is None or not thread.is_alive():
            return Waiting(None)
        self._stopping.set()
        return Waiting(lambda: thread.join(_STOP_TIMEOUT_SECONDS))

    def sample(self) -> None:
        """Take a sample now. Nothing that goes wrong is raised; it is logged once."""
        try:
            seen = self._system.status()
            process = seen["process"]
            self._run.record_resources(
                cpu=process.get("cpu_percent"),
                mem=process.get("memory_mb"),
                disk=_both(seen.get("disk_read_mb"), seen.get("disk_write_mb")),
                net=_both(seen.get("network_sent_mb"), seen.get("network_received_mb")),
            )
        except Exception as error:
            if not self._complained:
                self._complained = True
                _logger.warning("The resource monitor goes on without a sample: %s: %s", type(error).__name__, error)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop().wait()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _work(self, stopping: threading.Event, sampled: float) -> None:
        while not stopping.wait(self._interval):
            self.sample()
            sampled = time.monotonic()
        if time.monotonic() - sampled >= SHORTEST_SECONDS:
            self.sample()


def _both(one: float | None, other: float | None) -> float | None:
    """The sum of what could be read."""
    return None if one is None and other is None else (one or 0.0) + (other or 0.0)
