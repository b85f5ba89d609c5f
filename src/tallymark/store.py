"""What a store is: the contract, and how one is found by its URL."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tallymark.errors import ConfigError
from tallymark.location import lake_folder
from tallymark.query import Query

if TYPE_CHECKING:
    import pyarrow as pa

    from tallymark.batch import Batch
    from tallymark.stores.lake import Lake


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        url: where it is.
        stored: records kept, the store's own bookkeeping rows not counted.
        pending: records that are in live or orphaned journals and not in the store yet.
        dropped: records that could not be kept, by reason.
        bytes: size on disk of what is stored.
        deleted: records that were stored and have been forgotten since, too old or erased.
    """

    url: str
    stored: int
    pending: int
    dropped: dict[str, int]
    bytes: int
    deleted: int = 0

    @property
    def recorded(self) -> int:
        """recorded = stored + pending + dropped + deleted."""
        return self.stored + self.pending + sum(self.dropped.values()) + self.deleted


class Store(Protocol):
    """Where records are kept. Every method may be called from any thread.

    Errors of the driver arrive as :class:`~tallymark.errors.StoreError`; the driver's own is their cause.
    """

    def write(self, batch: "Batch") -> None:
        """Keep the rows and the positions of a batch, both or neither.

        Idempotent: rows before the stored position of their journal are not written again, and no row of a
        journal whose position in the batch is stored already. Returns when the rows are durable and every
        later read sees them.
        """

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is stored; a journal that is not known is left out."""

    def scan(self, query: Query) -> "pa.Table":
        """The records that match, as rows of :data:`tallymark.batch.SCHEMA`, in the order of the query, at
        most ``query.limit``. No match is an empty table with the same columns.
        """

    def aggregate(self, query: Query) -> "pa.Table":
        """One row for each window and group that holds at least one record; an empty table where none does.

        The columns are those of ``query.output``: ``window_start`` (int64, ns) where the query has a window,
        the group-by fields (``success`` bool, the others string), the aggregates by their names (``count``
        and ``last_timestamp`` int64, the others float64), and ``samples`` (int64), the records of the group.

        Raises:
            QueryError: the query has no limit, and there are more rows than an answer may have.
        """

    def delete(self, query: Query) -> int:
        """Forget the stored records that match the time range and the conditions of a query; returns how many they
        were. The store's own rows are never among them, and what is still in a journal is not touched.

        Raises:
            QueryError: the query asks for more than that: aggregates, an order, a limit or a cursor.
        """

    def info(self) -> StoreInfo:
        """What is stored, pending and dropped, at one instant."""

    def close(self) -> None:
        """Give everything back. Closing twice is allowed."""


def open_store(url: str = "./metrics") -> "Lake":
    """The store at a URL. It is made by the first write, not by this.

    Args:
        url: a folder, as ``./metrics`` or ``lake:./metrics``.

    Raises:
        ConfigError: the URL is of no known kind, cannot be used, or a package for it is missing.
    """
    folder = lake_folder(url)
    try:
        from tallymark.stores.lake import Lake
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.partition(".")[0] == "tallymark":
            raise
        hint = 'hint: pip install "tallymark[lake]"'
        raise ConfigError(f"a lake needs the package {missing.name}; {hint}") from missing
    return Lake(folder, url=url)
