"""Five million records of seven days: what they take on the disk, and how long questions take."""

import contextlib
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import tallymark
from bench import Row, workload
from tallymark.reader import Answer, Reader
from tallymark.stores.lake.store import Lake

SERIES = ("service", "metric_type", "name", "unit")


def run(quick: bool = False) -> list[Row]:
    """Bytes are those of the Parquet files of the table; a question is asked through ``tallymark.open`` and warm."""
    records = 1_000_000 if quick else 5_000_000
    with TemporaryDirectory(prefix="tallymark-bench-") as folder, contextlib.closing(Lake(folder)) as lake:
        for batch in workload.batches(records):
            lake.write(batch)
        written = lake.info().bytes / records
        lake.compact()
        compacted = lake.info().bytes / records
        with tallymark.open(folder) as reader:
            return [
                Row(f"{records:,} records in Parquet, as written", written, "bytes", limit=25, note="per record"),
                Row("the same, compacted", compacted, "bytes", limit=25, note="per record"),
                *_questions(reader, 5 if quick else 15),
            ]


def _questions(reader: Reader, times: int) -> list[Row]:
    day = workload.START + 3 * workload.DAY_NS
    all_days = {"since": workload.START, "until": workload.END}

    def one_series() -> Answer:
        return reader.query(
            since=day,
            until=day + workload.DAY_NS,
            service="shop",
            metric_type="api_request",
            name=workload.ROUTES[3],
            window="5m",
            agg=("count", "avg", "p50", "p95", "p99"),
        )

    def every_series() -> Answer:
        return reader.query(**all_days, window="5m", group_by=SERIES, agg=("count", "p50", "p95", "p99"))

    def by_metadata() -> Answer:
        return reader.query(**all_days, name=workload.ROUTES[0], group_by="metadata.region", agg=("count", "p95"))

    def newest() -> int:
        return len(reader.records(**all_days, name=workload.ROUTES[7], limit=100))

    ask: list[tuple[str, Callable[[], object], float | None]] = [
        ("one series, one day, by 5 minutes, exact p50 p95 p99", one_series, 100),
        ("all series, seven days, by 5 minutes, exact p50 p95 p99", every_series, 1500),
        ("one series, seven days, by a metadata key, exact p95", by_metadata, None),
        ("the newest 100 records of one series", newest, None),
    ]
    rows = []
    for what, question, limit in ask:
        ms = [_elapsed(question) for _ in range(times + 1)][1:]  # the first opens and maps what the others find
        rows.append(Row(what, min(ms), "ms", limit=limit, note=f"median {statistics.median(ms):.0f}"))
    return rows


def _elapsed(question: Callable[[], object]) -> float:
    started = time.perf_counter()
    question()
    return (time.perf_counter() - started) * 1e3
