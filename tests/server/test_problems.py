"""Every error is a problem (RFC 9457), and none tells what was sent or how the server is made."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from tallymark.config import Settings
from tallymark.errors import QueryError, StoreError
from tallymark.server import create_app

from .conftest import Start

BASE = "/api/v1/metrics/"
SECRET = "hunter2-very-secret"


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    content: dict[str, Any] = answer.json()
    assert content["status"] == status
    assert content["type"]
    assert content["title"]
    assert content["detail"]
    return content


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/nowhere", "/api/v2/metrics/", f"{BASE}x/y", "/docs/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_paths(client: httpx.Client, path: str, method: str) -> None:
    assert problem(client.request(method, path), 404)["type"] == "about:blank"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", BASE, {"GET", "POST"}),
        ("GET", f"{BASE}batch", {"POST"}),
        ("GET", f"{BASE}collect", {"POST"}),
        ("POST", f"{BASE}system/status", {"GET"}),
        ("PUT", f"{BASE}00000000-0000-0000-0000-000000000000", {"GET"}),
        ("POST", "/api/v1/query", {"GET"}),
        ("POST", "/livez", {"GET", "HEAD"}),
    ],
)
def test_wrong_methods(client: httpx.Client, method: str, path: str, allowed: set[str]) -> None:
    answer = client.request(method, path)
    problem(answer, 405)
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", SECRET),
        ("value", None),
        ("value", True),
        ("value", [SECRET]),
        ("name", ""),
        ("name", "   "),
        ("name", 5),
        ("name", SECRET * 20),
        ("unit", SECRET * 20),
        ("metric_type", {SECRET: SECRET}),
        ("timestamp", SECRET),
        ("timestamp", 12345),
        ("timestamp", "2025-01-01"),
        ("metadata", SECRET),
        ("metadata", {"api_key": SECRET}),
        ("metadata", {"a": {"user_id": SECRET}}),
        ("metadata", {"big": SECRET * 2000}),
        ("success", SECRET),
        ("service", ""),
        ("trace_id", SECRET * 10),
        ("description", SECRET * 100),
    ],
)
def test_a_fault_names_the_field_and_not_the_value(client: httpx.Client, field: str, value: object) -> None:
    body = {"metric_type": "t", "name": "n", "value": 1, field: value}
    answer = client.post(BASE, json=body)
    content = problem(answer, 422)
    assert content["type"] == "urn:tallymark:problem:validation"
    assert content["errors"][0]["field"].startswith(f"body.{field}")
    assert content["errors"][0]["rule"]
    if field != "metric_type":  # a key of the client's may be named, a value never
        assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"hunter2"',
        b'{"hunter2": hunter2}',
        b'{"metric_type": "t", "name": "n", "value": NaN}',
        b'{"metric_type": "t", "name": "n", "value": -Infinity}',
        b'{"metric_type": "t", "name": "n", "value": 1e999}',
        b'{"metric_type": "t", "name": "n", "value": 1' + b"0" * 400 + b"}",
        b'{"metric_type": "t", "name": "\\ud800", "value": 1}',
        b'{"metric_type": "t", "name": "n", "value": 1, "\\ud800": 1}',
        b'{"metric_type": "t", "name": "n", "value": 1, "' + b"x" * 100_000 + b'": 1}',
        b'{"metric_type": "t", "name": "n", "value": 1, "metadata": {"a": Infinity}}',
    ],
)
def test_bodies_that_are_no_metric(client: httpx.Client, body: bytes) -> None:
    answer = client.post(BASE, content=body, headers={"Content-Type": "application/json"})
    problem(answer, 422)
    assert len(answer.content) < 3000


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"metric_type": "t", "name": "n", "value": 1' + b"0" * 9000 + b"}", b"\xff\xfe"],
)
def test_bodies_that_cannot_be_parsed(client: httpx.Client, body: bytes) -> None:
    answer = client.post(BASE, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    problem(answer, answer.status_code)


def test_surrogates_in_metadata_are_replaced(client: httpx.Client) -> None:
    body = b'{"metric_type": "t", "name": "n", "value": 1, "metadata": {"a": "\\ud800x"}}'
    answer = client.post(BASE, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["metadata"] == {"a": "\ufffdx"}
    assert client.get(answer.headers["location"]).json() == answer.json()


def test_nul_is_replaced(client: httpx.Client) -> None:
    texts = dict.fromkeys(
        ("metric_type", "name", "unit", "service", "description", "error", "trace_id", "session_id"), "a\0"
    )
    answer = client.post(BASE, json={"value": 1, **texts, "metadata": {"a\0": [{"\0": "\0x"}], "b": "\\u0000"}})
    stored = answer.json()
    assert {key: stored[key] for key in texts} == dict.fromkeys(texts, "a\ufffd")
    assert stored["metadata"] == {"a\ufffd": [{"\ufffd": "\ufffdx"}], "b": "\\u0000"}
    assert client.get(answer.headers["location"]).json() == answer.json()


def test_many_faults_are_few_in_the_answer(client: httpx.Client) -> None:
    answer = client.post(f"{BASE}batch", json={"metrics": [{"value": "x"}] * 5000})
    assert len(problem(answer, 422)["errors"]) == 20


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_other_content_types(client: httpx.Client, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.post(BASE, content=b'{"metric_type": "t", "name": "n", "value": 1}', headers=headers)
    assert problem(answer, 415)["type"] == "urn:tallymark:problem:content-type"
    streamed = client.post(BASE, content=iter([b"{}"]), headers=headers)
    problem(streamed, 415)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"]
)
def test_json_has_more_than_one_name(client: httpx.Client, content_type: str) -> None:
    body = b'{"metric_type": "t", "name": "n", "value": 1}'
    assert client.post(BASE, content=body, headers={"Content-Type": content_type}).status_code == 201


@pytest.mark.parametrize(
    "params",
    [
        {"since": SECRET},
        {"since": f"now-{SECRET}"},
        {"where": SECRET},
        {"where": f"{SECRET}=1"},
        {"where": f"id={SECRET}"},
        {"where": f"metadata.{SECRET}"},
        {"window": SECRET},
        {"group_by": SECRET},
        {"agg": SECRET},
        {"order_by": SECRET},
        {"since": "it's " + SECRET * 10},
    ],
)
def test_queries_are_not_echoed(client: httpx.Client, params: dict[str, str]) -> None:
    answer = client.get("/api/v1/query", params=params)
    assert problem(answer, 422)["errors"][0]["field"].startswith("query")
    assert "hunter2" not in answer.text


def test_unexpected_errors_tell_nothing(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError(SECRET)

    @app.get("/store")
    def store() -> None:
        raise StoreError(SECRET)

    @app.get("/bad")
    def bad() -> None:
        raise QueryError("limit: must be at least 1")

    client = start(app)
    with caplog.at_level(logging.CRITICAL, logger="uvicorn.error"):
        answer = client.get("/broken")
    assert problem(answer, 500)["type"] == "urn:tallymark:problem:internal"
    assert "hunter2" not in answer.text
    assert "RuntimeError" not in answer.text
    answer = client.get("/store")
    assert problem(answer, 503)["type"] == "urn:tallymark:problem:store"
    assert "hunter2" not in answer.text
    assert problem(client.get("/bad"), 422)["errors"] == [{"field": "query.limit", "rule": "must be at least 1"}]


def test_an_application_that_was_not_started_says_so(tmp_path: Path) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))
    transport = httpx.ASGITransport(app)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(BASE)

    assert "mount" in problem(asyncio.run(ask()), 503)["detail"]


def test_openapi_is_complete(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert {
        "/livez",
        "/readyz",
        "/api/v1/metrics/",
        "/api/v1/metrics/batch",
        "/api/v1/metrics/collect",
        "/api/v1/metrics/system/status",
        "/api/v1/metrics/{metric_id}",
        "/api/v1/query",
        "/api/v1/series",
        "/api/v1/info",
    } <= schema["paths"].keys()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                if status >= "4":
                    assert response["content"].keys() == {"application/problem+json"}, path
    for model in ("MetricIn", "BatchIn", "Metric", "Columns"):
        assert schema["components"]["schemas"][model]["examples"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_the_page_about_the_api(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "POST /api/v1/metrics/batch" in page.text
    assert "download_time" in page.text
    # Nothing of another host, and no script.
    assert "://" not in page.text
    assert "<script" not in page.text
