"""A lane: one file of a journal, with one writer at a time; its format and the writing of it.

Format version 1, little endian::

    0       header, and at 4096 a second copy of it
    8192    counters, each written three times; the middle one of the three is the value
    12288   entries, 40 bytes each, in order; an entry that is all zero has not been written
    ...     heap: the texts of the entries, in the same order

An entry carries a CRC-32 of itself and its texts, so that a corrupt byte costs only its own record. A series
(service, metric_type, name, unit, description) is defined once in a lane by an entry of its own, written twice for the
same reason. The file is locked (``flock``) while its writer lives; a lane without a lock is complete.
"""

import contextlib
import fcntl
import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Final
from zlib import crc32

from tallymark.core import LaneState
from tallymark.model import SeriesKey

if TYPE_CHECKING:
    from pathlib import Path

JOURNALS: Final = "journals"
"""The folder of the lanes within the folder of a store."""
SUFFIX: Final = ".journal"
MAGIC: Final = b"TALLYMRK"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHHIII16sqI")  # magic version - entries heap_start size id created_ns crc
HEADER_COPIES: Final = (0, 4096)
COUNTERS_AT: Final = 8192
COUNTER: Final = struct.Struct("<QQQ")
ENTRIES_AT: Final = 12288
# kind outcome metadata error trace session - series heap timestamp value, after the CRC of all that
ENTRY: Final = struct.Struct("<BBHHHHxxIIqd")
ENTRY_SIZE: Final = 4 + ENTRY.size

RECORD: Final = 1
SERIES: Final = 2
ERASED: Final = 3
"""What is left of a record that was stored and then erased: nothing but its place."""
OUTCOMES: Final = (None, False, True)

DROP_REASONS: Final = ("journal_full", "disk_full", "journal_unwritable", "invalid", "corrupt")
# Counters: what was dropped, by reason; then what the shipper leaves for the recorder's own statistics.
SHIPPED: Final = len(DROP_REASONS)
BATCHES: Final = SHIPPED + 1
SHIPPED_AT: Final = SHIPPED + 2
COUNTERS_SIZE: Final = (SHIPPED_AT + 1) * COUNTER.size

HEAP_PER_ENTRY: Final = 96
"""Heap bytes set aside per entry; whichever is used up first ends the lane."""
MIN_HEAP: Final = 128 * 1024
"""Room for the largest record in the smallest lane."""

_pack = ENTRY.pack
_UNWRITTEN: Final = bytes(8)


class Lane(LaneState):
    """One file with one writer at a time.

    Attributes:
        id: of the journal, 16 bytes; the low 40 bits are zero and become the sequence number in a record's id.
        series: the numbers of the series that are defined here.
        dropped: how many records were dropped while this lane was held, by the index of the reason.
    """

    __slots__ = ("dropped", "fd", "id", "path", "synced", "undefined")

    def __init__(self, folder: "Path", entries: int) -> None:
        """Create, preallocate, lock and map a new file.

        Raises:
            OSError: the disk is full or the folder cannot be written. Nothing is left behind.
        """
        # A version 8 UUID, with the sequence number's 40 bits at zero.
        ident = int.from_bytes(os.urandom(16)) & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
        self.id = (ident >> 40 << 40).to_bytes(16)
        heap_start = -(-(ENTRIES_AT + entries * ENTRY_SIZE) // 4096) * 4096
        self.size = heap_start + max(MIN_HEAP, entries * HEAP_PER_ENTRY) // 4096 * 4096
        self.path = folder / (self.id.hex() + SUFFIX)
        hidden = folder / f".{self.id.hex()}"  # readers see a file only when it is whole
        self.fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Allocated now: a full disk must be an error here, not SIGBUS at some later store to memory.
            os.posix_fallocate(self.fd, 0, self.size)
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = HEADER.pack(MAGIC, VERSION, 0, entries, heap_start, self.size, self.id, time.time_ns(), 0)[:-4]
            for copy in HEADER_COPIES:
                os.pwrite(self.fd, header + crc32(header).to_bytes(4, "little"), copy)
            self.buffer = mmap.mmap(self.fd, self.size)
            os.rename(hidden, self.path)
        except BaseException:
            os.close(self.fd)
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
        self.at = ENTRIES_AT
        self.end = ENTRIES_AT + entries * ENTRY_SIZE
        self.heap = heap_start
        self.series: dict[SeriesKey, int] = {}
        self.synced = ENTRIES_AT  # ``at`` when the disk last had everything
        self.undefined = 0  # entries that are no records
        self.dropped = [0] * len(DROP_REASONS)

    @property
    def records(self) -> int:
        """How many records were written here."""
        return (self.at - ENTRIES_AT) // ENTRY_SIZE - self.undefined

    def append(
        self,
        kind: int,
        number: int,
        timestamp: int,
        value: float,
        outcome: int,
        text: bytes,
        metadata: int,
        error: int,
        trace: int,
        session: int,
    ) -> int:
        """Write one entry of a series (by its number) and its texts, given as one and the length of each in bytes.

        Returns the offset of the entry, or 0 when there is no room.
        """
        at = self.at
        heap = self.heap
        after = heap + len(text)
        if at >= self.end or after > self.size:
            return 0
        # Claimed before it is written: when an exception comes out of a signal handler right after that, the entry is
        # not given away twice.
        self.at = at + ENTRY_SIZE
        self.heap = after
        buffer = self.buffer
        try:
            buffer[heap:after] = text
            entry = _pack(kind, outcome, metadata, error, trace, session, number, heap, timestamp, value)
            # The first eight bytes last: until then nobody takes the entry for written. A process that is killed at a
            # page fault in between leaves nothing that looks like a record.
            buffer[at + 8 : at + ENTRY_SIZE] = entry[4:]
            buffer[at : at + 8] = crc32(text, crc32(entry)).to_bytes(4, "little") + entry[:4]
        except BaseException:
            if buffer[at : at + 8] == _UNWRITTEN:
                self.at = at
                self.heap = heap
            raise
        return at

    def define(self, key: SeriesKey, series: SeriesKey) -> int | None:
        """Give a series, asked for by a key that may differ in spelling, its number; None when there is no room."""
        import json  # loaded with the metadata by now

        text = json.dumps(series).encode()
        number = len(self.series)
        for _ in range(2):
            before = self.at
            try:
                if not self.append(SERIES, number, 0, 0.0, 0, text, len(text), 0, 0, 0):
                    return None
            finally:
                self.undefined += (self.at - before) // ENTRY_SIZE
        self.series[key] = number
        return number

    def drop(self, reason: int) -> None:
        """Count one record that could not be kept, where it survives the process."""
        count = self.dropped[reason] + 1
        write_counter(self.buffer, reason, count)
        self.dropped[reason] = count

    def close(self, *, unlock: bool = True) -> None:
        """Unmap and unlock. A write that an interrupted frame still has under way then fails with ValueError.

        Args:
            unlock: not in a forked child, whose copy of the file has the lock in common with the parent's.
        """
        self.buffer.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if unlock:
                # Closing is not enough: a child that was forked while the file was made has a copy that it does not
                # know of.
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def write_counter(buffer: mmap.mmap, index: int, value: int) -> None:
    """Set a counter of a lane. ValueError where that was closed."""
    at = COUNTERS_AT + index * COUNTER.size
    buffer[at : at + COUNTER.size] = COUNTER.pack(value, value, value)


def read_counters(page: bytes) -> list[int]:
    """All counters of a lane, from the bytes at :data:`COUNTERS_AT`; an unreadable one is 0."""
    return [
        sorted(COUNTER.unpack_from(page, i * COUNTER.size))[1] if len(page) >= (i + 1) * COUNTER.size else 0
        for i in range(SHIPPED_AT + 1)
    ]
