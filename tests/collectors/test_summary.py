"""The state of an application as one dictionary, with real servers behind it."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import redis.asyncio
from recording import recording

import tallymark
from tallymark import Metrics
from tallymark.collectors.postgres import PostgresCollector
from tallymark.collectors.redis import RedisCollector
from tallymark.collectors.summary import MetricsCollector, api_figures
from tallymark.collectors.system import SystemCollector
from tallymark.errors import ConfigError
from tallymark.reader import Reader

from .conftest import PATIENT

API = {
    *("avg_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms"),
    *("request_count", "requests_per_second", "error_count", "error_rate"),
}
REDIS = {
    *("connected", "memory_used_mb", "memory_max_mb", "memory_percent"),
    *("keys_total", "hit_rate", "evicted_keys", "connected_clients"),
}
POSTGRES = {
    *("connections_active", "connections_idle", "connections_total", "connections_max"),
    *("cache_hit_ratio", "db_size_mb", "slow_queries_count"),
}
SYSTEM = {
    *("cpu_percent", "cpu_count", "memory_used_mb", "memory_total_mb", "memory_percent"),
    *("disk_used_gb", "disk_total_gb", "disk_percent"),
}


@pytest.fixture
def reader(shop: Metrics) -> Iterator[Reader]:
    with tallymark.open(shop.store) as reader:
        yield reader


def check(summary: dict[str, Any]) -> None:
    assert list(summary) == ["api", "redis", "postgres", "system"]
    for part, keys in (("api", API), ("redis", REDIS), ("postgres", POSTGRES), ("system", SYSTEM)):
        assert summary[part].keys() >= keys, part


def test_everything_at_once(shop: Metrics, redis_url: str, postgres_url: str) -> None:
    shop.record_operation("api_request", "GET /", 12.5, metadata={"status_code": 200})

    async def collect() -> dict[str, Any]:
        async with MetricsCollector(shop, redis_url, postgres_url, timeout_seconds=PATIENT) as collector:
            return await collector.collect_all()

    with MetricsCollector(shop, redis_url, postgres_url, timeout_seconds=PATIENT) as collector:
        summaries = [collector.collect(), asyncio.run(collect())]
    for summary in summaries:
        check(summary)
        assert summary["api"]["request_count"] == 1
        assert summary["api"]["avg_latency_ms"] == 12.5
        assert summary["redis"]["connected"] is True
        assert summary["postgres"]["connected"] is True
        assert 0 <= summary["system"]["cpu_percent"] <= 100
        for part in ("redis", "postgres"):
            (target,) = summary[part]["targets"]
            assert summary[part] == {**target, "targets": [target]}


def test_figures_of_requests_are_exact(shop: Metrics, reader: Reader) -> None:
    random = np.random.default_rng(4)
    latencies = [round(float(value), 3) for value in random.lognormal(2, 1.5, 500)]
    statuses = random.choice([200, 204, 302, 400, 404, 499, 500, 503], 500)
    for latency, status in zip(latencies, statuses, strict=True):
        # As the middleware says it: what is the client's fault is a success of the server.
        metadata = {"status_code": int(status)}
        shop.record("api_request", "GET /", latency, "ms", bool(status < 500), metadata=metadata)
    shop.record("processing_time", "no request", 1e6, "ms")
    figures = api_figures(reader)
    assert figures["request_count"] == 500
    assert figures["avg_latency_ms"] == pytest.approx(np.mean(latencies), abs=1e-3)
    for share in (50, 95, 99):
        assert figures[f"p{share}_latency_ms"] == pytest.approx(np.percentile(latencies, share), abs=1e-3)
    errors = int((statuses >= 400).sum())
    assert figures["error_count"] == errors
    assert figures["error_rate"] == pytest.approx(100 * errors / 500, abs=1e-3)
    assert figures["requests_per_second"] == pytest.approx(500 / 3600, abs=1e-6)


def test_what_counts_as_an_error(shop: Metrics, reader: Reader) -> None:
    for success, metadata in (
        (True, {}),  # no error
        (False, {}),  # an error
        (True, {"status_code": 404}),  # an error
        (True, {"status_code": "404"}),  # an error
        (None, {"status_code": 499}),  # an error: the client left
        (False, {"status_code": 200}),  # no error: the status says more
        (True, {"status_code": 399}),  # no error
        (True, {"status_code": "teapot"}),  # no error
        (True, {"status_code": None}),  # no error
        (False, {"status_code": None}),  # an error
        (None, {"status_code": [500]}),  # no error
    ):
        shop.record("api_request", "GET /", 1, "ms", success, metadata=metadata)
    shop.record_operation("api_request", "GET /", 1.0, success=False, error_message="TimeoutError")  # an error
    figures = api_figures(reader)
    assert (figures["request_count"], figures["error_count"], figures["error_rate"]) == (12, 6, 50)


def test_without_requests_every_figure_is_zero(reader: Reader) -> None:
    figures = api_figures(reader, 2)
    assert figures == {**dict.fromkeys(API, 0), "period_hours": 2}


def test_only_the_period_counts(shop: Metrics, reader: Reader) -> None:
    hour = 3_600_000_000_000
    now = time.time_ns()
    for hours in (0.5, 1.5, 5, 50):
        shop.ingest("api_request", "GET /", hours, "ms", timestamp=now - int(hours * hour))
    assert [api_figures(reader, hours)["request_count"] for hours in (1, 2, 24, 1e9)] == [1, 2, 3, 4]
    assert api_figures(reader, 2)["requests_per_second"] == pytest.approx(2 / 7200, abs=1e-6)

    async def collect() -> dict[str, Any]:
        return await MetricsCollector(reader).collect_api_metrics(period_hours=24)

    assert asyncio.run(collect())["request_count"] == 3


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf")])
def test_a_period_that_is_none(reader: Reader, hours: float) -> None:
    with pytest.raises(ValueError, match="period_hours"):
        api_figures(reader, hours)


def test_the_servers_own_requests_count_only_without_others(shop: Metrics, reader: Reader) -> None:
    shop.ingest("api_request", "GET /api/v1/query", 500.0, "ms", service="tallymark")
    assert api_figures(reader)["request_count"] == 1
    shop.record_operation("api_request", "GET /", 10.0)
    figures = api_figures(reader)
    assert (figures["request_count"], figures["avg_latency_ms"]) == (1, 10)


def test_servers_that_are_not_given_are_values(shop: Metrics) -> None:
    with MetricsCollector(shop) as collector:
        summary = collector.collect()
    check(summary)
    for part, keys in (("redis", REDIS - {"connected"}), ("postgres", POSTGRES)):
        assert summary[part]["connected"] is False
        assert summary[part]["reason"] == "not configured"
        assert {summary[part][key] for key in keys} == {None}
        assert summary[part]["targets"] == []


def test_servers_that_hang_cost_one_time_out_for_all(shop: Metrics, silent_port: int) -> None:
    async def collect(collector: MetricsCollector) -> dict[str, Any]:
        return await collector.collect_all()

    for way in (lambda collector: asyncio.run(collect(collector)), MetricsCollector.collect):
        redis_urls = [f"redis://127.0.0.1:{silent_port}/{number}" for number in range(12)]
        postgres_urls = [f"postgresql://u@127.0.0.1:{silent_port}/d{number}" for number in range(12)]
        with MetricsCollector(shop, redis_urls, postgres_urls, timeout_seconds=1) as collector:
            began = time.monotonic()
            summary = way(collector)
            took = time.monotonic() - began
        assert took < 20  # one after the other would take 24 seconds
        check(summary)
        for part in ("redis", "postgres"):
            assert len(summary[part]["targets"]) == 12
            assert not any(target["connected"] for target in summary[part]["targets"])


@pytest.mark.parametrize("decode", [False, True])
def test_a_client_of_the_applications_event_loop(shop: Metrics, redis_url: str, decode: bool) -> None:
    async def collect() -> dict[str, Any]:
        client = redis.asyncio.Redis.from_url(redis_url, decode_responses=decode)
        async with MetricsCollector(shop, client, timeout_seconds=PATIENT) as collector:
            reading = await collector.collect_redis_metrics()
            with pytest.raises(ConfigError, match="collect_all"):
                collector.collect()
        assert await client.ping()
        await client.aclose()
        return reading

    reading = asyncio.run(collect())
    assert reading["connected"] is True
    assert reading["memory_used_mb"] > 0
    assert reading["target"] == redis_url.removeprefix("redis://")
    with RedisCollector(None, redis_url, timeout_seconds=PATIENT) as collector:
        assert reading.keys() - {"targets"} == collector.status().keys()


def test_a_client_of_an_event_loop_whose_server_is_away_or_hangs(
    shop: Metrics, silent_port: int, unreachable_port: int
) -> None:
    async def collect(port: int) -> dict[str, Any]:
        client = redis.asyncio.Redis(port=port, password="s3cr3t-and-never-shown")
        async with client, MetricsCollector(shop, client, timeout_seconds=2) as collector:
            return await collector.collect_redis_metrics()

    for port, reasons in ((silent_port, {"no answer within 2 s", "no answer in time"}), (unreachable_port, None)):
        reading = asyncio.run(collect(port))
        assert reading["connected"] is False
        assert reasons is None or reading["reason"] in reasons
        assert "s3cr3t" not in str(reading)


def test_what_was_given_stays_open(shop: Metrics, redis_url: str, postgres_url: str, reader: Reader) -> None:
    patience = {"timeout_seconds": PATIENT}
    with (
        RedisCollector(None, redis_url, **patience) as ours,
        PostgresCollector(None, postgres_url, **patience) as theirs,
    ):
        with MetricsCollector(reader, ours, theirs, system=SystemCollector(None)) as collector:
            assert collector.collect()["postgres"]["connected"] is True
        assert theirs._connection is not None
        reader.info()


def test_every_part_alone(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    async def collect(metrics: Metrics) -> list[dict[str, Any]]:
        async with MetricsCollector(metrics, redis_url, postgres_url, timeout_seconds=PATIENT) as collector:
            return [
                await collector.collect_api_metrics(),
                await collector.collect_redis_metrics(),
                await collector.collect_postgres_metrics(),
                await collector.collect_system_metrics(),
            ]

    with recording(tmp_path / "store") as metrics:
        parts = asyncio.run(collect(metrics))
    for part, keys in zip(parts, (API, REDIS, POSTGRES, SYSTEM), strict=True):
        assert part.keys() >= keys
