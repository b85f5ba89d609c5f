"""How long records are kept, and whether the clock that says so may be believed: one that jumps must not delete
anything.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tallymark.clock import Clock
from tallymark.errors import ConfigError
from tallymark.model import RESERVED_TYPE, check_text
from tallymark.query import MAX_FILTERS, Filter, Query

DAY_NS: Final = 86_400_000_000_000

MAX_DAYS: Final = 100_000
"""More days than there are timestamps for."""

HOUR_NS: Final = 3_600_000_000_000

STEADY_NS: Final = 24 * HOUR_NS
"""How long the clock has to be seen running steadily before anything is deleted by its time."""

MAX_JUMP_NS: Final = 24 * HOUR_NS
"""How far the wall clock may move against the monotonic one between two looks."""

MAX_OFF_NS: Final = 7 * 24 * HOUR_NS
"""How long a machine may have been off, by the wall clock, before that is taken for a jump."""


@dataclass(frozen=True)
class Retention:
    """For how long records are kept: whole days (UTC) that ended longer ago than that are forgotten.

    Attributes:
        days: of every metric type that is not named; 0 keeps them for ever.
        by_type: days by metric type; 0 keeps those for ever.

    Raises:
        ConfigError: a number of days is negative or not finite, or a metric type is none.
    """

    days: float = 30
    by_type: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.by_type) >= MAX_FILTERS:
            raise ConfigError(f"retention: at most {MAX_FILTERS - 1} metric types, not {len(self.by_type)}")
        for metric_type in self.by_type:
            try:
                check_text("retention: a metric type", metric_type)
            except ValueError as error:
                raise ConfigError(str(error)) from None
            if metric_type == RESERVED_TYPE:
                raise ConfigError(f"retention: {RESERVED_TYPE!r} is the store's own, and is always kept")
        for part, days in (("retention_days", self.days), *(("retention", days) for days in self.by_type.values())):
            if isinstance(days, bool) or not isinstance(days, int | float) or not math.isfinite(days) or days < 0:
                raise ConfigError(f"{part}: the days must be a number, 0 (for ever) or more")

    def expired(self, now: int) -> list[Query]:
        """What is too old at a time (ns), as one query for each rule."""
        others = tuple(Filter("metric_type", "!=", metric_type) for metric_type in self.by_type)
        rules = [(self.days, others)]
        rules += [(days, (Filter("metric_type", "=", metric_type),)) for metric_type, days in self.by_type.items()]
        found = []
        for days, filters in rules:
            end = (now - int(min(days, MAX_DAYS) * DAY_NS)) // DAY_NS * DAY_NS
            if days and end > 0:
                found.append(Query(end=end, filters=filters))
        return found


def boot_id() -> str:
    """What tells this start of the machine from every other; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


class _Look(NamedTuple):
    """What the clocks said, and for how long they had been steady then (ns)."""

    boot: str
    wall: int
    monotonic: int
    steady: int


class ClockWatch:
    """Looks at the clocks now and then, and remembers it in a file.

    Args:
        path: the file. Where it is lost or damaged, watching starts anew.
        boot: as :func:`boot_id`.
    """

    def __init__(self, path: Path, clock: Clock, boot: Callable[[], str] = boot_id) -> None:
        self._path = path
        self._clock = clock
        self._boot = boot

    def trusted(self) -> bool:
        """Look at the clocks. Whether the wall clock has run steadily for :data:`STEADY_NS`."""
        wall, monotonic, boot = self._clock.time_ns(), self._clock.monotonic_ns(), self._boot()
        last = self._last()
        steady = 0 if last is None else _steady(last, boot, wall, monotonic)
        self._remember(_Look(boot, wall, monotonic, min(steady, STEADY_NS)))
        return steady >= STEADY_NS

    def _last(self) -> _Look | None:
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            return _Look(str(kept["boot"]), int(kept["wall"]), int(kept["monotonic"]), int(kept["steady"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, look: _Look) -> None:
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(look._asdict(), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def _steady(last: _Look, boot: str, wall: int, monotonic: int) -> int:
    """For how long the clock has been steady by now; zero where it has jumped since the last look."""
    passed = wall - last.wall
    if boot == last.boot and monotonic >= last.monotonic:
        ran = monotonic - last.monotonic
        return last.steady + ran if abs(passed - ran) <= MAX_JUMP_NS else 0
    # The machine was off. How long, only the wall clock says.
    return last.steady if -MAX_JUMP_NS <= passed <= MAX_OFF_NS else 0
