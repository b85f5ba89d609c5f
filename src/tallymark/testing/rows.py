"""Rows and batches to write into a store that is tested."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tallymark.batch import SCHEMA, Batch
from tallymark.query import Query
from tallymark.store import Store
from tallymark.testing.oracle import Row

MINUTE = 60_000_000_000
DAY = 1_440 * MINUTE
NOON = int(datetime(2025, 1, 31, 12, tzinfo=UTC).timestamp()) * 1_000_000_000
JOURNALS = [f"{number:022x}{'0' * 10}" for number in range(1, 4)]


def row(seq: int, **given: Any) -> Row:
    """A record as a row, with something in every column that has to have it."""
    metadata = given.pop("metadata", {})
    return {
        "journal": JOURNALS[0],
        "seq": seq,
        "timestamp": NOON + seq,
        "service": "shop",
        "metric_type": "operation",
        "name": "checkout",
        "value": 1.0,
        "unit": "ms",
        "success": None,
        "error": None,
        "trace_id": None,
        "session_id": None,
        "metadata": json.dumps(metadata, ensure_ascii=False, separators=(",", ":")),
        "description": None,
    } | given


def table(rows: Sequence[Row]) -> pa.Table:
    """Rows as columns."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def of_journal(rows: Sequence[Row], journal: str) -> list[Row]:
    """Those of one journal."""
    return [one for one in rows if one["journal"] == journal]


def batch(rows: Sequence[Row], **positions: int) -> Batch:
    """Rows, and the positions behind the last of each journal."""
    ends: dict[str, int] = {}
    for one in rows:
        ends[one["journal"]] = max(ends.get(one["journal"], 0), one["seq"] + 1)
    return Batch(table(rows), ends | positions)


def count(store: Store, **question: Any) -> int:
    """How many records of a store match."""
    return sum(group["count"] for group in store.aggregate(Query.build(**question)).to_pylist())
