"""A sum over records that does not depend on their order: two stores hold the same where the sums are the same.

Each record has a hash of 128 bits over all of its columns, to the last bit of its value; the sum is of those. Texts are
hashed with BLAKE2b, each different one once.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallymark.batch import SCHEMA
from tallymark.stores.retention import DAY_NS

Hashes = npt.NDArray[np.uint64]

_MASK: Final = (1 << 64) - 1
# Odd, so that multiplying by them loses nothing; one for each half. From splitmix64 and from xxHash.
_STEPS: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Sum:
    """How many records, and the sum of their hashes, in two halves."""

    records: int = 0
    low: int = 0
    high: int = 0

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.records + other.records, (self.low + other.low) & _MASK, (self.high + other.high) & _MASK)

    def __str__(self) -> str:
        return f"{self.high:016x}{self.low:016x}"


class Sums:
    """Sums by day: adds up the records that it is given."""

    def __init__(self) -> None:
        self.days: defaultdict[int, Sum] = defaultdict(Sum)

    def add(self, rows: pa.Table) -> None:
        """Add records, in :data:`tallymark.batch.SCHEMA`."""
        if not rows.num_rows:
            return
        hashes = row_hashes(rows)
        days = rows["timestamp"].to_numpy() // DAY_NS
        for day in np.unique(days).tolist():
            mine = hashes[days == day]
            low, high = mine.sum(axis=0, dtype=np.uint64).tolist()
            self.days[day * DAY_NS] += Sum(len(mine), low, high)


def row_hashes(rows: pa.Table) -> Hashes:
    """The hash of each record, as two columns."""
    found = np.zeros((rows.num_rows, 2), np.uint64)
    with np.errstate(over="ignore"):
        for field in SCHEMA:
            # For a fixed value of either term this maps different values of the other to different ones.
            found = _mixed(found * _STEPS + _column(rows[field.name].combine_chunks()))
    return found


def _mixed(values: Hashes) -> Hashes:
    """Splitmix64's finaliser: every bit of the outcome depends on every bit, and nothing is lost."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def _column(column: Any) -> Hashes:
    """The values of a column as two numbers each; no null is like a value."""
    if pa.types.is_string(column.type):
        return _texts(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8()).fill_null(2)
    bits = np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
    bits = bits.view(np.uint64) if bits.itemsize == 8 else bits.astype(np.uint64)
    return np.stack([bits, bits], axis=1)


def _texts(column: Any) -> Hashes:
    encoded = column.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts) + bytes(16)
    table: Hashes = np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)
    numbers: npt.NDArray[np.int64] = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return table[numbers]
