"""The state of a whole application as one dictionary: its requests, its Redis, its PostgreSQL, its machine."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tallymark.collectors import redis as redis_target
from tallymark.collectors.postgres import PostgresCollector
from tallymark.collectors.redis import RedisCollector
from tallymark.collectors.system import SystemCollector
from tallymark.collectors.target import TIMEOUT_SECONDS, Reading, TargetCollector, reason_for
from tallymark.errors import ConfigError
from tallymark.query import Filter
from tallymark.reader import Reader, open_reader
from tallymark.timing import AsyncToo

if TYPE_CHECKING:
    import redis
    import redis.asyncio

    from tallymark.recorder import Metrics

RedisTarget: TypeAlias = "str | redis.Redis | redis.asyncio.Redis | RedisCollector"
PostgresTarget: TypeAlias = "str | PostgresCollector"

REQUESTS = "api_request"
"""The metric type of records that count as requests: those of the middleware, and whoever else records it."""

SERVER = "tallymark"
"""The service under which the server records its own requests."""

NOT_CONFIGURED = "not configured"

_SHORTEST_WINDOW_SECONDS = 0.11
_SECONDS_PER_HOUR = 3600


class MetricsCollector(AsyncToo):
    """Collects everything at once, and records nothing.

    Args:
        metrics_or_reader: the store whose requests are looked at: that of a recorder, or of a reader.
        redis_client_or_url: the Redis server: a URL, a client of the application (also of ``redis.asyncio``), or a
            :class:`~tallymark.collectors.redis.RedisCollector`. Several as a list: the first one is reported, with all
            of them under ``targets``.
        postgres: the PostgreSQL database: a DSN, or a :class:`~tallymark.collectors.postgres.PostgresCollector`.
            Several as with Redis.
        system: who looks at the machine, where there is one already.
        timeout_seconds: the most that a server may take for its answer.

    Raises:
        ConfigError: a URL is not valid, or a package is not installed.
        ValueError: the time-out is not a positive number.

    Clients, readers and collectors that were given stay open; :meth:`close`, or the end of a block, closes the rest.
    Servers that do not answer are values (``connected`` is False, and ``reason`` says why), and so are those that were
    not given. What the store or the machine refuses is raised.
    """

    def __init__(
        self,
        metrics_or_reader: "Metrics | Reader",
        redis_client_or_url: "RedisTarget | Sequence[RedisTarget] | None" = None,
        postgres: "PostgresTarget | Sequence[PostgresTarget] | None" = None,
        *,
        system: SystemCollector | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._timeout = timeout_seconds
        self._mine: list[TargetCollector | Reader] = []
        self._redis = [self._redis_collector(target) for target in _several(redis_client_or_url)]
        self._postgres = [self._postgres_collector(target) for target in _several(postgres)]
        self._system = system or SystemCollector(None)
        if isinstance(metrics_or_reader, Reader):
            self._reader = metrics_or_reader
        else:
            self._reader = open_reader(metrics_or_reader.store)
            self._mine.append(self._reader)

    async def collect_all(self) -> dict[str, Any]:
        """``api``, ``redis``, ``postgres`` and ``system``, all of them at once."""
        api, redis, postgres, system = await asyncio.gather(
            self.collect_api_metrics(),
            self.collect_redis_metrics(),
            self.collect_postgres_metrics(),
            self.collect_system_metrics(),
        )
        return {"api": api, "redis": redis, "postgres": postgres, "system": system}

    async def collect_api_metrics(self, period_hours: float = 1) -> dict[str, Any]:
        """The requests of the last hours, as :func:`api_figures` has them.

        Raises:
            ValueError: the period is not a positive number.
        """
        return await asyncio.to_thread(api_figures, self._reader, period_hours)

    async def collect_redis_metrics(self) -> dict[str, Any]:
        """What Redis says: the values of :class:`~tallymark.collectors.redis.RedisCollector`."""
        return _first(
            await asyncio.gather(*(_ask(target, self._timeout) for target in self._redis)), redis_target.UNITS
        )

    async def collect_postgres_metrics(self) -> dict[str, Any]:
        """What PostgreSQL says: the values of :class:`~tallymark.collectors.postgres.PostgresCollector`."""
        readings = await asyncio.gather(*(target.status_async() for target in self._postgres))
        return _first(readings, PostgresCollector.units)

    async def collect_system_metrics(self) -> dict[str, Any]:
        """This machine: the values of :class:`~tallymark.collectors.system.SystemCollector`."""
        return await asyncio.to_thread(self._machine)

    def collect(self, period_hours: float = 1) -> dict[str, Any]:
        """As :meth:`collect_all`, outside an event loop.

        Raises:
            ConfigError: there is a client of ``redis.asyncio``, which only its own event loop can ask.
        """
        targets = [target for target in (*self._redis, *self._postgres) if isinstance(target, TargetCollector)]
        if len(targets) < len(self._redis) + len(self._postgres):
            raise ConfigError(
                "redis: a client of redis.asyncio needs await collect_all(); give a URL, or a redis.Redis"
            )
        for target in targets:
            target.ask()  # all at once, before the first answer is waited for
        readings = [target.status() for target in targets]
        return {
            "api": api_figures(self._reader, period_hours),
            "redis": _first(readings[: len(self._redis)], redis_target.UNITS),
            "postgres": _first(readings[len(self._redis) :], PostgresCollector.units),
            "system": self._machine(),
        }

    def close(self) -> None:
        """Close what was opened here. What is asked later opens it again."""
        for each in self._mine:
            if isinstance(each, TargetCollector):
                each.stop()
            else:
                each.close()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _redis_collector(self, target: "RedisTarget") -> Any:
        if isinstance(target, RedisCollector) or redis_target.is_async(target):
            return target
        made = RedisCollector(None, target, timeout_seconds=self._timeout)  # type: ignore[arg-type]
        self._mine.append(made)
        return made

    def _postgres_collector(self, target: "PostgresTarget") -> PostgresCollector:
        if isinstance(target, PostgresCollector):
            return target
        made = PostgresCollector(None, target, timeout_seconds=self._timeout)
        self._mine.append(made)
        return made

    def _machine(self) -> dict[str, Any]:
        status = self._system.status()
        if "cpu_percent" not in status:
            # The first look has nothing to compare with, the second one does.
            time.sleep(_SHORTEST_WINDOW_SECONDS)
            status = self._system.status()
        return status


def api_figures(reader: Reader, period_hours: float = 1) -> dict[str, Any]:
    """The requests of the last hours: latencies in ms, their number, and how many failed.

    A request has failed where its ``status_code`` is 400 or more, and where it has none and was recorded as no success.
    ``error_rate`` is in percent. ``requests_per_second`` is over the whole period. The server's own requests count only
    where there are no others. Without any request every figure is 0: ``request_count`` says that it means nothing.

    Raises:
        ValueError: the period is not a positive number.
        QueryError, StoreError: as the reader does.
    """
    if not (math.isfinite(period_hours) and period_hours > 0):
        raise ValueError("period_hours: must be a positive number")
    seconds = period_hours * _SECONDS_PER_HOUR
    since = max(0, time.time_ns() - int(seconds * 1e9))
    requests: tuple[Filter, ...] = (Filter("metric_type", "=", REQUESTS), Filter("service", "!=", SERVER))

    def figures(*more: Filter) -> dict[str, Any]:
        aggregates = ("count",) if more else ("count", "avg", "p50", "p95", "p99")
        rows = reader.query(since=since, where=(*requests, *more), agg=aggregates).rows()
        return rows[0] if rows else {"count": 0}

    total = figures()
    if not total["count"]:
        requests = requests[:1]
        total = figures()
    count, errors = total["count"], 0
    if count:
        code = "metadata.status_code"
        errors = figures(Filter(code, ">=", 400))["count"]
        errors += figures(Filter(code, "=", None), Filter("success", "=", False))["count"]
    return {
        **{f"{name}_latency_ms": round(total.get(name) or 0.0, 3) for name in ("avg", "p50", "p95", "p99")},
        "request_count": count,
        "requests_per_second": round(count / seconds, 6),
        "error_count": errors,
        "error_rate": round(100.0 * errors / count, 3) if count else 0.0,
        "period_hours": period_hours,
    }


async def _ask(target: Any, timeout: float) -> Reading:
    """What a Redis server says, to a collector or to a client of the application's event loop."""
    if isinstance(target, RedisCollector):
        return await target.status_async()
    empty = {**dict.fromkeys(redis_target.UNITS), "target": redis_target.target_of(target), "reason": None}
    try:
        async with asyncio.timeout(timeout):
            return empty | await redis_target.ask_async(target)
    except TimeoutError:
        reason = f"no answer within {timeout:g} s"
    except Exception as error:
        reason = reason_for(error)
    return empty | {"connected": False, "reason": reason, "missing": {}}


def _first(readings: Sequence[Reading], units: Mapping[str, str]) -> dict[str, Any]:
    if not readings:
        empty = {**dict.fromkeys(units), "target": None, "connected": False}
        return {**empty, "reason": NOT_CONFIGURED, "missing": {}, "targets": []}
    return {**readings[0], "targets": list(readings)}


def _several(target: Any) -> Sequence[Any]:
    if target is None:
        return ()
    return target if isinstance(target, list | tuple) else (target,)
