"""The samples of the interface document 004, "Metrics Infrastructure".

Changed are the imports, and the database engine: a recorder stands in its place. The document's fixtures
``async_engine``, ``redis_client`` and ``test_client`` are a recorder, a client of a real Redis, and a client of the
application of the sample "Intégration main.py" with a real PostgreSQL behind it. The commands are run as they are
written; only curl is told where port 8001 of this machine is, and grep to take ``X-Trace-ID`` in any case: ASGI wants
names of headers in lower case, and that is how every ASGI server sends them.

No usage, hence not here: the SQL of the table and the percentiles (records lie in a Delta table, a percentile is an
aggregate of a query: ``tests/test_query.py``), ``docker compose exec … psql`` (the same), the class and the middleware
as the document implements them (``tests/collectors/test_summary.py``, ``tests/integrations/test_asgi.py``), Redis
without a limit of memory (``tests/collectors/test_redis.py``) and the installation of psutil.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from recording import DEADLINE_SECONDS, eventually, recording, stored
from services.postgres import postgres_server
from services.redis import redis_server
from serving import serving

from tallymark.config import Settings, settings
from tallymark.default import set_default
from tallymark.server import create_app
from tallymark.server.serve import Server

# 5. Tests: what pytest-asyncio and an application's own conftest.py would do.
CONFTEST = """
import asyncio, inspect, os
import httpx, pytest, redis.asyncio
from tallymark import Metrics
from tallymark.collectors.summary import MetricsCollector
from tallymark.default import set_default
from tallymark.integrations.asgi import MetricsMiddleware

# Two seconds may be little for a machine that is busy with other things.
MetricsCollector.__init__.__kwdefaults__["timeout_seconds"] = 30.0

def pytest_configure(config):
    config.addinivalue_line("markers", "asyncio: runs in an event loop")

@pytest.fixture(scope="session")
def loop():
    with asyncio.Runner() as runner:
        yield runner

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    pyfuncitem.funcargs["loop"].run(pyfuncitem.obj(**arguments))
    return True

@pytest.fixture(autouse=True)
def in_loop(loop):
    pass

@pytest.fixture(scope="session")
def async_engine(loop):
    with Metrics(os.environ["TALLYMARK_STORE"], service="mnemo") as metrics:
        set_default(metrics)
        yield metrics

@pytest.fixture
def redis_client(loop):
    client = redis.asyncio.Redis.from_url(os.environ["TALLYMARK_REDIS"])
    yield client
    loop.run(client.aclose())

@pytest.fixture
def test_client(loop, async_engine):
    import main
    app = main.made(async_engine)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8001")
    yield client
    loop.run(client.aclose())
    app.state.monitor.collector.close() if hasattr(app.state, "monitor") else None
"""

# 4. API Routes, Intégration main.py
MAIN = """
from fastapi import FastAPI
from tallymark.integrations.asgi import MetricsMiddleware

def made(metrics):
    app = FastAPI()

    @app.get("/v1/code/search/lexical")
    async def lexical(query: str):
        return {"query": query}

    from tallymark.server import monitoring as monitoring_routes_advanced
    app.include_router(monitoring_routes_advanced.router)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    return app
"""

# Tests, Unit Tests
UNIT = """
import pytest
from tallymark.collectors.summary import MetricsCollector

@pytest.mark.asyncio
async def test_collect_api_metrics(async_engine, redis_client):
    collector = MetricsCollector(async_engine, redis_client)
    metrics = await collector.collect_api_metrics()

    assert metrics["request_count"] >= 0
    assert metrics["avg_latency_ms"] >= 0
    assert "p95_latency_ms" in metrics

@pytest.mark.asyncio
async def test_collect_redis_metrics(async_engine, redis_client):
    collector = MetricsCollector(async_engine, redis_client)
    metrics = await collector.collect_redis_metrics()

    assert metrics["connected"] is True
    assert metrics["memory_used_mb"] > 0
    assert 0 <= metrics["hit_rate"] <= 100
"""

# Tests, Integration Tests
INTEGRATION = """
import pytest

@pytest.mark.asyncio
async def test_advanced_summary_endpoint(test_client):
    response = await test_client.get("/api/monitoring/advanced/summary")

    assert response.status_code == 200
    data = response.json()

    assert "api" in data
    assert "redis" in data
    assert "postgres" in data
    assert "system" in data

@pytest.mark.asyncio
async def test_metrics_middleware_trace_id(test_client):
    response = await test_client.get("/v1/code/search/lexical?query=test")

    assert "X-Trace-ID" in response.headers
    trace_id = response.headers["X-Trace-ID"]

    # Verify metric recorded
    # (query metrics table for trace_id)
"""

# 2. MetricsCollector Service, Test endpoint: the answer.
ANSWER = """
{
  "api": {
    "avg_latency_ms": 41.19,
    "p50_latency_ms": 4.18,
    "p95_latency_ms": 108.96,
    "p99_latency_ms": 115.33,
    "request_count": 158,
    "requests_per_second": 0.04,
    "error_count": 9,
    "error_rate": 5.7
  },
  "redis": {
    "connected": true,
    "memory_used_mb": 1.05,
    "memory_max_mb": 2048.0,
    "memory_percent": 0.05,
    "keys_total": 0,
    "hit_rate": 0.0,
    "evicted_keys": 0,
    "connected_clients": 1
  },
  "postgres": {
    "connections_active": 1,
    "connections_idle": 5,
    "connections_total": 6,
    "connections_max": 100,
    "cache_hit_ratio": 95.36,
    "db_size_mb": 26.11,
    "slow_queries_count": 58
  },
  "system": {
    "cpu_percent": 15.0,
    "cpu_count": 16,
    "memory_used_mb": 38654.87,
    "memory_total_mb": 57974.88,
    "memory_percent": 73.4,
    "disk_used_gb": 727.96,
    "disk_total_gb": 937.33,
    "disk_percent": 81.8
  }
}
"""


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server("--maxmemory", "2gb") as url:
        yield url


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server("shared_preload_libraries=pg_stat_statements") as url:
        subprocess.run(["psql", "-q", url, "-c", "CREATE EXTENSION pg_stat_statements"], check=True)
        yield url


@pytest.fixture
def service(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[str]:
    """The server that the document's commands talk to; requests of an application are in its store."""
    with recording(tmp_path / "store", service="mnemo") as shop:
        for number in range(158):
            status = 500 if number < 9 else 200
            shop.record_operation("api_request", "GET /", 4.18 + number, metadata={"status_code": status})
    given = Settings(store=tmp_path / "store", redis=(redis_url,), postgres=(postgres_url,))
    with serving(Server(create_app(given))) as url:
        yield url


def shell(command: str, url: str, folder: Path) -> str:
    """Run a command as it is written, with curl being told where port 8001 is."""
    place = url.removeprefix("http://").rstrip("/")
    (folder / ".curlrc").write_text(f'connect-to = "localhost:8001:{place}"\n')
    environment = {**os.environ, "CURL_HOME": str(folder), "no_proxy": "*"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_endpoint(service: str, tmp_path: Path) -> None:
    # 2. MetricsCollector Service, Test endpoint
    command = "curl -s http://localhost:8001/api/monitoring/advanced/summary | jq ."
    found: dict[str, Any] = {}

    def in_time() -> bool:  # two seconds may be little for a machine that is busy with other things
        found.update(json.loads(shell(command, service, tmp_path)))
        return bool(found["redis"]["connected"] and found["postgres"]["slow_queries_count"] is not None)

    eventually(in_time)
    answer = json.loads(ANSWER)
    assert list(found) == list(answer)
    for part, values in answer.items():
        # The document's keys in its order, with its kinds of values; ours follow.
        assert [key for key in found[part] if key in values] == list(values)
        for key, value in values.items():
            kinds = (bool,) if isinstance(value, bool) else (int, float)
            assert isinstance(found[part][key], kinds), key
    assert found["api"]["request_count"] == 158
    assert (found["api"]["error_count"], round(found["api"]["error_rate"], 1)) == (9, 5.7)
    assert round(found["api"]["requests_per_second"], 2) == 0.04
    assert found["redis"]["memory_max_mb"] == 2048
    assert found["postgres"]["connections_max"] == 100


def test_the_trace_id_of_an_answer(service: str, tmp_path: Path) -> None:
    # 3. MetricsMiddleware, Verification trace_id
    head = shell("curl -I http://localhost:8001/api/monitoring/advanced/summary", service, tmp_path)
    assert head.startswith("HTTP/1.1 200 OK")
    # Deployment, Verification
    command = "curl -I http://localhost:8001/api/monitoring/advanced/summary | grep X-Trace-ID"
    line = shell(command.replace("grep", "grep -i"), service, tmp_path)
    assert len(line.partition(": ")[2].strip()) == 32


def test_the_verification_of_a_deployment(service: str, tmp_path: Path) -> None:
    # Deployment, Verification
    answer = json.loads(shell("curl http://localhost:8001/api/monitoring/advanced/summary", service, tmp_path))
    assert answer.keys() == {"api", "redis", "postgres", "system"}


def test_the_application_of_the_document(
    tmp_path: Path, redis_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``main.py`` served by uvicorn alone, its targets in the environment."""
    monkeypatch.setenv("TALLYMARK_REDIS", redis_url)
    monkeypatch.setenv("TALLYMARK_POSTGRES", postgres_url)
    settings.cache_clear()
    namespace: dict[str, object] = {}
    exec(compile(MAIN, "main.py", "exec"), namespace)
    try:
        with recording(tmp_path / "store", service="mnemo") as metrics:
            set_default(metrics)
            made = namespace["made"]
            assert callable(made)
            app: FastAPI = made(metrics)
            with serving(uvicorn.Server(uvicorn.Config(app, log_config=None))) as url:
                answer = httpx.get(f"{url}v1/code/search/lexical?query=test", timeout=DEADLINE_SECONDS)
                found = httpx.get(f"{url}api/monitoring/advanced/summary", timeout=DEADLINE_SECONDS).json()
            # "Verify metric recorded (query metrics table for trace_id)"
            records = stored(tmp_path / "store")
    finally:
        set_default(None)
        settings.cache_clear()
    (record,) = [record for record in records if record.trace_id == answer.headers["X-Trace-ID"]]
    assert (record.metric_type, record.name) == ("api_request", "GET /v1/code/search/lexical")
    assert record.metadata["status_code"] == 200
    assert found["api"]["request_count"] == 1
    assert found["redis"]["target"] == redis_url.removeprefix("redis://")
    assert found["postgres"]["target"] == postgres_url.partition("@")[2]


def test_the_tests_of_the_document(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    for name, content in (
        ("conftest.py", CONFTEST),
        ("main.py", MAIN),
        ("test_metrics_collector.py", UNIT),
        ("test_monitoring_advanced_api.py", INTEGRATION),
    ):
        (tmp_path / name).write_text(content)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    environment = {
        **os.environ,
        "TALLYMARK_STORE": str(tmp_path / "store"),
        "TALLYMARK_REDIS": redis_url,
        "TALLYMARK_POSTGRES": postgres_url,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
