"""Which part of a question rollups can answer.

Stretches of time that lie in the range as a whole are taken from the longest level that fits, the edges from shorter
ones, and what is left from the records. Files without a sidecar and journals are read as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tallymark.query import Query
from tallymark.stores.delta import Snapshot, StoredFile
from tallymark.stores.retention import DAY_NS
from tallymark.stores.rollups import LEVELS, SERIES, Level, name_of

MANY_RECORDS: Final = 1_000_000
"""With fewer records in the range, and in files that have rollups, all of them are read and every figure is exact."""


@dataclass(frozen=True)
class Piece:
    """What is read of some files: the rows of a level, or the records where it is None, with times in [start, end)."""

    level: Level | None
    start: int
    end: int
    files: list[str]


@dataclass(frozen=True)
class Plan:
    """How a question is answered.

    Attributes:
        pieces: what is read of the files that have rollups.
        raw: the other files, of which every record in the range is read.
        scanned: how many records there are in all that is read record by record, at most; journals come on top.
    """

    pieces: list[Piece]
    raw: list[str]
    scanned: int

    @property
    def source(self) -> str:
        """What is read, for people: ``10m and 1d rollups, raw``."""
        lengths = sorted({piece.level.length for piece in self.pieces if piece.level is not None})
        return f"{', '.join(map(_length, lengths))} rollups and raw"


def plan(query: Query, snapshot: Snapshot, sidecars: Mapping[str, str]) -> Plan | None:
    """How rollups help to answer; None where the records should be read."""
    levels = _levels(query)
    pairs = list(zip(snapshot.files, snapshot.stored, strict=True))
    rolled = [(path, file) for path, file in pairs if name_of(path) in sidecars and file.first is not None]
    if not levels or not rolled or sum(_records(file, query.start, query.end) for _, file in rolled) < MANY_RECORDS:
        return None
    start, end = _range(query, [file for _, file in rolled], levels[-1].length)
    pieces, scanned = [], 0
    for level, first, last in cover(start, end, levels):
        held = [(path, file) for path, file in rolled if file.may_hold(first, last)]
        if held:
            files = [path if level is None else sidecars[name_of(path)] for path, _ in held]
            pieces.append(Piece(level, first, last, files))
            scanned += 0 if level else sum(file.rows for _, file in held)
    others = [(path, file) for path, file in pairs if (path, file) not in rolled]
    return Plan(pieces, [path for path, _ in others], scanned + sum(file.rows for _, file in others))


def cover(start: int, end: int, levels: Sequence[Level]) -> list[tuple[Level | None, int, int]]:
    """A range of time cut into what each level has as a whole, the shortest level first, and the rest."""
    left: list[tuple[Level | None, int, int]] = []
    right: list[tuple[Level | None, int, int]] = []
    within: Level | None = None
    for level in levels:
        first, last = -(-start // level.length) * level.length, end // level.length * level.length
        if first >= last:
            break
        left.append((within, start, first))
        right.append((within, last, end))
        within, start, end = level, first, last
    return [piece for piece in (*left, (within, start, end), *reversed(right)) if piece[1] < piece[2]]


def _levels(query: Query) -> list[Level]:
    """The levels that have what is asked for, the shortest first."""
    fields = {*query.group_by, *(condition.field for condition in query.conditions)}
    if not query.aggregates or not fields <= set(SERIES):
        return []
    fit = (level for level in LEVELS if level.named == ("name" in fields))
    fit = (level for level in fit if query.window is None or query.window % level.length == 0)
    return sorted(fit, key=lambda level: level.length)


def _records(file: StoredFile, start: int | None, end: int | None) -> float:
    """About how many records of a file lie in a range, if they are spread evenly."""
    assert file.first is not None
    assert file.last is not None
    first = file.first if start is None else max(start, file.first)
    last = file.last if end is None else min(end - 1, file.last)
    return file.rows * (last - first + 1) / (file.last - file.first + 1)


def _range(query: Query, files: Sequence[StoredFile], length: int) -> tuple[int, int]:
    """The range of a query, without edges where there are no records beyond them."""
    first = min(file.first or 0 for file in files)
    last = max(file.last or 0 for file in files)
    start = first // length * length if query.start is None or query.start <= first else query.start
    end = (last // length + 1) * length if query.end is None or query.end > last else query.end
    return start, end


def _length(ns: int) -> str:
    for unit, size in (("d", DAY_NS), ("h", 3_600_000_000_000), ("m", 60_000_000_000)):
        if ns % size == 0:
            return f"{ns // size}{unit}"
    return f"{ns}ns"
