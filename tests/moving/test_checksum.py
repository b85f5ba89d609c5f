"""The sum that says whether two stores hold the same."""

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from tallymark.moving.checksum import Sum, Sums, row_hashes
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, NOON, row, table

from .rows import records, some_rows


def sums(*parts: list[Row]) -> dict[int, Sum]:
    found = Sums()
    for part in parts:
        found.add(table(part))
    return dict(found.days)


def test_order_and_parts_do_not_matter() -> None:
    rows = some_rows(200)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert sums(rows) == sums(shuffled) == sums(shuffled[:7], [], shuffled[7:90], shuffled[90:])
    assert set(sums(rows)) == {one["timestamp"] // DAY * DAY for one in rows}
    assert sum(found.records for found in sums(rows).values()) == 200


def test_columns_in_pieces_have_the_same_sum() -> None:
    rows = some_rows(50)
    pieces = pa.concat_tables([table(rows[:20]), table(rows[20:20]), table(rows[20:])])
    assert row_hashes(pieces).tolist() == row_hashes(table(rows)).tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"journal": JOURNALS[1]},
        {"seq": 1},
        {"timestamp": NOON + 1},
        {"service": "shoq"},
        {"metric_type": "operatiom"},
        {"name": "checkout "},
        {"value": 1.0000000000000002},
        {"value": -1.0},
        {"unit": "s"},
        {"success": False},
        {"success": True},
        {"error": ""},
        {"error": "0"},
        {"trace_id": ""},
        {"session_id": ""},
        {"trace_id": "x"},
        {"session_id": "x"},
        {"metadata": '{"a": 1}'},
        {"description": ""},
    ],
    ids=str,
)
def test_any_change_of_a_record_changes_it(change: dict[str, Any]) -> None:
    before = row(0) | {"metadata": '{"a":1}', "timestamp": NOON}
    assert sums([before]) != sums([before | change])


def test_zero_and_minus_zero_differ() -> None:
    assert sums([row(0, value=0.0)]) != sums([row(0, value=-0.0)])


def test_the_same_text_in_another_column_is_something_else() -> None:
    one, two = row(0, trace_id="a", session_id="b"), row(0, trace_id="b", session_id="a")
    assert sums([one]) != sums([two])
    # Of two records too: what is exchanged between them.
    assert sums([one, row(1, trace_id="b")]) != sums([one | {"trace_id": "b"}, row(1, trace_id="a")])


def test_a_record_that_is_there_twice_is_not_as_if_it_were_not_there() -> None:
    rows = some_rows(10)
    assert sums([*rows, rows[0], rows[0]]) != sums(rows)
    assert sums([rows[0], rows[0]])[rows[0]["timestamp"] // DAY * DAY].low != 0


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(rows=records())
def test_different_records_have_different_hashes(rows: list[Row]) -> None:
    hashes = [tuple(each) for each in row_hashes(table(rows)).tolist()]
    assert len(set(hashes)) == len({tuple(map(repr, one.values())) for one in rows})


def test_both_halves_are_spread_evenly() -> None:
    """Records that differ in one number only: each bit of the hash is set in about half of them."""
    hashes = row_hashes(table([row(seq, timestamp=NOON) for seq in range(4_000)]))
    for half in (hashes[:, 0].tolist(), hashes[:, 1].tolist()):
        assert len(set(half)) == 4_000
        for bit in range(64):
            assert 1_700 < sum(number >> bit & 1 for number in half) < 2_300
    assert not set(hashes[:, 0].tolist()) & set(hashes[:, 1].tolist())


def test_nothing_has_no_sum() -> None:
    assert sums([]) == {}
    assert str(Sum()) == "0" * 32
