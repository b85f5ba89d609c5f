"""Who looks after a store: one process of a machine at a time, and none that believes a clock which jumps."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from tallymark.clock import Clock, SystemClock
from tallymark.files import locked
from tallymark.store import Maintenance, Store
from tallymark.stores.retention import ClockWatch, Retention

MAINTAIN_LOCK: Final = "maintain.lock"
"""Locked, in the folder of a store, by whoever looks after it."""

UNTRUSTED: Final = "the clock has not been seen running steadily for a day"

_SYSTEM_CLOCK: Final = SystemClock()
_USUAL_RETENTION: Final = Retention()


def maintain(
    store: Store,
    folder: Path,
    clock: Clock = _SYSTEM_CLOCK,
    retention: Retention | None = _USUAL_RETENTION,
    *,
    roll_up: bool = True,
) -> Maintenance:
    """Have a store do what keeps it small and fast. Meant to be called every few minutes.

    With ``retention`` None no record is deleted. Nothing is deleted before ``clock`` has been seen to run steadily for
    a day, so that a clock which jumps deletes nothing. Where another process is at it, nothing is done.

    Args:
        folder: what belongs to the store on this machine.
        roll_up: whether to make rollups too, which may take minutes.

    Raises:
        StoreError: the store refused.
    """
    if not folder.is_dir():
        return Maintenance(held="there is no store yet")
    with locked(folder / MAINTAIN_LOCK, wait=False) as free:
        if not free:
            return Maintenance(held="another process is at it")
        trusted = trusts(folder, clock)
        done = store.maintain(clock.time_ns(), retention if trusted else None, strays=trusted)
        if roll_up:
            store.roll_up(clock.time_ns())
        return done if trusted else replace(done, held=UNTRUSTED)


def trusts(folder: Path, clock: Clock = _SYSTEM_CLOCK) -> bool:
    """Whether records may be deleted by this clock's time. Each look at it counts as a sight of it."""
    return ClockWatch(folder / "clock.json", clock).trusted()


@contextlib.contextmanager
def alone(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep others from looking after a store; ``waiting`` is called where one of them has to end first."""
    path = folder / MAINTAIN_LOCK
    with locked(path, wait=False) as free:
        if free:
            yield
            return
    waiting()
    with locked(path):
        yield
