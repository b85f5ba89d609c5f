"""The workload of every bench that fills a store: 50 series of unequal popularity, log-normal durations, three metadata
keys, spread evenly over seven days.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

SERIES: Final = 50
DAYS: Final = 7
DAY_NS: Final = 86_400_000_000_000
END: Final = 1_750_000_000_000_000_000 // DAY_NS * DAY_NS
"""When the seven days end (ns): midnight, UTC."""
START: Final = END - DAYS * DAY_NS

ROUTES: Final = [f"GET /api/v1/resource-{number}/{{id}}" for number in range(SERIES)]
REGIONS: Final = ("eu-west-1", "eu-central-1", "us-east-1", "ap-south-1")
STATUS: Final = (200, 200, 200, 200, 200, 201, 204, 304, 404, 500)
WORKERS: Final = tuple(f"web-{number}" for number in range(16))

RecordOperation = Callable[[str, str, float, bool, str | None, dict[str, object]], object]


@dataclass(frozen=True)
class Calls:
    """The arguments of calls to ``record_operation``, made beforehand.

    The popularity of the series follows Zipf's law; the duration is log-normal, in ms, at full precision; the
    metadata has 640 combinations of values.
    """

    routes: list[str]
    durations: list[float]
    regions: list[str]
    status: list[int]
    workers: list[str]

    def record_with(self, record_operation: RecordOperation) -> None:
        """Make the calls; each makes its own metadata, as an application does."""
        for route, duration, region, status, worker in zip(
            self.routes, self.durations, self.regions, self.status, self.workers, strict=True
        ):
            record_operation(
                "api_request",
                route,
                duration,
                status < 500,
                None,
                {"region": region, "status_code": status, "worker": worker},
            )


def calls(records: int, seed: int = 1) -> Calls:
    """So many calls, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, SERIES + 1)
    series = random.choice(SERIES, records, p=popularity / popularity.sum())
    return Calls(
        routes=[ROUTES[number] for number in series.tolist()],
        durations=(random.lognormal(3.0, 0.8, records) * (1 + series / 10)).tolist(),
        regions=[REGIONS[number] for number in random.integers(0, len(REGIONS), records).tolist()],
        status=[STATUS[number] for number in random.integers(0, len(STATUS), records).tolist()],
        workers=[WORKERS[number] for number in random.integers(0, len(WORKERS), records).tolist()],
    )


class SevenDays:
    """A wall clock that passes through the seven days, in so many looks at random intervals, and stays at their end."""

    def __init__(self, looks: int, seed: int = 1) -> None:
        times = np.sort(np.random.default_rng(seed).integers(START, END, looks))
        self._times: Iterator[int] = iter(times.tolist())

    def time_ns(self) -> int:
        """The next of the instants, in ns."""
        return next(self._times, END - 1)

    monotonic_ns = staticmethod(time.perf_counter_ns)
