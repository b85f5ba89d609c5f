"""All records of a store, page by page."""

from dataclasses import replace
from typing import Any

import pytest

from tallymark.moving.pages import OWN, by_day, pages, place_of_last, until_newest
from tallymark.query import Filter, Query
from tallymark.store import Store
from tallymark.testing import oracle
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, batch, row

from .rows import filled

SHAPES: dict[str, list[Row]] = {
    "nothing": [],
    "one": [row(0)],
    "one a day": [row(seq, timestamp=NOON + seq * DAY) for seq in range(30)],
    "all at once": [row(seq, journal=JOURNALS[seq % 3], timestamp=NOON) for seq in range(40)],
    "a burst in a quiet year": [
        *(row(seq, timestamp=NOON + seq * 10 * DAY) for seq in range(10)),
        *(row(100 + seq, timestamp=NOON + 35 * DAY + seq * 1_000) for seq in range(60)),
    ],
    "every scale": [row(seq, timestamp=NOON + 3**seq) for seq in range(38)],
    "the ends of time": [row(0, timestamp=0), row(1, timestamp=4_102_444_800_000_000_000 - 1)],
    "around midnight": [row(seq, timestamp=(NOON // DAY + 1) * DAY + seq - 20) for seq in range(40)],
}


@pytest.mark.parametrize("most", [1, 7, 40, 1_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_record_once_and_in_order(lake: Store, shape: str, most: int) -> None:
    rows = SHAPES[shape]
    filled(lake, rows)
    found = list(pages(lake, Query(), most))
    assert [one for page in found for one in page.to_pylist()] == oracle.scan(rows, Query(order_by=("timestamp",)))
    assert all(0 < page.num_rows <= most for page in found)


@pytest.mark.parametrize(
    "question",
    [
        {"since": NOON + 1, "until": NOON + 3 * DAY + 1},
        {"since": NOON + 5 * DAY, "until": NOON + 5 * DAY},
        {"where": ["value>=10"]},
        {"name": "nothing"},
        {"name": "n1", "until": NOON + 9 * DAY},
    ],
    ids=str,
)
def test_conditions_and_ranges(lake: Store, question: dict[str, Any]) -> None:
    rows = [row(seq, timestamp=NOON + seq * DAY // 3, name=f"n{seq % 2}", value=float(seq)) for seq in range(50)]
    query = Query.build(agg=(), **question)
    filled(lake, rows)
    found = [one for page in pages(lake, query, 4) for one in page.to_pylist()]
    assert found == oracle.scan(rows, replace(query, order_by=("timestamp",)))
    assert sum(by_day(lake, query).values()) == len(found)


def test_it_goes_on_behind_a_cursor(lake: Store) -> None:
    rows = [row(seq, journal=JOURNALS[seq % 3], timestamp=NOON + seq // 9 * MINUTE) for seq in range(60)]
    filled(lake, rows)
    whole = [one for page in pages(lake, Query(), 7) for one in page.to_pylist()]
    done = 0
    for page in pages(lake, Query(), 7):
        done += page.num_rows
        rest = pages(lake, Query(cursor=place_of_last(page)), 7)
        assert [one for each in rest for one in each.to_pylist()] == whole[done:]


def test_the_stores_own_rows_are_asked_for_by_themselves(lake: Store) -> None:
    own = row(9, metric_type="tallymark", name="dropped", service="tallymark")
    filled(lake, [row(0), own])
    assert [page["seq"].to_pylist() for page in pages(lake, Query())] == [[0]]
    assert [page["seq"].to_pylist() for page in pages(lake, Query(filters=(OWN,)))] == [[9]]


def test_what_is_newer_than_the_newest_is_not_waited_for(lake: Store) -> None:
    assert until_newest(lake, Query()).end == 0
    assert until_newest(lake, Query(start=NOON)).end == NOON
    filled(lake, [row(0), row(1, name="other", timestamp=NOON + DAY)])
    assert until_newest(lake, Query()).end == NOON + DAY + 1
    assert until_newest(lake, Query(end=NOON + 5)).end == NOON + 1
    assert until_newest(lake, Query(filters=(Filter("name", "=", "checkout"),))).end == NOON + 1
    bounded = until_newest(lake, Query())
    lake.write(batch([row(2, timestamp=NOON + 2 * DAY)]))
    assert sum(page.num_rows for page in pages(lake, bounded)) == 2
