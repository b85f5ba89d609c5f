"""Who comes in: this machine under its own names, or whoever holds a key."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tallymark.config import Settings
from tallymark.errors import ConfigError
from tallymark.server import create_app
from tallymark.server.auth import check_bind, check_keys, host_name, is_loopback

from .conftest import Start

KEY, OTHER = "correct-horse-battery", "staple-of-another-kind"
INFO = "/api/v1/info"
METRIC = {"metric_type": "t", "name": "n", "value": 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, ())


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"])
def test_everything_else_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="key"):
        check_bind(host, ())
    check_bind(host, (KEY,))


@pytest.mark.parametrize("key", ["", "short", "with a space in it", "schlüssel-mit-umlaut", "line\nbreak-line-break"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_keys([KEY, key])
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "name"),
    [("LocalHost:80", "localhost"), ("[::1]:80", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("[", ""), ("", "")],
)
def test_host_names(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7070", "[::1]:7070"])
def test_own_names_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get(INFO, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "evil.example:7070", "[::2]"]
)
def test_rebound_names_are_not(client: httpx.Client, host: str) -> None:
    answer = client.get(INFO, headers={"Host": host})
    assert (answer.status_code, answer.json()["type"]) == (421, "urn:tallymark:problem:host")
    assert client.post("/api/v1/metrics/", json=METRIC, headers={"Host": host}).status_code == 421
    assert client.get("/livez", headers={"Host": host}).status_code == 200


def test_another_runner_does_not_open_it(tmp_path: Path) -> None:
    async def ask(server: str, **settings: Any) -> int:
        transport = httpx.ASGITransport(create_app(Settings(store=tmp_path, **settings)))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{server}:7070") as client:
            return (await client.get("/nowhere", headers={"Host": "localhost"})).status_code

    assert asyncio.run(ask("127.0.0.1")) == 404
    assert asyncio.run(ask("192.168.1.5")) == 403
    assert asyncio.run(ask("192.168.1.5", keys=[KEY])) == 401
    # Whoever says so has something else in front.
    assert asyncio.run(ask("192.168.1.5", allowed_hosts=["*"])) == 404


def test_names_can_be_allowed(start: Start) -> None:
    client = start(allowed_hosts=["metrics.example"])
    assert client.get(INFO, headers={"Host": "metrics.example"}).status_code == 200
    assert client.get(INFO, headers={"Host": "other.example"}).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_other_sites_may_not_write(client: httpx.Client, origin: str) -> None:
    answer = client.post("/api/v1/metrics/", json=METRIC, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:tallymark:problem:origin")


def test_the_own_page_and_programs_may_write(client: httpx.Client) -> None:
    own = f"http://127.0.0.1:{client.base_url.port}"
    assert client.post("/api/v1/metrics/", json=METRIC, headers={"Origin": own}).status_code == 201
    assert client.post("/api/v1/metrics/", json=METRIC).status_code == 201
    marked = {"Sec-Fetch-Site": "cross-site"}
    assert client.post("/api/v1/metrics/", json=METRIC, headers=marked).status_code == 403


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        KEY,
        "Bearer sch\xfcssel",
    ],
)
def test_without_the_key_nothing_is_told(start: Start, header: str | None) -> None:
    client = start(keys=[KEY, OTHER])
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    for path in (INFO, "/nowhere", "/openapi.json", "/api/v1/stream"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["type"] == "urn:tallymark:problem:key"
        assert KEY not in answer.text
    assert client.post("/api/v1/metrics/", json=METRIC, headers=headers).status_code == 401


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_every_key_opens(start: Start, key: str) -> None:
    client = start(keys=[KEY, OTHER])
    headers = {"Authorization": f"bearer {key}"}
    assert client.post("/api/v1/metrics/", json=METRIC, headers=headers).status_code == 201
    # Under any name: another page has no key to send.
    assert client.get(INFO, headers={**headers, "Host": "metrics.example"}).status_code == 200
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_a_browser_logs_in(start: Start) -> None:
    client = start(keys=[KEY])
    page = client.get("/", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    form = client.get("/login")
    assert (form.status_code, form.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'type="password"' in form.text
    wrong = client.post("/login", data={"key": "wrong<b>"})
    assert wrong.status_code == 401
    assert "wrong<b>" not in wrong.text
    assert not client.cookies
    right = client.post("/login", data={"key": KEY})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert KEY not in cookie
    assert client.get(INFO).status_code == 200
    assert client.post("/login", content=b"key=" + b"x" * 5000).status_code == 413
    assert client.post("/login", data={"key": KEY}, headers={"Origin": "https://evil.example"}).status_code == 403


def test_a_cookie_that_is_none(start: Start) -> None:
    client = start(keys=[KEY])
    for cookie in (
        f"tallymark_session={KEY}",
        "tallymark_session=",
        "tallymark_session",
        "a=b; ;;=",
        '"',
        "\xff",
    ):
        assert client.get(INFO, headers={b"Cookie": cookie.encode("latin-1")}).status_code == 401


def test_without_keys_there_is_no_login(client: httpx.Client) -> None:
    assert client.get("/login").status_code == 404
