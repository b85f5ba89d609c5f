"""Moments and lengths of time, as people type and read them."""

import re
import time
from datetime import UTC, datetime, timedelta

from tallymark.errors import QueryError
from tallymark.model import MAX_TIMESTAMP, MIN_TIMESTAMP

Time = str | int | datetime
Length = str | int | timedelta

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_LENGTH = re.compile(r"(?:\d{1,12}(?:ns|us|ms|s|m|h|d|w))+", re.ASCII)
_LENGTH_PART = re.compile(r"(\d+)([a-z]+)", re.ASCII)
_NOW = re.compile(r"now(?:([+-])(\S+))?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(value: Time, part: str, now: int) -> int:
    """A moment in nanoseconds since 1970-01-01 UTC, moved to where records can be (:mod:`tallymark.model`).

    Args:
        value: ``"now"``, ``"now-1h30m"``, ISO 8601 (UTC where it has no offset), an aware datetime, or ns.
        part: what it is of, for the error.
        now: what "now" means, ns.

    Raises:
        QueryError: it is none of these.
    """
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str):
        relative = _NOW.fullmatch(value.strip())
        if relative is not None:
            offset = parse_length(relative[2], part) if relative[2] else 0
            return _clamped(now - offset if relative[1] == "-" else now + offset)
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            example = "now, now-1h30m or 2025-01-31T08:00Z"
            raise QueryError(f"{part}: {value[:80]!r} is no time; use {example}") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    else:
        return _clamped(_nanoseconds(value, part))
    if moment.tzinfo is None:
        raise QueryError(f"{part}: the datetime has no time zone; hint: datetime.now(UTC), or .astimezone()")
    return _clamped((moment - _EPOCH) // timedelta(microseconds=1) * 1_000)


def parse_length(value: Length, part: str) -> int:
    """A length of time in nanoseconds.

    Args:
        value: ``"30s"``, ``"5m"``, ``"1h30m"``, ``"1d"``, ``"1w"``, a timedelta, or ns.
        part: what it is of, for the error.

    Raises:
        QueryError: it is none of these.
    """
    if isinstance(value, timedelta):
        return value // timedelta(microseconds=1) * 1_000
    if not isinstance(value, str):
        return _nanoseconds(value, part)
    text = value.strip()
    if not _LENGTH.fullmatch(text):
        raise QueryError(f"{part}: {value[:80]!r} is no length of time; use 30s, 5m, 1h30m, 1d, 1w")
    return sum(int(number) * _UNITS[unit] for number, unit in _LENGTH_PART.findall(text))


def utc_day(timestamp: int) -> str:
    """The day of a timestamp (ns), as ``2025-01-31``."""
    return time.strftime("%Y-%m-%d", time.gmtime(timestamp // 1_000_000_000))


def _nanoseconds(value: object, part: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise QueryError(f"{part}: {type(value).__name__} is no time; an int, in nanoseconds, is one")
    return value


def _clamped(timestamp: int) -> int:
    return max(MIN_TIMESTAMP, min(MAX_TIMESTAMP, timestamp))
