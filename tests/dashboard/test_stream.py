"""The endpoints of the dashboard over real HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from recording import DEADLINE_SECONDS, eventually

from tallymark import Metrics
from tallymark.errors import StoreError
from tallymark.reader import Reader
from tallymark.server import stream
from tallymark.server.overview import Figures, Span, overview

from .conftest import Site


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=DEADLINE_SECONDS) as opened:
        yield opened


class Events:
    """The events of an open stream, one at a time."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def next(self) -> tuple[str, Any]:
        """The next event that is not a comment."""
        name, data = "", ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
            elif not line and name:
                return name, json.loads(data)
        raise AssertionError("the stream ended")

    def ends(self) -> bool:
        return all(True for _ in self._lines)


@contextmanager
def streaming(client: httpx.Client, **parameters: str) -> Iterator[Events]:
    with client.stream("GET", "/api/v1/stream", params={"since": "now-5m", **parameters}) as response:
        assert response.status_code == 200
        yield Events(response)


class Overviews:
    """Counts how often, and how often at the same time, the overview is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self.failure: Exception | None = None
        self._lock = threading.Lock()
        self._real = overview
        monkeypatch.setattr(stream, "overview", self)

    def __call__(self, reader: Reader, span: Span, service: str | None = None) -> Figures:
        with self._lock:
            self.calls += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.failure:
                raise self.failure
            return self._real(reader, span, service)
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def overviews(monkeypatch: pytest.MonkeyPatch) -> Overviews:
    return Overviews(monkeypatch)


def test_a_snapshot_as_json(client: httpx.Client, metrics: Metrics) -> None:
    metrics.record_operation("api_request", "GET /", 12.0)
    answer = client.get("/api/v1/overview", params={"since": "now-5m", "service": "shop"})
    assert answer.status_code == 200
    assert answer.json()["operations"]["name"] == ["GET /"]


def test_a_browser_asks_whether_it_changed(client: httpx.Client, metrics: Metrics) -> None:
    metrics.record_operation("api_request", "GET /", 12.0)
    wanted = {"since": "2020-01-01T00:00Z", "until": "2020-01-02T00:00Z"}
    wanted |= {"service": "shop", "metric_type": "api_request", "name": "GET /", "unit": "ms"}
    first = client.get("/api/v1/series/chart", params=wanted)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/api/v1/series/chart", params=wanted, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["overview", "stream", "series/sparklines?name=a"])
def test_a_range_that_makes_no_sense_is_a_problem(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/api/v1/{path}", params={"since": "soon", "name": "a"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "since" in answer.json()["detail"]


def test_sparklines_are_bounded(client: httpx.Client) -> None:
    names = [f"metric {index}" for index in range(stream.MAX_SPARKLINES + 1)]
    assert client.get("/api/v1/series/sparklines", params={"name": names}).status_code == 422
    assert client.get("/api/v1/series/sparklines", params={"name": names[1:]}).status_code == 200


def test_what_is_recorded_is_pushed(client: httpx.Client, metrics: Metrics) -> None:
    with streaming(client) as events:
        assert events.response.headers["content-type"].startswith("text/event-stream")
        name, first = events.next()
        assert (name, first["applications"]) == ("snapshot", [])
        metrics.record_operation("api_request", "GET /now", 12.0)
        later = first
        while not later["applications"]:
            _, later = events.next()
        assert later["operations"]["name"] == ["GET /now"]
        assert later["requests"]["now"]["count"] == 1


def test_nothing_is_sent_when_nothing_changed(client: httpx.Client, metrics: Metrics, overviews: Overviews) -> None:
    with streaming(client, since="2020-01-01T00:00Z", until="2020-01-01T00:05Z") as events:
        received = [events.next()[1]]
        computed = overviews.calls
        eventually(lambda: overviews.calls >= computed + 2)
        metrics.record_operation("api_request", "GET /", 12.0)
        while not received[-1]["ingest"]["recorded"]:
            received.append(events.next()[1])
    assert all(earlier != later for earlier, later in pairwise(received))
    assert len(received) < overviews.calls


def test_watchers_share_one_computation(
    client: httpx.Client, metrics: Metrics, overviews: Overviews, site: Site
) -> None:
    metrics.record_operation("api_request", "GET /", 12.0)
    with streaming(client) as one, streaming(client) as two, streaming(client) as three:
        first = [events.next() for events in (one, two, three)]
        assert first[0][1]["range"]["window"] == 2
        assert len(_channels(site)) == 1
        rounds, began = overviews.calls, time.monotonic()
        for _ in range(2):
            for events in (one, two, three):
                events.next()
        # Three watchers, but each renewal is computed once, a second after the one before.
        assert overviews.calls - rounds <= (time.monotonic() - began) / stream.FASTEST_SECONDS + 1
        assert overviews.most_at_once == 1


def test_nobody_looks_nothing_is_computed(client: httpx.Client, overviews: Overviews, site: Site) -> None:
    with streaming(client) as events:
        events.next()
        assert len(_channels(site)) == 1
    eventually(lambda: not _channels(site) and not overviews.at_once)
    calls = overviews.calls
    client.get("/livez")
    assert overviews.calls == calls


def test_a_failure_is_told_and_recovered_from(
    client: httpx.Client, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PROBLEM_SECONDS", 0.1)
    overviews.failure = StoreError("the table cannot be read: permission denied")
    with streaming(client) as events:
        name, problem = events.next()
        assert name == "problem"
        assert "permission denied" in problem["detail"]
        overviews.failure = None
        assert events.next()[0] == "snapshot"


def test_a_bug_does_not_silence_the_stream(client: httpx.Client, overviews: Overviews) -> None:
    overviews.failure = ZeroDivisionError("secret")
    with streaming(client) as events:
        name, problem = events.next()
        assert name == "problem"
        assert "secret" not in problem["detail"]


def test_open_streams_do_not_hold_up_the_end_of_the_server(client: httpx.Client, site: Site) -> None:
    with streaming(client) as events:
        events.next()
        ended = threading.Thread(target=site.stop)
        ended.start()
        ended.join(DEADLINE_SECONDS)
        assert not ended.is_alive()
        assert events.ends()


def _channels(site: Site) -> dict[stream.View, stream.Channel]:
    assert site.app is not None
    hub: stream.Hub = site.app.state.hub
    return hub.channels
