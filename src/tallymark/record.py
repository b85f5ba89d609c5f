"""The one wide record. Everything that is recorded, whatever it came from, is read back as one of these."""

import uuid
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured. In its texts U+FFFD stands for NUL, and for half of a surrogate pair.

    Attributes:
        id: journal id and sequence number in one UUID (version 8); see :mod:`tallymark.journal`.
        timestamp: when it was recorded, nanoseconds since 1970-01-01 UTC.
        service: which application recorded it.
        metric_type: open vocabulary: ``operation`` types of the application, ``system``, ``http``, ``stage`` …
        name: what was measured: ``GET /users/{id}``, ``cpu_percent``.
        value: finite.
        unit: UCUM spelling as OpenTelemetry uses it: ``ms``, ``s``, ``By``, ``%``, ``1``.
        success: the outcome; ``None`` where the record is not an outcome.
        error: why it failed, at most :data:`MAX_ERROR_LENGTH` characters.
        trace_id: the request or job that it belongs to.
        session_id: the session that it belongs to.
        metadata: a JSON object, within the limits of this module.
        description: of the series, for people.
    """

    id: uuid.UUID
    timestamp: int
    service: str
    metric_type: str
    name: str
    value: float
    unit: str
    success: bool | None = None
    error: str | None = None
    trace_id: str | None = None
    session_id: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    description: str | None = None


COLUMNS: tuple[str, ...] = Record.__struct_fields__
"""The names of the columns that a query can show, filter and group by, in their order."""
