"""Where time comes from, so that a test can move it."""

import time
from typing import Protocol


class Clock(Protocol):
    """The two clocks of a machine."""

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since 1970-01-01 UTC. May jump either way."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back. Every duration is measured with it."""


class SystemClock:
    """The machine's own clocks."""

    # The functions themselves, not methods that call them: one call less for every record.
    time_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.perf_counter_ns)
