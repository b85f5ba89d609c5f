"""Records how many messages wait in Celery's queues, and for how long, without touching one of them."""

import asyncio
import base64
import contextlib
import http.client
import json
import sys
from collections.abc import Iterable, Mapping
from time import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from tallymark.collectors.target import TIMEOUT_SECONDS, Reading, TargetCollector
from tallymark.default import default_metrics
from tallymark.errors import ConfigError
from tallymark.model import check_text

if TYPE_CHECKING:
    from celery import Celery

    from tallymark.recorder import Metrics

MANAGEMENT_PORT: Final = 10_000
"""What RabbitMQ's management API has its port above that of AMQP, where nothing else was set."""
MANAGEMENT_BYTES: Final = 1_000_000
"""Longest answer of the management API that is read."""


class QueueCollector(TargetCollector):
    """Looks at queues of one broker at an interval.

    Args:
        metrics: where to record. None: only :meth:`status` works.
        broker: the broker's URL, or a Celery application, with whose settings it is reached then (TLS, priorities,
            prefix of the keys).
        queues: the names of the queues.
        interval_seconds: the time between two looks; the first is taken at once.
        timeout_seconds: the most that an answer may take.
        transport_options: those of the broker, as ``broker_transport_options`` has them in Celery.
        management_url: of RabbitMQ's management API; by default where AMQP is, 10,000 ports higher.
        service: which service the records belong to; by default that of the recorder.

    Raises:
        ValueError: a name, the interval or the time-out is not valid.
        ConfigError: the URL is not usable, or the package celery is not installed.

    Of each queue two metrics of the type ``queue_metrics`` are recorded: ``queue_depth``, the messages that wait for a
    worker, and ``queue_wait_time``, the age of the oldest of them in seconds, 0 where none waits. ``metadata`` has
    ``queue``, ``target`` (the broker) and ``unacked`` where it is known: messages that workers hold and have not
    acknowledged; Redis does not say of which queue, so there it counts those of all. A queue that does not exist is
    empty.

    The oldest message is known on Redis where its publisher is instrumented, or sent a timestamp; with priorities it is
    the oldest of those next in line at each priority. On RabbitMQ the management plugin has to be there, and the user
    needs the tag ``management``; it tells whole seconds, as of the broker's last statistics (five seconds). Elsewhere
    it is not known, and ``queue_wait_time`` is not recorded.
    """

    units: Mapping[str, str] = {}

    def __init__(
        self,
        metrics: "Metrics | None",
        broker: "str | Celery",
        queues: Iterable[str] = ("celery",),
        interval_seconds: float = 5.0,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        transport_options: Mapping[str, Any] | None = None,
        management_url: str | None = None,
        service: str | None = None,
    ) -> None:
        self.queues = [check_text("queues", queue) for queue in queues]
        self._service = None if service is None else check_text("service", service)
        self._connection = _connection(broker, timeout_seconds, transport_options or {})
        self._channel: Any = None
        self._management = management_url
        target = f"{self._connection.hostname or 'localhost'}:{self._connection.port}"
        super().__init__(metrics, interval_seconds, timeout_seconds, "queues", target)

    def unavailable(self, reason: str) -> Reading:
        """The reading of a broker that gave none."""
        return {**super().unavailable(reason), "queues": {}}

    def _read(self) -> Reading:
        if self._channel is None:
            # Once more at once: of the addresses that a name has, the first may be the wrong one.
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            self._channel = self._connection.channel()
        ask = self._ask_redis if self._connection.transport.driver_type == "redis" else self._ask_other
        return {"queues": {queue: ask(queue) for queue in self.queues}}

    def _ask_redis(self, queue: str) -> dict[str, Any]:
        import redis

        channel = self._channel
        keys = [
            f"{channel.global_keyprefix}{queue}{f'{channel.sep}{step}' if step else ''}"
            for step in dict.fromkeys([0, *channel.priority_steps])
        ]
        # Not the channel's own client, which knows only the commands that it needs itself.
        with redis.Redis(connection_pool=channel.pool).pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.llen(key)
            for key in keys:
                pipe.lindex(key, -1)  # they come in on the left
            pipe.hlen(f"{channel.global_keyprefix}{channel.unacked_key}")
            said = pipe.execute(raise_on_error=False)
        depths, oldest = said[: len(keys)], said[len(keys) : -1]
        for depth in depths:
            if isinstance(depth, Exception):
                raise depth
        published = [at for at in map(_published, oldest) if at is not None]
        return _state(sum(depths), min(published, default=None), said[-1])

    def _ask_other(self, queue: str) -> dict[str, Any]:
        try:
            depth = self._channel.queue_declare(queue, passive=True).message_count
        except self._connection.channel_errors as error:
            if getattr(error, "reply_code", None) != 404:
                raise
            self._renew_channel()
            return _state(0, None, None)
        if self._connection.transport.driver_type != "amqp":
            return _state(depth, None, None)
        said = self._ask_management(queue)
        published = said.get("head_message_timestamp")
        return _state(depth, _timestamp(published), said.get("messages_unacknowledged"))

    def _renew_channel(self) -> None:
        # A broker closes the channel on which something was asked that is not there.
        self._channel = None
        self._channel = self._connection.channel()

    def _ask_management(self, queue: str) -> dict[str, Any]:
        """What RabbitMQ's management API says of a queue; nothing where it is not there or does not let us in."""
        info = self._connection.info()
        secure = bool(info.get("ssl"))
        default = f"http{'s' if secure else ''}://{info['hostname']}:{info['port'] + MANAGEMENT_PORT}"
        url = urlsplit(self._management or default)
        login = f"{info['userid'] or 'guest'}:{info['password'] or 'guest'}"
        path = (
            f"{url.path.rstrip('/')}/api/queues/{quote(info['virtual_host'] or '/', safe='')}/{quote(queue, safe='')}"
        )
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        client = kind(url.hostname or "localhost", url.port, timeout=self._timeout / 2)
        with contextlib.closing(client), contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            token = base64.b64encode(login.encode()).decode()
            client.request("GET", path, headers={"Authorization": f"Basic {token}"})
            answer = client.getresponse()
            said = json.loads(answer.read(MANAGEMENT_BYTES)) if answer.status == 200 else None
            if isinstance(said, dict):
                return said
        return {}

    def _interrupt(self) -> None:
        pass  # each step has a time-out of its own

    def _disconnect(self) -> None:
        self._channel = None
        with contextlib.suppress(Exception):
            self._connection.release()

    def _forget_connection(self) -> object:
        inherited = self._connection, self._channel
        self._connection, self._channel = self._connection.clone(), None
        return inherited

    def _record(self, metrics: "Metrics", reading: Reading) -> None:
        for queue, state in reading["queues"].items():
            for name, value, unit, metadata in measurements(self.target, queue, state):
                if self._service is None:
                    metrics.record("queue_metrics", name, value, unit, metadata=metadata)
                else:
                    metrics.ingest("queue_metrics", name, value, unit, service=self._service, metadata=metadata)


Measurement = tuple[str, float, str, dict[str, Any]]
"""Name, value, unit and metadata of a record."""


def measurements(target: str, queue: str, state: Mapping[str, Any]) -> list[Measurement]:
    """What is recorded of a queue."""
    metadata = {"queue": queue, "target": target}
    if state["unacked"] is not None:
        metadata["unacked"] = state["unacked"]
    found: list[Measurement] = [("queue_depth", float(state["depth"]), "1", metadata)]
    if state["oldest_seconds"] is not None:
        found.append(("queue_wait_time", state["oldest_seconds"], "s", metadata))
    return found


def queue_depth(
    queue_name: str = "celery",
    broker: "str | Celery | None" = None,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    transport_options: Mapping[str, Any] | None = None,
    management_url: str | None = None,
) -> dict[str, Any]:
    """How many messages wait in a queue now, and for how long; nothing is recorded, and no message is touched.

    Args:
        queue_name: the queue.
        broker: as of :class:`QueueCollector`; by default that of the current Celery application, or else of the
            settings.

    Returns:
        ``queue``, ``target``, ``connected``, ``reason``, ``depth``, ``oldest_seconds`` and ``unacked``. A broker that
        does not answer in time makes ``connected`` false, and ``reason`` says why. What is not known is None.

    Raises:
        ValueError: the name or the time-out is not valid.
        ConfigError: no broker is configured, its URL is not usable, or the package celery is not installed.
    """
    collector = QueueCollector(
        None,
        broker if broker is not None else configured_broker(),
        (queue_name,),
        timeout_seconds=timeout_seconds,
        transport_options=transport_options,
        management_url=management_url,
    )
    try:
        reading = collector.status()
    finally:
        collector.stop()
    state = reading["queues"].get(collector.queues[0]) or {"depth": None, "oldest_seconds": None, "unacked": None}
    return {"queue": queue_name, **{key: reading[key] for key in ("target", "connected", "reason")}, **state}


async def track_celery_queue_metrics(
    session: "Metrics | None" = None,
    queue_name: str = "celery",
    service_name: str | None = None,
    broker_url: str | None = None,
) -> dict[str, Any]:
    """Record ``queue_depth`` and ``queue_wait_time`` of a queue, once.

    Args:
        session: the recorder; by default that of this process.
        queue_name: the queue.
        service_name: which service the records belong to; by default that of the recorder.
        broker_url: by default the broker of the current Celery application, or else of the settings.

    Returns:
        what :func:`queue_depth` does. Of a broker that does not answer nothing is recorded.

    Raises:
        ValueError: a name is not valid.
        ConfigError: as :func:`queue_depth`.
    """
    metrics = session or default_metrics()
    service = None if service_name is None else check_text("service_name", service_name)
    # Here: which application is the current one is a matter of the thread.
    broker = broker_url if broker_url is not None else configured_broker()
    state = await asyncio.to_thread(queue_depth, check_text("queue_name", queue_name), broker)
    if state["connected"]:
        for name, value, unit, metadata in measurements(state["target"], queue_name, state):
            metrics.ingest("queue_metrics", name, value, unit, service=service, metadata=metadata)
    return state


def configured_broker() -> "str | Celery":
    """The current Celery application of this thread where it has a broker, or the URL in the settings.

    Raises:
        ConfigError: there is neither.
    """
    state = sys.modules.get("celery._state")
    if state is not None and (state.default_app is not None or state._tls.current_app is not None):
        app: Celery = state.get_current_app()
        if app.conf.broker_read_url or app.conf.broker_url:
            return app
    from tallymark.config import settings

    broker = settings().broker
    if broker is None:
        raise ConfigError("no broker is configured; hint: set TALLYMARK_BROKER, or broker in tallymark.toml")
    return broker.get_secret_value()


def _connection(broker: "str | Celery", timeout: float, options: Mapping[str, Any]) -> Any:
    try:
        from kombu import Connection
    except ImportError as error:
        raise ConfigError('Queues need celery: pip install "tallymark[celery]"') from error
    try:
        if isinstance(broker, str) and not all(map(_is_url, broker.split(";"))):
            raise ValueError
        connection: Any = Connection(broker) if isinstance(broker, str) else broker.connection_for_read()
        driver = connection.transport.driver_type
    except (ValueError, TypeError, KeyError, AttributeError, ImportError):
        raise ConfigError(
            "broker: write amqp://user:password@host:port/vhost or redis://:password@host:port/db, "
            "with special characters of the password percent-encoded"
        ) from None
    connection.connect_timeout = timeout
    limits: dict[str, Any] = {}
    if driver == "redis":
        limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "health_check_interval": 0}
    elif driver == "amqp":
        limits = {"read_timeout": timeout, "write_timeout": timeout}
    clone: Any = connection.clone(
        transport_options={**connection.transport_options, **options, **limits}, heartbeat=0, connect_timeout=timeout
    )
    return clone


def _is_url(text: str) -> bool:
    """Whether what stands where the host does is one: it is shown, and must not be a password with a slash in it."""
    parts = urlsplit(text)
    return "://" in text and "@" not in parts.path + parts.query + parts.fragment


def _published(message: object) -> float | None:
    """When a message in Redis was published, as far as it says."""
    from tallymark.integrations.celery import PUBLISHED

    try:
        said = json.loads(message) if isinstance(message, bytes) else {}
        return _timestamp(said["headers"].get(PUBLISHED)) or _timestamp(said["properties"].get("timestamp"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _timestamp(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 < value < 1e11 else None


def _state(depth: int, published: float | None, unacked: object) -> dict[str, Any]:
    # Clocks may differ: a message is never younger than nothing.
    age = 0.0 if not depth else None if published is None else round(max(0.0, time() - published), 3)
    return {"depth": depth, "oldest_seconds": age, "unacked": unacked if isinstance(unacked, int) else None}
