"""The workload of every bench that fills a store: 50 series of unequal popularity, log-normal durations, three metadata
keys; as calls to make now, or as batches of records spread over seven days.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallymark.batch import CLOSED, SCHEMA, Batch
from tallymark.journal import LANE_ENTRIES

SERIES: Final = 50
DAYS: Final = 7
DAY_NS: Final = 86_400_000_000_000
END: Final = 1_750_000_000_000_000_000 // DAY_NS * DAY_NS
"""When the seven days end (ns): midnight, UTC."""
START: Final = END - DAYS * DAY_NS

ROUTES: Final = [f"GET /api/v1/resource-{number}/{{id}}" for number in range(SERIES)]
METADATA: Final = [
    {"region": region, "status_code": status, "worker": f"web-{worker}"}
    for region in ("eu-west-1", "eu-central-1", "us-east-1", "ap-south-1")
    for status in (200, 200, 200, 200, 200, 201, 204, 304, 404, 500)
    for worker in range(16)
]
"""The 640 combinations of metadata, as often as each is to be had."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """What so many records are about, as one entry for each.

    Attributes:
        routes: the number of the series; popularity follows Zipf's law.
        durations: in ms, log-normal, at full precision.
        metadata: the number of the combination.
    """

    routes: Integers
    durations: npt.NDArray[np.float64]
    metadata: Integers


def draw(records: int, seed: int = 1) -> Workload:
    """So many records, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, SERIES + 1)
    routes = random.choice(SERIES, records, p=popularity / popularity.sum())
    durations = random.lognormal(3.0, 0.8, records) * (1 + routes / 10)
    return Workload(routes, durations, random.integers(0, len(METADATA), records))


class Calls:
    """Calls to ``record_operation``, their arguments made beforehand."""

    def __init__(self, records: int) -> None:
        work = draw(records)
        combinations = [METADATA[number] for number in work.metadata.tolist()]
        self._arguments: tuple[list[Any], ...] = (
            [ROUTES[number] for number in work.routes.tolist()],
            work.durations.tolist(),
            [metadata["region"] for metadata in combinations],
            [metadata["status_code"] for metadata in combinations],
            [metadata["worker"] for metadata in combinations],
        )

    def make(self, record_operation: Callable[..., object]) -> None:
        """Make them; each makes its own metadata, as an application does."""
        for route, duration, region, status, worker in zip(*self._arguments, strict=True):
            record_operation(
                "api_request",
                route,
                duration,
                metadata={"region": region, "status_code": status, "worker": worker},
            )

    def make_none(self) -> None:
        """Only go through the arguments: what :meth:`make` takes beside the calls."""
        for _route, _duration, _region, _status, _worker in zip(*self._arguments, strict=True):
            pass


def batches(records: int, size: int = 500_000, *, days: int = DAYS) -> Iterator[Batch]:
    """Records spread evenly over the days before the end, in the order of time, as a shipper hands them to a store."""
    times = np.sort(np.random.default_rng(1).integers(END - days * DAY_NS, END, records))
    for first in range(0, records, size):
        yield batch(times[first : first + size], draw(len(times[first : first + size]), seed=first))


def batch(times: Integers, work: Workload) -> Batch:
    """Records at these times (ns, ascending), of journals of their own."""
    count = len(times)
    random = np.random.default_rng(times[0])
    journals = [_journal(random) for _ in range(-(-count // LANE_ENTRIES))]
    failed = np.array([metadata["status_code"] == 500 for metadata in METADATA])
    columns: dict[str, Any] = {
        "journal": _texts(journals, np.arange(count) // LANE_ENTRIES),
        "seq": np.arange(count) % LANE_ENTRIES,
        "timestamp": times,
        "service": pa.repeat("shop", count),
        "metric_type": pa.repeat("api_request", count),
        "name": _texts(ROUTES, work.routes),
        "value": work.durations,
        "unit": pa.repeat("ms", count),
        "success": ~failed[work.metadata],
        "metadata": _texts([msgspec.json.encode(item).decode() for item in METADATA], work.metadata),
    }
    empty = pa.nulls(count, pa.string())
    table = pa.table([columns.get(field.name, empty) for field in SCHEMA], schema=SCHEMA)
    return Batch(table, dict.fromkeys(journals, CLOSED))


def _texts(texts: list[str], numbers: Integers) -> Any:
    indices: Any = pa.array(numbers)
    return pa.array(texts, pa.string()).take(indices)


def _journal(random: np.random.Generator) -> str:
    """A journal's id, as random as those of the recorder."""
    ident = uuid.UUID(bytes=random.bytes(16)).int
    return f"{ident >> 40 << 40:032x}"
