"""MetricsService: the object that a workflow records with, and the same for the recorder of this process."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from tallymark.model import MAX_ID_LENGTH, check_duration, check_text
from tallymark.review.corrections import CORRECTION, LABEL, checked_details, measured
from tallymark.review.pseudonyms import Kind, Pseudonyms
from tallymark.review.sessions import SESSION, ProcessingTimer

if TYPE_CHECKING:
    from pathlib import Path

    from tallymark.recorder import Metrics

SYSTEM_METRIC: Final = "system_metric"
"""The metric_type of what an application measures of itself; ``system`` is the machine."""

SLOW_STAGE_MS: Final = 10_000.0
CORRECTION_RATE_PERCENT: Final = 30.0

P = ParamSpec("P")
R = TypeVar("R")


class MetricsService:
    """Records the sessions, stages and corrections of a workflow, and reports on them.

    Persons are stored as pseudonyms (:mod:`tallymark.review.pseudonyms`), texts not at all. Recording may be done from
    threads and coroutines, and raises as :class:`tallymark.Metrics` does. Reports read the store, with what was
    recorded a moment ago; they wait for the disk, so a coroutine has them made in a thread.

    Args:
        metrics: a recorder; by default that of this process, and then what is not given here comes from the settings.
        raw_ids: store the ids of persons as they are.
        pseudonym_key: what pseudonyms are made with; by default the key file in the store.
        slow_stage_ms: a stage whose mean duration is longer is reported as slow.
        correction_rate_percent: more corrections than this, for a hundred requests, are reported.

    Raises:
        ConfigError: a setting is not usable.
    """

    def __init__(
        self,
        metrics: "Metrics | None" = None,
        *,
        raw_ids: bool | None = None,
        pseudonym_key: str | bytes | None = None,
        slow_stage_ms: float | None = None,
        correction_rate_percent: float | None = None,
    ) -> None:
        if metrics is None:
            from tallymark.default import default_metrics, load_settings

            metrics, settings = default_metrics(), load_settings()
            secret = settings.pseudonym_key
            raw_ids = settings.raw_ids if raw_ids is None else raw_ids
            pseudonym_key = secret.get_secret_value() if pseudonym_key is None and secret else pseudonym_key
            slow_stage_ms = settings.slow_stage_ms if slow_stage_ms is None else slow_stage_ms
            if correction_rate_percent is None:
                correction_rate_percent = settings.correction_rate_percent
        self.metrics = metrics
        self.slow_stage_ms = SLOW_STAGE_MS if slow_stage_ms is None else slow_stage_ms
        self.correction_rate_percent = (
            CORRECTION_RATE_PERCENT if correction_rate_percent is None else correction_rate_percent
        )
        if not metrics.enabled and pseudonym_key is None:
            pseudonym_key = os.urandom(32)  # nothing is stored, so no key is made either
        self.pseudonyms = Pseudonyms(metrics.store, key=pseudonym_key, raw_ids=bool(raw_ids))

    # Recording

    def create_session(self, user_id: int | str | None = None, chat_id: int | str | None = None) -> str:
        """A new session: its id, random, for everything that is recorded of one request.

        Raises:
            ValueError: an id is neither a whole number nor text.
        """
        session_id = os.urandom(16).hex()
        people = self._people(user=user_id, chat=chat_id)
        self.metrics.record(SESSION, "created", 1.0, metadata=people, session_id=session_id)
        return session_id

    def timer(
        self,
        session_id: str,
        user_id: int | str | None,
        chat_id: int | str | None,
        stage: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> ProcessingTimer:
        """Time one stage: ``with``, ``async with``, or ``start()`` and ``stop()``.

        Args:
            session_id: from :meth:`create_session`, or one of the application's own.
            user_id, chat_id: who asked, and where; None where nobody knows.
            stage: a :class:`ProcessingStage`, or any other text.
            metadata: to begin with; the block may add to it.

        Raises:
            ValueError: an argument is not valid.
        """
        session_id = check_text("session_id", session_id, MAX_ID_LENGTH)
        stage = check_text("stage", stage)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise ValueError(f"metadata must be a dict, not {type(metadata).__name__}")
        return ProcessingTimer(self.metrics, session_id, stage, self._people(user=user_id, chat=chat_id), metadata)

    def record_correction(
        self,
        session_id: str,
        admin_user_id: int | str | None,
        message_id: int | str | None,
        correction_type: str,
        original_text: str,
        corrected_text: str,
        processing_time_ms: float,
        voice_transcription_time_ms: float | None = None,
        ai_correction_time_ms: float | None = None,
        admin_satisfaction: int | None = None,
        retry_count: int = 0,
        transcription_quality: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Record what somebody corrected. Of the two texts only lengths, edit distance and similarity are stored.

        Where the structured log is installed (:mod:`tallymark.integrations.logging`), it gets the event
        ``correction_recorded`` too.

        Args:
            session_id: the session whose answer it was.
            admin_user_id: who corrected; None where nobody did.
            message_id: of the answer.
            correction_type: a :class:`CorrectionType`, or any other text.
            original_text, corrected_text: measured, in at most 20 ms whatever they are; see
                :func:`tallymark.review.corrections.difference`.
            processing_time_ms: how long it took altogether.
            voice_transcription_time_ms, ai_correction_time_ms: parts of that; stored as whole milliseconds.
            admin_satisfaction: 1 to 5.
            retry_count: attempts after the first.
            transcription_quality: a word for it.
            metadata: whatever else belongs to it, such as the reason of a rejection.

        Raises:
            ValueError: an argument is not valid; the message names it and the rule. Nothing was stored.
        """
        if not self.metrics.enabled:
            return
        if metadata is not None and not isinstance(metadata, Mapping):
            raise ValueError(f"metadata must be a dict, not {type(metadata).__name__}")
        pii = self.metrics.pii  # as it is stored, it goes into the log too
        session_id = check_text("session_id", session_id, MAX_ID_LENGTH, pii)
        correction_type = check_text("correction_type", correction_type, pii=pii)
        duration_ms = check_duration("processing_time_ms", processing_time_ms)
        details = checked_details(
            voice_transcription_time_ms, ai_correction_time_ms, admin_satisfaction, retry_count, transcription_quality
        )
        people = self._people(admin=admin_user_id, message=message_id)
        texts = measured(original_text, corrected_text)
        self.metrics.record(
            CORRECTION,
            correction_type,
            duration_ms,
            "ms",
            session_id=session_id,
            metadata={**(metadata or {}), **texts, **details, **people},
        )
        _log_event(
            "correction_recorded",
            f"Correction recorded: {correction_type}",
            session_id=session_id,
            admin_user_id=people.get("admin"),
            admin=people.get("admin"),  # as in the record, so that both are erased by the same condition
            correction_type=correction_type,
            processing_time_ms=processing_time_ms,
            original_length=texts["original_length"],
            corrected_length=texts["corrected_length"],
        )

    def record_system_metric(self, name: str, value: float, tags: Mapping[str, Any] | None = None) -> None:
        """Record one number that the application knows of itself, such as the length of a queue.

        Raises:
            ValueError: an argument is not valid.
        """
        if tags is not None and not isinstance(tags, Mapping):
            raise ValueError(f"tags must be a dict, not {type(tags).__name__}")
        self.metrics.record(SYSTEM_METRIC, check_text("name", name), value, metadata=None if tags is None else {**tags})

    def label_admin(self, admin_user_id: int | str, label: str) -> None:
        """Have reports show a label beside an admin's pseudonym. The text is stored as it is; the newest one counts.

        Raises:
            ValueError: an argument is not valid.
        """
        people = self._people(admin=admin_user_id)
        self.metrics.record(LABEL, "label", 1.0, metadata={"label": check_text("label", label), **people})

    def pseudonym(self, kind: Kind, identifier: int | str) -> str:
        """What is stored for an id: to ask for its records, or to erase them.

        Raises:
            ValueError: it is not an id.
        """
        return self.pseudonyms.of(kind, identifier)

    def _people(self, **ids: int | str | None) -> dict[str, str]:
        if not self.metrics.enabled:
            return {}
        of: Callable[[Any, int | str], str] = self.pseudonyms.of
        return {kind: of(kind, identifier) for kind, identifier in ids.items() if identifier is not None}

    # Reports

    def get_dashboard_data(self, hours: float = 24) -> dict[str, Any]:
        """The last hours in numbers: :func:`tallymark.review.report.dashboard`.

        Raises:
            ValueError: hours is not positive, or longer than ten years.
            StoreError: the store cannot be read.
        """
        import tallymark
        from tallymark.review.report import dashboard

        with tallymark.open(self.metrics.store) as reader:
            return dashboard(
                reader,
                hours,
                slow_stage_ms=self.slow_stage_ms,
                correction_rate_percent=self.correction_rate_percent,
            )

    def get_admin_performance(self, days: int = 28) -> dict[str, Any]:
        """What each admin did, and where it is heading: :func:`tallymark.review.report.admin_performance`.

        Raises:
            ValueError: days is not between 1 and 366.
            StoreError: the store cannot be read.
        """
        import tallymark
        from tallymark.review.report import admin_performance

        with tallymark.open(self.metrics.store) as reader:
            return admin_performance(reader, days)

    def export_json(self, path: "str | os.PathLike[str]", hours: float = 24, days: int = 28) -> "Path":
        """Write both reports into one JSON file, all of it or nothing; returns where.

        Raises:
            ValueError, StoreError: as the reports.
            OSError: the file cannot be written.
        """
        from tallymark.review.export import write_json

        return write_json(self._report(hours, days), path)

    def export_csv(self, folder: "str | os.PathLike[str]", hours: float = 24, days: int = 28) -> "list[Path]":
        """Write both reports as CSV files into a folder, which is made; returns them. See :mod:`.export`.

        Raises:
            ValueError, StoreError: as the reports.
            OSError: a file cannot be written.
        """
        from tallymark.review.export import write_csv

        return write_csv(self._report(hours, days), folder)

    def _report(self, hours: float, days: int) -> dict[str, Any]:
        import tallymark
        from tallymark.review.report import review

        with tallymark.open(self.metrics.store) as reader:
            return review(
                reader,
                hours,
                days,
                slow_stage_ms=self.slow_stage_ms,
                correction_rate_percent=self.correction_rate_percent,
            )


def _log_event(event_type: str, message: str, **fields: object) -> None:
    """Tell the structured log. Who installed it has imported it; nobody else need load it."""
    log_event = getattr(sys.modules.get("tallymark.integrations.logging"), "log_event", None)
    if log_event is not None:
        log_event(event_type, message, **fields)


_service: MetricsService | None = None


def get_metrics_service() -> MetricsService:
    """The service of this process, on :func:`tallymark.default.default_metrics`; the same one while that is the same.

    Raises:
        ConfigError: a setting is not usable.
    """
    global _service
    from tallymark.default import default_metrics

    service = _service
    if service is None or service.metrics is not default_metrics():
        _service = service = MetricsService()
    return service


def _of_this_process(method: Callable[Concatenate[MetricsService, P], R]) -> Callable[P, R]:
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(get_metrics_service(), *args, **kwargs)

    call.__name__ = call.__qualname__ = method.__name__
    call.__doc__ = f"As :meth:`MetricsService.{method.__name__}`, of :func:`get_metrics_service`."
    return call


create_session = _of_this_process(MetricsService.create_session)
timer = _of_this_process(MetricsService.timer)
record_correction = _of_this_process(MetricsService.record_correction)
record_system_metric = _of_this_process(MetricsService.record_system_metric)
label_admin = _of_this_process(MetricsService.label_admin)
get_dashboard_data = _of_this_process(MetricsService.get_dashboard_data)
get_admin_performance = _of_this_process(MetricsService.get_admin_performance)
export_json = _of_this_process(MetricsService.export_json)
export_csv = _of_this_process(MetricsService.export_csv)
