"""What a record costs in all: by the call, and by everything that happens to it until it lies in Parquet."""

import resource
import time
from tempfile import TemporaryDirectory

from bench import Row, workload
from tallymark import Metrics
from tallymark.core import core

CHUNK = 500_000
"""So many calls are made ready, and made again and again."""


def run(quick: bool = False) -> list[Row]:
    """CPU time, user and system, of this process and of the children that ship."""
    records = 1_000_000 if quick or not core else 5_000_000
    kind = "" if core else ", pure Python"
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        own, total = _record_and_ship(folder, records)
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        own_of_one, total_of_one = _record_and_ship(folder, 1)
    return [
        Row(
            f"record until in Parquet, CPU of all processes{kind}",
            total / records * 1e9,
            "ns",
            "the call's own CPU",
            own / records * 1e9,
            4.0,
            f"{records:,} records as fast as they can be made",
        ),
        Row(f"of that, everything but the calls{kind}", (total - own) / records * 1e9, "ns"),
        Row(
            f"the least that a shipping child costs, CPU{kind}",
            (total_of_one - own_of_one) * 1e3,
            "ms",
            note="it starts, imports, ships 1 record",
        ),
    ]


def _record_and_ship(folder: str, records: int) -> tuple[float, float]:
    """CPU seconds: of the calls, and of everything."""
    calls = workload.Calls(min(records, CHUNK))
    with Metrics(folder, service="shop", max_queue_size=2 * records + 100_000) as metrics:
        metrics.record("warm", "up", 1.0)
        metrics.flush(timeout=60)
        before = _cpu()
        started = time.thread_time()
        for _ in range(0, records, CHUNK):
            calls.make(metrics.record_operation)
        own = time.thread_time() - started
        metrics.flush(timeout=300)
        total = _cpu() - before
        started = time.thread_time()
        for _ in range(0, records, CHUNK):
            calls.make_none()
        beside = time.thread_time() - started
        stats = metrics.get_stats()
        if stats.queue_size or stats.dropped:
            raise RuntimeError(f"not everything is in the store: {stats}")
    return own - beside, total - beside


def _cpu() -> float:
    """CPU seconds so far, of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
