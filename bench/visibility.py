"""How soon a query in another process sees what was recorded."""

import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import tallymark
from bench import Row, workload
from tallymark import Metrics
from tallymark.reader import Reader

SHIPPED = 200_000
WAITING = 20_000

# Says when each call returned; the clock is the same in every process.
WRITER = """
import sys, time
from tallymark import Metrics
with Metrics({folder!r}, service="shop") as metrics:
    for number in range({waiting}):
        metrics.record_operation("api_request", "GET /users", 12.5, metadata={{"region": "eu", "shard": 7}})
    print("ready", flush=True)
    for line in sys.stdin:
        metrics.record_operation("job", "seen", 12.5, metadata={{"region": "eu", "shard": 7}})
        returned = time.perf_counter_ns()
        print(returned, flush=True)
"""


def run(quick: bool = False) -> list[Row]:
    """The time from the return of ``record_operation`` to the end of the first query that shows the record.

    The reader is open and warm; the query is asked as soon as the writer says that the call returned. No server runs,
    and nothing is flushed.
    """
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        with Metrics(folder, service="shop") as metrics:
            workload.Calls(SHIPPED).make(metrics.record_operation)
        ms = sorted(_delays(folder, 40 if quick else 300))
    p99 = ms[len(ms) * 99 // 100]
    note = f"{SHIPPED:,} records in Parquet, {WAITING:,} and more in the writer's journal"
    return [
        Row("visible to a query in another process, median", statistics.median(ms), "ms", limit=50, note=note),
        Row("visible to a query in another process, 99th percentile", p99, "ms", limit=50),
    ]


def _delays(folder: str, rounds: int) -> list[float]:
    """The delay of each of so many records, in ms."""
    code = WRITER.format(folder=folder, waiting=WAITING)
    delays = []
    with (
        tallymark.open(folder) as reader,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer,
    ):
        assert writer.stdin
        assert writer.stdout
        writer.stdout.readline()
        for round_ in range(-5, rounds):  # the first ones warm the reader up
            seen = _seen(reader)
            writer.stdin.write("go\n")
            writer.stdin.flush()
            returned = int(writer.stdout.readline())
            while _seen(reader) == seen:
                pass
            if round_ >= 0:
                delays.append((time.perf_counter_ns() - returned) / 1e6)
        writer.stdin.close()
    return delays


def _seen(reader: Reader) -> int:
    answer = reader.query(since="now-1h", metric_type="job", name="seen", agg="count")
    return sum(row["count"] for row in answer.rows())
