"""Records as lines of JSON: what is exported, what is imported, and what a store refused."""

import re
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tallymark.batch import record_id, split_id

_SECOND: Final = 1_000_000_000
_FRACTION: Final = re.compile(r"\.(\d{1,9})")


class Line(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One record, as a line has it. ``metadata`` is the very text that was recorded.

    Attributes:
        id: records of other programs have none, and may lack more.
        refused: in a file of records that a store refused: why.
    """

    id: uuid.UUID | None = None
    timestamp: str | None = None
    service: str | None = None
    metric_type: str | None = None
    name: str | None = None
    value: float | None = None
    unit: str | None = None
    success: bool | None = None
    error: str | None = None
    trace_id: str | None = None
    session_id: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    description: str | None = None
    refused: str | None = None


_decode: Final = msgspec.json.Decoder(Line).decode
_ALIKE: Final = [name for name in Line.__struct_fields__ if name not in ("id", "timestamp", "metadata", "refused")]
"""What a line and a row have alike."""


def encode(row: dict[str, Any], refused: str | None = None) -> bytes:
    """A row of :data:`tallymark.batch.SCHEMA` as a line, with its end.

    ``timestamp`` becomes RFC 3339 with nanoseconds, UTC.
    """
    seconds, nanoseconds = divmod(row["timestamp"], _SECOND)
    moment = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
    line = Line(
        id=record_id(row["journal"], row["seq"]),
        timestamp=moment,
        metadata=msgspec.Raw(row["metadata"].encode()),
        refused=refused,
        **{name: row[name] for name in _ALIKE},
    )
    return msgspec.json.encode(line) + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """A line as a row; without ``journal`` and ``seq`` where it has no id, and None where it lacks something.

    Raises:
        ValueError: it is no such line; the message names the field.
    """
    found = _decode(line)
    row: dict[str, Any] = {name: getattr(found, name) for name in _ALIKE}
    row["timestamp"] = None if found.timestamp is None else parse_moment(found.timestamp)
    row["metadata"] = bytes(found.metadata).decode()
    if found.id is not None:
        row["journal"], row["seq"] = split_id(found.id)
    return row


def parse_moment(text: str) -> int:
    """A moment in ns, from RFC 3339 with up to nine digits behind the point, which ``datetime`` cannot hold.

    Raises:
        ValueError: it is none.
    """
    fraction = _FRACTION.search(text)
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    except ValueError:
        raise ValueError("timestamp: use RFC 3339, as 2025-01-31T08:00:00.123456789Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * _SECOND + int((fraction[1] if fraction else "").ljust(9, "0"))
