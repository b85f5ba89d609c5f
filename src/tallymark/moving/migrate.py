"""From one store to another: what is missing there is copied, and then both are compared, day by day.

There is no state beside the stores. What was copied is seen by its ids, so that going on after whatever ended it is
the same as beginning.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from tallymark.moving.arrivals import Brought, bring, same_of
from tallymark.moving.checksum import Sum, Sums
from tallymark.moving.pages import OWN, by_day, pages, until_newest
from tallymark.moving.progress import Progress
from tallymark.query import Query
from tallymark.store import Store
from tallymark.stores.retention import DAY_NS

ROUNDS: Final = 3
"""How often what differs is copied and compared again: records may have come meanwhile."""


@dataclass(frozen=True)
class Window:
    """A day of both stores.

    Attributes:
        day: when it begins (ns, UTC).
        source: the records of the one.
        target: what the other has under the ids of those.
    """

    day: int
    source: Sum
    target: Sum

    @property
    def same(self) -> bool:
        """Whether the other has each of them once, and as it is."""
        return self.source == self.target


@dataclass
class Migrated:
    """What a migration did.

    Attributes:
        windows: every day that was compared; the store's own rows are counted with the records.
        brought: what was copied, and what was there.
        others: how many records the target has of those days beside.
    """

    windows: list[Window] = field(default_factory=list)
    brought: Brought = field(default_factory=Brought)
    others: int = 0

    @property
    def differing(self) -> list[Window]:
        """The days that are not the same."""
        return [window for window in self.windows if not window.same]

    @property
    def records(self) -> int:
        """How many records the source has."""
        return sum(window.source.records for window in self.windows)


@dataclass(frozen=True)
class _Part:
    """The records, or the store's own rows: what one query finds, and how many there are of each day."""

    query: Query
    days: dict[int, int]

    @classmethod
    def of(cls, source: Store, query: Query) -> "_Part":
        bounded = until_newest(source, query)
        return cls(bounded, by_day(source, bounded))

    def records(self, days: set[int]) -> int:
        return sum(count for day, count in self.days.items() if day in days)

    def pages(self, source: Store, days: set[int]) -> Iterator[pa.Table]:
        """What the source has of some days."""
        chosen = sorted(day for day in self.days if day in days)
        while chosen:
            start = end = chosen[0]
            while chosen and chosen[0] == end:
                end = chosen.pop(0) + DAY_NS
            start = max(start, self.query.start or 0)
            yield from pages(source, replace(self.query, start=start, end=min(end, self.query.end or end)))


def migrate(source: Store, target: Store, query: Query, progress: Progress) -> Migrated:
    """Copy what the target does not have, then compare.

    Args:
        query: a range of time. What is newer than the newest record of the source at this moment is left for the next
            time.

    Raises:
        StoreError: one of the stores failed.
    """
    done = Migrated()
    parts = [_Part.of(source, query), _Part.of(source, replace(query, filters=(OWN,)))]
    days = {day for part in parts for day in part.days}
    # A day of which both have as many is most likely there; comparing will tell.
    unlike = set[int]()
    for part in parts:
        there = by_day(target, part.query)
        unlike |= {day for day, count in part.days.items() if there.get(day) != count}
    windows: dict[int, Window] = {}
    for number in range(ROUNDS):
        before = done.brought.written
        _copy(source, target, parts, unlike, done.brought, progress)
        if number and done.brought.written == before:
            break  # it is not that something is missing
        windows |= _compare(source, target, parts, days, progress)
        days = unlike = {day for day, window in windows.items() if not window.same}
        if not days:
            break
    done.brought.refused = list(dict.fromkeys(done.brought.refused))  # in each round the same
    done.windows = [windows[day] for day in sorted(windows)]
    have = 0
    for part in parts:
        there = by_day(target, part.query)
        have += sum(there.get(day, 0) for day in part.days)
    done.others = max(0, have - sum(window.target.records for window in done.windows))
    return done


def _copy(
    source: Store, target: Store, parts: list[_Part], days: set[int], brought: Brought, progress: Progress
) -> None:
    total, moved = sum(part.records(days) for part in parts), 0
    for part in parts:
        for page in part.pages(source, days):
            brought.add(bring(target, page))
            moved += page.num_rows
            progress("copying", moved, total)


def _compare(source: Store, target: Store, parts: list[_Part], days: set[int], progress: Progress) -> dict[int, Window]:
    total, seen = sum(part.records(days) for part in parts), 0
    ours, theirs = Sums(), Sums()
    for part in parts:
        for page in part.pages(source, days):
            ours.add(page)
            for same in same_of(target, page):
                theirs.add(same)
            seen += page.num_rows
            progress("comparing", seen, total)
    return {day: Window(day, ours.days[day], theirs.days[day]) for day in days}
