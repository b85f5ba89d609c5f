"""The structured log over real HTTP."""

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from recording import DEADLINE_SECONDS, eventually
from serving import serving

from tallymark.config import Settings
from tallymark.integrations.logging import JsonLinesHandler
from tallymark.logs import LogFollower
from tallymark.server import create_app, logs
from tallymark.server.serve import Server

from .conftest import Start

LOGS = "/api/v1/logs"
STREAM = "/api/v1/logs/stream"
KEY = "0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "logs" / "metrics.jsonl"


@pytest.fixture
def client(start: Start) -> httpx.Client:
    """Of a server of its own."""
    return start()


@pytest.fixture
def handler(path: Path) -> Iterator[JsonLinesHandler]:
    made = JsonLinesHandler(path, service="shop")
    yield made
    made.close()


def write(handler: JsonLinesHandler, count: int = 1, level: int = logging.INFO, **fields: object) -> None:
    for _ in range(count):
        handler.count = getattr(handler, "count", -1) + 1  # type: ignore[attr-defined]
        values = {"msg": "hello", "levelno": level, "levelname": logging.getLevelName(level)}
        values |= {"fields": {"number": handler.count, **fields}}  # type: ignore[attr-defined]
        handler.handle(logging.makeLogRecord(values))


class Events:
    """The events of an open stream, one at a time."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.last_id = ""
        self._lines = response.iter_lines()

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event that is not a comment; as a browser does, keeps the last id."""
        name, data = "message", list[str]()
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                self.last_id = value
            elif not line:
                if data:
                    return name, json.loads("\n".join(data))
                name = "message"
        raise AssertionError("the stream ended")

    def numbers(self, count: int) -> list[int]:
        """The numbers of so many lines; there has to be no other event."""
        found = []
        for _ in range(count):
            name, fields = self.next()
            assert name == "log", fields
            found.append(fields["number"])
        return found

    def wait_for_id(self) -> str:
        """Until the client knows where it is."""
        for line in self._lines:
            if line.startswith("id: "):
                self.last_id = line.removeprefix("id: ")
                return self.last_id
        raise AssertionError("the stream ended")

    def ends(self) -> bool:
        return all(True for _ in self._lines)


@contextmanager
def streaming(client: httpx.Client, last_event_id: str = "", url: str = STREAM, **parameters: Any) -> Iterator[Events]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with client.stream("GET", url, params=parameters, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


# The newest lines


def test_the_newest_lines(client: httpx.Client, handler: JsonLinesHandler) -> None:
    assert client.get(LOGS).json() == {"lines": [], "skipped": 0, "position": None}
    write(handler, 5)
    answer = client.get(LOGS, params={"limit": 2}).json()
    assert [line["number"] for line in answer["lines"]] == [3, 4]
    assert answer["lines"][0]["service"] == "shop"
    with streaming(client, answer["position"]) as events:
        write(handler)
        assert events.numbers(1) == [5]


def test_filters(client: httpx.Client, handler: JsonLinesHandler) -> None:
    write(handler, trace_id="t1")
    write(handler, session_id="s1", stage="Straße")
    write(handler, level=logging.ERROR)

    def found(**parameters: str) -> list[int]:
        answer = client.get(LOGS, params=parameters)
        assert answer.status_code == 200
        return [line["number"] for line in answer.json()["lines"]]

    assert found(level="warning") == [2]
    assert found(q="STRASSE") == [1]
    assert found(q="") == [0, 1, 2]
    assert found(trace_id="t1") == [0]
    assert found(session_id="s1") == [1]
    assert found(since="now-1h") == [0, 1, 2]
    assert found(since="now+1h") == []


@pytest.mark.parametrize("url", [LOGS, *logs.STREAM_PATHS])
@pytest.mark.parametrize(
    ("field", "value"), [("level", "loud"), ("since", "soon"), ("q", "x" * 201), ("limit", "0"), ("replay", "-1")]
)
def test_parameters_that_make_no_sense(client: httpx.Client, url: str, field: str, value: str) -> None:
    if field == ("replay" if url == LOGS else "limit"):
        return
    answer = client.get(url, params={field: value})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in answer.json()["detail"]
    assert "loud" not in answer.text


def test_a_log_that_cannot_be_read_is_a_problem(client: httpx.Client, path: Path, handler: JsonLinesHandler) -> None:
    path.parent.mkdir()
    path.symlink_to(path)
    answer = client.get(LOGS)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tallymark:problem:log")
    assert "symbolic links" in answer.json()["detail"]
    assert client.get(STREAM).status_code == 503


def test_a_log_that_cannot_be_read_any_more_is_tried_again(
    client: httpx.Client, path: Path, handler: JsonLinesHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PROBLEM_SECONDS", 0.1)
    write(handler)
    with streaming(client, replay=1) as events:
        assert events.numbers(1) == [0]
        path.rename(path.with_name("metrics.jsonl.1"))
        path.symlink_to(path)
        name, problem = events.next()
        assert name == "problem"
        assert "symbolic links" in problem["detail"]
        path.unlink()
        write(handler)
        while name == "problem":
            name, fields = events.next()
        assert fields["number"] == 1


# The stream


@pytest.mark.parametrize("url", logs.STREAM_PATHS)
def test_lines_as_they_are_written(client: httpx.Client, handler: JsonLinesHandler, url: str) -> None:
    # The log does not exist yet.
    with streaming(client, url=url) as events:
        write(handler, 2)
        assert events.numbers(2) == [0, 1]
        write(handler, trace_id="t1")
        name, fields = events.next()
        assert (name, fields["message"], fields["trace_id"]) == ("log", "hello", "t1")


def test_replay(client: httpx.Client, handler: JsonLinesHandler) -> None:
    write(handler, 10)
    with streaming(client, replay=3) as events:
        assert events.numbers(3) == [7, 8, 9]
        write(handler)
        assert events.numbers(1) == [10]


def test_only_what_is_wanted(client: httpx.Client, handler: JsonLinesHandler) -> None:
    write(handler, 2, level=logging.ERROR)
    with streaming(client, replay=1, level="error", q="wanted") as events:
        write(handler, 3, stage="wanted")
        write(handler, 3, level=logging.ERROR)
        write(handler, level=logging.CRITICAL, stage="Wanted")
        assert events.numbers(1) == [8]


def test_hostile_lines_stay_in_their_event(client: httpx.Client, path: Path) -> None:
    path.parent.mkdir()
    hostile = "\n\ndata: evil\r\nid: 5\revent: x"
    lines = [json.dumps({"message": hostile}), '{"message":\r"carriage return"}', json.dumps({"message": "end"})]
    path.write_text("\n".join(lines) + "\n", newline="")
    with streaming(client, replay=10) as events:
        names, found = zip(*(events.next() for _ in range(2)), strict=True)
    assert set(names) == {"log"}
    assert found[0]["message"] == hostile


def test_going_on_after_a_break(client: httpx.Client, handler: JsonLinesHandler) -> None:
    write(handler, 3)
    with streaming(client, replay=2) as events:
        assert events.numbers(2) == [1, 2]
        last = events.last_id
    write(handler, 5)
    with streaming(client, last) as events:
        assert events.numbers(5) == [3, 4, 5, 6, 7]
        write(handler)
        assert events.numbers(1) == [8]


def test_the_client_knows_where_it_is_before_the_first_line(client: httpx.Client, handler: JsonLinesHandler) -> None:
    write(handler, 3)
    with streaming(client) as events:
        last = events.wait_for_id()
    write(handler, 2)
    with streaming(client, last) as events:
        assert events.numbers(2) == [3, 4]


def test_the_client_knows_where_it_is_when_nothing_is_wanted(
    client: httpx.Client, handler: JsonLinesHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "POSITION_SECONDS", 0.0)
    write(handler)
    with streaming(client, level="error") as events:
        first = events.wait_for_id()
        write(handler, 3)
        assert events.wait_for_id() != first


def test_going_on_across_rotation(client: httpx.Client, path: Path) -> None:
    handler = JsonLinesHandler(path, max_bytes=1500)
    write(handler, 3)
    with streaming(client, replay=1) as events:
        assert events.numbers(1) == [2]
        write(handler, 20)
        assert events.numbers(20) == list(range(3, 23))
        last = events.last_id
    write(handler, 20)
    assert len(list(path.parent.iterdir())) > 5
    with streaming(client, last) as events:
        assert events.numbers(20) == list(range(23, 43))
    handler.close()


@pytest.mark.parametrize("old", ["rotated away", "never was", "garbage"])
def test_an_id_that_is_too_old_is_a_gap(client: httpx.Client, path: Path, old: str) -> None:
    handler = JsonLinesHandler(path, max_bytes=500, keep=2)
    write(handler)
    last = client.get(LOGS).json()["position"]
    write(handler, 20)
    if old != "rotated away":
        last = f"{'0' * 16}-7" if old == "never was" else "ü".encode().decode("latin-1") + "\t;'"
    with streaming(client, last.encode("latin-1"), replay=2) as events:
        assert events.next() == ("gap", {"detail": "lines are missing here"})
        assert events.numbers(2) == [19, 20]
        write(handler)
        assert events.numbers(1) == [21]
    handler.close()


def test_a_log_that_is_emptied_meanwhile_is_a_gap(client: httpx.Client, path: Path, handler: JsonLinesHandler) -> None:
    write(handler, 3)
    with streaming(client, replay=3) as events:
        events.numbers(3)
        os.truncate(path, 0)
        write(handler)
        assert events.next()[0] == "gap"
        assert events.numbers(1) == [3]


# Many clients, slow clients, the end


def test_a_client_that_does_not_read_holds_nobody_up(
    client: httpx.Client, handler: JsonLinesHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_QUEUE", 1000)
    total = 8_000
    with socket.socket() as slow, streaming(client) as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(DEADLINE_SECONDS)
        slow.connect((client.base_url.host, client.base_url.port or 80))
        request = f"GET {STREAM} HTTP/1.1\r\nHost: localhost:{client.base_url.port}\r\nConnection: close\r\n\r\n"
        slow.sendall(request.encode())
        assert slow.recv(12) == b"HTTP/1.1 200"
        seen: list[int] = []
        dropped = 0
        for _ in range(total // 1000):
            write(handler, 1000, pad="x" * 2000)
            while len(seen) + dropped < handler.count + 1:  # type: ignore[attr-defined]
                name, fields = quick.next()
                if name == "dropped":
                    dropped += fields["count"]
                else:
                    seen.append(fields["number"])
        assert seen == sorted(set(seen))
        assert dropped == 0
        # Now it reads.
        received, text = bytearray(), ""
        while f'"number":{total - 1},' not in text:
            received += slow.recv(65_536)
            text = received[-5000:].decode("latin-1")
    events = [block for block in received.decode("latin-1").replace("\r\n", "\n").split("\n\n") if "event:" in block]
    lost = sum(json.loads(block.split("data: ")[1].splitlines()[0])["count"] for block in events if "dropped" in block)
    shown = sum("event: log" in block for block in events)
    assert lost > 0
    assert abs(shown + lost - total) <= total // 100  # a chunk's length may stand in the middle of an event


def test_a_slow_client_that_catches_up_loses_nothing(
    client: httpx.Client, handler: JsonLinesHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_QUEUE", 10)
    write(handler)
    last = client.get(LOGS).json()["position"]
    write(handler, 3000, pad="x" * 1000)
    with streaming(client, last) as events:
        assert events.numbers(3000) == list(range(1, 3001))


def test_the_number_of_clients_is_bounded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_CLIENTS", 2)
    with streaming(client), streaming(client):
        answer = client.get(STREAM)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:tallymark:problem:busy")
        assert answer.headers["retry-after"] == "10"
        assert client.get(LOGS).status_code == 200

    def free() -> bool:
        with client.stream("GET", STREAM) as answer:
            return answer.status_code == 200

    eventually(free)


def test_clients_that_leave_leave_nothing_open(client: httpx.Client, handler: JsonLinesHandler, path: Path) -> None:
    write(handler, 3)

    def open_files() -> int:
        found = 0
        for link in Path("/proc/self/fd").iterdir():
            try:
                found += os.readlink(link).startswith(str(path))
            except FileNotFoundError:
                continue
        return found

    before = open_files()
    for _ in range(5):
        with streaming(client, replay=1) as events:
            events.numbers(1)
            assert open_files() > before
    eventually(lambda: open_files() == before)


def test_streams_do_not_hold_up_the_end_of_the_server(tmp_path: Path, handler: JsonLinesHandler) -> None:
    write(handler)
    server = Server(create_app(Settings(store=str(tmp_path / "store"), collect_system=False)))
    with ExitStack() as stack:
        url = stack.enter_context(serving(server))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=DEADLINE_SECONDS))
        events = stack.enter_context(streaming(client, replay=1))
        events.numbers(1)
        ended = threading.Thread(target=lambda: setattr(server, "should_exit", True))
        ended.start()
        ended.join()
        assert events.ends()


def test_keys_protect_the_log(start: Start, handler: JsonLinesHandler) -> None:
    client = start(keys=(KEY,))
    write(handler)
    for path in (LOGS, *logs.STREAM_PATHS):
        assert client.get(path).status_code == 401
    client.headers["Authorization"] = f"Bearer {KEY}"
    assert client.get(LOGS).json()["lines"][0]["number"] == 0
    with streaming(client, replay=1) as events:
        assert events.numbers(1) == [0]


def test_another_file_by_setting(start: Start, tmp_path: Path) -> None:
    client = start(log_file=tmp_path / "elsewhere.jsonl")
    handler = JsonLinesHandler(tmp_path / "elsewhere.jsonl")
    write(handler)
    handler.close()
    assert len(client.get(LOGS).json()["lines"]) == 1


def test_streams_are_no_requests_of_a_series(client: httpx.Client, handler: JsonLinesHandler) -> None:
    write(handler)
    with streaming(client, replay=1) as events:
        events.numbers(1)
    client.get(LOGS)

    def names() -> list[str]:
        answer = client.get("/api/v1/query", params={"group_by": "name"}).json()
        return list(answer["columns"]["name"]) if "columns" in answer else list(answer["name"])

    eventually(lambda: any("/api/v1/logs" in name for name in names()))
    assert not any("stream" in name for name in names())


def test_a_position_is_the_readers(client: httpx.Client, handler: JsonLinesHandler, path: Path) -> None:
    write(handler, 2)
    with LogFollower(path) as log:
        assert log.resume(client.get(LOGS).json()["position"])
        assert log.new() == []
