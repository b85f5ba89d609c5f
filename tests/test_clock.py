"""A wall clock that is set back and ahead by years."""

from pathlib import Path

import pytest
from recording import books, live, recording, ship, stored

from tallymark.testing import ManualClock

pytestmark = pytest.mark.usefixtures("core")

YEAR_NS = 365 * 86_400_000_000_000
NOW = 1_760_000_000_000_000_000


@pytest.mark.parametrize("years", [-60, -50, -1, 1, 50, 100, 150])
def test_a_clock_that_jumps(folder: Path, years: int) -> None:
    clock = ManualClock(NOW)
    with recording(folder, clock=clock, max_queue_size=600) as metrics:
        metrics.record("a", "before", 1.0)
        with metrics.track_operation("across"):
            clock.advance(2)
            clock.set(NOW + years * YEAR_NS)
        for _ in range(200):  # several files
            metrics.record("a", "after", 1.0)
        ship(folder)
        clock.set(NOW)
        for _ in range(200):
            metrics.record("a", "again", 1.0)
        ship(folder)
        stats = metrics.get_stats()
        assert (stats.total_recorded, stats.total_persisted, stats.dropped) == (402, 402, {})
    ship(folder)
    info = books(folder)
    assert (info.stored, info.pending, info.dropped) == (402, 0, {})
    found = stored(folder)
    assert len(found) == 402
    assert [record.value for record in found if record.name == "across"] == [2000.0]
    assert {record.timestamp for record in found if record.name == "before"} == {NOW}
    assert {record.timestamp for record in found if record.name == "again"} == {NOW}


def test_records_are_kept_in_the_order_of_the_calls(folder: Path) -> None:
    clock = ManualClock(NOW)
    with recording(folder, clock=clock) as metrics:
        for number in range(10):
            metrics.record("a", "b", float(number))
            clock.set(NOW - number * YEAR_NS)
    rows = live(folder)
    assert [row["value"] for row in rows] == list(range(10))
    assert [row["seq"] for row in rows] == list(range(rows[0]["seq"], rows[0]["seq"] + 10))


def test_a_manual_clock_moves_when_it_is_told_to() -> None:
    clock = ManualClock(NOW)
    clock.advance(1.5)
    assert (clock.time_ns(), clock.monotonic_ns()) == (NOW + 1_500_000_000, 1_500_000_000)
    clock.set(0)
    assert (clock.time_ns(), clock.monotonic_ns()) == (0, 1_500_000_000)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    assert ManualClock().time_ns() > NOW - 10 * YEAR_NS
