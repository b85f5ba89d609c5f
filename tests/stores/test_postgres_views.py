"""SQL that was written for the tables of other systems, on the views of the same names."""

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from recording import ship

from tallymark import Metrics
from tallymark.processing import MetricsCollector
from tallymark.review import CorrectionType, MetricsService, ProcessingStage
from tallymark.stores.postgres.store import Postgres
from tallymark.testing.rows import batch, row


@pytest.fixture
def metrics(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path))
    with Metrics(database, service="backend") as found:
        yield found


def ask(database: str, sql: str, *given: Any) -> list[dict[str, Any]]:
    """As a system that had those tables in its search path."""
    with psycopg.connect(
        database, options="-c search_path=tallymark,public", row_factory=psycopg.rows.dict_row
    ) as connection:
        return connection.execute(sql, given or None).fetchall()


def columns(database: str, view: str) -> dict[str, str]:
    found = ask(
        database,
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'tallymark' AND table_name = %s ORDER BY ordinal_position",
        view,
    )
    return {one["column_name"]: one["data_type"] for one in found}


def test_document_004_metrics(database: str, metrics: Metrics) -> None:
    for number in range(20):
        status = 500 if number == 7 else 404 if number == 8 else 200
        metrics.record(
            "api_request",
            "GET /v1/search",
            float(number + 1),
            metadata={"endpoint": "/v1/search", "method": "GET", "status_code": status},
            trace_id=uuid.UUID(int=number).hex,
        )
    metrics.record("redis", "hit_rate", 99.5, "%")
    ship(database)
    assert columns(database, "metrics") == {
        "id": "uuid",
        "timestamp": "timestamp with time zone",
        "metric_type": "text",
        "metric_name": "text",
        "value": "double precision",
        "metadata": "jsonb",
    }
    (found,) = ask(
        database,
        """
        SELECT
            AVG(value) as avg_latency_ms,
            PERCENTILE_CONT(0.50) WITHIN GROUP (ORDER BY value) as p50_latency_ms,
            PERCENTILE_CONT(0.95) WITHIN GROUP (ORDER BY value) as p95_latency_ms,
            COUNT(*) as request_count,
            COUNT(*) FILTER (WHERE (metadata->>'status_code')::int >= 400) as error_count
        FROM metrics
        WHERE metric_type = 'api' AND timestamp > NOW() - INTERVAL '1h'
        """,
    )
    assert found == {
        "avg_latency_ms": 10.5,
        "p50_latency_ms": 10.5,
        "p95_latency_ms": pytest.approx(19.05),
        "request_count": 20,
        "error_count": 2,
    }
    (one,) = ask(database, "SELECT * FROM metrics WHERE metadata->>'trace_id' = %s", uuid.UUID(int=7).hex)
    assert (one["metric_name"], one["value"], one["metadata"]["status_code"]) == ("GET /v1/search", 8.0, 500)
    assert ask(database, "SELECT metric_type, metric_name FROM metrics WHERE metric_type = 'redis'") == [
        {"metric_type": "redis", "metric_name": "hit_rate"}
    ]


def test_document_000_system_metrics(database: str, metrics: Metrics) -> None:
    collector = MetricsCollector(metrics, service_name="crawler")
    with collector.track_operation("download", metadata={"job_id": 123}):
        pass
    collector.record_success_rate("download", 80, 100)
    collector.record_queue_depth("celery", depth=5, wait_time_seconds=2.5)
    ship(database)
    assert columns(database, "system_metrics") == {
        "id": "uuid",
        "timestamp": "timestamp with time zone",
        "metric_type": "text",
        "name": "text",
        "value": "double precision",
        "unit": "text",
        "metadata_": "jsonb",
        "service": "text",
        "description": "text",
    }
    found = ask(
        database,
        "SELECT * FROM system_metrics WHERE metric_type = 'processing_time' AND name = 'download_time' "
        "AND service = 'crawler' AND timestamp >= %s AND timestamp < %s ORDER BY timestamp DESC LIMIT 1000",
        datetime.now(UTC) - timedelta(hours=1),
        datetime.now(UTC) + timedelta(hours=1),
    )
    assert [one["metadata_"] for one in found] == [{"job_id": 123}]
    rates = ask(database, "SELECT name, value, unit FROM system_metrics WHERE metric_type = 'success_rate'")
    assert rates == [{"name": "download_success_rate", "value": 80.0, "unit": "%"}]
    queues = ask(database, "SELECT name, value FROM system_metrics WHERE metadata_->>'queue' = 'celery' ORDER BY name")
    assert [one["value"] for one in queues] == [5.0, 2.5]
    (one,) = ask(database, "SELECT * FROM system_metrics WHERE id = %s", found[0]["id"])
    assert one == found[0]


def test_document_002_processing_and_corrections(database: str, metrics: Metrics) -> None:
    service = MetricsService(metrics)
    session = service.create_session(user_id=12345, chat_id=67890)
    with service.timer(session, 12345, 67890, ProcessingStage.QUERY_RECEIVED):
        pass

    async def answer() -> None:
        with service.timer(session, 12345, 67890, ProcessingStage.AI_PROCESSING) as timing:
            timing.metadata["tokens_used"] = 42
            raise TimeoutError("no answer")

    with pytest.raises(TimeoutError):
        asyncio.run(answer())
    service.record_correction(
        session_id=session,
        admin_user_id=99999,
        message_id=555,
        correction_type=CorrectionType.VOICE_CORRECTION,
        original_text="helo",
        corrected_text="hello!",
        processing_time_ms=5000,
        voice_transcription_time_ms=1500,
        ai_correction_time_ms=3000,
        admin_satisfaction=4,
        transcription_quality="excellent",
    )
    ship(database)
    names = "metric_id session_id user_id chat_id stage start_time end_time duration_ms success error_message metadata"
    assert list(columns(database, "processing_metrics")) == names.split()
    stages = ask(
        database,
        """
        SELECT stage, AVG(duration_ms) AS avg_duration_ms, AVG(CASE WHEN success THEN 100.0 ELSE 0 END) AS success_rate
        FROM processing_metrics
        WHERE start_time >= %s AND session_id = %s
        GROUP BY stage ORDER BY stage
        """,
        (datetime.now(UTC) - timedelta(hours=24)).replace(tzinfo=None).isoformat(),
        session,
    )
    assert [(one["stage"], float(one["success_rate"])) for one in stages] == [
        ("ai_processing", 0.0),
        ("query_received", 100.0),
    ]
    (failed,) = ask(database, "SELECT * FROM processing_metrics WHERE success = FALSE")
    assert "no answer" in failed["error_message"]
    assert failed["start_time"] <= failed["end_time"]
    assert datetime.fromisoformat(failed["start_time"]) <= datetime.now(UTC).replace(tzinfo=None)
    assert failed["user_id"] == service.pseudonym("user", 12345)
    names = (
        "correction_id session_id admin_user_id message_id correction_type original_length corrected_length "
        "processing_time_ms voice_transcription_time_ms ai_correction_time_ms timestamp admin_satisfaction retry_count "
        "metadata"
    )
    assert list(columns(database, "correction_metrics")) == names.split()
    (found,) = ask(
        database,
        "SELECT correction_type, COUNT(*) AS total_count, AVG(processing_time_ms) AS avg_processing_time_ms, "
        "AVG(admin_satisfaction) AS avg_satisfaction, SUM(corrected_length - original_length) AS growth "
        "FROM correction_metrics WHERE admin_user_id = %s AND timestamp > %s GROUP BY correction_type",
        service.pseudonym("admin", 99999),
        "2025-09-26T21:00:00.000000",
    )
    assert {name: str(value).partition(".")[0] for name, value in found.items()} == {
        "correction_type": "voice_correction",
        "total_count": "1",
        "avg_processing_time_ms": "5000",
        "avg_satisfaction": "4",
        "growth": "2",
    }


def test_readable_is_every_record_but_the_stores_own(database: str) -> None:
    rows = [row(seq, metadata={"a": seq}) for seq in range(3)]
    own = row(9, metric_type="tallymark")
    with Postgres(database) as store:
        store.write(batch([*rows, own]))
    found = ask(database, "SELECT * FROM readable ORDER BY timestamp_ns")
    assert [one["metadata"] for one in found] == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert [one["time"] for one in found] == [datetime(2025, 1, 31, 12, tzinfo=UTC)] * 3
    assert found[1]["id"] == uuid.UUID(int=(1 << 40) + 1)


def test_records_that_only_look_like_those_are_no_error(database: str) -> None:
    odd: list[dict[str, Any]] = [
        {"metric_type": "processing", "value": 1e300, "metadata": {"user": {"a": 1}}},
        {"metric_type": "processing", "value": -1e300},
        {"metric_type": "correction", "value": 1e300, "metadata": {"original_length": "x", "retry_count": 1e300}},
        {"metric_type": "correction", "metadata": {"original_length": 1.5, "corrected_length": None, "admin": [1]}},
        {"metric_type": "api_request", "metadata": {"trace_id": "own"}, "trace_id": "t"},
    ]
    with Postgres(database) as store:
        store.write(batch([row(seq, **given) for seq, given in enumerate(odd)]))
    for view, expected in (("metrics", 5), ("system_metrics", 5), ("processing_metrics", 2), ("correction_metrics", 2)):
        assert len(ask(database, f"SELECT * FROM {view}")) == expected
