"""Store over HTTP, read over HTTP."""

import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tallymark.config import Settings
from tallymark.query import Query
from tallymark.recorder import Metrics
from tallymark.server import create_app
from tallymark.store import open_store

from .conftest import Start

BASE = "/api/v1/metrics/"

TYPE = {"metric_type": ""}

HOSTILE = [
    "<script>alert(1)</script>",
    "' OR 1=1 --",
    '"; DROP TABLE metrics; --',
    "../../etc/passwd",
    "%00%0a{{7*7}}${jndi:ldap://x}",
    "naïve — 漢字 🦆",
    "a\x00b\x1b[31m",
    "line\r\nX-Injected: 1",
]


@pytest.fixture(autouse=True)
def own_type() -> None:
    """The tests share a store; each has a metric type of its own in it."""
    TYPE["metric_type"] = f"type-{uuid.uuid4()}"


def metric(**changes: Any) -> dict[str, Any]:
    return {**TYPE, "name": "download_time", "value": 12.5, "unit": "ms", **changes}


def listed(client: httpx.Client, **params: Any) -> list[dict[str, Any]]:
    """What was sent in this test."""
    answer = client.get(BASE, params={**TYPE, "limit": 1000, **params})
    found: list[dict[str, Any]] = answer.json()["metrics"]
    return found


def test_a_stored_metric_is_found_at_once(client: httpx.Client) -> None:
    body = metric(
        service="backend",
        metadata={"job_id": 123, "deep": {"list": [1, None, True, "x"]}},
        description="how long downloads take",
        success=False,
        error="TimeoutError",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        session_id="s-1",
    )
    answer = client.post(BASE, json=body)
    assert answer.status_code == 201
    stored = answer.json()
    assert {key: stored[key] for key in body} == body
    assert uuid.UUID(stored["id"])
    moment = datetime.fromisoformat(stored["timestamp"])
    assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)
    assert answer.headers["location"] == f"{BASE}{stored['id']}"
    assert client.get(answer.headers["location"]).json() == stored
    assert listed(client) == [stored]


def test_defaults(client: httpx.Client) -> None:
    stored = client.post(BASE, json={"metric_type": "queue_metrics", "name": "depth", "value": 3}).json()
    assert (stored["unit"], stored["service"], stored["metadata"]) == ("1", "tallymark", {})
    assert [stored[key] for key in ("success", "error", "trace_id", "session_id", "description")] == [None] * 5


def test_the_slash_at_the_end_may_be_left_out(client: httpx.Client) -> None:
    assert client.post(BASE[:-1], json=metric()).status_code == 201
    assert len(client.get(BASE[:-1], params=TYPE).json()["metrics"]) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_come_back_as_they_are(client: httpx.Client, text: str) -> None:
    def body(text: str) -> dict[str, Any]:
        return metric(metric_type=text, name=text, service=text, unit=text, metadata={text: text}, error=text)

    answer = client.post(BASE, json=body(text))
    assert answer.status_code == 201
    kept = body(text.replace("\x00", "\ufffd"))  # no text holds NUL
    assert {key: answer.json()[key] for key in kept} == kept
    for column in ("metric_type", "name", "service"):
        found = client.get(BASE, params={column: text}).json()["metrics"]
        assert [one["id"] for one in found] == [answer.json()["id"]]
        assert client.get(BASE, params={column: text + "x"}).json()["metrics"] == []
    assert "x-injected" not in answer.headers


@pytest.mark.parametrize("value", [0.0, -1.5, 1e308, 5e-324, 2**53 + 1, 10**300])
def test_numbers(client: httpx.Client, value: float) -> None:
    stored = client.post(BASE, json=metric(value=value)).json()
    assert stored["value"] == float(value)
    assert client.get(f"{BASE}{stored['id']}").json()["value"] == float(value)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2025-10-24T07:39:12.123456789Z", "2025-10-24T07:39:12.123456789Z"),
        ("2025-10-24T09:39:12.5+02:00", "2025-10-24T07:39:12.500000000Z"),
        ("2025-10-24T07:39Z", "2025-10-24T07:39:00.000000000Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000000Z"),
    ],
)
def test_timestamps_keep_their_nanoseconds(client: httpx.Client, sent: str, shown: str) -> None:
    stored = client.post(BASE, json=metric(timestamp=sent)).json()
    assert stored["timestamp"] == shown
    assert client.get(f"{BASE}{stored['id']}").json()["timestamp"] == shown


def test_a_batch_is_stored_in_order(client: httpx.Client) -> None:
    answer = client.post(f"{BASE}batch", json={"metrics": [metric(value=i) for i in range(250)]})
    assert answer.status_code == 201
    assert answer.json()["count"] == 250
    ids = answer.json()["ids"]
    assert len(set(ids)) == 250
    assert {one["id"]: one["value"] for one in listed(client)} == dict(zip(ids, map(float, range(250)), strict=True))


@pytest.mark.parametrize(
    "broken",
    [
        metric(value="12"),
        metric(metadata={"password": "hunter2"}),
        metric(name="  "),
        metric(timestamp="2025-10-24T07:39:12"),
        metric(timestamp="2101-01-01T00:00:00Z"),
        metric(metric_type="tallymark"),
    ],
)
def test_a_batch_with_one_fault_stores_nothing(client: httpx.Client, broken: dict[str, Any]) -> None:
    answer = client.post(f"{BASE}batch", json={"metrics": [metric(), metric(), broken]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("body.metrics.2.")
    assert "hunter2" not in answer.text
    assert listed(client) == []


def test_a_batch_has_a_bound(client: httpx.Client) -> None:
    small = {"metric_type": "t", "name": "n", "value": 1}
    assert client.post(f"{BASE}batch", json={"metrics": [small] * 10_001}).status_code == 422
    assert client.post(f"{BASE}batch", json={"metrics": []}).status_code == 422
    assert client.post(f"{BASE}batch", json={"metrics": [small] * 10_000}).json()["count"] == 10_000


def test_filters_and_order(client: httpx.Client) -> None:
    moments = [f"2025-10-24T07:0{minute}:00Z" for minute in range(6)]
    bodies = [metric(value=i, timestamp=moment, service=f"s{i % 2}") for i, moment in enumerate(moments)]
    client.post(f"{BASE}batch", json={"metrics": bodies})

    def values(**params: Any) -> list[float]:
        return [one["value"] for one in listed(client, **params)]

    assert values() == [5, 4, 3, 2, 1, 0]
    assert values(service="s1") == [5, 3, 1]
    assert values(start_time=moments[2], end_time=moments[4]) == [3, 2]
    assert values(limit=2) == [5, 4]
    assert values(metric_type="other") == []
    # A plus sign that was not escaped arrives as a space.
    assert (
        client.get(f"{BASE}?metric_type={TYPE['metric_type']}&end_time=2025-10-24T09:02:00+02:00").json()["metrics"][0][
            "value"
        ]
        == 1
    )


def test_paging_sees_each_once(client: httpx.Client) -> None:
    # All at one instant: paging by time alone would lose or repeat some.
    bodies = [metric(value=i, timestamp="2025-10-24T07:00:00Z") for i in range(25)]
    client.post(f"{BASE}batch", json={"metrics": bodies})
    seen: list[float] = []
    params: dict[str, Any] = {**TYPE, "limit": 10}
    while True:
        page = client.get(BASE, params=params).json()
        seen += [one["value"] for one in page["metrics"]]
        if page["cursor"] is None:
            break
        params["cursor"] = page["cursor"]
        # What arrives meanwhile is newer, and moves nothing.
        client.post(BASE, json=metric(value=1000))
    assert sorted(seen) == list(range(25))


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", ""])
def test_limits_out_of_range(client: httpx.Client, limit: str) -> None:
    answer = client.get(BASE, params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "query.limit"


def test_time_window_aggregates(client: httpx.Client) -> None:
    first, second = "2025-10-24T07:01:00Z", "2025-10-24T07:06:00Z"
    bodies = [metric(value=i, timestamp=first) for i in range(1, 101)]
    bodies += [metric(value=7, timestamp=second), metric(name="upload_time", value=9, timestamp=second)]
    client.post(f"{BASE}batch", json={"metrics": bodies})
    page = client.get(BASE, params={**TYPE, "time_window": "5m"}).json()
    assert (page["samples"], page["exact"], page["truncated"]) == (102, True, False)
    rows = [(row["window_start"][:16], row["name"], row["count"]) for row in page["windows"]]
    assert rows == [
        ("2025-10-24T07:05", "download_time", 1),
        ("2025-10-24T07:05", "upload_time", 1),
        ("2025-10-24T07:00", "download_time", 100),
    ]
    last = page["windows"][-1]
    assert (last["avg"], last["min"], last["max"]) == (50.5, 1, 100)
    assert (last["p50"], last["p95"], last["p99"]) == pytest.approx((50.5, 95.05, 99.01))
    assert (last["service"], last["metric_type"], last["unit"]) == ("tallymark", TYPE["metric_type"], "ms")
    assert client.get(BASE, params={**TYPE, "time_window": "5m", "limit": 2}).json()["truncated"]
    assert client.get(BASE, params={**TYPE, "time_window": "5m", "name": "upload_time"}).json()["samples"] == 1


@pytest.mark.parametrize(
    "params",
    [
        {"time_window": "five minutes"},
        {"time_window": "5m", "cursor": "1-00000000000000000000000000000000-1"},
        {"cursor": "nonsense"},
        {"start_time": "yesterday"},
        {"start_time": "now", "end_time": "now-1h"},
    ],
)
def test_questions_that_make_no_sense(client: httpx.Client, params: dict[str, str]) -> None:
    answer = client.get(BASE, params=params)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:tallymark:problem:validation"


def test_an_id_that_is_not_there(client: httpx.Client) -> None:
    answer = client.get(f"{BASE}{uuid.uuid4()}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:tallymark:problem:no-metric")
    assert client.get(f"{BASE}not-a-uuid").status_code == 404


def test_system_status_stores_nothing(client: httpx.Client) -> None:
    status = client.get(f"{BASE}system/status").json()
    assert datetime.fromisoformat(status["timestamp"])
    assert status["memory_total_mb"] > 0
    assert status["disk_total_gb"] > 0
    assert 0 <= status["cpu_percent"] <= 100
    assert status["process"]["memory_mb"] > 0
    shown = {"metric_type": "process", "service": "tallymark", "start_time": status["timestamp"]}
    assert client.get(BASE, params=shown).json()["metrics"] == []


def test_collect_stores_the_system(client: httpx.Client) -> None:
    service = str(uuid.uuid4())
    answer = client.post(f"{BASE}collect", params={"service_name": service})
    assert answer.status_code == 201
    collected = answer.json()
    assert collected["count"] == len(collected["metrics"])
    assert {"cpu_percent", "memory_percent", "disk_percent"} <= {one["name"] for one in collected["metrics"]}
    listed = client.get(BASE, params={"service": service, "limit": 1000}).json()["metrics"]
    assert sorted(listed, key=lambda one: str(one["id"])) == sorted(
        collected["metrics"], key=lambda one: str(one["id"])
    )
    assert client.post(f"{BASE}collect").json()["metrics"][0]["service"] == "tallymark"


def test_query(client: httpx.Client) -> None:
    bodies = [
        metric(value=i, service=f"s{i % 2}", success=i % 4 != 0, metadata={"region": "eu" if i < 60 else "us"})
        for i in range(100)
    ]
    client.post(f"{BASE}batch", json={"metrics": bodies})
    answer = client.get(
        "/api/v1/query",
        params={
            "where": [f"metric_type={TYPE['metric_type']}", "metadata.region=eu"],
            "group_by": ["service"],
            "agg": ["count", "avg", "success_rate", "p50"],
            "order_by": "-service",
        },
    ).json()
    assert answer["columns"]["service"] == ["s1", "s0"]
    assert answer["columns"]["count"] == [30, 30]
    assert answer["columns"]["avg"] == [30, 29]
    assert answer["columns"]["p50"] == [30, 29]
    assert answer["columns"]["success_rate"] == [100, 50]
    assert (answer["rows"], answer["samples"], answer["exact"]) == (2, 60, True)
    assert (answer["source"], answer["truncated"]) == ("raw", False)
    windows = client.get("/api/v1/query", params={"window": "1h", "since": "now-1d"}).json()["columns"]
    assert all(datetime.fromisoformat(moment).tzinfo for moment in windows["window_start"])


def test_a_query_says_that_it_was_cut(client: httpx.Client) -> None:
    client.post(f"{BASE}batch", json={"metrics": [metric(name=f"n{i}") for i in range(5)]})
    params: dict[str, Any] = {"where": f"metric_type={TYPE['metric_type']}", "group_by": "name", "limit": 3}
    answer = client.get("/api/v1/query", params=params).json()
    assert (answer["rows"], answer["truncated"]) == (3, True)
    answer = client.get("/api/v1/query", params={**params, "limit": 5}).json()
    assert (answer["rows"], answer["truncated"]) == (5, False)


def test_numbers_that_json_has_not_are_null(client: httpx.Client) -> None:
    client.post(f"{BASE}batch", json={"metrics": [metric(value=1.7e308)] * 3})
    where = f"metric_type={TYPE['metric_type']}"
    params = {"where": where, "agg": ["sum", "avg", "error_rate", "p50"]}
    answer = client.get("/api/v1/query", params=params)
    assert answer.json()["columns"]["error_rate"] == [None]
    assert "Infinity" not in answer.text
    assert "NaN" not in answer.text


def test_series_and_info(client: httpx.Client) -> None:
    client.post(f"{BASE}batch", json={"metrics": [metric(value=i) for i in range(3)]})
    columns = client.get("/api/v1/series").json()["columns"]
    row = columns["metric_type"].index(TYPE["metric_type"])
    assert (columns["count"][row], columns["last"][row], columns["unit"][row]) == (3, 2, "ms")
    assert datetime.fromisoformat(columns["last_timestamp"][row]).tzinfo
    info = client.get("/api/v1/info").json()
    assert info["recorded"] == info["stored"] + info["pending"] + sum(info["dropped"].values()) + info["deleted"]
    assert info["recorded"] >= 3


def test_the_server_brings_the_journal_into_the_store(start: Start, tmp_path: Path) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))
    client = start(app)
    client.post(BASE, json=metric())
    app.state.context.metrics.flush()
    assert client.get("/api/v1/info").json()["stored"] > 0
    assert len(listed(client)) == 1


def test_what_was_forgotten_stays_in_the_books(start: Start, tmp_path: Path) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))
    client = start(app)
    client.post(f"{BASE}batch", json={"metrics": [metric(value=i) for i in range(3)]})
    app.state.context.metrics.flush()
    before = client.get("/api/v1/info").json()
    with closing(open_store(str(tmp_path / "store"))) as lake:
        assert lake.delete(Query.build(agg=(), where=["value>=1", f"metric_type={TYPE['metric_type']}"])) == 2
    info = client.get("/api/v1/info").json()
    assert (before["deleted"], info["deleted"]) == (0, 2)
    assert info["recorded"] == info["stored"] + info["pending"] + sum(info["dropped"].values()) + 2
    assert info["recorded"] >= before["recorded"]
    assert len(listed(client)) == 1


def test_what_the_journal_has_no_room_for(start: Start, tmp_path: Path) -> None:
    with Metrics(tmp_path / "store", max_queue_size=1, on_full="raise") as metrics:
        client = start(recorder=metrics)
        answers = [client.post(f"{BASE}batch", json={"metrics": [metric()] * 10_000}) for _ in range(2)]
    refused = next(answer for answer in answers if answer.status_code != 201)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:tallymark:problem:full")
    assert refused.headers["retry-after"] == "1"


def test_a_recorder_that_its_owner_stopped(start: Start, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "store")
    client = start(recorder=metrics)
    answer = client.post(BASE, json=metric())
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tallymark:problem:stopped")
    assert client.get(BASE).json()["metrics"] == []


def test_an_empty_store(start: Start) -> None:
    client = start()
    assert client.get(BASE).json() == {"metrics": [], "cursor": None}
    assert client.get(BASE, params={"metric_type": "x", "time_window": "5m"}).json()["windows"] == []
    assert client.get("/api/v1/query", params={"where": "name=x", "group_by": "name"}).json()["rows"] == 0
