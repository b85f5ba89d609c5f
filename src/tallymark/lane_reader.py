"""Reading lanes, as columns and from any process, while their writers go on.

Read with ``pread``, not through a mapping: a file that somebody truncates then costs the records in it, not the
process.
"""

import contextlib
import errno
import fcntl
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallymark.batch import CLOSED, SCHEMA
from tallymark.core import core
from tallymark.lane import (
    BATCHES,
    COUNTER,
    COUNTERS_AT,
    COUNTERS_SIZE,
    DROP_REASONS,
    ENTRIES_AT,
    ENTRY,
    ENTRY_SIZE,
    ERASED,
    HEADER,
    HEADER_COPIES,
    MAGIC,
    OUTCOMES,
    RECORD,
    SERIES,
    SHIPPED,
    SHIPPED_AT,
    SUFFIX,
    VERSION,
    read_counters,
)
from tallymark.model import SeriesKey

ENTRY_DTYPE = np.dtype(
    [
        ("crc", "<u4"),
        ("kind", "u1"),
        ("outcome", "u1"),
        ("metadata", "<u2"),
        ("error", "<u2"),
        ("trace", "<u2"),
        ("session", "<u2"),
        ("unused", "<u2"),
        ("series", "<u4"),
        ("heap", "<u4"),
        ("timestamp", "<i8"),
        ("value", "<f8"),
    ]
)
assert ENTRY_DTYPE.itemsize == ENTRY_SIZE

_log = logging.getLogger("tallymark")
_left_out: set[Path] = set()  # what was complained about
_decode_series = msgspec.json.Decoder(SeriesKey).decode


@dataclass(frozen=True)
class Range:
    """What a lane holds from some sequence number on.

    Attributes:
        table: the readable records, as rows of :data:`tallymark.batch.SCHEMA`.
        end: the sequence number after the last readable entry; what comes later may be half written.
        corrupt: how many records up to ``end`` cannot be read.
        records: how many records there are before ``end``, from the first on, readable or not.
    """

    table: pa.Table
    end: int
    corrupt: int
    records: int = 0


class LiveJournal(Protocol):
    """A journal that is open for reading, and stays readable when its file is deleted."""

    journal: str

    @property
    def dropped(self) -> dict[str, int]: ...
    def rows(self, start: int) -> pa.Table: ...
    def pending(self, start: int) -> int: ...


class LaneReader:
    """One lane, opened for reading. It stays readable when the file is deleted meanwhile.

    Raises:
        FileNotFoundError: it was shipped and deleted.
        ValueError: it is no lane, both copies of its header are damaged, or a newer version wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC) if os.access(path, os.W_OK) else os.open(path, os.O_RDONLY)
        for copy in HEADER_COPIES:
            raw = os.pread(self._fd, HEADER.size, copy)
            if len(raw) < HEADER.size:
                continue
            magic, version, _, entries, heap_start, size, ident, _, crc = HEADER.unpack(raw)
            if magic == MAGIC and crc == crc32(raw[:-4]):
                break
        else:
            raise ValueError(f"{path} is not a journal, or both copies of its header are damaged")
        if version != VERSION:
            raise ValueError(f"{path} has format version {version}; this tallymark reads {VERSION}")
        self.journal = ident.hex()
        self.capacity: int = entries
        self._heap_start: int = heap_start
        self._size: int = size

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def is_complete(self) -> bool:
        """Whether its writer is done with it or dead. Where it is, this reader now holds the lock."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    @property
    def dropped(self) -> dict[str, int]:
        """How many records were dropped while this lane was in use, by reason."""
        counters = read_counters(os.pread(self._fd, COUNTERS_SIZE, COUNTERS_AT))
        return {reason: n for reason, n in zip(DROP_REASONS, counters, strict=False) if n}

    def note_shipped(self, records: int, now: int, *, batch: bool) -> None:
        """Leave figures for the writer's own statistics: what counts is in the store.

        Args:
            records: how many from the first on are stored; absolute, since a shipper may die before it says so.
            now: ns since 1970.
            batch: whether they were stored just now.
        """
        counters = read_counters(os.pread(self._fd, COUNTERS_SIZE, COUNTERS_AT))
        new = {SHIPPED: records}
        if batch:
            new |= {BATCHES: counters[BATCHES] + 1, SHIPPED_AT: now}
        for index, value in new.items():
            if counters[index] != value:
                os.pwrite(self._fd, COUNTER.pack(value, value, value), COUNTERS_AT + index * COUNTER.size)

    def erase(self, rows: npt.NDArray[np.int64], end: int) -> None:
        """Overwrite records that are stored, and with them everything before ``end`` that cannot be read.

        A writer never comes back to what it wrote and no reader looks at what is stored, so both may go on meanwhile.
        What was erased stays an entry, without a time, a value or texts, and counts as none that is corrupt. The
        caller holds the right to ship. Doing it again changes nothing.

        Args:
            rows: the sequence numbers of the records.
            end: the sequence number after the last entry that is stored.

        Raises:
            OSError: the file cannot be written.
        """
        entries = self._entries()[:end]
        intact, offsets, heap = self._intact(entries, 0)
        limit = int(offsets[intact, 4].max(initial=0))  # what comes behind it is the writer's
        kept = intact & ~np.isin(np.arange(len(entries)), rows)
        gone = np.flatnonzero(~kept & (entries["kind"] != SERIES))
        # The texts first: a record without them is one that cannot be read, should this end here.
        for begin, stop in _gaps(offsets[kept], limit):
            if heap[begin:stop].strip(b"\0"):
                os.pwrite(self._fd, bytes(stop - begin), self._heap_start + begin)
        left = ENTRY.pack(ERASED, 0, 0, 0, 0, 0, 0, self._heap_start, 0, 0.0)
        left = crc32(left).to_bytes(4, "little") + left
        for row in gone.tolist():
            os.pwrite(self._fd, left, ENTRIES_AT + row * ENTRY_SIZE)
        os.fdatasync(self._fd)

    def _entries(self) -> npt.NDArray[Any]:
        """The entries up to the last that was written."""
        entries = self._read_entries(self.capacity)
        # Two fields, so that one flipped bit in the unwritten part is not taken for a record.
        signs = (entries["crc"] != 0).astype("u1") + (entries["kind"] != 0) + (entries["heap"] != 0)
        written = np.flatnonzero(signs >= 2)
        # Read once more: the writer may have passed the first look on its way, which then missed entries before the
        # last that it saw. What comes before that is whole by now.
        return self._read_entries(int(written[-1]) + 1 if len(written) else 0)

    def _read_entries(self, count: int) -> npt.NDArray[Any]:
        raw = os.pread(self._fd, count * ENTRY_SIZE, ENTRIES_AT)
        return np.frombuffer(raw[: len(raw) // ENTRY_SIZE * ENTRY_SIZE], ENTRY_DTYPE)

    def pending(self, start: int) -> int:
        """How many records are here from a sequence number on."""
        if start >= CLOSED:
            return 0
        entries = self._entries()
        records = entries["kind"] == RECORD
        doubtful = records != _look_like_records(entries)
        if doubtful.any():  # damaged, or of the first moments of 1970
            records = np.where(doubtful & ~self._intact(entries, start)[0], ~records, records)
        return int(np.count_nonzero(records[start:]))

    def rows(self, start: int) -> pa.Table:
        """The readable records from a sequence number on."""
        return self.read(start).table

    def read(self, start: int, *, complete: bool = False) -> Range:
        """Everything from a sequence number on. In a complete lane an unreadable end is corrupt, not half written."""
        if start >= CLOSED:
            return Range(SCHEMA.empty_table(), start, 0)
        entries = self._entries()
        intact, offsets, heap = self._intact(entries, start)
        series = _series(entries, heap, offsets, intact)
        valid = intact & (entries["kind"] == RECORD) & np.isin(entries["series"], list(series))
        valid[:start] = False
        rows = np.flatnonzero(valid)
        end = len(entries) if complete else int(rows[-1]) + 1 if len(rows) else start
        corrupt = int(np.count_nonzero(_look_like_records(entries[start:end]) & ~valid[start:end]))
        records = int(np.count_nonzero(entries["kind"][:end] != SERIES))
        return Range(self._table(_pick(entries, rows), rows, offsets[rows], heap, series), end, corrupt, records)

    def _intact(
        self, entries: npt.NDArray[Any], start: int
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], bytes]:
        """Which entries are as they were written, where their texts are, and the heap."""
        offsets = _text_offsets(entries, self._heap_start)
        used = min(int(offsets[:, 4].max(initial=0)), self._size - self._heap_start)
        heap = os.pread(self._fd, used, self._heap_start)
        return _check(entries, heap, offsets, start), offsets, heap

    def _table(
        self,
        entries: npt.NDArray[Any],
        rows: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        heap: bytes,
        series: dict[int, SeriesKey],
    ) -> pa.Table:
        """The entries as columns. The texts are not copied one by one: the heap is the data of an Arrow string array
        in which metadata, error, trace id, session id and the gap to the next record take turns.
        """
        n = len(rows)
        if n == 0:
            return SCHEMA.empty_table()
        joints = np.empty(5 * n + 1, dtype="<i4")
        joints[:-1] = offsets.reshape(-1)
        joints[-1] = offsets[-1, -1]
        texts = pa.StringArray.from_buffers(5 * n, pa.py_buffer(joints.data), pa.py_buffer(heap))

        def text(turn: int, field: str) -> Any:
            missing = entries[field] == 0
            if missing.all():
                return pa.nulls(n, pa.string())
            return texts.take(_indices(np.arange(turn, 5 * n, 5), missing))

        known = list(series)
        dense = known[-1] == len(known) - 1  # as they are, but for a damaged definition
        number = _indices(entries["series"] if dense else np.searchsorted(known, entries["series"]))
        outcome = entries["outcome"]
        columns = {
            "journal": pa.repeat(self.journal, n),
            "seq": pa.array(rows),
            "timestamp": pa.array(np.ascontiguousarray(entries["timestamp"])),
            **{
                field: pa.array([series[k][at] for k in known], pa.string()).take(number)
                for at, field in enumerate(("service", "metric_type", "name", "unit", "description"))
            },
            "value": pa.array(np.ascontiguousarray(entries["value"])),
            "success": pa.array(outcome == OUTCOMES.index(True), mask=outcome == OUTCOMES.index(None)),
            "error": text(1, "error"),
            "trace_id": text(2, "trace"),
            "session_id": text(3, "session"),
            "metadata": texts.take(_indices(np.arange(0, 5 * n, 5))),
        }
        return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _indices(rows: npt.NDArray[np.integer[Any]], missing: npt.NDArray[np.bool_] | None = None) -> Any:
    """What ``take`` is to take; null where it is missing."""
    return pa.array(rows, mask=missing)


def _pick(entries: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Some of the entries. As opaque bytes they are copied whole; numpy would go through them field by field."""
    return entries.view(f"V{ENTRY_SIZE}")[rows].view(ENTRY_DTYPE)


def _look_like_records(entries: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which entries were records, as far as a damaged one tells: a series has no timestamp, and a real timestamp has
    more than one byte that is not zero, so one flipped byte does not look like it.
    """
    stamps = np.ascontiguousarray(entries["timestamp"]).view("u1").reshape(-1, 8)
    looks: npt.NDArray[np.bool_] = np.count_nonzero(stamps, axis=1) > 1
    return looks


def _text_offsets(entries: npt.NDArray[Any], heap_start: int) -> npt.NDArray[np.int64]:
    """Where the four texts of each entry begin in the heap, and where the last ends: shape (entries, 5)."""
    offsets = np.empty((len(entries), 5), dtype=np.int64)
    offsets[:, 0] = entries["heap"]
    offsets[:, 0] -= heap_start
    for column, field in enumerate(("metadata", "error", "trace", "session")):
        np.add(offsets[:, column], entries[field], out=offsets[:, column + 1])
    return offsets


def _gaps(offsets: npt.NDArray[np.int64], limit: int) -> Iterator[tuple[int, int]]:
    """The parts of the heap before ``limit`` in which no text of these entries is."""
    at = 0
    for begin, end in sorted(zip(offsets[:, 0].tolist(), offsets[:, 4].tolist(), strict=True)):
        if begin > at:
            yield at, begin
        at = max(at, end)
    if at < limit:
        yield at, limit


def _check(entries: npt.NDArray[Any], heap: bytes, offsets: npt.NDArray[np.int64], start: int) -> npt.NDArray[np.bool_]:
    """Which entries have the checksum that they should have. Records before ``start`` are not looked at."""
    intact = np.zeros(len(entries), dtype=bool)
    wanted = (entries["kind"] == SERIES) | (np.arange(len(entries)) >= start)
    wanted &= (offsets[:, 0] >= 0) & (offsets[:, 4] <= len(heap))
    raw = entries.tobytes()
    if core is not None:
        begins, ends = offsets[:, 0].tobytes(), offsets[:, 4].tobytes()
        return np.frombuffer(core.check(raw, heap, begins, ends, wanted.tobytes()), dtype=bool)
    rows = np.flatnonzero(wanted)
    intact[rows] = [
        crc32(heap[begin:end], crc32(raw[at + 4 : at + ENTRY_SIZE])) == crc
        for at, begin, end, crc in zip(
            (rows * ENTRY_SIZE).tolist(),
            offsets[rows, 0].tolist(),
            offsets[rows, 4].tolist(),
            entries["crc"][rows].tolist(),
            strict=True,
        )
    ]
    return intact


def _series(
    entries: npt.NDArray[Any], heap: bytes, offsets: npt.NDArray[np.int64], intact: npt.NDArray[np.bool_]
) -> dict[int, SeriesKey]:
    """The series that are defined, by their numbers, in ascending order."""
    found = {}
    for row in np.flatnonzero(intact & (entries["kind"] == SERIES)):
        found[int(entries["series"][row])] = _decode_series(heap[offsets[row, 0] : offsets[row, 1]])
    return dict(sorted(found.items()))


def lanes(folder: Path) -> list[LaneReader]:
    """Every lane in a folder, the oldest first. What is no lane or cannot be read is left out."""
    return list(each_lane(folder))


def each_lane(folder: Path) -> Iterator[LaneReader]:
    """Like :func:`lanes`, one after the other: an open file each, of which a process may not have very many."""
    for path in _by_age(folder):
        try:
            yield LaneReader(path)
        except FileNotFoundError:
            continue  # shipped meanwhile
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # there is nothing wrong with the journal
            if path not in _left_out:
                _left_out.add(path)
                _log.warning("a journal is left out: %s", error)


def unshipped(journals: Iterable[LiveJournal], positions: Mapping[str, int]) -> tuple[int, Counter[str]]:
    """How many records a store at these positions does not have, and how many were dropped, by reason."""
    pending, dropped = 0, Counter[str]()
    for journal in journals:
        position = positions.get(journal.journal, 0)
        if position < CLOSED:
            pending += journal.pending(position)
            dropped.update(journal.dropped)
    return pending, dropped


def _by_age(folder: Path) -> list[Path]:
    ages = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.name.endswith(SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    ages.append((entry.stat().st_mtime_ns, entry.path))
    return [Path(path) for _, path in sorted(ages)]
