"""What a store is: the contract, and how one is found by its URL."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tallymark.errors import ConfigError
from tallymark.lane import JOURNALS
from tallymark.location import local_folder, shown, split
from tallymark.query import Query

if TYPE_CHECKING:
    import pyarrow as pa

    from tallymark.batch import Batch
    from tallymark.stores.retention import Retention

_KINDS: Final = {
    "lake": ("lake", "Lake", "lake"),
    "sqlite": ("sqlite", "Sqlite", "sqlite"),
    "postgresql": ("postgres", "Postgres", "postgres"),
    "clickhouse": ("clickhouse", "ClickHouse", "clickhouse"),
    "json": ("json_files", "JsonFiles", "lake"),
}
"""The package in tallymark.stores, the class in its store.py, and the extra with the packages that it needs."""

_ORIGIN: Final = "tallymark.origin"
"""Under which an answer has it in the metadata of its schema."""


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes:
        url: where it is; without a password.
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


@dataclass(frozen=True)
class Maintenance:
    """What :meth:`Store.maintain` did.

    Attributes:
        compacted: small files that were joined into others.
        deleted: records that were too old.
        vacuumed: files that were removed from the disk.
        held: why no record was deleted, if so.
    """

    compacted: int = 0
    deleted: int = 0
    vacuumed: int = 0
    held: str | None = None


@dataclass(frozen=True)
class Origin:
    """What an aggregation was computed from.

    Attributes:
        source: what was read: ``raw`` records, or which rollups beside them.
        scanned: how many records were looked at one by one, at most; None where the store does not say.
        relative_error: how far percentiles may be off, as a share of them; None where they are exact.
    """

    source: str = "raw"
    scanned: int | None = None
    relative_error: float | None = None


def with_origin(table: "pa.Table", origin: Origin) -> "pa.Table":
    """The answer to an aggregation, saying what it was computed from."""
    return table.replace_schema_metadata({_ORIGIN: json.dumps(asdict(origin))})


def origin_of(table: "pa.Table") -> Origin:
    """What an answer says that it was computed from; records, where it does not say."""
    said = (table.schema.metadata or {}).get(_ORIGIN.encode())
    return Origin(**json.loads(said)) if said else Origin()


class Store(ABC):
    """Where records are kept. Every method may be called from any thread.

    Errors of the driver arrive as :class:`~tallymark.errors.StoreError`; the driver's own is their cause. A store that
    does not exist is empty: it is made by the first write.
    """

    @abstractmethod
    def write(self, batch: "Batch") -> None:
        """Keep the rows and the positions of a batch, both or neither.

        Idempotent: rows before the stored position of their journal are not written again, and no row of a
        journal whose position in the batch is stored already. Returns when the rows are durable and every
        later read sees them.
        """

    @abstractmethod
    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is stored; a journal that is not known is left out."""

    @abstractmethod
    def scan(self, query: Query) -> "pa.Table":
        """The records that match, as rows of :data:`tallymark.batch.SCHEMA`, in the order of the query, at
        most ``query.limit``. No match is an empty table with the same columns.
        """

    @abstractmethod
    def aggregate(self, query: Query) -> "pa.Table":
        """One row for each window and group that holds at least one record; an empty table where none does.

        The columns are those of ``query.output``: ``window_start`` (int64, ns) where the query has a window,
        the group-by fields (``success`` bool, the others string), the aggregates by their names (``count``
        and ``last_timestamp`` int64, the others float64), and ``samples`` (int64), the records of the group.
        What it was computed from goes along by :func:`with_origin`.

        Raises:
            QueryError: the query has no limit, and there are more rows than an answer may have.
        """

    @abstractmethod
    def delete(self, query: Query) -> int:
        """Forget the stored records that match the time range and the conditions of a query; returns how many they
        were. The store's own rows are never among them, and what is still in a journal is not touched.

        Raises:
            QueryError: the query asks for more than that: aggregates, an order, a limit or a cursor.
        """

    @abstractmethod
    def info(self) -> StoreInfo:
        """What is stored, pending and dropped, at one instant."""

    def close(self) -> None:
        """Give everything back. Closing twice is allowed."""
        return  # there may be nothing to give back

    def maintain(self, now: int, retention: "Retention | None", *, strays: bool = False) -> Maintenance:
        """Do what keeps a store small and fast. :func:`tallymark.maintenance.maintain` calls it every few minutes, and
        nobody else at that time.

        Args:
            now: the time, ns.
            retention: how long records are kept; with None no record is deleted.
            strays: whether ``now`` may be trusted to tell how old files are that writers left which died.
        """
        expired = [] if retention is None else retention.expired(now)
        return Maintenance(deleted=sum(map(self.delete, expired)))

    def roll_up(self, now: int) -> int:
        """Make the rollups that are missing, from which questions about long ranges are answered; how many were made.

        It may take minutes, so it is no part of :meth:`maintain`, which applications have done by children that are
        needed again soon.

        Args:
            now: the time, ns.
        """
        return 0

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """Give the room of what was deleted back at once, so that no byte of it stays. Arguments as :meth:`maintain`.

        Returns:
            What could not be removed, as sentences.
        """
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_store(url: str = "./metrics") -> Store:
    """The store at a URL. It is made by the first write, not by this.

    Args:
        url: a folder, as ``./metrics`` or ``lake:./metrics``; or one of ``sqlite:///metrics.db``,
            ``postgresql://…``, ``clickhouse://…``, ``json:./metrics``.

    Raises:
        ConfigError: the URL is of no known kind, cannot be used, or a package for it is missing.
    """
    scheme, place = split(url)
    folder = local_folder(url)
    package, name, extra = _KINDS[scheme]
    try:
        kind: Callable[..., Store] = getattr(import_module(f"tallymark.stores.{package}.store"), name)
        from tallymark.journaled import Journaled
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.partition(".")[0] == "tallymark":
            raise
        hint = f'hint: pip install "tallymark[{extra}]"'
        raise ConfigError(f"this store needs the package {missing.name}; {hint}") from missing
    store = kind(place if "://" in place else Path(place).absolute(), url=shown(url))
    # A lake reads its journals itself, so that a record is seen in the instant it is made.
    return store if scheme == "lake" else Journaled(store, folder / JOURNALS)
