"""Bringing rows into a store that may refuse some of them: those are set aside in a file, counted, and the rest is
stored.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tallymark import ndjson
from tallymark.batch import SCHEMA, Batch
from tallymark.clock import Clock
from tallymark.errors import RefusedError
from tallymark.lane import DROP_REASONS
from tallymark.model import RESERVED_TYPE
from tallymark.store import Store

REFUSED_FILE: Final = "refused.ndjson"
"""In the folder of the journals: the records that the store refused, as lines that ``tallymark import`` takes."""

MOST_REFUSED: Final = 1_000
"""A store that refuses more than so many of one batch does not work; nothing is set aside then."""

_REASONS: Final = (*DROP_REASONS, "refused")

_log = logging.getLogger("tallymark")


@dataclass(frozen=True)
class Lot:
    """What one journal gives to a batch.

    Attributes:
        journal: its id.
        capacity: how many entries it has room for; books are numbered behind them.
        rows: the records, by sequence number.
        dropped: how many others were dropped, by reason.
        end: how far this brings the journal.
        read: how far it was read; the same but for a journal that is over.
    """

    journal: str
    capacity: int
    rows: pa.Table
    dropped: dict[str, int]
    end: int
    read: int

    def batch_rows(self, clock: Clock) -> pa.Table:
        """The records, and what was dropped as rows of the store's own."""
        # Numbered after every entry that the journal can have, and differently in every batch: corrupt records are
        # found by several, but each of those comes further; the others are told by the last alone.
        first = self.capacity + self.read * len(_REASONS)
        books = [
            {
                "journal": self.journal,
                "seq": first + _REASONS.index(reason),
                "timestamp": clock.time_ns(),
                "service": RESERVED_TYPE,
                "metric_type": RESERVED_TYPE,
                "name": "dropped",
                "value": float(count),
                "unit": "1",
                "metadata": json.dumps({"reason": reason}, separators=(",", ":")),
            }
            for reason, count in self.dropped.items()
        ]
        return pa.concat_tables([self.rows, pa.Table.from_pylist(books, schema=SCHEMA)])

    def halves(self) -> tuple["Lot", "Lot"]:
        """The same in two, each with at least one record."""
        middle = self.rows.num_rows // 2
        reached = self.rows["seq"][middle - 1].as_py() + 1
        first = Lot(self.journal, self.capacity, self.rows.slice(0, middle), {}, reached, reached)
        return first, Lot(self.journal, self.capacity, self.rows.slice(middle), self.dropped, self.end, self.read)

    def without_its_record(self) -> "Lot":
        """The same, with its only record among the dropped."""
        dropped = {**self.dropped, "refused": 1}
        return Lot(self.journal, self.capacity, self.rows.slice(0, 0), dropped, self.end, self.read)


def deliver(store: Store, lots: list[Lot], folder: Path, clock: Clock) -> None:
    """Write what some journals give.

    Args:
        folder: where :data:`REFUSED_FILE` is.

    Raises:
        StoreError: the store refused; what is not stored stays in the journals.
        OSError: what was refused could not be set aside.
    """
    refused = 0
    for lot in _refused(store, lots, clock):
        refused += 1
        if refused > MOST_REFUSED:
            raise RefusedError(f"the store refuses more than {MOST_REFUSED} records of a batch: {lot[1]}") from lot[1]
        _set_aside(folder, lot[0].rows.to_pylist(), lot[1])
        _write(store, [lot[0].without_its_record()], clock)
    if refused:
        _log.warning("the store refused %d records; they are in %s", refused, folder / REFUSED_FILE)


def _refused(store: Store, lots: list[Lot], clock: Clock) -> Iterator[tuple[Lot, RefusedError]]:
    """Write the lots; those with one record that the store refuses are given back, and have to be written without it
    before this goes on: positions only grow.
    """
    try:
        _write(store, lots, clock)
    except RefusedError as error:
        if len(lots) > 1:
            middle = len(lots) // 2
            yield from _refused(store, lots[:middle], clock)
            yield from _refused(store, lots[middle:], clock)
        elif lots[0].rows.num_rows > 1:
            for half in lots[0].halves():
                yield from _refused(store, [half], clock)
        elif lots[0].rows.num_rows:
            yield lots[0], error
        else:
            raise  # what the store keeps about itself


def _write(store: Store, lots: list[Lot], clock: Clock) -> None:
    store.write(
        Batch(pa.concat_tables([lot.batch_rows(clock) for lot in lots]), {lot.journal: lot.end for lot in lots})
    )


def _set_aside(folder: Path, rows: list[dict[str, Any]], error: RefusedError) -> None:
    """Append to the file; on disk when this returns. After a crash a record may be there twice, with one id."""
    descriptor = os.open(folder / REFUSED_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "ab") as file:
        for row in rows:
            file.write(ndjson.encode(row, refused=str(error)[:200]))
        file.flush()
        os.fsync(descriptor)
