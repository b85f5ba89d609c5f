"""Records how a Redis server does, from what it says with INFO."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tallymark.collectors.target import TIMEOUT_SECONDS, Reading, TargetCollector
from tallymark.errors import ConfigError

if TYPE_CHECKING:
    import redis

    from tallymark.recorder import Metrics

UNITS = {
    "connected": "1",
    "memory_used_mb": "MiBy",
    "memory_max_mb": "MiBy",
    "memory_unlimited": "1",
    "memory_percent": "%",
    "keys_total": "1",
    "hit_rate": "%",
    "evicted_keys": "1",
    "connected_clients": "1",
}
"""The unit of each name, for the metric type ``redis``."""

_MIB = 2**20


class RedisCollector(TargetCollector):
    """Asks a Redis server, or one that speaks like it, at an interval.

    Args:
        metrics: where to record. None: only :meth:`status` works.
        url_or_client: ``redis://[user:password@]host:port/db`` (also ``rediss://`` and ``unix://``), or a
            ``redis.Redis``, whose own connections and time-outs are then used.
        interval_seconds: the time between two samples; the first is taken at once.
        timeout_seconds: the most that an answer may take.

    Raises:
        ValueError: the interval or the time-out is not a positive number.
        ConfigError: the URL is none of Redis, or the package redis is not installed.

    The metric type is ``redis``, names and units are those of :data:`UNITS`, and ``metadata`` has ``target``
    (``host:port/db``). ``keys_total`` counts the keys of all databases; ``hit_rate`` is the percentage of look-ups
    since the server started that found a key, 0 where there was none; ``evicted_keys`` counts since then, too.
    Where no limit is set (``maxmemory 0``), ``memory_unlimited`` is true and ``memory_max_mb`` is all memory of the
    server's machine.
    """

    units = UNITS

    def __init__(
        self,
        metrics: "Metrics | None",
        url_or_client: "str | redis.Redis",
        interval_seconds: float = 5.0,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        if is_async(url_or_client):
            raise ConfigError(
                "redis: a client of redis.asyncio belongs to its event loop; give a URL, or a redis.Redis"
            )
        self._own = isinstance(url_or_client, str)
        self._client: Any = (
            _connect(url_or_client, timeout_seconds) if isinstance(url_or_client, str) else url_or_client
        )
        super().__init__(metrics, interval_seconds, timeout_seconds, "redis", target_of(self._client))

    def _read(self) -> Reading:
        return ask(self._client)

    def _interrupt(self) -> None:
        if self._own:
            with contextlib.suppress(Exception):
                self._client.connection_pool.disconnect()

    def _disconnect(self) -> None:
        self._interrupt()

    def _forget_connection(self) -> None:
        # The driver sees for itself that it was forked.
        return None


def ask(client: Any) -> Reading:
    """What a server says, from a client that waits."""
    try:
        return figures(client.info())
    except _permission_errors():
        return no_permission()


async def ask_async(client: Any) -> Reading:
    """What a server says, from a client of ``redis.asyncio``."""
    try:
        return figures(await client.info())
    except _permission_errors():
        return no_permission()


def no_permission() -> Reading:
    """A server that answers, and does not tell us."""
    missing = {name: "the user may not ask INFO" for name in UNITS if name != "connected"}
    return {"connected": True, "missing": missing}


def figures(info: Mapping[str, Any]) -> Reading:
    """The values out of a parsed INFO. What a server leaves out is None, and ``missing`` names it."""
    limit, used = _number(info, "maxmemory"), _number(info, "used_memory")
    most = limit or _number(info, "total_system_memory")
    hits, misses = _number(info, "keyspace_hits"), _number(info, "keyspace_misses")
    hit_rate = None
    if hits is not None and misses is not None:
        hit_rate = round(100.0 * hits / (hits + misses), 3) if hits + misses else 0.0
    values: Reading = {
        "memory_used_mb": None if used is None else round(used / _MIB, 3),
        "memory_max_mb": round(most / _MIB, 3) if most else None,
        "memory_unlimited": None if limit is None else limit == 0,
        "memory_percent": None if used is None or not most else round(100.0 * used / most, 3),
        "keys_total": sum(_number(value, "keys") or 0 for key, value in info.items() if _is_database(key, value)),
        "hit_rate": hit_rate,
        "evicted_keys": _number(info, "evicted_keys"),
        "connected_clients": _number(info, "connected_clients"),
    }
    missing = {name: "the server does not say" for name, value in values.items() if value is None}
    return {"connected": True, **values, "missing": missing}


def target_of(client: Any) -> str:
    """``host:port/db`` of a client, or the path of its socket; nothing else of its settings."""
    pool = getattr(client, "connection_pool", None)
    settings: Mapping[str, Any] = getattr(pool, "connection_kwargs", {})
    host = str(settings.get("host", "localhost"))
    address = settings.get("path") or f"{f'[{host}]' if ':' in host else host}:{settings.get('port', 6379)}"
    return f"{address}/{settings.get('db') or 0}"


def is_async(client: object) -> bool:
    """Whether it is a client of ``redis.asyncio``."""
    return any(kind.__module__.startswith("redis.asyncio") for kind in type(client).__mro__)


def _connect(url: str, timeout: float) -> "redis.Redis":
    redis = _load_redis()
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        parts = urlsplit(url)
        # A password with one of /?# in it: what stands in front would be taken for the host and shown.
        if "@" in parts.path + parts.query + parts.fragment and parts.scheme != "unix":
            raise ValueError
        client: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # INFO is the same in both, and older servers know no other
        )
    except (ValueError, TypeError):
        raise ConfigError(
            "redis: write redis://[user:password@]host:port/db, with special characters of the password percent-encoded"
        ) from None
    return client  # type: ignore[no-any-return]


def _number(info: Mapping[str, Any], name: str) -> int | None:
    """A count of the server's; what speaks like a Redis may say anything."""
    value = info.get(name)
    return value if type(value) is int and 0 <= value < 2**63 else None


def _is_database(key: object, value: object) -> bool:
    return isinstance(key, str) and key[:2] == "db" and key[2:].isdecimal() and isinstance(value, dict)


def _permission_errors() -> type[Exception]:
    from redis.exceptions import NoPermissionError

    return NoPermissionError


def _load_redis() -> Any:
    try:
        import redis
    except ImportError as error:
        raise ConfigError('The Redis collector needs redis: pip install "tallymark[redis]"') from error
    return redis
