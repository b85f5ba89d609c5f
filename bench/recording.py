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
"""Calls of one turn."""
THREADS = 4

Turn = Callable[[int], None]


def run(quick: bool = False) -> list[Row]:
    """Nanoseconds per call. Without the compiled core the figures are for information.

    One thread: CPU time, which is what passes on an idle machine, for none of these calls waits for anything.
    Several threads: the time that passes, against that of one thread which makes as many calls.
    """
    prometheus = prometheus_client.Histogram("operation_ms", "durations", ["type", "name"])
    provider = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    otel = provider.get_meter("bench").create_histogram("operation_ms")
    with TemporaryDirectory(prefix="tallymark-bench-") as folder, _metrics(folder) as metrics:

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

        off = Metrics(folder, service="bench", enabled=False)
        record_operation, disabled, empty = _operations(metrics), _operations(off), _operations(Empty())
        turns = 50 if quick else 150
        ns = _best([record_operation, observe, otel_record, record_value, track_operation, disabled, empty], turns)
        alone, together = _threads(record_operation, turns // 5)
        if metrics.get_stats().dropped:
            raise RuntimeError("records were dropped: the figures are not those of recording")
    provider.shutdown()

    ours, kind = ns[record_operation], "" if core else ", pure Python"
    what = f"record_operation, three metadata keys{kind}"
    limits = (0.5, 0.15, 2.0) if core else (None, None, None)
    return [
        Row(what, ours, "ns", "prometheus_client Histogram.labels(2).observe", ns[observe], limits[0]),
        Row(what, ours, "ns", "OpenTelemetry histogram.record, 3 attributes", ns[otel_record], limits[1]),
        Row(f"the same, {THREADS} threads at once{kind}", together, "ns", "one thread", alone, limits[2]),
        Row(f"record, three metadata keys{kind}", ns[record_value], "ns"),
        Row(f"with track_operation(), three metadata keys{kind}", ns[track_operation], "ns"),
        Row(f"record_operation, switched off{kind}", ns[disabled], "ns", "an empty method", ns[empty], 1.25),
    ]


def _operations(recorder: "Metrics | Empty") -> Turn:
    def turn(calls: int) -> None:
        record = recorder.record_operation
        for _ in range(calls):
            record(
                "api_request",
                "GET /users/{id}",
                12.5,
                metadata={"region": "eu-west-1", "status_code": 200, "cached": False},
            )

    return turn


class Empty:
    """What calling costs when nothing is done."""

    def record_operation(
        self,
        operation_type: str,
        operation_name: str,
        duration_ms: float,
        success: bool = True,
        error_message: str | None = None,
        metadata: dict[str, object] | None = None,
    ) -> None:
        """Nothing."""


def _metrics(folder: str) -> Metrics:
    return Metrics(folder, service="bench", max_queue_size=10_000_000)  # the calls come faster than they are shipped


def _best(functions: list[Turn], turns: int) -> dict[Turn, float]:
    """The least CPU time per call of each function, in ns; they take turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(turns):
        for function in functions:
            started = time.thread_time_ns()
            function(CALLS)
            best[function] = min(best[function], (time.thread_time_ns() - started) / CALLS)
    return best


def _threads(function: Turn, turns: int) -> tuple[float, float]:
    """The least time per call, in ns, by one thread and by several at once; they take turns."""
    calls = CALLS * 10  # so that the threads get into each other's way
    alone = together = float("inf")
    for _ in range(turns):
        alone = min(alone, _elapsed(function, 1, calls * THREADS))
        together = min(together, _elapsed(function, THREADS, calls))
    return alone, together


def _elapsed(function: Turn, count: int, calls: int) -> float:
    """The time that so many threads take for so many calls each, per call, in ns."""
    gate = threading.Barrier(count + 1)

    def work() -> None:
        gate.wait()
        function(calls)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter_ns()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - started) / (calls * count)
