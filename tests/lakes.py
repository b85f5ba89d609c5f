"""What the tests of the lake share: rows, batches, and journals in memory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from oracle import Row

from tallymark.batch import SCHEMA, Batch
from tallymark.query import Query
from tallymark.stores.lake import Lake

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
        "metadata": json.dumps(metadata, ensure_ascii=False),
        "description": None,
    } | given


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def of_journal(rows: Sequence[Row], journal: str) -> list[Row]:
    return [one for one in rows if one["journal"] == journal]


def batch(rows: Sequence[Row], **positions: int) -> Batch:
    """Rows, and the positions behind the last of each journal."""
    ends: dict[str, int] = {}
    for one in rows:
        ends[one["journal"]] = max(ends.get(one["journal"], 0), one["seq"] + 1)
    return Batch(table(rows), ends | positions)


@dataclass
class Live:
    """A journal in memory, in place of one in a file."""

    journal: str
    table: pa.Table
    dropped: dict[str, int] = field(default_factory=dict)

    def rows(self, start: int) -> pa.Table:
        return self.table.filter(pa.array(self.table["seq"].to_numpy() >= start))

    def pending(self, start: int) -> int:
        return self.rows(start).num_rows


def lake_with(folder: Path, live: Sequence[Live] = ()) -> Lake:
    return Lake(folder, live=lambda _: list(live))


def count(lake: Lake, **question: Any) -> int:
    return sum(group["count"] for group in lake.aggregate(Query.build(**question)).to_pylist())
