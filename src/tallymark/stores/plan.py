"""Which part of a question rollups can answer.

Stretches of time that lie in the range as a whole are taken from the longest level that fits, the edges from shorter
ones, and what is left from the records. Files without a sidecar and journals are read as they are. What is said of
files here holds of days too, in stores that keep their records by day.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tallymark.query import Query
from tallymark.stores.retention import DAY_NS
from tallymark.stores.rollups import LEVELS, SERIES, Level, name_of

MANY_RECORDS: Final = 1_000_000
"""With fewer records in the range, and in files that have rollups, all of them are read and every figure is exact."""


class Holder(Protocol):
    """Records that are kept together: a file, or a day."""

    @property
    def rows(self) -> int:
        """How many records it has."""

    @property
    def first(self) -> int | None:
        """No timestamp is before this; None where that is not known."""

    @property
    def last(self) -> int | None:
        """No timestamp is after this."""

    def may_hold(self, start: int | None, end: int | None) -> bool:
        """Whether there may be a timestamp in [start, end)."""


@dataclass(frozen=True)
class Piece:
    """What is read of some files: the rows of a level, or the records where it is None, with times in [start, end).

    The files are named as they are given to :func:`plan`, or their sidecars where it is a level.
    """

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

    @property
    def sidecars(self) -> set[str]:
        """Those that are read."""
        return {file for piece in self.pieces if piece.level for file in piece.files}


def plan(query: Query, files: Mapping[str, Holder], sidecars: Mapping[str, str]) -> Plan | None:
    """How rollups help to answer; None where the records should be read.

    Args:
        files: what there is in the range of the query, by name.
        sidecars: the files with rollups, by the names (:func:`tallymark.stores.rollups.name_of`) of what they are of.
    """
    levels = _levels(query)
    rolled = {name: file for name, file in files.items() if name_of(name) in sidecars and file.first is not None}
    if not levels or not rolled:
        return None
    if sum(_records(file, query.start, query.end) for file in rolled.values()) < MANY_RECORDS:
        return None
    start, end = _range(query, rolled.values(), levels[-1].length)
    pieces, scanned = [], 0
    for level, first, last in cover(start, end, levels):
        held = {name: file for name, file in rolled.items() if file.may_hold(first, last)}
        if held:
            pieces.append(Piece(level, first, last, [sidecars[name_of(name)] if level else name for name in held]))
            scanned += 0 if level else sum(file.rows for file in held.values())
    if not any(piece.level for piece in pieces):
        return None
    others = {name: file for name, file in files.items() if name not in rolled}
    return Plan(pieces, list(others), scanned + sum(file.rows for file in others.values()))


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


def _records(file: Holder, start: int | None, end: int | None) -> float:
    """About how many records of a file lie in a range, if they are spread evenly."""
    assert file.first is not None
    assert file.last is not None
    first = file.first if start is None else max(start, file.first)
    last = file.last if end is None else min(end - 1, file.last)
    return file.rows * (last - first + 1) / (file.last - file.first + 1)


def _range(query: Query, files: Collection[Holder], length: int) -> tuple[int, int]:
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
