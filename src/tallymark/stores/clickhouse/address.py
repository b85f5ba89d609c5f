"""Where a database of ClickHouse is: its URL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tallymark.errors import ConfigError
from tallymark.location import shown

TIMEOUT_SECONDS: Final = 30
"""How long the server may be silent, unless the URL says so."""


@dataclass(frozen=True)
class Address:
    """Where a database is, and how it is talked to.

    Attributes:
        cluster: the name of the cluster; None for one server.
        ttl_days: after how many days the server itself forgets records; None leaves that as it is.
        timeout: how many seconds the server may be silent.
    """

    host: str
    port: int
    database: str
    user: str
    password: str
    secure: bool
    cluster: str | None
    ttl_days: int | None
    timeout: int

    @classmethod
    def parse(cls, url: str) -> "Address":
        """What a URL means.

        Raises:
            ConfigError: it is not understood; the message has no password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError as error:
            raise ConfigError(f"{shown(url)}: not a URL of ClickHouse") from error
        secure = _option(options, "secure", {"1": True, "true": True, "0": False, "false": False}, False)
        address = cls(
            host=parts.hostname or "localhost",
            port=port or (8443 if secure else 8123),
            database=unquote(parts.path.strip("/")) or "default",
            user=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            secure=secure,
            cluster=options.pop("cluster", None) or None,
            ttl_days=_whole(options, "ttl_days", 0),
            timeout=_whole(options, "timeout", 1) or TIMEOUT_SECONDS,
        )
        if options:
            known = "secure, cluster, ttl_days, timeout"
            raise ConfigError(f"a URL of ClickHouse has no option {', '.join(sorted(options))!r}; there are {known}")
        return address


def _option(options: dict[str, str], name: str, meanings: Mapping[str, bool], default: bool) -> bool:
    text = options.pop(name, None)
    if text is None:
        return default
    if text.lower() not in meanings:
        raise ConfigError(f"{name}: one of {', '.join(meanings)}")
    return meanings[text.lower()]


def _whole(options: dict[str, str], name: str, least: int) -> int | None:
    text = options.pop(name, None)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 100_000):
        raise ConfigError(f"{name}: a whole number from {least} to 100000")
    return int(text)
