"""The summary over HTTP: real servers behind it, hanging ones, and what the server records of them."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
import uvicorn
from fastapi import FastAPI
from recording import DEADLINE_SECONDS, eventually, recording
from services.postgres import postgres_server
from services.redis import redis_server
from serving import serving

from tallymark import Metrics
from tallymark.config import Settings, settings
from tallymark.default import set_default
from tallymark.errors import ConfigError, StoreError
from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.server import create_app, monitoring, mount
from tallymark.server.monitoring import PATHS, Summary
from tallymark.server.serve import Server

from .conftest import Start

PASSWORD = "s3cr3t-and-never-shown"


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server("--requirepass", PASSWORD) as url:
        yield url.replace("//", f"//:{PASSWORD}@")


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        with psycopg.connect(url) as connection:
            connection.execute(f"CREATE ROLE watcher LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_monitor")
        yield url.replace("tallymark@", f"watcher:{PASSWORD}@")


def summary(client: httpx.Client, path: str = PATHS[0]) -> dict[str, Any]:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert PASSWORD not in answer.text
    assert "watcher" not in answer.text
    Summary.model_validate(answer.json())
    return dict(answer.json())


def answered(client: httpx.Client, path: str = PATHS[0]) -> dict[str, Any]:
    """The summary once no server was late: two seconds may be little for a machine that is busy with other things."""
    found: dict[str, Any] = {}

    def in_time() -> bool:
        found.update(summary(client, path))
        targets = [target for part in ("redis", "postgres") for target in found[part]["targets"]]
        said = [text for target in targets for text in (target["reason"] or "", *target["missing"].values())]
        return not any(text.startswith(("no answer", "took longer")) for text in said)

    eventually(in_time)
    return found


def test_the_summary(start: Start, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    with recording(tmp_path / "store", service="shop") as shop:
        for number in range(10):
            shop.record_operation(
                "api_request", "GET /", 10.0 + number, metadata={"status_code": 200 + 300 * (number > 7)}
            )
    client = start(redis=(redis_url,), postgres=(postgres_url,))
    for path in PATHS:
        found = answered(client, path)
        assert list(found) == ["api", "redis", "postgres", "system"]
        assert (found["api"]["request_count"], found["api"]["error_count"], found["api"]["error_rate"]) == (10, 2, 20)
        assert found["api"]["p50_latency_ms"] == 14.5
        assert found["redis"]["connected"] is found["postgres"]["connected"] is True
        assert found["redis"]["memory_used_mb"] > 0
        assert found["postgres"]["connections_max"] == 100
        assert found["system"]["memory_total_mb"] > 0


@pytest.mark.parametrize("path", PATHS)
def test_its_head(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert len(answer.headers["x-trace-id"]) == 32
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_problems(client: httpx.Client, path: str) -> None:
    answer = client.post(path)
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"] == "GET, HEAD"


def test_without_targets(client: httpx.Client) -> None:
    found = summary(client)
    for part in ("redis", "postgres"):
        assert found[part]["connected"] is False
        assert found[part]["reason"] == "not configured"


def test_several_targets(start: Start, redis_url: str, postgres_url: str) -> None:
    client = start(redis=(redis_url, "redis://127.0.0.1:1/4"), postgres=("postgresql://u@127.0.0.1:1/d", postgres_url))
    found = answered(client)
    assert [target["connected"] for target in found["redis"]["targets"]] == [True, False]
    assert [target["connected"] for target in found["postgres"]["targets"]] == [False, True]
    assert found["redis"]["targets"][1]["target"] == "127.0.0.1:1/4"
    assert found["redis"]["connected"] is True
    assert found["postgres"]["reason"] == "connection refused"


def test_what_is_followed_is_recorded(start: Start, redis_url: str, postgres_url: str) -> None:
    client = start(redis=(redis_url,), postgres=(postgres_url,), collect_seconds=0.1)

    def recorded(metric_type: str) -> dict[str, Any]:
        answer = client.get("/api/v1/metrics/", params={"metric_type": metric_type, "limit": 1000})
        assert PASSWORD not in answer.text
        return {each["name"]: each for each in answer.json()["metrics"]}

    eventually(lambda: "connections_max" in recorded("postgres") and "memory_used_mb" in recorded("redis"))
    found = recorded("redis")["connected"]
    assert found["value"] == 1
    assert found["metadata"] == {"target": redis_url.rpartition("@")[2]}
    assert found["service"] == "tallymark"
    assert recorded("postgres")["connections_max"]["value"] == 100


def test_connections_end_with_the_server(start: Start, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    app = create_app(Settings(store=tmp_path / "store", redis=(redis_url,), postgres=(postgres_url,)))
    with psycopg.connect(postgres_url, autocommit=True) as admin, redis.Redis.from_url(redis_url) as client:

        def sessions() -> tuple[int, int]:
            row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallymark'").fetchone()
            assert row is not None
            return row[0], int(client.info()["connected_clients"])

        eventually(lambda: sessions() == (0, 1))  # those of tests that are over have gone; one is ours
        with serving(Server(app)) as url:
            eventually(lambda: sessions() == (1, 2))
            httpx.get(url + PATHS[0].lstrip("/"), timeout=DEADLINE_SECONDS).raise_for_status()
            # Who looks shares the one that records; one that was late, as a busy machine is, is made anew.
            eventually(lambda: sessions() == (1, 2))
        eventually(lambda: sessions() == (0, 1))


def test_targets_that_hang_do_not_hold_up_the_answer_nor_the_end(tmp_path: Path, silent_port: int) -> None:
    app = create_app(
        Settings(
            store=tmp_path / "store",
            redis=tuple(f"redis://127.0.0.1:{silent_port}/{number}" for number in range(10)),
            postgres=tuple(f"postgresql://u@127.0.0.1:{silent_port}/d{number}" for number in range(10)),
        )
    )
    with serving(Server(app)) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
        for _ in range(2):
            began = time.monotonic()
            found = summary(client)
            assert time.monotonic() - began < 30  # one after the other would take 40 seconds
            assert not any(target["connected"] for target in found["postgres"]["targets"] + found["redis"]["targets"])
        assert client.get("/readyz").status_code == 200


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        yield listener.getsockname()[1]


def test_a_hundred_dashboards_are_one_question(start: Start, redis_url: str) -> None:
    client = start(redis=(redis_url,), collect_seconds=3600)
    summary(client)
    with redis.Redis.from_url(redis_url) as admin:

        def asked() -> int:
            return int(admin.info("commandstats")["cmdstat_info"]["calls"])

        before = asked()
        began = time.monotonic()
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: client.get(PATHS[1]).status_code, range(100)))
        took = time.monotonic() - began
        assert answers == [200] * 100
        assert asked() - before - 1 <= took + 1  # one a second


def test_the_key_is_asked_for_here_too(start: Start) -> None:
    client = start(keys=("a-key-of-enough-characters",))
    assert client.get(PATHS[1]).status_code == 401


@pytest.mark.parametrize("target", [{"redis": (f"http://:{PASSWORD}@host",)}, {"postgres": (f"mysql://{PASSWORD}@h",)}])
def test_a_target_that_is_none_is_an_error_before_anything_starts(tmp_path: Path, target: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^(redis|postgres)\.0 must begin") as refused:
        create_app(Settings(store=tmp_path / "store", **target))
    assert PASSWORD not in str(refused.value)


def test_a_store_that_cannot_be_read_is_a_problem(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))
    client = start(app)

    def query(**question: Any) -> None:
        raise StoreError("the disk is gone: /secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(app.state.reader, "query", query)
        answer = client.get(PATHS[0])
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert "secret" not in answer.text
    # A failure is kept for nobody.
    assert client.get(PATHS[0]).status_code == 200


def test_a_server_that_was_not_started_says_so(tmp_path: Path) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Settings(store=tmp_path / "store")))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(PATHS[0])

    assert asyncio.run(ask()).status_code == 503


def test_within_another_application(tmp_path: Path, redis_url: str) -> None:
    app = FastAPI()
    mount(app, create_app(Settings(store=tmp_path / "store", redis=(redis_url,))), "/inner")

    with (
        serving(uvicorn.Server(uvicorn.Config(app, log_config=None))) as url,
        httpx.Client(base_url=f"{url}inner", timeout=DEADLINE_SECONDS) as client,
    ):
        assert answered(client)["redis"]["connected"] is True


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Metrics]:
    with recording(tmp_path / "store", service="shop") as metrics:
        set_default(metrics)
        yield metrics
        set_default(None)


def test_the_router_in_an_application_of_ones_own(
    shop: Metrics, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYMARK_REDIS", redis_url)
    settings.cache_clear()
    app = FastAPI()
    app.include_router(monitoring.router)
    app.add_middleware(MetricsMiddleware, metrics=shop)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    try:
        with (
            serving(uvicorn.Server(uvicorn.Config(app, log_config=None))) as url,
            httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client,
        ):
            client.get("/hello")
            found = answered(client)
            assert found["api"]["request_count"] >= 1
            assert found["redis"]["connected"] is True
    finally:
        settings.cache_clear()


def test_curl(start: Start) -> None:
    client = start()
    url = str(client.base_url.join(PATHS[1]))
    body = subprocess.run(["curl", "-s", url], capture_output=True, check=True, text=True).stdout
    assert json.loads(body).keys() == {"api", "redis", "postgres", "system"}
