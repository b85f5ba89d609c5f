"""Journals that something wrote over or cut off: what was hit is lost, and nothing else, and nothing is invented."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import books, clone, recording, ship, stored

from tallymark.lane import (
    COUNTERS_AT,
    COUNTERS_SIZE,
    ENTRIES_AT,
    ENTRY,
    ENTRY_SIZE,
    HEADER,
    HEADER_COPIES,
    JOURNALS,
    SUFFIX,
)
from tallymark.lane_reader import LaneReader

pytestmark = pytest.mark.usefixtures("core")

RECORDS = 7
DROPPED = 2
SERIES = 2
ENTRIES = 2 * SERIES + RECORDS

Rows = dict[int, tuple[Any, ...]]
"""By sequence number."""


@dataclass(frozen=True)
class Original:
    """A lane that is whole, and where what of it is."""

    path: Path
    content: bytes
    rows: Rows
    heap: range
    texts: list[range]  # of each entry

    @property
    def written(self) -> Iterator[int]:
        """Every byte that means something."""
        for copy in HEADER_COPIES:
            yield from range(copy, copy + HEADER.size)
        yield from range(COUNTERS_AT, COUNTERS_AT + COUNTERS_SIZE)
        yield from range(ENTRIES_AT, ENTRIES_AT + ENTRIES * ENTRY_SIZE)
        yield from self.heap

    @property
    def unwritten(self) -> Iterator[int]:
        """Some of the others."""
        yield from range(ENTRIES_AT + ENTRIES * ENTRY_SIZE, ENTRIES_AT + (ENTRIES + 3) * ENTRY_SIZE)
        yield from (HEADER.size, 4095, 5000, 12_000, self.heap.stop, self.heap.stop + 10, len(self.content) - 1)


@pytest.fixture
def original(folder: Path) -> Original:
    with recording(folder, max_queue_size=64) as metrics:
        for number in range(RECORDS):
            metrics.record(
                "a",
                f"b{number % SERIES}",
                number + 0.25,
                success=(None, True, False)[number % 3],
                error="e" * number or None,
                metadata={"number": number, "text": "é"},
                trace_id="t" if number % 2 else None,
                session_id="s" if number % 3 else None,
            )
        for _ in range(DROPPED):
            metrics.drop_invalid("a", ValueError())
    (path,) = (folder / JOURNALS).glob("*" + SUFFIX)
    content = path.read_bytes()
    texts = []
    for at in range(ENTRIES_AT, ENTRIES_AT + ENTRIES * ENTRY_SIZE, ENTRY_SIZE):
        _, _, metadata, error, trace, session, _, heap, _, _ = ENTRY.unpack_from(content, at + 4)
        texts.append(range(heap, heap + metadata + error + trace + session))
    rows = read(path)
    assert len(rows) == RECORDS
    assert LaneReader(path).dropped == {"invalid": DROPPED}
    return Original(path, content, rows, range(texts[0].start, texts[-1].stop), texts)


def read(path: Path, *, complete: bool = True) -> Rows:
    found = LaneReader(path).read(0, complete=complete)
    return {row.pop("seq"): tuple(row.values()) for row in found.table.to_pylist()}


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_any_byte_that_is_flipped_costs_its_own_record_at_most(original: Original, mask: int) -> None:
    lost: set[int] = set()
    for at in (*original.written, *original.unwritten):
        content = bytearray(original.content)
        content[at] ^= mask
        original.path.write_bytes(content)
        reader = LaneReader(original.path)
        found = reader.read(0, complete=True)
        rows = {row.pop("seq"): tuple(row.values()) for row in found.table.to_pylist()}
        missing = original.rows.keys() - rows.keys()
        assert rows.items() <= original.rows.items(), at
        assert found.corrupt == len(missing) <= 1, at
        assert found.end == ENTRIES, at
        assert reader.dropped == {"invalid": DROPPED}, at
        assert missing == hit_by(original, at), at
        lost |= missing
        # While its writer lives, the last entry may be half written.
        alive = reader.read(0)
        assert read(original.path, complete=False) == rows, at
        assert len(alive.table) + alive.corrupt + (missing == {max(original.rows)}) == RECORDS, at
    assert lost == original.rows.keys()


def hit_by(original: Original, at: int) -> set[int]:
    """The record to which a byte belongs."""
    hit = {seq for seq, text in enumerate(original.texts) if at in text}
    if at >= ENTRIES_AT:
        hit.add((at - ENTRIES_AT) // ENTRY_SIZE)
    return hit & original.rows.keys()


def test_cut_anywhere_it_keeps_what_comes_before(original: Original) -> None:
    size = len(original.content)
    for length in sorted({*original.written, *original.unwritten, 0, size}, reverse=True):
        original.path.write_bytes(original.content[:length])
        whole = {seq: row for seq, row in original.rows.items() if original.texts[seq].stop <= length}
        if length < HEADER.size:
            with pytest.raises(ValueError, match="not a journal"):
                LaneReader(original.path)
        else:
            assert read(original.path) == whole
            assert read(original.path, complete=False) == whole


@given(
    holes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=200), st.booleans()), max_size=4),
    cut=st.none() | st.floats(0, 1),
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_garbage_never_becomes_a_record(
    request: pytest.FixtureRequest, holes: list[tuple[float, bytes, bool]], cut: float | None
) -> None:
    original: Original = request.getfixturevalue("original")  # too long to be shown when it fails
    content = bytearray(original.content)
    entries = range(ENTRIES_AT, ENTRIES_AT + (ENTRIES + 5) * ENTRY_SIZE)
    for place, garbage, in_heap in holes:
        area = original.heap if in_heap else entries
        at = area.start + int(place * len(area))
        content[at : at + len(garbage)] = garbage
    original.path.write_bytes(content if cut is None else content[: int(cut * original.heap.stop)])
    for complete in (True, False):
        try:
            rows = read(original.path, complete=complete)
        except ValueError:
            assert cut is not None
        else:
            assert rows.items() <= original.rows.items()


def test_the_books_stay_exact(original: Original, folder: Path) -> None:
    """Many damaged lanes at once; each loses one record or none."""
    chance = random.Random(1)
    places = chance.sample(list(original.written), 150) + list(original.heap)[:: len(original.heap) // 50]
    lanes = len(places)
    for number, at in enumerate(places, 1):
        path = clone(original.path, number)
        content = bytearray(path.read_bytes())
        content[at] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    original.path.unlink()
    before = books(folder)
    assert (before.pending, before.stored) == (lanes * RECORDS, 0)
    found = len(stored(folder))
    ship(folder)
    after = books(folder)
    corrupt = lanes * RECORDS - found
    assert 50 < corrupt <= lanes
    assert after.dropped == {"invalid": lanes * DROPPED, "corrupt": corrupt}
    assert (after.stored, after.pending) == (found, 0)
    assert after.recorded == before.recorded
    assert len(stored(folder)) == found
    assert not list((folder / JOURNALS).glob("*" + SUFFIX))


def test_corruption_while_the_writer_lives(folder: Path) -> None:
    with recording(folder) as metrics:
        for number in range(5):
            metrics.record("a", "b", float(number))
        (path,) = (folder / JOURNALS).glob("*" + SUFFIX)
        with path.open("r+b") as file:
            file.seek(ENTRIES_AT + 4 * ENTRY_SIZE + 35)  # of the third record
            file.write(b"\xff")
        ship(folder)
        ship(folder)
        info = books(folder)
        assert (info.stored, info.pending, info.dropped) == (4, 0, {"corrupt": 1})
        stats = metrics.get_stats()
        assert (stats.total_recorded, stats.queue_size) == (5, 0)
        metrics.record("a", "b", 5.0)
    ship(folder)
    info = books(folder)
    assert (info.stored, info.pending, info.dropped) == (5, 0, {"corrupt": 1})
    assert [record.value for record in stored(folder)] == [0, 1, 3, 4, 5]
