"""The one wide record, and what a valid one looks like.

Everything that is recorded, whatever it came from, becomes a :class:`Record`. The limits are here and nowhere else.
"""

import uuid
from typing import Any

import msgspec

MAX_NAME_LENGTH = 200
"""Longest service, metric type, metric name or unit, in characters."""

MAX_DESCRIPTION_LENGTH = 1_000
"""Longest description of a series, in characters."""

MAX_ERROR_LENGTH = 1_000
"""Error texts are cut to this many characters."""

MAX_ID_LENGTH = 128
"""Longest trace or session id, in characters."""

MAX_METADATA_DEPTH = 8
"""Deepest nesting of metadata; the outermost object counts as one."""

MAX_METADATA_KEYS = 64
"""Most keys in metadata, counted over every level."""

MAX_METADATA_BYTES = 16_384
"""Largest metadata, as JSON in UTF-8."""

MAX_DURATION_MS = 10 * 366 * 86_400_000.0
"""Longest believable duration: ten years. A longer one is a wall-clock subtraction gone wrong."""

MIN_TIMESTAMP = 0
MAX_TIMESTAMP = 4_102_444_800_000_000_000
"""Timestamps of records lie in [1970-01-01, 2100-01-01), in nanoseconds."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured.

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
