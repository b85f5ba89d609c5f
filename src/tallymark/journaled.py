"""A store that knows nothing of journals, together with those on this machine that belong to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tallymark import log
from tallymark.batch import Batch
from tallymark.clock import SystemClock
from tallymark.errors import StoreError
from tallymark.lane_reader import each_lane, unshipped
from tallymark.query import Query
from tallymark.shipper import ship, shipping_lock
from tallymark.store import Maintenance, Store, StoreInfo

if TYPE_CHECKING:
    import pyarrow as pa

    from tallymark.stores.retention import Retention


class Journaled(Store):
    """Brings what waits in the journals of this machine into the store before it asks the store.

    So an answer has every record of this machine, but for those that a shipper at work is bringing at that moment. What
    waits on other machines is not seen.

    Args:
        store: what is wrapped; closed with this.
        journals: the folder of the journals.
    """

    def __init__(self, store: Store, journals: Path) -> None:
        self._store = store
        self._journals = journals
        self._complained = False

    def write(self, batch: Batch) -> None:
        """As the store does."""
        self._store.write(batch)

    def positions(self, journals: list[str]) -> dict[str, int]:
        """As the store does."""
        return self._store.positions(journals)

    def scan(self, query: Query) -> "pa.Table":
        """As the store does, with what waited."""
        self._ship()
        return self._store.scan(query)

    def aggregate(self, query: Query) -> "pa.Table":
        """As the store does, with what waited."""
        self._ship()
        return self._store.aggregate(query)

    def delete(self, query: Query) -> int:
        """As the store does. What waits in journals is not touched."""
        return self._store.delete(query)

    def maintain(self, now: int, retention: "Retention | None", *, strays: bool = False) -> Maintenance:
        """As the store does."""
        return self._store.maintain(now, retention, strays=strays)

    def roll_up(self, now: int) -> int:
        """As the store does."""
        return self._store.roll_up(now)

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """As the store does."""
        return self._store.purge(now, strays=strays)

    def info(self) -> StoreInfo:
        """The books of the store, and what waits and was dropped on this machine."""
        lanes = list(each_lane(self._journals)) if self._journals.is_dir() else []
        names = [lane.journal for lane in lanes]
        positions = self._store.positions(names)
        while True:
            info = self._store.info()
            before, positions = positions, self._store.positions(names)
            if before == positions:  # nothing was brought between the two
                break
        pending, dropped = unshipped(lanes, positions)
        dropped.update(info.dropped)
        return StoreInfo(info.url, info.stored, pending, dict(dropped), info.bytes, info.deleted)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _ship(self) -> None:
        if not self._journals.is_dir():  # reading makes no folder
            return
        try:
            with shipping_lock(self._journals) as free:
                if free:
                    ship(self._store, self._journals, SystemClock())
        except (StoreError, OSError) as error:
            # Who may not write may still read; where the store is away, the question that follows says so.
            if not self._complained:
                log.warning("what waits in %s is not in the answers: %s", self._journals, error)
            self._complained = True
        else:
            self._complained = False
