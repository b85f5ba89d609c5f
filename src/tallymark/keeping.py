"""Forgetting what is stored, when somebody asks for it: what is old, and what is about one subject.

To prune is to make room: the records are out of every answer, and their files off the disk. To erase is to leave no
byte of the records of one subject in the folder of a store, neither in the table, nor in journals that are still
written to, nor in the structured log.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa

from tallymark import ndjson
from tallymark.batch import SCHEMA
from tallymark.clock import Clock, SystemClock
from tallymark.delivery import REFUSED_FILE
from tallymark.files import replace_file
from tallymark.keeping_logs import erase_lines, line_match
from tallymark.lane import JOURNALS, SUFFIX
from tallymark.lane_reader import each_lane
from tallymark.maintenance import alone, trusts
from tallymark.query import Query
from tallymark.shipper import ship, shipping_turn
from tallymark.store import Store
from tallymark.stores.duck import Engine
from tallymark.stores.retention import DAY_NS

Say = Callable[[str], None]
"""Told what is being done, and what is waited for."""

_SHIPPING: Final = "waiting for the shipper that is at work …"
_MAINTAINING: Final = "waiting for the upkeep that is at work …"
_CLOCK: Final = SystemClock()


@dataclass(frozen=True)
class Found:
    """What there is to forget, in the store and in the journals.

    Attributes:
        by_type: how many records, by metric type.
        first, last: the days (ns, their beginnings) of the oldest and the newest; None where there is none.
    """

    by_type: dict[str, int]
    first: int | None = None
    last: int | None = None

    @property
    def records(self) -> int:
        """How many there are in all."""
        return sum(self.by_type.values())


@dataclass(frozen=True)
class Erased:
    """What an erasure did.

    Attributes:
        records: how many were deleted from the store.
        overwritten: those among them whose bytes were overwritten in journals that are still in use.
        lines: how many lines were removed from the structured log; None where the query asks for what lines do not
            have, and they were left alone.
        left: what could not be done, or not be looked into, as sentences.
        newer: records of the subject that came in meanwhile.
    """

    records: int
    overwritten: int
    lines: int | None
    left: tuple[str, ...]
    newer: int


def find(store: Store, queries: Iterable[Query]) -> Found:
    """What queries find that have no record in common."""
    by_type, days = Counter[str](), set[int]()
    for query in queries:
        groups = replace(query, window=DAY_NS, group_by=("metric_type",), aggregates=("count",))
        for row in store.aggregate(groups).to_pylist():
            by_type[row["metric_type"]] += row["count"]
            days.add(row["window_start"])
    return Found(dict(by_type.most_common()), min(days, default=None), max(days, default=None))


def prune(store: Store, folder: Path, queries: Sequence[Query], say: Say, clock: Clock = _CLOCK) -> int:
    """Delete what queries find, that in journals too, and give the room back at once; how many records they were.

    Raises:
        StoreError: the store refused; what is deleted by then stays so.
    """
    with shipping_turn(folder / JOURNALS, lambda: say(_SHIPPING)):
        say("moving the journals into the store …")
        ship(store, folder / JOURNALS, clock)
    with alone(folder, lambda: say(_MAINTAINING)):
        say("deleting …")
        deleted = sum(map(store.delete, queries))
        say("removing files …")
        store.purge(clock.time_ns())
    return deleted


def erase(
    store: Store,
    folder: Path,
    query: Query,
    say: Say,
    logs: Sequence[Path] = (),
    clock: Clock = _CLOCK,
) -> Erased:
    """Remove every byte of the records that a query finds. Doing it again is safe, and finishes what was interrupted.

    Applications go on recording meanwhile. What they record of the subject after this has begun are new records.

    Args:
        folder: what belongs to the store on this machine.
        logs: the structured logs; the files that they were rotated into are found.

    Raises:
        StoreError: the store refused; what is erased by then stays so.
    """
    left: list[str] = []
    with shipping_turn(folder / JOURNALS, lambda: say(_SHIPPING)), alone(folder, lambda: say(_MAINTAINING)):
        say("moving the journals into the store …")
        ship(store, folder / JOURNALS, clock)
        say("writing files anew without the records …")
        records = store.delete(query)
        say("overwriting journals that are in use …")
        overwritten = _erase_in_journals(store, folder / JOURNALS, query, left)
        say("removing files …")
        left += store.purge(clock.time_ns(), strays=trusts(folder, clock))
        _erase_refused(folder / JOURNALS / REFUSED_FILE, query)
        lines = line_match(query)
        if lines is not None and logs:
            say("removing lines of the structured log …")
        removed = None if lines is None else sum(erase_lines(log, lines, left) for log in logs)
    newer = find(store, [query]).records
    return Erased(records, overwritten, removed, tuple(left), newer)


def _erase_refused(path: Path, query: Query) -> None:
    """Remove records from those that the store refused."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    # Half a line is of a shipper that died: its record is still in the journal.
    lines = [line for line in lines if line.endswith(b"\n")]
    rows = [ndjson.decode(line) | {"seq": number} for number, line in enumerate(lines)]
    found = set(Engine().ids(query, pa.Table.from_pylist(rows, schema=SCHEMA))["seq"].to_pylist())
    kept = [line for number, line in enumerate(lines) if number not in found]
    replace_file(path, b"".join(kept).decode())


def _erase_in_journals(store: Store, journals: Path, query: Query, left: list[str]) -> int:
    """Overwrite what is stored already in the journals that are left; how many records that were."""
    overwritten, engine = 0, Engine()
    unread = {path for path in journals.iterdir() if path.name.endswith(SUFFIX)}
    for lane in each_lane(journals):
        unread.discard(lane.path)
        end = store.positions([lane.journal]).get(lane.journal, 0)
        rows = lane.rows(0)
        found = engine.ids(query, rows)["seq"].to_numpy()
        found = found[found < end]
        try:
            lane.erase(found, end)
        except OSError as error:
            left.append(f"{lane.path}: the records in it could not be overwritten: {error.strerror}")
        else:
            overwritten += len(found)
    left += [f"{path}: a journal that cannot be read" for path in sorted(unread) if path.exists()]
    return overwritten
