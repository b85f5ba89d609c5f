"""The endpoint about Celery's queues, and the server that follows them, with a real broker."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import redis
from celery import Celery
from recording import eventually, stored
from services import free_port
from services.redis import redis_server

from tallymark import Metrics
from tallymark.integrations.celery import instrument, uninstrument

from .conftest import Start


@pytest.fixture
def queue(redis_url: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The name of a queue with three messages in it."""
    name = f"queue of {request.node.name}"
    with Celery(broker=redis_url) as app:
        instrument(app, Metrics(folder))
        for _ in range(3):
            app.send_task("anything", queue=name)
        uninstrument(app)
    yield name
    with redis.Redis.from_url(redis_url) as client:
        client.delete(name)


def test_tracking_a_queue_stores_its_depth(start: Start, redis_url: str, queue: str) -> None:
    client = start(broker=redis_url)
    answer = client.post("/api/v1/metrics/queues/track", params={"queue_name": queue})
    assert answer.status_code == 201, answer.text
    (depth, wait) = answer.json()["metrics"]
    assert answer.json()["count"] == 2
    assert (depth["metric_type"], depth["name"], depth["value"], depth["unit"]) == (
        "queue_metrics",
        "queue_depth",
        3,
        "1",
    )
    assert depth["metadata"]["queue"] == queue
    assert (wait["name"], wait["unit"]) == ("queue_wait_time", "s")
    assert 0 <= wait["value"] < 60
    assert client.get(f"/api/v1/metrics/{depth['id']}").json()["value"] == 3


def test_the_queue_is_celery_by_default_and_the_service_may_be_named(start: Start, redis_url: str) -> None:
    answer = start(broker=redis_url).post("/api/v1/metrics/queues/track?service_name=backend")
    assert answer.status_code == 201
    metrics = {metric["name"]: metric for metric in answer.json()["metrics"]}
    assert metrics["queue_depth"]["metadata"]["queue"] == "celery"
    assert {metric["service"] for metric in metrics.values()} == {"backend"}
    assert metrics["queue_wait_time"]["value"] == 0  # an empty queue makes nobody wait


def test_without_a_broker_it_says_what_to_do(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery._state.default_app", None)
    monkeypatch.setattr("celery._state._tls.current_app", None)
    answer = start().post("/api/v1/metrics/queues/track")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.json()["type"] == "urn:tallymark:problem:broker"
    assert "TALLYMARK_BROKER" in answer.json()["detail"]


def test_a_broker_that_is_away_is_a_clear_message_without_its_password(start: Start) -> None:
    port = free_port()
    answer = start(broker=f"redis://:hunter2@127.0.0.1:{port}/0").post("/api/v1/metrics/queues/track")
    assert answer.status_code == 503
    assert answer.json()["detail"] == f"The broker at 127.0.0.1:{port} could not be asked: connection refused."
    assert "hunter2" not in answer.text


def test_a_broker_url_that_is_none_is_not_quoted(start: Start) -> None:
    answer = start(broker="redis://:1/hunter2@host").post("/api/v1/metrics/queues/track")
    assert answer.status_code == 503
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("name", ["", "x" * 5000])
def test_a_name_that_is_none_is_refused(start: Start, redis_url: str, name: str) -> None:
    answer = start(broker=redis_url).post("/api/v1/metrics/queues/track", params={"queue_name": name})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "query.queue_name"


@pytest.mark.parametrize("name", ["größe ☃", "a\x06\x163", "*", "a b/c?d=e\n", "\x00"])
def test_any_name_is_only_a_name(start: Start, redis_url: str, name: str) -> None:
    answer = start(broker=redis_url).post(f"/api/v1/metrics/queues/track?queue_name={quote(name)}")
    assert answer.status_code == 201, answer.text
    assert answer.json()["metrics"][0]["value"] == 0
    assert answer.json()["metrics"][0]["metadata"]["queue"] == name.replace("\x00", "\ufffd")


def test_queues_of_the_settings_are_followed(start: Start, redis_url: str, queue: str, tmp_path: Path) -> None:
    client = start(broker=redis_url, queues=(queue, "none"), collect_seconds=0.1)

    def depths() -> set[tuple[str, float]]:
        records = [record for record in stored(tmp_path / "store") if record.name == "queue_depth"]
        return {(record.metadata["queue"], record.value) for record in records}

    eventually(lambda: depths() == {(queue, 3.0), ("none", 0.0)})
    assert client.get("/livez").status_code == 200


def test_a_server_starts_with_queues_and_no_broker(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery._state.default_app", None)
    monkeypatch.setattr("celery._state._tls.current_app", None)
    assert start(queues=("celery",)).get("/livez").status_code == 200


def test_the_broker_may_come_back(start: Start, tmp_path: Path) -> None:
    with redis_server() as url:
        client = start(broker=url)
        assert client.post("/api/v1/metrics/queues/track").status_code == 201
    answer: httpx.Response = client.post("/api/v1/metrics/queues/track")
    assert answer.status_code == 503
    assert json.loads(answer.text)["title"] == "The broker is not available"
