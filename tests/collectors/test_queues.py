"""Depth and age of queues, read from a real Redis and a real RabbitMQ."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from recording import eventually, recording, stored
from redis import Redis
from services import free_port
from services.redis import redis_server

from tallymark import Metrics
from tallymark.collectors import queues
from tallymark.collectors.queues import QueueCollector, configured_broker, track_celery_queue_metrics
from tallymark.config import settings
from tallymark.errors import ConfigError
from tallymark.integrations.celery import PUBLISHED, instrument, uninstrument

from .conftest import PATIENT


def queue_depth(*arguments: Any, **settings: Any) -> dict[str, Any]:
    """With the time that a busy machine may need."""
    return queues.queue_depth(*arguments, **{"timeout_seconds": PATIENT, **settings})


@pytest.fixture
def client(redis_url: str) -> Iterator["Redis"]:
    """Of a Redis that is empty."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


def publish(broker: str, folder: Path, queue: str, priorities: list[int | None], **settings: Any) -> None:
    """Publish as an instrumented application does."""
    with Celery(broker=broker, set_as_current=False) as app:
        app.conf.update(settings)
        instrument(app, Metrics(folder))
        try:
            for priority in priorities:
                app.send_task("anything", queue=queue, priority=priority)
        finally:
            uninstrument(app)


def channel(connection: Connection) -> Any:
    """Of whatever kind the broker's is."""
    return connection.default_channel


def test_an_empty_queue_and_one_that_is_not_there(redis_url: str, client: "Redis") -> None:
    state = queue_depth("none", redis_url)
    assert state == {
        "queue": "none",
        "target": redis_url.removeprefix("redis://").removesuffix("/0"),
        "connected": True,
        "reason": None,
        "depth": 0,
        "oldest_seconds": 0.0,
        "unacked": 0,
    }
    assert client.keys() == []  # to ask leaves nothing behind


def test_every_priority_counts(redis_url: str, client: "Redis", folder: Path) -> None:
    publish(redis_url, folder, "jobs", [None, 0, 3, 5, 6, 9, 9])
    assert len(client.keys("jobs*")) == 4
    assert queue_depth("jobs", redis_url)["depth"] == 7


def test_other_steps_separator_and_prefix(redis_url: str, client: "Redis", folder: Path) -> None:
    options = {"priority_steps": list(range(10)), "sep": ":", "global_keyprefix": "{shop} "}
    publish(redis_url, folder, "jobs", list(range(10)), broker_transport_options=options)
    assert client.exists("{shop} jobs:9")
    assert queue_depth("jobs", redis_url, transport_options=options)["depth"] == 10
    assert queue_depth("jobs", redis_url)["depth"] == 0
    with Celery(broker=redis_url, set_as_current=False) as app:
        app.conf.broker_transport_options = options
        assert queue_depth("jobs", app)["depth"] == 10


def test_the_oldest_is_that_of_all_priorities(redis_url: str, client: "Redis", folder: Path) -> None:
    publish(redis_url, folder, "jobs", [9])
    publish(redis_url, folder, "jobs", [0] * 3)
    # As if the first one had been published a minute ago.
    (old,) = client.lrange("jobs\x06\x169", 0, -1)
    message = json.loads(old)
    message["headers"][PUBLISHED] -= 60
    client.lset("jobs\x06\x169", 0, json.dumps(message))
    before = client.lrange("jobs", 0, -1)
    state = queue_depth("jobs", redis_url)
    assert state["depth"] == 4
    assert 60 <= state["oldest_seconds"] < 120
    assert client.lrange("jobs", 0, -1) == before


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\x00",
        b"[" * 100_000,
        b'{"headers": null}',
        b'{"headers": {"tallymark_published": "now"}, "properties": {"timestamp": NaN}}',
        b'{"headers": [], "properties": {}}',
        b'{"headers": {"tallymark_published": true}, "properties": {"timestamp": 1e400}}',
        '{"headers": {"tallymark_published": "☃"}, "properties": []}'.encode(),
    ],
)
def test_a_message_of_others_has_no_age(redis_url: str, client: "Redis", message: bytes) -> None:
    client.lpush("jobs", message)
    state = queue_depth("jobs", redis_url)
    assert (state["connected"], state["depth"], state["oldest_seconds"]) == (True, 1, None)


def test_a_timestamp_of_others_will_do_and_a_clock_ahead_is_no_age(redis_url: str, client: "Redis") -> None:
    client.lpush("jobs", json.dumps({"headers": {}, "properties": {"timestamp": int(time.time()) - 100}}))
    assert 100 <= queue_depth("jobs", redis_url)["oldest_seconds"] < 160
    client.lpush("later", json.dumps({"headers": {PUBLISHED: time.time() + 1000}, "properties": {}}))
    assert queue_depth("later", redis_url)["oldest_seconds"] == 0


def test_what_a_consumer_holds_is_unacked(redis_url: str, client: "Redis", folder: Path) -> None:
    publish(redis_url, folder, "jobs", [None] * 3)
    with Connection(redis_url) as connection:
        message = channel(connection).basic_get("jobs")
        assert message is not None
        state = queue_depth("jobs", redis_url)
        assert (state["depth"], state["unacked"]) == (2, 1)
        message.ack()
    assert queue_depth("jobs", redis_url)["unacked"] == 0


def test_a_key_that_is_no_queue(redis_url: str, client: "Redis") -> None:
    client.set("jobs", "text")
    state = queue_depth("jobs", redis_url)
    assert (state["connected"], state["depth"]) == (False, None)


def test_rabbitmq(rabbitmq_url: str, folder: Path) -> None:
    queue = f"jobs {time.time_ns()} / é?"
    assert queue_depth(queue, rabbitmq_url)["depth"] == 0
    with Connection(rabbitmq_url) as connection, pytest.raises(connection.channel_errors, match="NOT_FOUND"):
        channel(connection).queue_declare(queue, passive=True)  # asking did not make it
    publish(rabbitmq_url, folder, queue, [None] * 3)
    assert queue_depth(queue, rabbitmq_url)["depth"] == 3
    with Connection(rabbitmq_url) as connection:
        assert channel(connection).basic_get(queue) is not None

        def state() -> dict[str, Any]:
            return queue_depth(queue, rabbitmq_url)

        assert state()["depth"] == 2
        # The management API says so some seconds later.
        eventually(lambda: state()["unacked"] == 1 and state()["oldest_seconds"] is not None)
        assert 0 <= state()["oldest_seconds"] < 120
        # Without it the depth is known all the same.
        blind = queue_depth(queue, rabbitmq_url, management_url=f"http://127.0.0.1:{free_port()}")
        assert (blind["depth"], blind["oldest_seconds"], blind["unacked"]) == (2, None, None)
    with Connection(rabbitmq_url) as connection:
        message = channel(connection).basic_get(queue)
        # Nobody had taken and given back what was looked at; only the one of this test was.
        assert message is not None
        channel(connection).queue_delete(queue)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away(scheme: str) -> None:
    state = queue_depth("jobs", f"{scheme}://user:hunter2@127.0.0.1:{free_port()}//")
    assert (state["connected"], state["reason"], state["depth"]) == (False, "connection refused", None)
    assert "hunter2" not in str(state)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_never_answers(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        state = queue_depth("jobs", f"{scheme}://127.0.0.1:{port}/", timeout_seconds=0.3)
    assert state["connected"] is False
    assert state["reason"] in ("no answer within 0.3 s", "no answer in time")


def test_a_wrong_password(rabbitmq_url: str) -> None:
    state = queue_depth("jobs", rabbitmq_url.replace("guest:guest", "guest:hunter2"))
    assert state["connected"] is False
    assert "hunter2" not in str(state)
    with redis_server("--requirepass", "right") as url:
        state = queue_depth("jobs", url.replace("redis://", "redis://:hunter2@"))
        assert (state["connected"], state["reason"]) == (False, "authentication failed")


@pytest.mark.parametrize("url", ["nonsense", "nonsense://:hunter2@x", "redis://:hun/ter2@host:port/0", ""])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="broker: write amqp") as refusal:
        queue_depth("jobs", url, timeout_seconds=0.5)
    assert "ter2" not in str(refusal.value)


def test_the_collector_records_and_sees_a_broker_come_back(folder: Path) -> None:
    with redis_server() as url, recording(folder) as metrics:
        publish(url, folder, "jobs", [None] * 2)
        with QueueCollector(metrics, url, ["jobs", "none"], 0.05):
            eventually(lambda: len([record for record in stored(folder) if record.name == "queue_depth"]) >= 4)
        found = [record for record in stored(folder) if record.metric_type == "queue_metrics"]
    depths = {record.metadata["queue"]: record.value for record in found if record.name == "queue_depth"}
    assert depths == {"jobs": 2.0, "none": 0.0}
    assert {record.unit for record in found if record.name == "queue_wait_time"} == {"s"}
    assert {record.service for record in found} == {"test"}


def test_a_hanging_broker_costs_a_collector_its_time_limit_only(folder: Path) -> None:
    with redis_server() as url, recording(folder) as metrics:
        collector = QueueCollector(metrics, url, ["jobs"], timeout_seconds=0.5)
        eventually(lambda: collector.collect_once()["connected"] is True)
        with Redis.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            assert collector.collect_once()["connected"] is False
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: bool(collector.collect_once()["connected"]))
        collector.stop()


def test_tracking_once(redis_url: str, client: "Redis", folder: Path) -> None:
    publish(redis_url, folder, "jobs", [None])
    with recording(folder) as metrics:
        state = asyncio.run(track_celery_queue_metrics(metrics, "jobs", broker_url=redis_url))
        away = f"redis://127.0.0.1:{free_port()}"
        assert asyncio.run(track_celery_queue_metrics(metrics, "jobs", "other", away))["connected"] is False
    assert state["depth"] == 1
    found = stored(folder)
    assert [(record.name, record.service) for record in found] == [("queue_depth", "test"), ("queue_wait_time", "test")]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"queue_name": ""}, "queue_name"), ({"queue_name": "x" * 5000}, "queue_name"), ({"service_name": ""}, "service")],
)
def test_names_that_are_none(folder: Path, arguments: dict[str, str], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        asyncio.run(track_celery_queue_metrics(Metrics(folder), broker_url="redis://", **arguments))


def test_which_broker_is_asked(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setattr("celery._state.default_app", None)
    monkeypatch.setattr("celery._state._tls.current_app", None)
    settings.cache_clear()
    with pytest.raises(ConfigError, match="TALLYMARK_BROKER"):
        configured_broker()
    monkeypatch.setenv("TALLYMARK_BROKER", redis_url)
    settings.cache_clear()
    assert configured_broker() == redis_url
    with Celery(broker="redis://elsewhere") as app:
        assert configured_broker() is app
    settings.cache_clear()
