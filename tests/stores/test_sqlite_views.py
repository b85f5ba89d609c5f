"""The views in a SQLite file: SQL as it was written for the tables of other systems, on what is recorded here."""

import json
import sqlite3
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from recording import DEADLINE_SECONDS

import tallymark
from tallymark import Metrics
from tallymark.processing import track_success_rate
from tallymark.review.corrections import CorrectionType
from tallymark.review.service import MetricsService
from tallymark.review.sessions import ProcessingStage
from tallymark.trace import current_trace_id


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with something of everything in it."""
    path = tmp_path_factory.mktemp("views") / "metrics.db"
    with Metrics(f"sqlite:///{path}", service="shop") as metrics:
        token = current_trace_id.set("abc-123")
        for number in range(20):
            status = 500 if number % 10 == 0 else 200
            metrics.record_operation("api_request", "GET /users", float(number), metadata={"status_code": status})
        current_trace_id.reset(token)
        metrics.record("redis", "hit_rate", 97.5, "%")
        track_success_rate(metrics, "download", success_count=80, total_count=100, metadata={"job_id": 123})
        service = MetricsService(metrics, raw_ids=True)
        session = service.create_session(user_id=12345, chat_id=67890)
        with service.timer(session, 12345, 67890, ProcessingStage.AI_PROCESSING) as timing:
            timing.metadata["tokens_used"] = 42
        try:
            with service.timer(session, 12345, 67890, ProcessingStage.ADMIN_REVIEW):
                raise ValueError("no admin")
        except ValueError:
            pass
        service.record_correction(
            session_id=session,
            admin_user_id=99999,
            message_id="m-1",
            correction_type=CorrectionType.VOICE_CORRECTION,
            original_text="helo",
            corrected_text="hello",
            processing_time_ms=5000,
            voice_transcription_time_ms=1500,
            ai_correction_time_ms=3000,
            admin_satisfaction=4,
        )
        metrics.flush(timeout=4 * DEADLINE_SECONDS)
    return path


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    yield connection
    connection.close()


def rows(database: sqlite3.Connection, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in database.execute(sql, parameters)]


def columns(database: sqlite3.Connection, view: str) -> list[str]:
    return [row["name"] for row in rows(database, f"SELECT name FROM pragma_table_info('{view}')")]


def test_records_are_those_that_a_query_gives(path: Path, database: sqlite3.Connection) -> None:
    with tallymark.open(f"sqlite:///{path}") as reader:
        expected = reader.records(limit=100).records
    found = rows(database, "SELECT * FROM tallymark_records ORDER BY timestamp_ns DESC, id DESC")
    assert [uuid.UUID(one["id"]) for one in found] == [record.id for record in expected]
    for one, record in zip(found, expected, strict=True):
        moment = datetime.fromtimestamp(record.timestamp // 1_000 / 1e6, UTC)
        assert abs((datetime.fromisoformat(one["time"]) - moment).total_seconds()) < 2e-6
        assert one["timestamp_ns"] == record.timestamp
        assert (one["service"], one["metric_type"], one["name"]) == (record.service, record.metric_type, record.name)
        assert (one["value"], one["unit"], one["error"]) == (record.value, record.unit, record.error)
        assert one["success"] == record.success
        assert json.loads(one["metadata"]) == record.metadata


def test_metrics_of_document_004(database: sqlite3.Connection) -> None:
    assert columns(database, "metrics") == ["id", "timestamp", "metric_type", "metric_name", "value", "metadata"]
    (api,) = rows(
        database,
        """
        SELECT count(*) AS request_count, avg(value) AS avg_latency_ms,
            sum(json_extract(metadata, '$.status_code') >= 400) AS error_count
        FROM metrics
        WHERE metric_type = 'api' AND timestamp > datetime('now', '-1 hour')
        """,
    )
    assert api == {"request_count": 20, "avg_latency_ms": 9.5, "error_count": 2}
    by_trace = "SELECT count(*) AS n FROM metrics WHERE json_extract(metadata, '$.trace_id') = 'abc-123'"
    assert rows(database, by_trace) == [{"n": 20}]
    newest = "SELECT value FROM metrics WHERE metric_name = 'hit_rate' ORDER BY timestamp DESC LIMIT 1"
    assert rows(database, newest) == [{"value": 97.5}]
    assert rows(database, "SELECT count(*) AS n FROM metrics WHERE timestamp > datetime('now', '+1 hour')") == [
        {"n": 0}
    ]


def test_system_metrics_of_document_000(database: sqlite3.Connection) -> None:
    assert columns(database, "system_metrics") == [
        *("id", "timestamp", "metric_type", "name", "value", "unit", "metadata_", "service", "description")
    ]
    (found,) = rows(
        database,
        """
        SELECT name, value, unit, service, metadata_ FROM system_metrics
        WHERE metric_type = 'success_rate' AND name = 'download_success_rate' AND service = 'shop'
            AND timestamp >= date('now', '-1 day') AND timestamp < date('now', '+2 days')
        ORDER BY timestamp DESC LIMIT 1000
        """,
    )
    assert json.loads(found.pop("metadata_"))["job_id"] == 123
    assert found == {"name": "download_success_rate", "value": 80.0, "unit": "%", "service": "shop"}


def test_processing_metrics_of_document_002(database: sqlite3.Connection) -> None:
    assert columns(database, "processing_metrics") == [
        *("metric_id", "session_id", "user_id", "chat_id", "stage", "start_time", "end_time"),
        *("duration_ms", "success", "error_message", "metadata"),
    ]
    found = rows(
        database,
        """
        SELECT stage, count(*) AS total, avg(duration_ms) AS mean,
            sum(CASE WHEN success THEN 1 ELSE 0 END) AS successes, max(error_message) AS error,
            min(user_id) AS user_id, min(chat_id) AS chat_id, min(start_time) AS first, max(end_time) AS last
        FROM processing_metrics
        WHERE start_time >= strftime('%Y-%m-%dT%H:%M:%S', 'now', '-24 hours')
        GROUP BY stage ORDER BY stage
        """,
    )
    assert [(one["stage"], one["total"], one["successes"]) for one in found] == [
        ("admin_review", 1, 0),
        ("ai_processing", 1, 1),
    ]
    assert "no admin" in found[0]["error"]
    assert found[1]["error"] is None
    for one in found:
        assert (one["user_id"], one["chat_id"]) == ("user_12345", "chat_67890")  # as they are stored
        assert datetime.fromisoformat(one["first"]) <= datetime.fromisoformat(one["last"])
        assert 0 <= one["mean"] < 60_000


def test_correction_metrics_of_document_002(database: sqlite3.Connection) -> None:
    (found,) = rows(database, "SELECT * FROM correction_metrics WHERE correction_type = 'voice_correction'")
    uuid.UUID(found.pop("correction_id"))
    (session,) = {one["session_id"] for one in rows(database, "SELECT session_id FROM processing_metrics")}
    assert found.pop("session_id") == session
    assert datetime.fromisoformat(found.pop("timestamp"))
    assert json.loads(found.pop("metadata"))["similarity"] == 0.8
    assert found == {
        "admin_user_id": "admin_99999",
        "message_id": "message_m-1",
        "correction_type": "voice_correction",
        "original_length": 4,
        "corrected_length": 5,
        "processing_time_ms": 5000,
        "voice_transcription_time_ms": 1500,
        "ai_correction_time_ms": 3000,
        "admin_satisfaction": 4,
        "retry_count": 0,
    }


def test_nothing_that_was_recorded_stops_a_view(tmp_path: Path) -> None:
    from tallymark.stores.sqlite.store import Sqlite
    from tallymark.testing.rows import batch, row

    hostile = [
        {"metric_type": "processing", "value": value, "metadata": {"user": {"a": [1]}, "chat": None}}
        for value in (-1e308, 1e308, -0.0, 5e-324)
    ]
    hostile += [{"metric_type": "correction", "value": 1e300, "metadata": {"original_length": "many", "admin": True}}]
    hostile += [{"metric_type": "api_request", "trace_id": "'\"\\", "timestamp": 0, "metadata": {"trace_id": [1]}}]
    hostile += [{"metric_type": "tallymark", "name": "kept", "timestamp": 4_102_444_799_999_999_999}]
    path = tmp_path / "metrics.db"
    with Sqlite(path) as store:
        store.write(batch([row(seq, **one) for seq, one in enumerate(hostile)]))
    database = sqlite3.connect(path)
    views = ["tallymark_records", "metrics", "system_metrics", "processing_metrics", "correction_metrics"]
    counts = [len(database.execute(f"SELECT * FROM {view}").fetchall()) for view in views]
    assert counts == [6, 6, 6, 4, 1]
    api = database.execute("SELECT timestamp, metadata FROM metrics WHERE metric_type = 'api'").fetchall()
    assert api == [("1970-01-01 00:00:00.000000", '{"trace_id":"\'\\"\\\\"}')]
    database.close()
