"""What the calls that a pipeline makes cost, beside nothing and beside a histogram."""

from tempfile import TemporaryDirectory

import prometheus_client

from bench import Row
from bench.recording import Turn, _best
from tallymark import Metrics
from tallymark.core import core
from tallymark.pipeline import PipelineRun


def run(quick: bool = False) -> list[Row]:
    """Nanoseconds of CPU time per call, loop included. Each call keeps the figures of the run and is a record, too."""
    histogram = prometheus_client.Histogram("stage_seconds", "durations", ["stage"])
    with (
        TemporaryDirectory(prefix="tallymark-bench-") as folder,
        Metrics(folder, service="bench", max_queue_size=10_000_000) as metrics,
    ):
        recorded, alone = PipelineRun(metrics), PipelineRun()

        def record_stage(calls: int) -> None:
            record = recorded.record_stage
            for _ in range(calls):
                record("fetch", 0.0125, error=False)

        def record_stage_alone(calls: int) -> None:
            record = alone.record_stage
            for _ in range(calls):
                record("fetch", 0.0125, error=False)

        def stage(calls: int) -> None:
            timed = recorded.stage
            for _ in range(calls):
                with timed("fetch"):
                    pass

        def observe(calls: int) -> None:
            for _ in range(calls):
                histogram.labels("fetch").observe(0.0125)

        def nothing(calls: int) -> None:
            def function(name: str, duration_s: float, error: bool = False) -> None:
                pass

            for _ in range(calls):
                function("fetch", 0.0125, error=False)

        functions: list[Turn] = [record_stage, record_stage_alone, stage, observe, nothing]
        ns = _best(functions, 50 if quick else 150)
        if metrics.get_stats().dropped:
            raise RuntimeError("records were dropped: the figures are not those of recording")

    kind = "" if core else ", pure Python"
    peer = "prometheus_client Histogram.labels(1).observe"
    limit = 2_000 if core else None
    return [
        Row(f"record_stage of a run with a store{kind}", ns[record_stage], "ns", limit=limit),
        Row(f"record_stage of a run with a store{kind}", ns[record_stage], "ns", peer, ns[observe]),
        Row(f"record_stage of a run without a store{kind}", ns[record_stage_alone], "ns", peer, ns[observe]),
        Row(f"with run.stage(), with a store{kind}", ns[stage], "ns", peer, ns[observe]),
        Row("a function that does nothing", ns[nothing], "ns"),
    ]
