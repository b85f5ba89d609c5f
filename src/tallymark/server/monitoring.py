"""The state of an application in one answer, and the collectors that record that of its servers.

The router is part of the server, and may be included in an application of one's own: there it looks at the process's
recorder and settings, and records nothing.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tallymark.collectors.postgres import PostgresCollector
from tallymark.collectors.redis import RedisCollector
from tallymark.collectors.summary import MetricsCollector
from tallymark.collectors.target import FRESH_SECONDS, TargetCollector
from tallymark.config import Settings
from tallymark.config import settings as settings_of_process
from tallymark.default import default_metrics
from tallymark.recorder import Metrics
from tallymark.server.context import Context
from tallymark.server.models import json_response
from tallymark.server.problems import ProblemError, documented

PATHS: Final = ("/api/v1/monitoring/summary", "/api/monitoring/advanced/summary")

_Missing = Annotated[dict[str, str], Field(description="why a value is null, by its name")]
_Reason = Annotated[str | None, Field(description="why there is no connection", examples=["connection refused"])]
_Target = Annotated[str | None, Field(examples=["cache.internal:6379/0"])]


class ApiSummary(BaseModel):
    """The requests of the last hour. Without any, every figure is 0."""

    avg_latency_ms: float = Field(examples=[41.19])
    p50_latency_ms: float = Field(examples=[4.18])
    p95_latency_ms: float = Field(examples=[108.96])
    p99_latency_ms: float = Field(examples=[115.33])
    request_count: int = Field(examples=[158])
    requests_per_second: float = Field(examples=[0.043889], description="over the whole period")
    error_count: int = Field(
        examples=[9], description="status of 400 and above; without a status, those recorded as no success"
    )
    error_rate: float = Field(examples=[5.696], description="percent")
    period_hours: float = Field(examples=[1])


class RedisReading(BaseModel):
    """A Redis server."""

    connected: bool
    memory_used_mb: float | None = Field(examples=[1.05])
    memory_max_mb: float | None = Field(examples=[2048.0], description="the limit; without one, the machine's memory")
    memory_unlimited: bool | None = Field(description="whether no limit is set")
    memory_percent: float | None = Field(examples=[0.05])
    keys_total: int | None = Field(examples=[1200])
    hit_rate: float | None = Field(examples=[97.5], description="percent of look-ups since the server's start")
    evicted_keys: int | None = Field(examples=[0])
    connected_clients: int | None = Field(examples=[1])
    target: _Target
    reason: _Reason
    missing: _Missing


class RedisSummary(RedisReading):
    """The first of the Redis servers, and all of them."""

    targets: list[RedisReading]


class Replica(BaseModel):
    """A standby, as its primary sees it."""

    name: str | None = Field(examples=["walreceiver"])
    address: str | None = Field(examples=["10.0.0.7"])
    state: str | None = Field(examples=["streaming"])
    lag_seconds: float | None = Field(examples=[0.004])


class PostgresReading(BaseModel):
    """A PostgreSQL server and one of its databases."""

    connected: bool
    connections_active: int | None = Field(examples=[1])
    connections_idle: int | None = Field(examples=[5])
    connections_total: int | None = Field(examples=[6])
    connections_max: int | None = Field(examples=[100])
    cache_hit_ratio: float | None = Field(examples=[95.36], description="percent of blocks since the last reset")
    db_size_mb: float | None = Field(examples=[26.11])
    slow_queries_count: int | None = Field(examples=[58], description="statements in pg_stat_statements that are slow")
    locks_waiting: int | None = Field(examples=[0], description="sessions that wait for a lock")
    is_standby: bool | None
    replication_lag_seconds: float | None = Field(description="of a primary: the largest of its replicas")
    replicas: list[Replica] = []
    target: _Target
    reason: _Reason
    missing: _Missing


class PostgresSummary(PostgresReading):
    """The first of the PostgreSQL databases, and all of them."""

    targets: list[PostgresReading]


class SystemSummary(BaseModel):
    """The machine that answers. What cannot be read on it is left out."""

    model_config = ConfigDict(extra="allow")

    cpu_percent: float | None = Field(None, examples=[15.0])
    cpu_count: int | None = Field(None, examples=[16])
    memory_used_mb: float | None = Field(None, examples=[38654.87])
    memory_total_mb: float | None = Field(None, examples=[57974.88])
    memory_percent: float | None = Field(None, examples=[73.4])
    disk_used_gb: float | None = Field(None, examples=[727.96])
    disk_total_gb: float | None = Field(None, examples=[937.33])
    disk_percent: float | None = Field(None, examples=[81.8])


class Summary(BaseModel):
    """Requests, Redis, PostgreSQL, machine."""

    api: ApiSummary
    redis: RedisSummary
    postgres: PostgresSummary
    system: SystemSummary


class Monitor:
    """Collects for everybody who asks within a second at once."""

    def __init__(self, collector: MetricsCollector) -> None:
        self.collector = collector
        self._task: asyncio.Task[dict[str, Any]] | None = None
        self._asked = 0.0

    async def summary(self) -> dict[str, Any]:
        """What :meth:`~tallymark.collectors.summary.MetricsCollector.collect_all` gave, at most a second ago."""
        task = self._task
        if task is None or not self._serves(task):
            self._asked = monotonic()
            task = self._task = asyncio.create_task(self.collector.collect_all())
        return await asyncio.shield(task)  # who leaves does not take the others' answer along

    def _serves(self, task: "asyncio.Task[dict[str, Any]]") -> bool:
        if task.get_loop() is not asyncio.get_running_loop():
            return False
        if not task.done():
            return True
        return monotonic() - self._asked < FRESH_SECONDS and not task.cancelled() and task.exception() is None


_making = threading.Lock()


def targets(settings: Settings, metrics: Metrics) -> tuple[list[RedisCollector], list[PostgresCollector]]:
    """A collector for each server in the settings; nothing is connected yet.

    Raises:
        ConfigError: a URL is not valid, or a package is not installed.
    """
    return (
        [RedisCollector(metrics, url.get_secret_value(), settings.collect_seconds) for url in settings.redis],
        [PostgresCollector(metrics, url.get_secret_value(), settings.collect_seconds) for url in settings.postgres],
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    collectors: list[TargetCollector] = [each for group in getattr(app.state, "targets", ()) for each in group]
    for collector in collectors:
        collector.start()
    try:
        yield
    finally:
        # Each may wait for an answer that does not come: all at once.
        await asyncio.gather(*(asyncio.to_thread(collector.stop) for collector in collectors))
        monitor = getattr(app.state, "monitor", None)
        if monitor is not None:
            del app.state.monitor
            await asyncio.to_thread(monitor.collector.close)


def _monitor(request: Request) -> Monitor:
    """In a thread: what it opens may take a while."""
    state = request.app.state
    with _making:
        monitor: Monitor | None = getattr(state, "monitor", None)
        if monitor is None:
            monitor = state.monitor = Monitor(_collector(state))
        return monitor


def _collector(state: Any) -> MetricsCollector:
    if not hasattr(state, "targets"):
        settings = settings_of_process()
        urls = ([url.get_secret_value() for url in group] for group in (settings.redis, settings.postgres))
        return MetricsCollector(default_metrics(), *urls)
    context = getattr(state, "context", None)
    if not isinstance(context, Context):
        raise ProblemError(503, "The server was not started.")
    return MetricsCollector(context.reader, *state.targets, system=context.system)


router = APIRouter(tags=["monitoring"], lifespan=_lifespan)


@router.head(PATHS[0], include_in_schema=False)
@router.head(PATHS[1], include_in_schema=False)
@router.get(PATHS[0], response_model=Summary, responses=documented(503), summary="Requests, Redis, PostgreSQL, machine")
@router.get(PATHS[1], response_model=Summary, responses=documented(503), summary="The same, under its older path")
async def summary(monitor: Annotated[Monitor, Depends(_monitor)]) -> Response:
    """Everything at a glance: the requests of the last hour, and what the servers and the machine say now.

    A server that is away is a value: `connected` is false, and `reason` says why. Answers are up to two seconds old.
    """
    return json_response(await monitor.summary())
