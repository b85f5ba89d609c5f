"""What one call costs the application, beside the usual ways of recording a duration."""

import threading
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import prometheus_client
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bench import Row
from tallymark import Metrics
from tallymark.core import core

CALLS = 2_000
"""Calls of one turn, about two milliseconds: short enough that some turns are not disturbed by other processes."""
THREADS = 4

Turn = Callable[[int], None]


def run(quick: bool = False) -> list[Row]:
    """Nanoseconds per call, the best of many turns. Without the compiled core the figures are for information."""
    prometheus = prometheus_client.Histogram("operation_ms", "durations", ["type", "name"])
    provider = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    otel = provider.get_meter("bench").create_histogram("operation_ms")
    with TemporaryDirectory(prefix="tallymark-bench-") as folder, _metrics(folder) as metrics:

        def record_operation(calls: int) -> None:
            record = metrics.record_operation
            for _ in range(calls):
                record(
                    "api_request",
                    "GET /users/{id}",
                    12.5,
                    metadata={"region": "eu-west-1", "status_code": 200, "cached": False},
                )

        def record_value(calls: int) -> None:
            record = metrics.record
            for _ in range(calls):
                record("queue", "depth", 12.0, metadata={"region": "eu-west-1", "shard": 7, "paused": False})

        def track_operation(calls: int) -> None:
            track = metrics.track_operation
            for _ in range(calls):
                with track("resize", {"region": "eu-west-1", "width": 640, "cached": False}):
                    pass

        def observe(calls: int) -> None:
            for _ in range(calls):
                prometheus.labels("api_request", "GET /users/{id}").observe(12.5)

        def otel_record(calls: int) -> None:
            record = otel.record
            for _ in range(calls):
                record(12.5, {"region": "eu-west-1", "status_code": 200, "cached": False})

        turns = 50 if quick else 150
        ns = _best([record_operation, observe, otel_record, record_value, track_operation], turns)
        threaded = _best_threaded(record_operation, turns // 5)
        if metrics.get_stats().dropped:
            raise RuntimeError("records were dropped: the figures are not those of recording")
    provider.shutdown()

    ours, kind = ns[record_operation], "" if core else ", pure Python"
    what = f"record_operation, three metadata keys{kind}"
    limits = (0.5, 0.15, 2.0) if core else (None, None, None)
    return [
        Row(what, ours, "ns", "prometheus_client Histogram.labels(2).observe", ns[observe], limits[0]),
        Row(what, ours, "ns", "OpenTelemetry histogram.record, 3 attributes", ns[otel_record], limits[1]),
        Row(f"the same, {THREADS} threads at once{kind}", threaded, "ns", "one thread", ours, limits[2]),
        Row(f"record, three metadata keys{kind}", ns[record_value], "ns"),
        Row(f"with track_operation(), three metadata keys{kind}", ns[track_operation], "ns"),
    ]


def _metrics(folder: str) -> Metrics:
    return Metrics(folder, service="bench", max_queue_size=10_000_000)  # the calls come faster than they are shipped


def _best(functions: list[Turn], turns: int) -> dict[Turn, float]:
    """The least time per call of each function, in ns; they take turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(turns):
        for function in functions:
            started = time.perf_counter_ns()
            function(CALLS)
            best[function] = min(best[function], (time.perf_counter_ns() - started) / CALLS)
    return best


def _best_threaded(function: Turn, turns: int) -> float:
    """The least time per call in ns, where several threads call at once: the time that passes, over all their calls."""
    calls = CALLS * 5  # long enough for the threads to get into each other's way
    best = float("inf")
    for _ in range(turns):
        gate = threading.Barrier(THREADS + 1)

        def work(gate: threading.Barrier = gate) -> None:
            gate.wait()
            function(calls)

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        gate.wait()
        started = time.perf_counter_ns()
        for thread in threads:
            thread.join()
        best = min(best, (time.perf_counter_ns() - started) / (calls * THREADS))
    return best
