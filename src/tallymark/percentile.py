"""Percentiles from buckets: those of OpenTelemetry's base-2 exponential histogram, and how far they may be off.

At scale s the bucket i holds the values in (b**i, b**(i+1)] with b = 2**2**-s, as the data model of OpenTelemetry
defines it (https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram). The buckets of two
histograms add up, so the percentiles of many records can be had from the histograms of parts of them.

A bucket has one integer for a name, its *key*, that grows with the values in it: 0 for zero, ``i + OFFSET`` for the
positive ones, and the opposite for the negative ones, which lie in mirrored buckets.

**The error.** What lies in a bucket (l, u] is taken for 2lu/(l+u). No value in it differs from that by more than the
share (u-l)/(u+l) = (b-1)/(b+1) of itself: the estimate and the bound of DDSketch (Masson, Rim, Lee: "DDSketch: a fast
and fully-mergeable quantile sketch with relative-error guarantees", PVLDB 12(12), 2019, section 2.1). A percentile lies
between two neighbours in rank, and is estimated by the same mixture of their estimates. So it is off by at most that
share of the same mixture of their sizes, which is that share of the percentile itself unless the two differ in sign.
What lies beyond the smallest and the largest value, which are known exactly, is cut off; that only brings it closer.
Subnormal numbers (below 2.3e-308) are not covered: they have fewer digits than that themselves.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

SCALE: Final = 6
"""Buckets for each doubling of a value: 2**6 = 64. Scale 5 would not stay below 1 %."""

OFFSET: Final = 1_080 << SCALE
"""More than the number of any bucket of a float64, whose exponents run from -1074 to 1023."""

GROWTH: Final = 2.0 ** (2.0**-SCALE)
"""The end of a bucket, divided by its beginning."""

RELATIVE_ERROR: Final = (GROWTH - 1) / (GROWTH + 1) + 1e-9
"""The most by which a percentile may be off, as a share of it: 0.54 %. The last term is for rounding."""

_CELLS: Final = 1 << 22
"""Of a table of groups and buckets that is in memory at a time; eight bytes each."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer[Any]]


def bucket_sql(value: str) -> str:
    """The key of a value's bucket, in SQL that DuckDB and ClickHouse understand."""
    number = f"ceil(log2(abs({value})) * {1 << SCALE}) + {OFFSET - 1}"
    return f"CASE WHEN {value} = 0 THEN 0 ELSE CAST(sign({value}) * ({number}) AS INTEGER) END"


def estimates(keys: Integers) -> Floats:
    """What the values in buckets are taken for. At the very end of the range of a float64 that is infinite."""
    sizes = np.exp2((np.abs(keys) - OFFSET) / (1 << SCALE)) * (2 * GROWTH / (1 + GROWTH))
    return np.where(keys == 0, 0.0, np.copysign(sizes, keys))


class Buckets(NamedTuple):
    """The histograms of groups of values: one entry for each bucket, by group and key, ascending.

    Attributes:
        groups: the number of the group, from 0.
        keys: of the buckets.
        counts: how many values each holds.
    """

    groups: Integers
    keys: Integers
    counts: Integers


def merged(groups: Integers, keys: Integers, counts: Integers) -> Buckets:
    """Histograms from their parts, in which a bucket may come several times.

    Args:
        groups: ascending from 0.
        keys: in any order.
    """
    if not len(keys):
        return Buckets(groups, keys, counts)
    # A table of groups and buckets, with a column for those keys only that there are: quicker than sorting, and there
    # are no more than 140,000 buckets.
    lowest = keys.min()
    present = np.bincount(keys - lowest) > 0
    columns, known = (np.cumsum(present) - 1)[keys - lowest], np.flatnonzero(present) + lowest
    width, last = len(known), int(groups[-1]) + 1
    found = []
    for first in range(0, last, max(1, _CELLS // width)):
        begin, end = np.searchsorted(groups, (first, first + max(1, _CELLS // width)))
        cells = (groups[begin:end] - first) * width + columns[begin:end]
        table = np.bincount(cells, counts[begin:end])
        (filled,) = np.nonzero(table)
        found.append((filled // width + first, known[filled % width], table[filled].astype(np.int64)))
    return Buckets(*map(np.concatenate, zip(*found, strict=True)))


def percentiles(buckets: Buckets, smallest: Floats, largest: Floats, shares: Sequence[float]) -> list[Floats]:
    """The percentiles of groups of values that are known by their histograms.

    Args:
        buckets: of the groups; none is without one.
        smallest, largest: the extremes of each group.
        shares: the percentiles, as shares: 0.95.

    Returns:
        An array for each share, with a value for each group: as PERCENTILE_CONT of SQL, that is at the rank
        ``share * (n - 1)``, off by no more than :data:`RELATIVE_ERROR`.
    """
    # How many values there are up to the end of each bucket, through all groups, so that one search finds every rank.
    passed = np.cumsum(buckets.counts)
    ends = passed[np.searchsorted(buckets.groups, np.arange(len(smallest)), side="right") - 1]
    before = np.concatenate(([0], ends[:-1]))
    most = ends - before - 1

    def at(rank: Floats) -> Floats:
        found = estimates(buckets.keys[np.searchsorted(passed, before + rank, side="right")])
        return np.clip(found, smallest, largest)

    answers = []
    for share in shares:
        rank = share * most
        low = np.floor(rank)
        part = rank - low
        answers.append(at(low) * (1 - part) + at(np.minimum(low + 1, most)) * part)
    return answers
