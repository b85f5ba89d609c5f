"""The store behind ``json:./metrics``: a folder of JSON batch files, for archives and for handing records over.

The files are those of :mod:`.batch_file`; what makes writing them exactly once is :mod:`.ledger`. Others may read them,
remove them, and put such files of theirs beside them: all are read, and the books say what is there and what is gone.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Final

import numpy as np
import pyarrow as pa

from tallymark.batch import SCHEMA, Batch
from tallymark.errors import StoreError
from tallymark.files import size_of
from tallymark.model import RESERVED_TYPE
from tallymark.query import Query
from tallymark.store import Maintenance, Store, StoreInfo
from tallymark.stores.deletion import by_day
from tallymark.stores.duck import Engine
from tallymark.stores.fresh import fresh
from tallymark.stores.json_files.batch_file import batch_id, batch_moment, batch_text, parse_batch
from tallymark.stores.json_files.ledger import FOLDER, Change, Known, Ledger
from tallymark.stores.retention import Retention

RECORDS_PER_FILE: Final = 1_000
"""The most that one file holds; who reads such files is used to that."""

MANY_FILES: Final = 16
"""How many small files of one day are worth joining."""

_NOTHING: Final = SCHEMA.empty_table()


class JsonFiles(Store):
    """Batch files in a folder; see :class:`tallymark.store.Store`.

    A question reads every file that may hold an answer, at about 6 µs a record: this is for hundreds of thousands of
    records, or for millions of which few are asked for. Several processes may read and write.

    Args:
        folder: where the files are. It is made by the first write.
        url: what :meth:`info` calls it.
    """

    def __init__(self, folder: Path, *, url: str | None = None) -> None:
        self._folder = Path(folder)
        self._url = url or f"json:{folder}"
        self._ledger = Ledger(self._folder)
        self._using = RLock()
        self._engine = Engine()

    def write(self, batch: Batch) -> None:
        """Keep a batch: as files of at most :data:`RECORDS_PER_FILE` records, all of them or none."""
        with self._locked("write to", write=True) as ledger:
            new = fresh(batch, {name: ledger.positions[name] for name in batch.positions if name in ledger.positions})
            own = _is_own(new.table)
            records = new.table.filter(pa.array(~own))
            if not new.table.num_rows and not new.positions:
                return
            change = Change(positions=new.positions, own=new.table.filter(pa.array(own)).to_pylist())
            moment = time.time_ns()
            with self._discarding(change):
                for first in range(0, records.num_rows, RECORDS_PER_FILE):
                    moment = self._free(moment)
                    name = f"metrics_{batch_id(moment)}.json"
                    self._draft(change, name, records.slice(first, RECORDS_PER_FILE), moment)
                    moment += 1_000
                ledger.commit(change)

    def _free(self, moment: int) -> int:
        """The first moment from this one (ns) whose name no file has: the clock may stand still, or go back."""
        while True:
            name = f"metrics_{batch_id(moment)}.json"
            if name not in self._ledger.files and not (self._folder / name).exists():
                return moment
            moment += 1_000

    def _draft(self, change: Change, name: str, rows: pa.Table, moment: int) -> None:
        content = batch_text(rows, moment)
        times = rows["timestamp"].to_numpy()
        known = Known(rows.num_rows, len(content), int(times.min()), int(times.max()))
        self._ledger.draft(change, name, content, known)

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is in files."""
        with self._locked("read") as ledger:
            return {name: ledger.positions[name] for name in journals if name in ledger.positions}

    def scan(self, query: Query) -> pa.Table:
        """The records that match."""
        return self._engine.answer(query, self._rows(query))

    def aggregate(self, query: Query) -> pa.Table:
        """The groups of the records that match."""
        return self._engine.answer(query, self._rows(query))

    def delete(self, query: Query) -> int:
        """Forget what matches: files are written anew without it, or removed where nothing remains."""
        matching = replace(by_day(query), window=None, aggregates=())
        if not self._folder.is_dir():
            return 0
        with self._locked("delete from", write=True) as ledger:
            change = Change()
            with self._discarding(change):
                for name, rows in self._files(query):
                    found = self._engine.ids(matching, rows)
                    if not found.num_rows:
                        continue
                    change.deleted += found.num_rows
                    rest = _without(rows, found)
                    if rest.num_rows:
                        written = batch_moment(name)
                        self._draft(change, name, rest, time.time_ns() if written is None else written)
                    else:
                        change.gone.append(name)
                if change.deleted:
                    ledger.commit(change)
            return change.deleted

    def info(self) -> StoreInfo:
        """What is stored. Records whose file somebody removed count as deleted."""
        with self._locked("read") as ledger:
            stored, size, gone = 0, 0, 0
            for name, known in ledger.files.items():
                try:
                    bytes_now = ledger.place(name).stat().st_size
                except FileNotFoundError:
                    gone += known.rows
                    continue
                size += bytes_now
                rows = known.rows if bytes_now == known.bytes else self._read(name).num_rows
                stored += rows
                gone += known.rows - rows
            for name in ledger.strangers():
                stored += self._read(name).num_rows
                size += (self._folder / name).stat().st_size
            dropped = Counter[str]()
            for row in self._engine.answer(_DROPPED, _own_rows(ledger)).to_pylist() if ledger.own else ():
                dropped[row["metadata.reason"]] += int(row["sum"])
            return StoreInfo(self._url, stored, 0, dict(dropped), size, ledger.deleted + gone)

    def maintain(self, now: int, retention: Retention | None, *, strays: bool = False) -> Maintenance:
        """Join small files, delete records that are too old, and tidy up."""
        compacted = self._join()
        done = super().maintain(now, retention, strays=strays)
        self.purge(now)
        return replace(done, compacted=compacted)

    def _join(self) -> int:
        """Join small files of one day, where there are many; returns how many are gone.

        The last of each keeps its name: nobody who removes files by their names removes any of it sooner.
        """
        if not self._folder.is_dir():
            return 0
        with self._locked("tidy up", write=True) as ledger:
            small: dict[str, list[str]] = {}
            for name, known in sorted(ledger.files.items()):
                if known.rows < RECORDS_PER_FILE // 2 and size_of(self._folder / name) == known.bytes:
                    small.setdefault(name[: len("metrics_20251216")], []).append(name)
            change = Change()
            with self._discarding(change):
                for names in small.values():
                    for part in _parts(names, ledger) if len(names) >= MANY_FILES else ():
                        if len(part) == 1:
                            continue
                        rows = pa.concat_tables([self._read(name) for name in part])
                        self._draft(change, part[-1], rows, batch_moment(part[-1]) or 0)
                        change.gone += part[:-1]
                if change.gone:
                    ledger.commit(change)
            return len(change.gone)

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """Remove what writers left that died."""
        if (self._folder / FOLDER).is_dir():
            with self._locked("tidy up", write=True) as ledger:
                ledger.clear_drafts()
                ledger.shorten()
        return []

    def close(self) -> None:
        """Give everything back."""
        self._engine.close()

    @contextlib.contextmanager
    def _locked(self, doing: str, *, write: bool = False) -> Iterator[Ledger]:
        with self._using, _driver_errors(doing, self._url), self._ledger.locked(write=write):
            yield self._ledger

    @contextlib.contextmanager
    def _discarding(self, change: Change) -> Iterator[None]:
        """Remove the drafts where the change does not happen."""
        try:
            yield
        except BaseException:
            self._ledger.discard(change)
            raise

    def _rows(self, query: Query) -> pa.Table:
        """The records in the files that may hold the time range of a query, and the store's own."""
        with self._locked("read") as ledger:
            return pa.concat_tables([_own_rows(ledger), *(rows for _, rows in self._files(query))])

    def _files(self, query: Query) -> Iterator[tuple[str, pa.Table]]:
        """Every file that may hold the time range of a query, and its records."""
        start = -1 if query.start is None else query.start
        for name, known in list(self._ledger.files.items()):
            unchanged = size_of(self._ledger.place(name)) == known.bytes
            if unchanged and (known.last < start or (query.end is not None and known.first >= query.end)):
                continue
            with contextlib.suppress(FileNotFoundError):  # somebody removed it
                yield name, self._read(name)
        for name in self._ledger.strangers():
            with contextlib.suppress(FileNotFoundError):
                yield name, self._read(name)

    def _read(self, name: str) -> pa.Table:
        return parse_batch(self._ledger.place(name).read_bytes(), str(self._folder / name))


_DROPPED: Final = Query.build(
    where={"metric_type": RESERVED_TYPE, "name": "dropped"}, group_by="metadata.reason", agg="sum"
)


def _parts(names: list[str], ledger: Ledger) -> Iterator[list[str]]:
    """The names in their order, as many at a time as make a file."""
    part: list[str] = []
    rows = 0
    for name in names:
        if rows + ledger.files[name].rows > RECORDS_PER_FILE:
            yield part
            part, rows = [], 0
        part.append(name)
        rows += ledger.files[name].rows
    yield part


def _own_rows(ledger: Ledger) -> pa.Table:
    return pa.Table.from_pylist(ledger.own, schema=SCHEMA) if ledger.own else _NOTHING


def _is_own(rows: pa.Table) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return np.asarray(rows["metric_type"].to_numpy() == RESERVED_TYPE, bool)


def _without(rows: pa.Table, ids: pa.Table) -> pa.Table:
    """The rows whose id is none of these."""
    gone = set(zip(ids["journal"].to_pylist(), ids["seq"].to_pylist(), strict=True))
    here = zip(rows["journal"].to_pylist(), rows["seq"].to_pylist(), strict=True)
    return rows.filter(pa.array([place not in gone for place in here], pa.bool_()))


@contextlib.contextmanager
def _driver_errors(doing: str, url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {doing} {url}: {os.strerror(error.errno) if error.errno else error}") from error
