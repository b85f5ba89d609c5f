"""What the tests of the lake share: journals in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tallymark.stores.lake.store import Lake


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
