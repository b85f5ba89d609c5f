"""Records as columns: what travels from the journals to a store."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

_FIELDS: list[Any] = [
    # The id of a record, in two parts because each of them compresses to almost nothing.
    pa.field("journal", pa.string(), nullable=False),  # 32 hex digits
    pa.field("seq", pa.int64(), nullable=False),
    # Nanoseconds since the epoch, UTC. An integer: Delta's own timestamps stop at microseconds.
    pa.field("timestamp", pa.int64(), nullable=False),
    pa.field("service", pa.string(), nullable=False),
    pa.field("metric_type", pa.string(), nullable=False),
    pa.field("name", pa.string(), nullable=False),
    pa.field("value", pa.float64(), nullable=False),
    pa.field("unit", pa.string(), nullable=False),
    pa.field("success", pa.bool_()),
    pa.field("error", pa.string()),
    pa.field("trace_id", pa.string()),
    pa.field("session_id", pa.string()),
    pa.field("metadata", pa.string(), nullable=False),  # a JSON object
    pa.field("description", pa.string()),
]
SCHEMA = pa.schema(_FIELDS)
"""The columns of a batch. They are those of :class:`tallymark.model.Record`, with the id in its two parts."""

CLOSED = 1 << 40
"""The position of a journal that is over: everything in it is stored, its dropped counts too."""


@dataclass(frozen=True)
class Batch:
    """Rows, and how far they bring each journal. A store keeps both in one transaction.

    Attributes:
        table: rows in :data:`SCHEMA`.
        positions: for each journal (32 hex digits), the sequence number after the last that is now stored,
            or :data:`CLOSED`.
    """

    table: pa.Table
    positions: dict[str, int] = field(default_factory=dict)


def record_id(journal: str, seq: int) -> uuid.UUID:
    """The id of a record from its two parts."""
    return uuid.UUID(int=int(journal, 16) | seq)


def split_id(identifier: uuid.UUID) -> tuple[str, int]:
    """The two parts of a record's id: the low 40 bits are the sequence number."""
    seq = identifier.int & (CLOSED - 1)
    return f"{identifier.int ^ seq:032x}", seq
