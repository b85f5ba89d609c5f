"""Bringing records into a store that may have some of them already: by their ids, none is there twice.

The positions that make a shipper's writes idempotent are of no use here. They say how far a journal was shipped from
its beginning, and what is moved is any part of it, in the order of time. So the store is asked what it has of the same
time, and gets the rest. Whatever ends a move half-way, beginning again goes on.
"""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallymark.batch import Batch, record_id
from tallymark.delivery import MOST_REFUSED
from tallymark.errors import RefusedError, StoreError
from tallymark.files import locked
from tallymark.location import local_folder, shown
from tallymark.model import RESERVED_TYPE
from tallymark.moving.pages import OWN, PAGE_ROWS, pages, place_of_last
from tallymark.query import Query
from tallymark.store import Store

LOCK_FILE: Final = "moving.lock"
"""In the local folder of a store: locked by whoever brings records into it."""

MOVES: Final = b"moved rows ".hex() + "0" * 10
"""The journal whose position counts the writes of moves. It has no rows. Some stores know by it which write was under
way when something failed, and see to it that nothing of that one comes in later.
"""

_SEQ_BITS: Final = 40


@dataclass
class Brought:
    """What became of records.

    Attributes:
        written: how many were added.
        present: how many the store had already.
        refused: what the store refused, and why, as sentences.
    """

    written: int = 0
    present: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, other: "Brought") -> None:
        """Count others too."""
        self.written += other.written
        self.present += other.present
        self.refused += other.refused


@contextlib.contextmanager
def alone_into(url: str) -> Generator[None]:
    """Be the only one on this machine who brings records into a store.

    Raises:
        StoreError: somebody else does.
    """
    folder = local_folder(url)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK_FILE, wait=False) as alone:
        if not alone:
            hint = "hint: try again when it is done"
            raise StoreError(f"another import or migrate brings records into {shown(url)}; {hint}")
        yield


def bring(store: Store, rows: pa.Table) -> Brought:
    """Write those of some records that the store does not have.

    Args:
        rows: records, or the store's own rows, but not both.

    Raises:
        StoreError: the store failed, or refuses more than :data:`~tallymark.delivery.MOST_REFUSED` of them.
    """
    wanted = ~_marked(store, rows)
    # Of several with one id the first: a file of refused records may hold one twice.
    ids, first = np.unique(_ids(rows)[0], return_index=True)
    if len(ids) < rows.num_rows:
        wanted &= np.isin(np.arange(rows.num_rows), first)
    missing = rows.filter(pa.array(wanted))
    done = Brought(present=rows.num_rows - missing.num_rows)
    for refused, error in _write(store, missing):
        done.refused.append(f"{record_id(refused['journal'], refused['seq'])}: {error}")
        if len(done.refused) > MOST_REFUSED:
            raise RefusedError(f"the store refuses more than {MOST_REFUSED} records: {error}") from error
    done.written = missing.num_rows - len(done.refused)
    return done


def missing_of(store: Store, rows: pa.Table) -> int:
    """How many of some records a store does not have."""
    return int(np.count_nonzero(~_marked(store, rows)))


def same_of(store: Store, rows: pa.Table) -> Iterator[pa.Table]:
    """What a store has under the ids of some records, as often as it has it."""
    ids, journals = _ids(rows)
    for page in _beside(store, rows):
        found, _ = _ids(page, journals)
        yield page.filter(pa.array(np.isin(found, ids)))


def _marked(store: Store, rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether each record is in the store."""
    marked = np.zeros(rows.num_rows, bool)
    ids, journals = _ids(rows)
    for page in _beside(store, rows):
        found, _ = _ids(page, journals)
        marked |= np.isin(ids, found)
    return marked


def _beside(store: Store, rows: pa.Table) -> Iterator[pa.Table]:
    """What a store has of the same time."""
    if not rows.num_rows:
        return
    own = rows["metric_type"][0].as_py() == RESERVED_TYPE
    times = rows["timestamp"].to_numpy()
    between = Query(
        start=int(times.min()),
        end=int(times.max()) + 1,
        filters=(OWN,) if own else (),
        order_by=("timestamp",),
        limit=2 * PAGE_ROWS,
    )
    # Mostly that is all: what comes together was made together. Where it is not, counting pays.
    found = store.scan(between)
    if found.num_rows:
        yield found
    if found.num_rows == between.limit:
        yield from pages(store, replace(between, cursor=place_of_last(found)))


def _ids(rows: pa.Table, journals: dict[str, int] | None = None) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """The ids as numbers, by numbers for their journals; a journal that has none gets -1, once some are given."""
    encoded: Any = rows["journal"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if journals is None:
        journals = {name: number for number, name in enumerate(names)}
    numbers = np.array([journals.get(name, -1) for name in names], np.int64)
    return numbers[encoded.indices.to_numpy()] << _SEQ_BITS | rows["seq"].to_numpy(), journals


def _write(store: Store, rows: pa.Table) -> Iterator[tuple[dict[str, Any], RefusedError]]:
    """Write rows; those that the store refuses are given back."""
    if not rows.num_rows:
        return
    position = store.positions([MOVES]).get(MOVES, 0) + 1
    try:
        store.write(Batch(rows, {MOVES: position}))
    except RefusedError as error:
        if rows.num_rows == 1:
            yield rows.to_pylist()[0], error
            return
        middle = rows.num_rows // 2
        yield from _write(store, rows.slice(0, middle))
        yield from _write(store, rows.slice(middle))
