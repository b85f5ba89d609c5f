"""Bodies: how large, how packed, and read no further than needed."""

import contextlib
import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from recording import DEADLINE_SECONDS

from .conftest import Start

BATCH = "/api/v1/metrics/batch"
ONE = json.dumps({"metrics": [{"metric_type": "t", "name": "n", "value": 1}]}).encode()
PACKED = gzip.compress(ONE, mtime=0)  # the same in every process that collects these tests
GZIP = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
JSON = {"Content-Type": "application/json"}


def conversation(client: httpx.Client, *pieces: bytes) -> bytes:
    """What the server answers to these bytes, until it closes the connection."""
    with socket.create_connection(
        (client.base_url.host, client.base_url.port or 80), timeout=DEADLINE_SECONDS
    ) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def head(client: httpx.Client, *lines: str) -> bytes:
    host = f"Host: localhost:{client.base_url.port}"
    return "\r\n".join([f"POST {BATCH} HTTP/1.1", host, "Content-Type: application/json", *lines, "", ""]).encode()


def test_a_length_above_the_bound_is_refused_unread(start: Start) -> None:
    client = start(max_body_bytes=1000)
    # Not one byte of the body is sent: whoever waited for it would wait for ever.
    answer = conversation(client, head(client, "Content-Length: 1001", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert b"100 Continue" not in answer


def test_a_stream_above_the_bound_is_refused_on_the_way(start: Start) -> None:
    client = start(max_body_bytes=1000)
    # The stream does not end: the answer comes while it is still open.
    chunk = b"258\r\n" + b"x" * 600 + b"\r\n"
    answer = conversation(client, head(client, "Transfer-Encoding: chunked"), chunk, chunk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too-large" in answer


def test_the_bound_itself_is_allowed(start: Start) -> None:
    client = start(max_body_bytes=1000)
    body = ONE + b" " * (1000 - len(ONE))
    assert client.post(BATCH, content=body, headers=JSON).status_code == 201
    assert client.post(BATCH, content=iter([body[:500], body[500:]]), headers=JSON).status_code == 201
    assert client.post(BATCH, content=body + b" ", headers=JSON).status_code == 413


@pytest.mark.parametrize("length", ["-1", "+5", "1_000", "x", "9" * 30])
def test_lengths_that_are_none(client: httpx.Client, length: str) -> None:
    assert conversation(client, head(client, f"Content-Length: {length}", "Connection: close"))[9:12] in (
        b"400",
        b"413",
    )


def members(body: bytes) -> bytes:
    return gzip.compress(body[:20]) + gzip.compress(b"") + gzip.compress(body[20:])


@pytest.mark.parametrize("packed", [gzip.compress(ONE), members(ONE)], ids=["one member", "three members"])
def test_gzip(client: httpx.Client, packed: bytes) -> None:
    assert client.post(BATCH, content=packed, headers=GZIP).json()["count"] == 1
    one_by_one = iter([packed[i : i + 1] for i in range(len(packed))])
    assert client.post(BATCH, content=one_by_one, headers=GZIP).json()["count"] == 1
    assert client.post(BATCH, content=packed, headers={**GZIP, "Content-Encoding": "X-GZip"}).status_code == 201


def test_a_large_gzip_body(client: httpx.Client) -> None:
    metrics: list[dict[str, Any]] = [
        {"metric_type": "t", "name": f"name-{i % 50}", "value": i / 7, "metadata": {"job": i}} for i in range(10_000)
    ]
    packed = gzip.compress(json.dumps({"metrics": metrics}).encode())
    assert client.post(BATCH, content=packed, headers=GZIP).json()["count"] == 10_000


def test_a_bomb_above_the_size(start: Start) -> None:
    client = start(max_body_bytes=100_000)
    answer = client.post(BATCH, content=gzip.compress(b" " * 100_001), headers=GZIP)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:tallymark:problem:too-large")


def test_a_bomb_above_the_ratio(client: httpx.Client) -> None:
    # Below the bound in size: 7 MB from 7 KB.
    answer = client.post(BATCH, content=gzip.compress(b" " * 7_000_000), headers=GZIP)
    assert answer.status_code == 413
    assert "times its size" in answer.json()["detail"]


def test_a_bomb_of_many_members(client: httpx.Client) -> None:
    answer = client.post(BATCH, content=gzip.compress(b" " * 60_000) * 150, headers=GZIP)
    assert answer.status_code == 413


def test_a_bomb_without_end_is_refused_on_the_way(client: httpx.Client) -> None:
    packer = zlib.compressobj(9, wbits=31)
    sent = 0

    def bomb() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            piece = packer.compress(b"\0" * 1_000_000)
            sent += 1
            yield piece

    # The answer comes, and then the connection is closed in the middle of what is sent.
    with contextlib.suppress(httpx.TransportError):
        assert client.post(BATCH, content=bomb(), headers=GZIP).status_code == 413
    assert sent < 1000
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    "packed",
    [
        b"not gzip at all",
        PACKED[:-1],
        PACKED[:10],
        PACKED[:-5] + b"\0\0\0\0\0",
        PACKED + b"rest",
        zlib.compress(ONE),
    ],
)
def test_broken_gzip(client: httpx.Client, packed: bytes) -> None:
    answer = client.post(BATCH, content=packed, headers=GZIP)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:tallymark:problem:content-encoding")


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "compress", "hunter2"])
def test_other_encodings(client: httpx.Client, encoding: str) -> None:
    answer = client.post(BATCH, content=ONE, headers={**JSON, "Content-Encoding": encoding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, identity")
    assert "hunter2" not in answer.text


def test_every_answer_has_the_headers_for_browsers(start: Start) -> None:
    client = start(max_body_bytes=1000)
    answers = [
        client.get("/livez"),
        client.get("/nowhere"),
        client.post(BATCH, content=b"x" * 1001, headers=JSON),
        client.get("/livez", headers={"Host": "evil.example"}),
        client.get("/api/v1/info", headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 413, 200, 421]
    for answer in answers:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
