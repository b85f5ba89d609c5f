"""The server as a whole: starts, stays awake, ends; alone and inside another application."""

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from recording import DEADLINE_SECONDS, eventually
from serving import serving

import tallymark
from tallymark import upkeep
from tallymark.config import Settings, settings
from tallymark.errors import ConfigError, StoreError
from tallymark.recorder import Metrics
from tallymark.server import context, create_app, mount
from tallymark.server.serve import listen, run, url_of

from .conftest import Start

BASE = "/api/v1/metrics/"
METRIC = {"metric_type": "t", "name": "n", "value": 1}

RUN = """
import sys
from tallymark.config import Settings
from tallymark.server.serve import run
run(Settings(store=sys.argv[1], port=0), ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@contextmanager
def program(store: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server in a process of its own, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.communicate()
        yield process, url
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_ends_it_with_streams_and_connections_open(tmp_path: Path) -> None:
    with program(tmp_path / "store") as (process, url):
        with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
            assert client.post(BASE, json=METRIC).status_code == 201
            with client.stream("GET", "/api/v1/stream") as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=DEADLINE_SECONDS)
                for _ in lines:
                    pass  # the stream ends as streams end, without an error
        assert (process.returncode, output) == (0, "ended\n")
        assert "Traceback" not in errors
    with tallymark.open(str(tmp_path / "store")) as reader:
        assert reader.info().recorded >= 1
        assert len(reader.records(metric_type="t").records) == 1


def test_sigterm_ends_it(tmp_path: Path) -> None:
    with program(tmp_path / "store") as (process, _):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == -signal.SIGTERM
        assert "Traceback" not in errors


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="another port"):
        run(Settings(store=tmp_path / "store", port=taken.getsockname()[1]))


def test_an_open_address_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key"):
        run(Settings(store=tmp_path / "store", host="0.0.0.0", port=0))
    assert not (tmp_path / "store").exists()


def test_urls() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}/"
    if socket.has_dualstack_ipv6():
        with listen("::1", 0) as listener:
            assert url_of(listener).startswith("http://[::1]:")


def test_health(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz"):
        assert client.get(path).json() == {"status": "ok"}
        assert client.head(path).status_code == 200


def test_a_store_that_fails_is_not_ready(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))
    client = start(app)

    def info() -> None:
        raise StoreError("the disk is gone: /secret/path")

    monkeypatch.setattr(app.state.reader, "info", info)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert "secret" not in answer.text
    assert client.get("/api/v1/info").status_code == 503
    assert client.get("/livez").status_code == 200


def test_a_slow_store_holds_up_nobody_else(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(store=tmp_path / "store", collect_system=False))
    client = start(app)
    release, begun = threading.Event(), threading.Semaphore(0)

    def get(_: object) -> None:
        begun.release()
        release.wait(2 * DEADLINE_SECONDS)  # longer than any client waits

    monkeypatch.setattr(app.state.reader, "get", get)
    monkeypatch.setattr(context, "QUERIES_WAITING", 2)
    path = f"{BASE}00000000-0000-0000-0000-000000000000"
    answers: list[int] = []
    patient = 4 * DEADLINE_SECONDS
    threads = [
        threading.Thread(target=lambda: answers.append(client.get(path, timeout=patient).status_code))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            assert begun.acquire(timeout=DEADLINE_SECONDS)
        # Four are at work, two may wait, the others are turned away at once.
        eventually(lambda: answers == [503] * 4)
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert not begun.acquire(blocking=False)
    finally:
        release.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    assert sorted(answers) == [404] * 6 + [503] * 4


def test_the_dashboard_and_its_files(client: httpx.Client) -> None:
    index = client.get("/")
    assert index.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="([^"#]+)"', index.text)
    assert len(files) > 2
    for file in files:
        asset = client.get(f"/{file}")
        assert asset.status_code == 200, file
        assert asset.headers["cache-control"] == "no-cache"
        unchanged = client.get(f"/{file}", headers={"If-None-Match": asset.headers["etag"]})
        assert unchanged.status_code == 304
    assert client.get("/vendor/../../app.py").status_code == 404
    assert client.get("/%2e%2e/app.py").status_code == 404


def test_what_is_not_said_in_code_the_environment_says(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYMARK_STORE", str(tmp_path / "there"))
    monkeypatch.setenv("TALLYMARK_COLLECT_SYSTEM", "false")
    monkeypatch.setenv("TALLYMARK_MAX_BODY_BYTES", "10")
    settings.cache_clear()
    apps = (create_app(), create_app(tmp_path / "here"))
    settings.cache_clear()
    for app, store in zip(apps, ("there", "here"), strict=True):
        client = start(app)
        assert app.state.context.settings.store == str(tmp_path / store)
        assert client.post(BASE, json=METRIC).status_code == 413
        assert client.get("/api/v1/info").json()["url"].endswith(store)


def test_upkeep(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "EVERY_SECONDS", 0.01)
    client = start()
    client.post(BASE, json=METRIC)
    # Where the lake notes that it has looked at the clock, before it decides what is too old.
    eventually((tmp_path / "store" / "clock.json").exists)


def test_the_server_records_its_own_requests(client: httpx.Client) -> None:
    answer = client.get("/api/v1/info")
    assert len(answer.headers["x-trace-id"]) == 32
    client.get("/livez")
    params = {"metric_type": "api_request", "service": "tallymark"}

    def names() -> set[str]:
        return {one["name"] for one in client.get(BASE, params=params).json()["metrics"]}

    # A request is recorded when it is over, which its client may see a moment earlier.
    eventually(lambda: "GET /api/v1/info" in names())
    assert "GET /livez" not in names()


def test_the_system_is_recorded(start: Start) -> None:
    client = start(collect_system=True)

    def found() -> list[Any]:
        params = {"metric_type": "system", "name": "memory_percent", "service": "tallymark"}
        metrics: list[Any] = client.get(BASE, params=params).json()["metrics"]
        return metrics

    eventually(lambda: bool(found()))


def test_inside_another_application(tmp_path: Path) -> None:
    started: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started.append("own")
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    with Metrics(tmp_path / "store", service="shop") as metrics:
        server = create_app(Settings(store=tmp_path / "store", collect_system=False), recorder=metrics)
        mount(app, server, "/internal/metrics")
        plain = uvicorn.Server(uvicorn.Config(app, log_config=None))
        with serving(plain) as url, httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as client:
            assert started == ["own"]
            assert client.get("/hello").json() == "hello"
            answer = client.post("/internal/metrics/api/v1/metrics/", json=METRIC)
            assert answer.status_code == 201
            assert answer.json()["service"] == "shop"
            assert answer.headers["location"].startswith("/internal/metrics/api/v1/metrics/")
            assert client.get(answer.headers["location"]).json() == answer.json()
            assert client.get("/internal/metrics/nowhere").headers["content-type"] == "application/problem+json"
            servers = client.get("/internal/metrics/openapi.json").json()["servers"]
            assert servers == [{"url": "/internal/metrics"}]
        assert metrics.get_stats().is_running
    assert server.state.shutting_down.is_set()
