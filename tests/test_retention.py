"""What is too old goes, and nothing else; a clock that jumps deletes nothing."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lakes import lake_with

from tallymark.errors import ConfigError
from tallymark.maintenance import maintain
from tallymark.stores.lake.store import Lake
from tallymark.stores.retention import HOUR_NS, MAX_JUMP_NS, MAX_OFF_NS, ClockWatch, Retention, boot_id
from tallymark.testing import ManualClock
from tallymark.testing.rows import DAY, NOON, batch, count, row


class HandClock:
    """Two clocks that run when they are told to, and a machine that can be started anew."""

    def __init__(self) -> None:
        self.wall = NOON + 100 * DAY
        self.monotonic = HOUR_NS
        self.boots = 0

    def time_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def boot(self) -> str:
        return f"boot {self.boots}"

    def run(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns

    def restart(self, off: int) -> None:
        self.wall += off
        self.monotonic = HOUR_NS
        self.boots += 1


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def watch(tmp_path: Path, clock: HandClock) -> ClockWatch:
    return ClockWatch(tmp_path / "clock.json", clock, clock.boot)


def test_a_clock_is_trusted_after_a_day_of_steady_running(watch: ClockWatch, clock: HandClock) -> None:
    found = []
    for _ in range(26):
        found.append(watch.trusted())
        clock.run(HOUR_NS)
    assert found == [False] * 24 + [True] * 2


JUMPS: dict[str, Callable[[HandClock], None]] = {
    "ahead": lambda clock: setattr(clock, "wall", clock.wall + MAX_JUMP_NS + HOUR_NS),
    "years ahead": lambda clock: setattr(clock, "wall", clock.wall + 3_650 * DAY),
    "back": lambda clock: setattr(clock, "wall", clock.wall - MAX_JUMP_NS - HOUR_NS),
    "ahead over a restart": lambda clock: clock.restart(MAX_OFF_NS + HOUR_NS),
    "back over a restart": lambda clock: clock.restart(-MAX_JUMP_NS - HOUR_NS),
}


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_after_a_jump_it_takes_a_day_again(
    watch: ClockWatch, clock: HandClock, jump: Callable[[HandClock], None]
) -> None:
    watch.trusted()
    clock.run(24 * HOUR_NS)
    assert watch.trusted()
    jump(clock)
    assert not watch.trusted()
    clock.run(23 * HOUR_NS)
    assert not watch.trusted()
    clock.run(HOUR_NS)
    assert watch.trusted()


CALM: dict[str, Callable[[HandClock], None]] = {
    "long unobserved": lambda clock: clock.run(90 * DAY),
    "small correction": lambda clock: setattr(clock, "wall", clock.wall - HOUR_NS),
    "weekend off": lambda clock: clock.restart(3 * DAY),
}


@pytest.mark.parametrize("calm", CALM.values(), ids=CALM)
def test_what_is_no_jump(watch: ClockWatch, clock: HandClock, calm: Callable[[HandClock], None]) -> None:
    watch.trusted()
    clock.run(24 * HOUR_NS)
    assert watch.trusted()
    calm(clock)
    assert watch.trusted()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"boot": 1, "wall": "x"}', "\udcff"])
def test_a_damaged_file_starts_anew(watch: ClockWatch, clock: HandClock, tmp_path: Path, content: str) -> None:
    (tmp_path / "clock.json").write_text(content, "utf-8", "surrogateescape")
    assert not watch.trusted()
    clock.run(24 * HOUR_NS)
    assert watch.trusted()


def test_this_machine_has_a_boot_id() -> None:
    assert boot_id() == boot_id() != ""


# -- the lake ------------------------------------------------------------------------------------------------


@pytest.fixture
def lake(tmp_path: Path, clock: HandClock) -> Lake:
    """Records of 40 days up to now, and some of the far future."""
    lake = lake_with(tmp_path)
    days = [*range(40), *range(-3_000, -2_990)]
    lake.write(batch([row(seq, timestamp=clock.wall - ago * DAY) for seq, ago in enumerate(days)]))
    return lake


def steady(clock: HandClock, folder: Path) -> None:
    ClockWatch(folder / "clock.json", clock).trusted()
    clock.run(24 * HOUR_NS)


def test_days_that_are_too_old_are_deleted(lake: Lake, clock: HandClock, tmp_path: Path) -> None:
    steady(clock, tmp_path)
    done = maintain(lake, tmp_path, clock, Retention(30))
    # A day has passed, and the day in which the thirtieth day ends is kept whole.
    assert (done.deleted, done.held) == (10, None)
    assert count(lake) == 40
    assert maintain(lake, tmp_path, clock, Retention(30)).deleted == 0


def test_a_jump_of_the_clock_deletes_nothing(lake: Lake, clock: HandClock, tmp_path: Path) -> None:
    assert maintain(lake, tmp_path, clock).held is not None
    clock.run(24 * HOUR_NS)
    clock.wall += 3_650 * DAY
    done = maintain(lake, tmp_path, clock)
    assert (done.deleted, done.vacuumed) == (0, 0)
    assert "clock" in str(done.held)
    assert count(lake) == 50


def test_a_clock_at_the_beginning_of_time_deletes_nothing(lake: Lake, clock: HandClock, tmp_path: Path) -> None:
    clock.wall = DAY
    steady(clock, tmp_path)
    assert maintain(lake, tmp_path, clock).deleted == 0
    assert count(lake) == 50


def test_one_maintains_and_the_others_leave_it_alone(lake: Lake, clock: HandClock, tmp_path: Path) -> None:
    with (tmp_path / "maintain.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert maintain(lake, tmp_path, clock).held == "another process is at it"
    assert maintain(lake, tmp_path, clock).held != "another process is at it"
    assert json.loads((tmp_path / "clock.json").read_text())["wall"] == clock.wall


# -- by metric type ------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path, clock: HandClock) -> Lake:
    """Records of 60 days and three metric types."""
    lake = lake_with(tmp_path)
    types = ("request", "audit", "trace's")
    rows = [(ago, metric_type) for ago in range(60) for metric_type in types]
    lake.write(
        batch(
            [
                row(seq, metric_type=metric_type, timestamp=clock.wall - ago * DAY)
                for seq, (ago, metric_type) in enumerate(rows)
            ]
        )
    )
    return lake


def left(lake: Lake) -> list[int]:
    return [count(lake, metric_type=metric_type) for metric_type in ("request", "audit", "trace's")]


def test_each_metric_type_is_kept_for_its_own_time(mixed: Lake, clock: HandClock, tmp_path: Path) -> None:
    steady(clock, tmp_path)
    retention = Retention(20, {"audit": 0, "trace's": 7})
    assert maintain(mixed, tmp_path, clock, retention).deleted == 40 + 53
    assert left(mixed) == [20, 60, 7]
    assert maintain(mixed, tmp_path, clock, retention).deleted == 0
    clock.run(DAY)
    assert maintain(mixed, tmp_path, clock, retention).deleted == 2
    info = mixed.info()
    assert (info.stored, info.deleted, info.recorded) == (85, 95, 180)


def test_zero_days_are_for_ever(mixed: Lake, clock: HandClock, tmp_path: Path) -> None:
    steady(clock, tmp_path)
    assert maintain(mixed, tmp_path, clock, Retention(0)).deleted == 0
    assert maintain(mixed, tmp_path, clock, Retention(0, {"audit": 30})).deleted == 30
    assert left(mixed) == [60, 30, 60]


@pytest.mark.parametrize("years", [10, 70, -10])
def test_a_jump_deletes_nothing_of_any_type(mixed: Lake, tmp_path: Path, years: int) -> None:
    clock = ManualClock(NOON + 100 * DAY)
    retention = Retention(20, {"audit": 1, "trace's": 50})
    maintain(mixed, tmp_path, clock, retention)
    clock.advance(86_400)
    clock.set(clock.time_ns() + years * 365 * DAY)
    for _ in range(20):
        assert maintain(mixed, tmp_path, clock, retention).deleted == 0
        clock.advance(3_600)
    clock.set(clock.time_ns() - years * 365 * DAY)  # and back
    for _ in range(20):
        assert maintain(mixed, tmp_path, clock, retention).deleted == 0
        clock.advance(3_600)
    assert left(mixed) == [60, 60, 60]


@pytest.mark.parametrize(
    ("days", "by_type"),
    [
        (-1, {}),
        (float("nan"), {}),
        (float("inf"), {}),
        (True, {}),
        ("30", {}),
        (30, {"a": -1}),
        (30, {"a": None}),
        (30, {"": 1}),
        (30, {"tallymark": 1}),
        (30, {f"type {number}": 1 for number in range(64)}),
    ],
)
def test_a_retention_that_is_none(days: Any, by_type: Any) -> None:
    with pytest.raises(ConfigError, match="retention"):
        Retention(days, by_type)


def test_very_many_days_are_no_error() -> None:
    assert Retention(1e300, {"a": 1e9}).expired(NOON) == []
