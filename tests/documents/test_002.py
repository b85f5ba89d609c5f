"""The samples of the interface document 002, "Metrics Service Build Summary".

Changed are the imports: ``services.metrics_service`` is ``tallymark.review``. The bot of the samples (its updates, its
model, its queue) are small classes of this test. What is no usage: ``MetricsService`` and its components are classes of
``tallymark.review``, ``tallymark.integrations.logging`` and the store; the SQL tables are columns and metadata of one
record (``docs/review.md``); the JSON log and the environment variables have tests of their own (``test_002_log.py``,
``tests/test_config.py``).
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recording import live, recording, stored

import tallymark
from tallymark.config import settings
from tallymark.default import set_default
from tallymark.integrations.logging import EVENTS, install
from tallymark.record import Record
from tallymark.review import (
    CorrectionType,
    ProcessingStage,
    create_session,
    get_dashboard_data,
    get_metrics_service,
    record_correction,
    timer,
)
from tallymark.review.alerts import performance_alerts
from tallymark.trace import current_session_id

user_id, chat_id, admin_id, msg_id = 12345, 67890, 99999, 424242
original, final = "the quick brown fox", "the quick red fox"


@pytest.fixture(autouse=True)
def process(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The recorder of this process."""
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    with recording(folder, service="bot") as metrics:
        set_default(metrics)
        yield
        set_default(None)
    settings.cache_clear()


class Model:
    """Stands for the bot's client of a model."""

    async def get_response(self, message: str) -> Any:
        await asyncio.sleep(0)
        return SimpleNamespace(usage=SimpleNamespace(total_tokens=42), text=message.upper())


openai_service = Model()


def records(folder: Path) -> dict[tuple[str, str], Record]:
    return {(record.metric_type, record.name): record for record in stored(folder)}


def test_usage_example(folder: Path) -> None:
    message = "a question"

    # Processing Stage Tracking, Usage Example
    from tallymark.review import ProcessingStage, timer

    # Create session for user interaction
    session_id = create_session(user_id=12345, chat_id=67890)

    async def main() -> None:
        # Track processing stage with context manager
        with timer(session_id, user_id, chat_id, ProcessingStage.AI_PROCESSING) as timing:
            response = await openai_service.get_response(message)
            timing.metadata["tokens_used"] = response.usage.total_tokens

    asyncio.run(main())
    record = records(folder)["processing", "ai_processing"]
    assert (record.session_id, record.unit, record.success) == (session_id, "ms", True)
    assert record.metadata["tokens_used"] == 42


def test_the_stages_of_the_table() -> None:
    # Complete Workflow Coverage
    names = (
        "QUERY_RECEIVED AI_PROCESSING MODERATION_QUEUE ADMIN_REVIEW CORRECTION_PROCESSING CORRECTION_AI "
        "FINAL_RESPONSE USER_DELIVERY"
    )
    assert [stage.name for stage in ProcessingStage] == names.split()
    assert all(stage.value == stage.name.lower() for stage in ProcessingStage)


def test_the_types_of_the_table() -> None:
    # Correction Types Supported
    names = "TEXT_CORRECTION VOICE_CORRECTION CONTENT_MODIFICATION STYLE_IMPROVEMENT FACTUAL_CORRECTION REJECTION"
    assert [kind.name for kind in CorrectionType] == names.split()
    assert all(kind.value == kind.name.lower() for kind in CorrectionType)


def test_admin_performance_tracking(folder: Path) -> None:
    metrics = get_metrics_service()
    session_id, corrected = create_session(user_id, chat_id), final

    # Admin Performance Tracking
    # Track correction with detailed metrics
    metrics.record_correction(
        session_id=session_id,
        admin_user_id=admin_id,
        message_id=msg_id,
        correction_type=CorrectionType.VOICE_CORRECTION,
        original_text=original,
        corrected_text=corrected,
        processing_time_ms=5000,
        voice_transcription_time_ms=1500,
        ai_correction_time_ms=3000,
        admin_satisfaction=4,  # 1-5 rating
        transcription_quality="excellent",
    )
    record = records(folder)["correction", "voice_correction"]
    assert (record.value, record.unit, record.session_id) == (5000.0, "ms", session_id)
    assert {
        "original_length": 19,
        "corrected_length": 17,
        "voice_transcription_time_ms": 1500,
        "ai_correction_time_ms": 3000,
        "admin_satisfaction": 4,
        "retry_count": 0,
        "transcription_quality": "excellent",
    }.items() <= record.metadata.items()


def test_the_structured_log_hears_of_corrections(tmp_path: Path) -> None:
    session_id = create_session(user_id, chat_id)
    record_correction(session_id, admin_id, msg_id, "rejection", original, final, 100)  # nobody listens
    handler = install(tmp_path / "metrics.jsonl", logger=EVENTS)
    try:
        record_correction(session_id, admin_id, msg_id, CorrectionType.VOICE_CORRECTION, original, final, 5000)
    finally:
        handler.close()
        logging.getLogger(EVENTS).removeHandler(handler)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    # JSON Log Format
    expected = {
        "level": "metric",
        "event_type": "correction_recorded",
        "message": "Correction recorded: voice_correction",
        "session_id": session_id,
        "admin_user_id": get_metrics_service().pseudonym("admin", admin_id),
        "correction_type": "voice_correction",
        "processing_time_ms": 5000,
        "original_length": 19,
        "corrected_length": 17,
    }
    assert expected.items() <= json.loads(line).items()
    assert original not in line
    assert str(admin_id) not in line


def test_real_time_dashboard_data() -> None:
    metrics = get_metrics_service()
    for _ in range(4):
        session_id = create_session(user_id, chat_id)
        for stage in ("query_received", "ai_processing", "moderation_queue"):
            with timer(session_id, user_id, chat_id, stage):
                pass
    for kind, rating in (("text_correction", 4), ("voice_correction", 5)):
        record_correction(session_id, admin_id, msg_id, kind, original, final, 4500, admin_satisfaction=rating)

    # Real-Time Dashboard Data
    dashboard = metrics.get_dashboard_data(hours=24)

    assert dashboard["overview"]["total_requests"] == 4
    assert dashboard["overview"]["overall_success_rate"] == 100.0
    assert dashboard["overview"]["total_corrections"] == 2
    assert dashboard["overview"]["avg_total_processing_time_ms"] > 0
    assert list(dashboard["processing_by_stage"]) == ["query_received", "ai_processing", "moderation_queue"]
    for row in dashboard["processing_by_stage"].values():
        assert row["avg_duration_ms"] > 0
        assert row["success_rate"] == 100.0
    for kind in ("text_correction", "voice_correction"):
        row = dashboard["corrections"]["by_type"][kind]
        assert (row["total_count"], row["avg_processing_time_ms"]) == (1, 4500)
    row = dashboard["corrections"]["by_admin"][metrics.pseudonym("admin", admin_id)]
    assert (row["total_corrections"], row["avg_satisfaction"]) == (2, 4.5)
    json.dumps(dashboard, allow_nan=False)


def test_performance_alerts() -> None:
    dashboard = {
        "overview": {"total_requests": 1000, "total_corrections": 352},
        "processing_by_stage": {"ai_processing": {"avg_duration_ms": 12000.0, "success_rate": 99.2}},
    }

    # Performance Alerts
    # Automatic alert generation
    alerts = [
        {
            "type": "slow_processing",
            "severity": "warning",
            "message": "Slow processing detected in ai_processing: 12000ms average",
            "stage": "ai_processing",
        },
        {
            "type": "high_correction_rate",
            "severity": "warning",
            "message": "High correction rate detected: 35.2%",
            "correction_rate": 35.2,
        },
    ]

    assert performance_alerts(dashboard) == alerts


def test_handlers_integration(folder: Path) -> None:
    message = "a question"

    # handlers.py Integration
    from tallymark.review import ProcessingStage, create_session, timer

    class MessageHandlers:
        def __init__(self) -> None:
            self.metrics = get_metrics_service()
            self.openai_service = openai_service

        async def handle_message(self, update: Any, context: Any) -> None:
            session_id = create_session(user_id, chat_id)

            with timer(session_id, user_id, chat_id, ProcessingStage.QUERY_RECEIVED):
                # Process user message
                pass

            with timer(session_id, user_id, chat_id, ProcessingStage.AI_PROCESSING) as ai_timer:
                response = await self.openai_service.get_response(message)
                ai_timer.metadata["tokens"] = response.usage.total_tokens

    handlers = MessageHandlers()

    async def main() -> None:
        await asyncio.gather(*(handlers.handle_message(None, None) for _ in range(20)))

    asyncio.run(main())
    with tallymark.open(str(folder)) as store:
        rows = store.query(metric_type="processing", group_by=("session_id",)).rows()
    assert [row["count"] for row in rows] == [2] * 20
    assert records(folder)["processing", "ai_processing"].metadata["tokens"] == 42
    assert current_session_id.get() is None


def test_admin_bot_integration(folder: Path) -> None:
    # admin_bot.py Integration
    from tallymark.review import CorrectionType, record_correction

    class AdminHandlers:
        def __init__(self, correction_service: Any) -> None:
            self.correction_service = correction_service

        async def process_correction(self, admin_id: int, correction_text: str, update: Any, session_id: str) -> None:
            start_time = time.time()

            # Process correction
            corrected = await self.correction_service.correct_message(original, correction_text)

            # Record metrics
            record_correction(
                session_id=session_id,
                admin_user_id=admin_id,
                message_id=msg_id,
                correction_type=CorrectionType.TEXT_CORRECTION,
                original_text=original,
                corrected_text=corrected,
                processing_time_ms=int((time.time() - start_time) * 1000),
            )

    class CorrectionService:
        async def correct_message(self, original: str, correction: str) -> str:
            await asyncio.sleep(0)
            return correction

    session_id = create_session(user_id, chat_id)
    asyncio.run(AdminHandlers(CorrectionService()).process_correction(admin_id, final, None, session_id))
    record = records(folder)["correction", "text_correction"]
    assert (record.session_id, record.metadata["edit_distance"]) == (session_id, 4)
    assert record.metadata["admin"] == get_metrics_service().pseudonym("admin", admin_id)


def test_moderation_service_integration(folder: Path) -> None:
    # moderation_service.py Integration
    class ModerationQueue:
        def __init__(self) -> None:
            self.metrics = get_metrics_service()
            self.pending_messages: list[str] = []

        def add_to_queue(self, message_data: str, session_id: str | None = None) -> None:
            if session_id:
                with timer(session_id, user_id, chat_id, ProcessingStage.MODERATION_QUEUE):
                    # Add to queue
                    self.pending_messages.append(message_data)

            # Record system metrics
            self.metrics.record_system_metric(
                "queue_length", len(self.pending_messages), tags={"component": "moderation"}
            )

    queue = ModerationQueue()
    queue.add_to_queue("a message")
    queue.add_to_queue("another", create_session(user_id, chat_id))
    assert [row["name"] for row in live(folder)] == ["queue_length", "created", "moderation_queue", "queue_length"]
    record = records(folder)["system_metric", "queue_length"]
    assert (record.value, record.metadata) == (1.0, {"component": "moderation"})


def test_integration_steps() -> None:
    session_id, stage = create_session(user_id, chat_id), ProcessingStage.USER_DELIVERY

    # Integration Steps
    session_id = create_session(user_id, chat_id)
    with timer(session_id, user_id, chat_id, stage):
        pass
    record_correction(session_id, admin_id, msg_id, CorrectionType.REJECTION, original, "", 100)
    dashboard = get_dashboard_data(hours=24)

    assert dashboard["overview"]["total_requests"] == 2  # nobody timed query_received: the sessions
    assert dashboard["corrections"]["by_type"]["rejection"]["total_count"] == 1


def test_export_functionality(tmp_path: Path) -> None:
    # Test Results Summary
    report = json.loads(get_metrics_service().export_json(tmp_path / "report.json").read_text())
    assert {"overview", "processing_by_stage", "corrections", "alerts"} <= report.keys()


class TestTheServiceOfThisProcess:
    def test_it_is_one_and_follows_the_recorder(self, tmp_path: Path) -> None:
        first = get_metrics_service()
        assert get_metrics_service() is first
        with recording(tmp_path / "other") as other:
            set_default(other)
            assert get_metrics_service().metrics is other

    def test_it_takes_the_settings(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TALLYMARK_PSEUDONYM_KEY", "a secret")
        monkeypatch.setenv("TALLYMARK_SLOW_STAGE_MS", "123")
        monkeypatch.setenv("TALLYMARK_CORRECTION_RATE_PERCENT", "45")
        settings.cache_clear()
        with recording(tmp_path / "other") as other:
            set_default(other)
            service = get_metrics_service()
            assert (service.slow_stage_ms, service.correction_rate_percent) == (123, 45)
            assert service.pseudonym("admin", 12345) == "admin_rbpgkskldgcbspggqklf"
            assert not (tmp_path / "other" / "pseudonym.key").exists()

    def test_its_functions_are_named_and_documented(self) -> None:
        assert (timer.__name__, record_correction.__name__) == ("timer", "record_correction")
        assert "get_metrics_service" in (get_dashboard_data.__doc__ or "")
