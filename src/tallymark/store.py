"""What a store is: the contract, and how one is found by its URL."""

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from tallymark.batch import Batch
from tallymark.query import Query


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        url: where it is.
        stored: records kept, the store's own bookkeeping rows not counted.
        pending: records that are in live or orphaned journals and not in the store yet.
        dropped: records that could not be kept, by reason.
        bytes: size on disk of what is stored.
    """

    url: str
    stored: int
    pending: int
    dropped: dict[str, int]
    bytes: int

    @property
    def recorded(self) -> int:
        """recorded = stored + pending + dropped."""
        return self.stored + self.pending + sum(self.dropped.values())


class Store(Protocol):
    """Where records are kept. Every method may be called from any thread.

    Errors of the driver arrive as :class:`~tallymark.errors.StoreError`, with the driver's own as their cause.
    """

    def write(self, batch: Batch) -> None:
        """Keep the rows and the positions of a batch, both or neither.

        Idempotent: rows whose journal position is already stored are not written again. Returns when the rows are
        durable and every later read sees them.
        """

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is stored; a journal that is not known is left out."""

    def scan(self, query: Query) -> pa.Table:
        """The records that match, as rows of :data:`tallymark.batch.SCHEMA`, in the order of the query, at most
        ``query.limit``. No match is an empty table with the same columns.
        """

    def aggregate(self, query: Query) -> pa.Table:
        """One row for each window and group that holds at least one record; an empty table where none does.
        Columns: ``window_start`` (int64, ns) where the query has a window, the group-by fields, the aggregates by
        their names, and ``samples``.
        """

    def delete(self, before: int) -> int:
        """Forget the records with a timestamp (ns) before this. Returns how many they were."""

    def info(self) -> StoreInfo:
        """What is stored, pending and dropped, at one instant."""

    def close(self) -> None:
        """Give everything back. Closing twice is allowed."""
