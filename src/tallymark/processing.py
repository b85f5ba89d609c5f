"""Times and success rates of operations, as functions that are given a recorder.

    from tallymark.processing import track_processing_time, track_success_rate

    async with track_processing_time(metrics, "download", metadata={"job_id": 123}):
        ...
    await track_success_rate(metrics, "download", success_count=80, total_count=100)

===============  ============================  ====  =================================================
metric_type      name                          unit  metadata, beside what is given
===============  ============================  ====  =================================================
processing_time  ``<operation>_time``          ms
success_rate     ``<operation>_success_rate``  %     ``operation``, ``success_count``, ``total_count``
queue_metrics    ``queue_depth``               1     ``queue``
queue_metrics    ``queue_wait_time``           s     ``queue``
===============  ============================  ====  =================================================
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from tallymark.model import check_count, check_duration, check_number, check_text
from tallymark.recorder import DONE, Done
from tallymark.timing import Timing

if TYPE_CHECKING:
    from tallymark.recorder import Metrics
    from tallymark.sealer import Waiting


def track_processing_time(session: "Metrics", operation: str, metadata: Mapping[str, Any] | None = None) -> Timing:
    """Time a block, in ``with`` or ``async with``; one that raises is recorded as failed, and goes on raising.

    Args:
        session: the recorder.
        operation: ``download`` is recorded as ``download_time``.

    Raises:
        ValueError: an argument is not valid.
    """
    return MetricsCollector(session).track_operation(operation, metadata)


def track_success_rate(
    session: "Metrics",
    operation: str,
    success_count: int,
    total_count: int,
    metadata: Mapping[str, Any] | None = None,
) -> Done:
    """Record how many of some attempts succeeded, in percent. What it returns may be awaited and need not be.

    Of no attempts there is no rate: with ``total_count`` 0 nothing is recorded, since any number would be wrong and a
    job that had nothing to do has not failed.

    Raises:
        ValueError: an argument is not valid; nothing was recorded.
        RuntimeError: the recorder does not run.
    """
    return MetricsCollector(session).record_success_rate(operation, success_count, total_count, metadata)


class MetricsCollector:
    """Times, success rates and queues of one service.

    Args:
        session: the recorder.
        service_name: on whose behalf; by default the recorder's own service.

    Raises:
        ValueError: the name is not valid.
    """

    def __init__(self, session: "Metrics", service_name: str | None = None) -> None:
        self._session = session
        service = session.service if service_name is None else check_text("service_name", service_name)
        self._other = None if service == session.service else _OtherService(session, service)

    def track_operation(self, operation: str, metadata: Mapping[str, Any] | None = None) -> Timing:
        """As :func:`track_processing_time`."""
        name = _named(operation, "time")
        timing = self._session.track_operation(name, metadata, "processing_time")
        if self._other is None:
            return timing
        return Timing(cast("Metrics", self._other), "processing_time", name, metadata)

    def record_success_rate(
        self, operation: str, success_count: int, total_count: int, metadata: Mapping[str, Any] | None = None
    ) -> Done:
        """As :func:`track_success_rate`."""
        name = _named(operation, "success_rate")
        successes, total = check_count("success_count", success_count), check_count("total_count", total_count)
        if successes > total:
            raise ValueError("success_count must not be larger than total_count")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise ValueError(f"metadata must be a mapping, not {type(metadata).__name__}")
        if total:
            counts = {"operation": operation, "success_count": successes, "total_count": total}
            self._record("success_rate", name, 100.0 * successes / total, "%", {**(metadata or {}), **counts})
        return DONE

    def record_queue_depth(self, queue: str, depth: int, wait_time_seconds: float | None = None) -> Done:
        """Record how many wait in a queue, and how long it takes until one's turn, where that is known.

        Raises:
            ValueError: an argument is not valid; nothing was recorded.
            RuntimeError: the recorder does not run.
        """
        metadata = {"queue": check_text("queue", queue)}
        waiting = check_count("depth", depth)
        seconds = None if wait_time_seconds is None else check_number("wait_time_seconds", wait_time_seconds)
        if seconds is not None and seconds < 0:
            raise ValueError("wait_time_seconds must not be negative")
        self._record("queue_metrics", "queue_depth", waiting, "1", metadata)
        if seconds is not None:
            self._record("queue_metrics", "queue_wait_time", seconds, "s", metadata)
        return DONE

    def flush(self) -> "Waiting":
        """Have everything that was recorded so far brought into the store; queries see it without.

        Raises:
            RuntimeError: the recorder does not run.
            TimeoutError: the store did not have everything in time.
        """
        return self._session.flush()

    def _record(self, metric_type: str, name: str, value: float, unit: str, metadata: Mapping[str, Any]) -> None:
        if self._other is None:
            self._session.record(metric_type, name, value, unit, metadata=metadata)
        else:
            self._session.ingest(metric_type, name, value, unit, service=self._other.service, metadata=metadata)


class _OtherService:
    """What :class:`Timing` needs of a recorder, to record on behalf of another service."""

    def __init__(self, session: "Metrics", service: str) -> None:
        self.service = service
        self.monotonic_ns = session.monotonic_ns
        self.drop_invalid = session.drop_invalid
        self._ingest = session.ingest

    def record_operation(
        self,
        operation_type: str,
        operation_name: str,
        duration_ms: float,
        success: bool,
        error_message: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        duration_ms = check_duration("duration_ms", duration_ms)
        self._ingest(
            operation_type,
            operation_name,
            duration_ms,
            "ms",
            service=self.service,
            success=success,
            error=error_message,
            metadata=metadata,
        )


def _named(operation: str, what: str) -> str:
    """The name of a record about an operation."""
    return check_text("operation (with what is appended)", f"{check_text('operation', operation)}_{what}")
