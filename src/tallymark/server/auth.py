"""Who may use the server: anybody on this machine, or whoever holds a key.

Without keys the server answers on loopback only, and only under loopback's own names: a web page that points
its own host name at 127.0.0.1 (DNS rebinding) is turned away. With keys every request needs one, as
``Authorization: Bearer`` or as the cookie that the login page sets.
"""

import hashlib
import hmac
import html
import ipaddress
from collections.abc import Sequence
from http.cookies import SimpleCookie
from typing import Final
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tallymark.errors import ConfigError
from tallymark.server.pages import LOGIN_STYLE, page
from tallymark.server.problems import ProblemError

MIN_KEY_LENGTH: Final = 16
"""Shorter keys can be guessed."""

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS: Final = frozenset({"/livez", "/readyz"})
"""For whoever restarts the server: they tell nothing, and probes come under any name and without a key."""

LOGIN_PATH: Final = "/login"
COOKIE: Final = "tallymark_session"
_COOKIE_SECONDS: Final = 7 * 86_400
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_LOGIN_BYTES: Final = 4096


def is_loopback(host: str) -> bool:
    """Whether this address or name is this machine talking to itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys, or ConfigError when one of them is unfit."""
    for key in keys:
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"an access key needs at least {MIN_KEY_LENGTH} ASCII characters without spaces; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return tuple(keys)


def check_bind(host: str, keys: Sequence[object]) -> None:
    """ConfigError when a server without keys would be reachable from other machines."""
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host or 'every address'} without an access key: anybody who reaches it "
            "could read and write metrics; hint: give a key, or listen on 127.0.0.1"
        )


class Guard:
    """ASGI middleware: turns away requests that may not be answered.

    Args:
        app: what is guarded.
        keys: any of them opens; without keys only this machine may ask.
        allowed_hosts: names in the Host header that are answered; ``("*",)`` is any. By default loopback's
            own without keys, and any with keys (a page under another name has no key to send).
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str] = (), allowed_hosts: Sequence[str] | None = None) -> None:
        self.app = app
        self.keys = check_keys(keys)
        self.local_only = not keys and allowed_hosts is None
        if allowed_hosts is None:
            allowed_hosts = ("*",) if keys else tuple(LOOPBACK_NAMES)
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _path(scope) not in OPEN_PATHS:
            headers = Headers(scope=scope)
            try:
                self._check_host(scope, headers)
                _check_origin(scope, headers)
                if self.keys and _path(scope) != LOGIN_PATH:
                    self._check_key(scope, headers)
            except ProblemError as problem:
                await problem.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        # Kept here too, for servers that were not started by our own runner.
        server = scope.get("server")
        if self.local_only and server and server[1] is not None and not is_loopback(server[0]):
            raise ProblemError(403, "Without an access key this server answers its own machine only.")
        if "*" not in self.allowed_hosts and host_name(headers.get("host", "")) not in self.allowed_hosts:
            raise ProblemError(
                421,
                "This server does not answer to the name in the Host header. Use localhost, start it with an "
                "access key, or allow the name.",
                kind="host",
            )

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if matches(token.strip(), self.keys):
                return
        elif matches(_cookie(headers), [session_of(key) for key in self.keys]):
            return
        elif scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            raise ProblemError(303, "Log in first.", headers={"Location": scope.get("root_path", "") + LOGIN_PATH})
        raise ProblemError(
            401,
            "An access key is needed: send it as “Authorization: Bearer …”.",
            kind="key",
            headers={"WWW-Authenticate": 'Bearer realm="tallymark"'},
        )


def _check_origin(scope: Scope, headers: Headers) -> None:
    """A browser sends Origin with every write. One from elsewhere is another site's page at work."""
    if scope["method"] in _SAFE_METHODS:
        return
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign or headers.get("sec-fetch-site") == "cross-site":
        raise ProblemError(403, "Pages of other sites may not write here.", kind="origin")


def host_name(host: str) -> str:
    """The name in a Host header, without the port, in lower case; empty when there is none."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


def matches(candidate: str, secrets: Sequence[str]) -> bool:
    """Whether the candidate is one of these, in a time that tells nothing about them."""
    digest = hashlib.sha256(candidate.encode("utf-8", "replace")).digest()
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(digest, hashlib.sha256(secret.encode()).digest())
    return found


def session_of(key: str) -> str:
    """What the cookie holds: proof of the key, not the key. It ends when the key is taken away."""
    return hmac.new(key.encode(), b"tallymark session", hashlib.sha256).hexdigest()


def _path(scope: Scope) -> str:
    # Inside another application the path begins with where this one is mounted.
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except ValueError:
        return ""
    return morsel.value if morsel else ""


def _login_page(message: str, status: int = 200) -> Response:
    form = (
        '<form method="post"><label for="key">Access key</label>'
        '<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>'
        f'<button>Open the dashboard</button><p role="alert">{html.escape(message)}</p></form>'
    )
    return page("tallymark", LOGIN_STYLE, form, status)


def login_router(keys: Sequence[str]) -> APIRouter:
    """The login page for browsers, which cannot send a key with every request of a page."""
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN_PATH)
    async def show_login() -> Response:
        return _login_page("")

    @router.post(LOGIN_PATH)
    async def log_in(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_LOGIN_BYTES:
                raise ProblemError(413, "A key is shorter than that.", headers={"Connection": "close"})
        key = parse_qs(body.decode("ascii", "replace")).get("key", [""])[0].strip()
        if not matches(key, keys):
            return _login_page("This key does not open it.", 401)
        response = Response(status_code=303, headers={"Location": request.scope.get("root_path", "") + "/"})
        response.set_cookie(
            COOKIE,
            session_of(key),
            max_age=_COOKIE_SECONDS,
            path=request.scope.get("root_path", "") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    return router
