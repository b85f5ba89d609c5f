"""A simulation of the parts of one day in a table of ClickHouse, where arithmetic is not enough: how many there are
depends on how fast they are merged, and what a merge costs depends on how many there are.

Inserts bring parts of equal size at equal distances. Merges take the smallest parts, at least five times as much
together as the largest of them, at most 100 at once, and share the processors that are left to them. The parts of a
merge count until it is over. That is what MergeTree's selector does on the whole, without its rules about age.
"""

from bisect import insort
from dataclasses import dataclass
from typing import Final

from bench.measured import Measured

# The defaults of a server, read from the engine 26.9 (system.merge_tree_settings, system.server_settings), and here:
# https://clickhouse.com/docs/reference/settings/merge-tree-settings/parts-to
DELAYED: Final = 1_000
"""parts_to_delay_insert: with more active parts in a partition, inserts are slowed down."""
REFUSED: Final = 3_000
"""parts_to_throw_insert: with more, they are refused."""
MERGED_AT_ONCE: Final = 100
"""max_parts_to_merge_at_once."""
MERGES: Final = 32
"""background_pool_size times background_merges_mutations_concurrency_ratio: how many merges run side by side."""
RATIO: Final = 5
"""How much larger than its largest part a merge has to be."""

SECONDS: Final = 3_600
"""An hour shows whether merges keep up; later ones only are larger."""


@dataclass(frozen=True)
class Parts:
    """What came of it.

    Attributes:
        most: active parts at one time.
        delayed_after: seconds until inserts were slowed down; None if never.
        refused_after: seconds until an insert was refused, which ends the simulation; None if never.
        merged: how often a record was written anew, on the average.
        cores: that merges took, on the average.
    """

    most: int
    delayed_after: int | None
    refused_after: int | None
    merged: float
    cores: float

    @property
    def holds(self) -> bool:
        """Whether merges keep up."""
        return self.delayed_after is None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.refused_after is not None:
            return f"is refused after {self.refused_after:,} s"
        if self.delayed_after is not None:
            return f"is slowed down after {self.delayed_after:,} s"
        return "holds"


def simulate(inserts: float, records: float, cores: float, store: Measured, seconds: int = SECONDS) -> Parts:
    """A table that is empty at first.

    Args:
        inserts: a second, each with one part; more than none.
        records: of each part.
        cores: that merges may take.
        store: what merging a part and a record costs.
    """
    part_seconds, record_seconds = (store.merge_cpu_ms or 0.0) / 1e3, store.upkeep_us / 1e6
    parts: list[float] = []  # their records, the smallest first
    merges: list[_Merge] = []
    most, came, merged, used, delayed = 0, 0.0, 0.0, 0.0, None
    for second in range(1, seconds + 1):
        before, came = int(came), came + inserts
        for _ in range(int(came) - before):
            insort(parts, records)
        while len(merges) < MERGES and (count := _to_merge(parts)):
            work = count * part_seconds + sum(parts[:count]) * record_seconds
            merges.append(_Merge(work, count, sum(parts[:count])))
            del parts[:count]
        used += _work(merges, cores)
        for each in merges:
            if each.left <= 0:
                merged += each.records
                insort(parts, each.records)
        merges = [each for each in merges if each.left > 0]
        active = len(parts) + sum(each.parts for each in merges)
        most = max(most, active)
        if active > DELAYED and delayed is None:
            delayed = second
        if active > REFUSED:
            return Parts(most, delayed, second, merged / (came * records), used / second)
    return Parts(most, delayed, None, merged / (came * records), used / seconds)


@dataclass
class _Merge:
    """One that is under way.

    Attributes:
        left: seconds of a core until it is over.
        parts: that are merged; they count until then.
        records: of all of them.
    """

    left: float
    parts: int
    records: float


def _to_merge(parts: list[float]) -> int:
    """How many of the smallest parts the next merge takes; 0: none pays."""
    total, found = 0.0, 0
    for count, size in enumerate(parts[:MERGED_AT_ONCE], 1):
        total += size
        if total >= RATIO * size:
            found = count
    return found


def _work(merges: list[_Merge], cores: float) -> float:
    """A second of all merges: each has its share, at most one core; what one leaves, others get. Returns the sum."""
    left = cores
    for number, each in enumerate(sorted(merges, key=lambda each: each.left)):
        share = min(each.left, 1.0, left / (len(merges) - number))
        left -= share
        each.left = each.left - share if each.left - share > 1e-9 else 0.0
    return cores - left
