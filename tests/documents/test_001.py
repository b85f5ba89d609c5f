# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The samples of the interface document 001, "Metrics System".

Changed are the imports and the layout; ``expensive_operation`` and its like are small functions of the test that stand
for the application's own. No usage, and not shown here:

* "Testing" and "Troubleshooting" name no interface.

``storage_path`` is where records are; ``max_batch_size`` and ``max_queue_size`` are as the document has them. A folder
alone is a lake; with ``json:`` in front of it, it has the files of "Data Format", which ``cleanup_old_metrics`` of
"Data Retention" deletes.
"""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from recording import DEADLINE_SECONDS, stored
from serving import serving

import tallymark
from tallymark.lane import JOURNALS
from tallymark.manager import MetricsManager
from tallymark.record import Record
from tallymark.shipper import shipping_lock


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples record to ``./metrics``."""
    monkeypatch.chdir(tmp_path)


def records() -> list[Record]:
    return stored(Path("metrics"))


# Quick Start: Basic Usage


async def main():
    # Create and start metrics manager
    manager = MetricsManager(storage_path="./metrics", flush_interval_seconds=5.0, max_batch_size=1000)
    await manager.start()

    # Record operations (non-blocking, O(1))
    await manager.record_operation(
        operation_type="api_request",
        operation_name="GET /api/users",
        duration_ms=42.5,
        success=True,
        metadata={"status_code": 200, "region": "us-east"},
    )

    # Graceful shutdown (flushes remaining metrics)
    await manager.stop()


def test_basic_usage() -> None:
    asyncio.run(main())
    (record,) = records()
    assert (record.metric_type, record.name, record.value, record.unit) == (
        "api_request",
        "GET /api/users",
        42.5,
        "ms",
    )
    assert (record.success, record.error) == (True, None)
    assert record.metadata == {"status_code": 200, "region": "us-east"}


# Quick Start: FastAPI Integration

# Global metrics manager
metrics_manager: MetricsManager | None = None


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Manage metrics manager lifecycle."""
    global metrics_manager

    # Startup
    metrics_manager = MetricsManager(storage_path="./metrics")
    await metrics_manager.start()

    yield

    # Shutdown
    if metrics_manager:
        await metrics_manager.stop()


app = FastAPI(lifespan=lifespan)


@app.get("/api/users")
async def get_users():
    """Example endpoint with metrics."""
    import time

    start = time.time()

    # Your business logic here
    users = ["Alice", "Bob", "Charlie"]

    # Record metrics
    duration_ms = (time.time() - start) * 1000
    if metrics_manager:
        await metrics_manager.record_operation(
            operation_type="api_request",
            operation_name="GET /api/users",
            duration_ms=duration_ms,
            success=True,
            metadata={"count": len(users)},
        )

    return {"users": users}


def test_fastapi_integration() -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with serving(server) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        for _ in range(3):
            assert client.get("/api/users").json() == {"users": ["Alice", "Bob", "Charlie"]}
    assert [(record.name, record.metadata) for record in records()] == [("GET /api/users", {"count": 3})] * 3
    assert metrics_manager is not None
    stats = metrics_manager.get_stats()
    assert (stats.total_recorded, stats.is_running) == (3, False)


# Quick Start: Context Manager for Timing

manager = MetricsManager("unused")  # it makes no folder before it is started
work_of_the_application: list[Exception | None] = []


async def expensive_computation() -> str:
    outcome = work_of_the_application.pop(0)
    if outcome is not None:
        raise outcome
    return "done"


expensive_operation = expensive_computation


@asynccontextmanager
async def track_operation(manager: MetricsManager, operation_type: str, operation_name: str):
    """Context manager to automatically track operation duration."""
    start = time.time()
    error_msg = None

    try:
        yield
    except Exception as e:
        error_msg = str(e)
        raise
    finally:
        duration_ms = (time.time() - start) * 1000
        await manager.record_operation(
            operation_type=operation_type,
            operation_name=operation_name,
            duration_ms=duration_ms,
            success=(error_msg is None),
            error_message=error_msg,
        )


# Usage
async def process_data():
    async with track_operation(manager, operation_type="computation", operation_name="process_user_data"):
        # Your processing logic here
        await expensive_computation()


def test_context_manager_for_timing() -> None:
    async def run() -> None:
        global manager
        manager = MetricsManager(storage_path="./metrics")
        await manager.start()
        await process_data()
        with pytest.raises(ValueError, match="no such user"):
            await process_data()
        await manager.stop()

    work_of_the_application[:] = [None, ValueError("no such user")]
    asyncio.run(run())
    good, bad = records()
    assert (good.metric_type, good.name, good.success, good.error) == (
        "computation",
        "process_user_data",
        True,
        None,
    )
    assert (bad.name, bad.success, bad.error) == ("process_user_data", False, "no such user")
    assert good.value >= 0


# API Reference


def test_constructor() -> None:
    manager = MetricsManager("./metrics", 5.0, 1000, 10000)
    assert manager.store == "./metrics"
    assert MetricsManager(Path("metrics")).store == "metrics"
    with pytest.raises(TypeError):
        MetricsManager()  # type: ignore[call-arg]


def test_lifecycle() -> None:
    async def run() -> None:
        manager = MetricsManager("./metrics")
        with pytest.raises(RuntimeError):
            await manager.record_operation("api_request", "too early", 1.0)
        await manager.start()
        with pytest.raises(RuntimeError):
            await manager.start()
        await manager.stop(timeout=10.0)
        with pytest.raises(RuntimeError):
            await manager.record_operation("api_request", "too late", 1.0)

    asyncio.run(run())


def run_recording(work: Any) -> list[Record]:
    """The records of a coroutine function that is given a running manager."""

    async def run() -> None:
        manager = MetricsManager("./metrics")
        await manager.start()
        await work(manager)
        await manager.stop()

    asyncio.run(run())
    return records()


def test_record_operation() -> None:
    async def work(manager: MetricsManager) -> None:
        await manager.record_operation(
            operation_type="database_query",
            operation_name="SELECT users WHERE active = true",
            duration_ms=15.3,
            success=True,
            metadata={"rows_returned": 42, "cache_hit": False},
        )
        for wrong in (-1.0, float("nan"), "soon"):
            with pytest.raises(ValueError, match="duration_ms"):
                await manager.record_operation("database_query", "SELECT", wrong)  # type: ignore[arg-type]

    (record,) = run_recording(work)
    assert (record.metric_type, record.name, record.value) == (
        "database_query",
        "SELECT users WHERE active = true",
        15.3,
    )
    assert record.metadata == {"rows_returned": 42, "cache_hit": False}


def test_get_stats() -> None:
    async def work(manager: MetricsManager) -> None:
        for number in range(100):
            await manager.record_operation("api_request", "GET /", float(number))
        stats = await manager.get_stats()
        assert (stats.total_recorded, stats.total_persisted + stats.queue_size) == (100, 100)
        assert stats.is_running
        await manager.flush()
        stats = await manager.get_stats()
        assert (stats.total_recorded, stats.total_persisted, stats.queue_size) == (100, 100, 0)
        assert stats.batches_written >= 1
        assert stats.last_flush_timestamp is not None
        assert stats.last_flush_timestamp.utcoffset() is not None
        assert stats.avg_batch_size == 100 / stats.batches_written

    assert len(run_recording(work)) == 100


# Security & Compliance: PII Protection


def test_pii_protection() -> None:
    async def work(manager: MetricsManager) -> None:
        # ❌ This will raise ValueError
        with pytest.raises(ValueError, match="email") as refused:
            await manager.record_operation(
                operation_type="api_request",
                operation_name="GET /api/profile",
                duration_ms=50.0,
                metadata={"email": "user@example.com"},  # Forbidden!
            )
        assert "user@example.com" not in str(refused.value)

        # ✅ This is allowed
        await manager.record_operation(
            operation_type="api_request",
            operation_name="GET /api/profile",
            duration_ms=50.0,
            metadata={"user_hash": "abc123", "region": "us-east"},
        )

    (record,) = run_recording(work)
    assert record.metadata == {"user_hash": "abc123", "region": "us-east"}


FORBIDDEN = """
email, name, username, password
token, key, secret, api_key
user_id, client_id, session_id
"""


@pytest.mark.parametrize("key", FORBIDDEN.replace(",", " ").split())
def test_forbidden_metadata_keys(key: str) -> None:
    manager = MetricsManager("./metrics")
    manager.start()
    with pytest.raises(ValueError, match=key):
        manager.record_operation("api_request", "GET /", 1.0, metadata={key: "x"})
    assert manager.get_stats().total_recorded == 0
    manager.stop()


# Best Practices


def test_descriptive_operation_names() -> None:
    async def work(manager: MetricsManager) -> None:
        # ❌ Bad: Generic names
        await manager.record_operation("api", "request", 50.0)

        # ✅ Good: Specific, searchable names
        await manager.record_operation("api_request", "POST /api/v1/users/create", 50.0)

    assert [(record.metric_type, record.name, record.value) for record in run_recording(work)] == [
        ("api", "request", 50.0),
        ("api_request", "POST /api/v1/users/create", 50.0),
    ]


def test_useful_metadata() -> None:
    async def work(manager: MetricsManager) -> None:
        # ✅ Good: Helps with debugging and analysis
        await manager.record_operation(
            operation_type="database_query",
            operation_name="SELECT products",
            duration_ms=125.0,
            metadata={
                "query_hash": "abc123",  # Anonymized query identifier
                "rows_returned": 50,
                "cache_hit": False,
                "database": "products_read_replica",
            },
        )

    (record,) = run_recording(work)
    assert record.metadata == {
        "query_hash": "abc123",
        "rows_returned": 50,
        "cache_hit": False,
        "database": "products_read_replica",
    }


def test_handle_errors_properly() -> None:
    duration = 12.5

    async def sample(manager: MetricsManager) -> Any:
        try:
            result = await expensive_operation()
            await manager.record_operation(
                operation_type="computation", operation_name="data_processing", duration_ms=duration, success=True
            )
        except Exception as e:
            await manager.record_operation(
                operation_type="computation",
                operation_name="data_processing",
                duration_ms=duration,
                success=False,
                error_message=str(e)[:1000],  # Truncate to 1000 chars
            )
            raise
        return result

    async def work(manager: MetricsManager) -> None:
        await sample(manager)
        with pytest.raises(OSError, match="x" * 2000):
            await sample(manager)

    work_of_the_application[:] = [None, OSError("x" * 2000)]
    assert [(record.success, record.error) for record in run_recording(work)] == [(True, None), (False, "x" * 1000)]


def test_monitor_queue_size() -> None:
    class logger:
        """What the document's application logs with."""

        warnings: ClassVar[list[dict[str, Any]]] = []

        @classmethod
        def warning(cls, message: str, **values: Any) -> None:
            cls.warnings.append(values)

    async def sample(manager: MetricsManager) -> None:
        # Periodically check queue health
        stats = await manager.get_stats()
        if stats.queue_size > 5000:
            logger.warning("Metrics queue is getting full", queue_size=stats.queue_size, max_queue_size=10000)

    async def work(manager: MetricsManager) -> None:
        await sample(manager)
        assert logger.warnings == []
        for _ in range(5001):
            await manager.record_operation("api_request", "GET /", 1.0)
        assert (await manager.get_stats()).total_recorded == 5001
        await sample(manager)

    with shipping_lock(Path("metrics") / JOURNALS):  # nobody else writes batches meanwhile
        run_recording(work)
    assert logger.warnings == [{"queue_size": 5001, "max_queue_size": 10000}]


# Data Format


def test_data_format() -> None:
    manager = MetricsManager(storage_path="json:./metrics")
    with manager:
        manager.record_operation(
            "api_request", "GET /api/users", 42.5, metadata={"status_code": 200, "region": "us-east"}
        )
        manager.flush(timeout=DEADLINE_SECONDS)
    (path,) = Path("metrics").glob("metrics_*.json")
    content = json.loads(path.read_text("utf-8"))
    assert list(content) == ["records", "batch_timestamp", "batch_id", "total_records"]
    assert (path.name, content["total_records"]) == (f"metrics_{content['batch_id']}.json", 1)
    (record,) = content["records"]
    datetime.fromisoformat(record.pop("timestamp"))
    record.pop("tallymark")  # what the others have no place for
    assert record == {
        "operation_type": "api_request",
        "operation_name": "GET /api/users",
        "duration_ms": 42.5,
        "success": True,
        "error_message": None,
        "metadata": {"status_code": 200, "region": "us-east"},
    }


# Data Retention


def cleanup_old_metrics(storage_path: Path, days: int = 30):
    """Delete metrics older than specified days."""
    cutoff = datetime.now() - timedelta(days=days)

    for file in storage_path.glob("metrics_*.json"):
        # Parse timestamp from filename
        timestamp_str = file.stem.replace("metrics_", "")
        file_date = datetime.strptime(timestamp_str[:8], "%Y%m%d")

        if file_date < cutoff:
            file.unlink()  # Delete file


def test_data_retention() -> None:
    """What was deleted does not come again, and the books know of it."""
    storage_path = Path("metrics")
    with MetricsManager(storage_path="json:./metrics") as manager:
        manager.record_operation("api_request", "GET /api/users", 42.5)
        manager.flush(timeout=DEADLINE_SECONDS)
        (new,) = storage_path.glob("metrics_*.json")
        old = new.rename(new.with_name("metrics_20250101_080005_123456.json"))
        manager.record_operation("api_request", "GET /api/orders", 7.0)
        manager.flush(timeout=DEADLINE_SECONDS)
        cleanup_old_metrics(storage_path)
        assert not old.exists()
        with tallymark.open("json:./metrics") as reader:
            assert [record.name for record in reader.records().records] == ["GET /api/orders"]
            assert (reader.info().stored, reader.info().deleted) == (1, 1)
