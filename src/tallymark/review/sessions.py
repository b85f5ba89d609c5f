"""The stages of a workflow, and the time that each takes."""

import contextlib
from collections.abc import Mapping
from contextvars import Token
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from tallymark.timing import RecordedBlock, describe
from tallymark.trace import current_session_id

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

PROCESSING: Final = "processing"
"""The metric_type of a stage; its name is the stage, in ms."""

SESSION: Final = "processing_session"
"""The metric_type of a session that began."""


class ProcessingStage(StrEnum):
    """The stages of a request, in their order. Any other text is a stage too, such as a member of your own StrEnum."""

    QUERY_RECEIVED = "query_received"
    AI_PROCESSING = "ai_processing"
    MODERATION_QUEUE = "moderation_queue"
    ADMIN_REVIEW = "admin_review"
    CORRECTION_PROCESSING = "correction_processing"
    CORRECTION_AI = "correction_ai"
    FINAL_RESPONSE = "final_response"
    USER_DELIVERY = "user_delivery"


class ProcessingTimer(RecordedBlock):
    """Times one stage of a session; made by :func:`tallymark.review.timer`.

    Use it in ``with`` or ``async with``; an exception is recorded as a failure and goes on. What runs in the block, and
    the tasks that it starts, finds the session in :data:`tallymark.trace.current_session_id`. Or call :meth:`start` and
    :meth:`stop`, from any thread. One timer times one block at a time; each block has a timer of its own.

    Attributes:
        metadata: stored with the record; the block may add to it.
    """

    def __init__(
        self,
        metrics: "Metrics",
        session_id: str,
        stage: str,
        people: Mapping[str, str],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.metadata: dict[str, Any] = dict(metadata or {})
        self._metrics = metrics
        self._session_id = session_id
        self._stage = stage
        self._people = people
        self._running: list[int] = []  # one start at most; list.pop hands it to one thread only
        self._failure: str | None = None
        self._token: Token[str | None] | None = None

    def start(self) -> Self:
        """Begin to measure; once more, begin anew."""
        self._failure = None
        self._running[:] = [self._metrics.monotonic_ns()]
        return self

    def stop(self, success: bool = True, error_message: str | None = None) -> float | None:
        """Record what was measured, as a failure where there is an error message, and return it in ms.

        None where nothing was being measured: a second stop does nothing, so that a ``finally`` may have one.
        """
        try:
            started = self._running.pop()
        except IndexError:
            return None
        duration_ms = (self._metrics.monotonic_ns() - started) / 1e6
        error = self._failure if error_message is None else error_message
        try:
            self._metrics.record(
                PROCESSING,
                self._stage,
                duration_ms,
                "ms",
                bool(success) and error is None,
                error,
                {**(self.metadata or {}), **self._people},
                None,
                self._session_id,
            )
        except (ValueError, RuntimeError, TypeError) as refused:
            # The work is done: what it put into the metadata must not make it fail now.
            self._metrics.drop_invalid(self._stage, refused)
        return duration_ms

    def fail(self, error_message: str) -> None:
        """Record a failure when the block ends, where no exception says so."""
        self._failure = error_message

    def __enter__(self) -> Self:
        self._token = current_session_id.set(self._session_id)
        return self.start()

    def _end(self, failure: BaseException | None) -> None:
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(ValueError, RuntimeError):  # a generator that another task brought to its end
                current_session_id.reset(token)
        self.stop(failure is None, None if failure is None else describe(failure))
