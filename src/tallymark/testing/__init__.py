"""For tests, those of applications too: a clock that only the test moves."""

import time


class ManualClock:
    """A :class:`tallymark.clock.Clock` that stands still until it is told otherwise.

    Args:
        now: the wall clock at first, ns since 1970-01-01 UTC; the machine's time by default.
    """

    def __init__(self, now: int | None = None) -> None:
        self._wall = time.time_ns() if now is None else now
        self._monotonic = 0

    def time_ns(self) -> int:
        """The wall clock, ns since 1970-01-01 UTC."""
        return self._wall

    def monotonic_ns(self) -> int:
        """Ns that have passed, as far as the test said so."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        if seconds < 0:
            raise ValueError("time does not go back; set() puts the wall clock anywhere")
        self._wall += round(seconds * 1e9)
        self._monotonic += round(seconds * 1e9)

    def set(self, now: int) -> None:
        """Set the wall clock, ns since 1970-01-01 UTC, as an administrator does; no time passes."""
        self._wall = now
