"""A hundred million records of thirty days in a lake: the dashboard of 1 h, 24 h, 7 d and 30 d, disk and memory."""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import tallymark
from bench import Row, workload
from tallymark.batch import Batch
from tallymark.server.overview import Span, overview
from tallymark.stores.lake.store import Lake

WHOLE: Final = 100_000_000
DAYS: Final = 30
GAUGES: Final = ("cpu_percent", "memory_percent", "disk_percent", "memory_used_mb", "disk_read_mb", "disk_write_mb")
NAMES: Final = [*workload.ROUTES[: workload.SERIES - len(GAUGES)], *GAUGES]
"""44 routes and 6 gauges of the machine: 50 series, each with a share as in every other bench."""

RANGES: Final = ("1h", "24h", "7d", "30d")
WARM_MS: Final = 300
COLD_MS: Final = 2_000
BYTES: Final = 15
SERVER_MIB: Final = 500

# One look at the dashboard by a process that has just started; imports do not count, loading DuckDB does.
COLD = """
import sys, time
import tallymark
from tallymark.server.overview import Span, overview
from bench import workload
started = time.perf_counter()
with tallymark.open(sys.argv[1]) as reader:
    overview(reader, Span.build("now-" + sys.argv[2], None, workload.END - 1))
    print((time.perf_counter() - started) * 1e3)
"""


def run(quick: bool = False) -> list[Row]:
    """Everything on the page is one look: seven queries with counts, rates, percentiles, and the books."""
    records = 6_000_000 if quick else WHOLE
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        fill(folder, records)
        return measure(folder, records, 5 if quick else 15)


def fill(folder: str, records: int) -> None:
    """Thirty days of records, as a shipper and the upkeep leave them."""
    with contextlib.closing(Lake(folder)) as lake:
        for batch in _batches(records):
            lake.write(batch)
        lake.compact(workload.END)
        lake.vacuum(0)


def measure(folder: str, records: int, times: int) -> list[Row]:
    """The rows about a lake that was filled."""
    before = _cpu()
    with contextlib.closing(Lake(folder)) as lake:
        made = lake.roll_up(workload.END)
        parquet = lake.info().bytes
    rolling = (_cpu() - before) / records * 1e9
    rollups = sum(path.stat().st_size for path in Path(folder, "rollups").iterdir())
    return [
        Row(f"{records:,} records, Parquet and rollups", (parquet + rollups) / records, "bytes",
            limit=BYTES if records >= WHOLE else None,
            note=f"per record; {rollups / records:.2f} of them rollups"),
        Row("making rollups, CPU per record", rolling, "ns", note=f"once, of {made} files"),
        *_looks(folder, times),
        Row("tallymark serve on it, peak memory", _server_mib(folder), "MiB", limit=SERVER_MIB,
            note="the four looks over HTTP, while it makes the rollups of two days"),
    ]  # fmt: skip


def _looks(folder: str, times: int) -> list[Row]:
    rows = []
    for length in RANGES:
        cold = []
        for _ in range(3):
            _forget(folder)
            done = subprocess.run([sys.executable, "-c", COLD, folder, length], capture_output=True, check=True)
            cold.append(float(done.stdout))
        span = Span.build(f"now-{length}", None, workload.END - 1)
        with tallymark.open(folder) as reader:
            overview(reader, span)
            warm = [_elapsed(lambda: overview(reader, span)) for _ in range(times)]  # noqa: B023  # called at once
        note = f"best of {times}, median {statistics.median(warm):.0f}"
        rows.append(Row(f"the dashboard of {length}, warm", min(warm), "ms", limit=WARM_MS, note=note))
        note = f"best of 3, median {statistics.median(cold):.0f}; a new process, nothing in the page cache"
        rows.append(Row(f"the dashboard of {length}, cold", min(cold), "ms", limit=COLD_MS, note=note))
    return rows


def _server_mib(folder: str) -> float:
    """The most that a server had in memory while it answered, and while it looked after the store."""
    for sidecar in sorted(Path(folder, "rollups").iterdir())[:2]:
        sidecar.unlink()
    command = [sys.executable, "-m", "tallymark", "serve", folder, "--port", "0"]
    environment = os.environ | {"METRICS_RETENTION_DAYS": "0"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as server:
        try:
            assert server.stdout
            url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
            for length in RANGES:
                span = Span.build(f"now-{length}", None, workload.END - 1)
                since, until = (datetime.fromtimestamp(at / 1e9, UTC).isoformat() for at in (span.start, span.end))
                asked = urllib.parse.urlencode({"since": since, "until": until})
                for _ in range(3):
                    with urllib.request.urlopen(f"{url}api/v1/overview?{asked}") as answer:
                        assert json.load(answer)["requests"]["total"]["count"]
            deadline = time.monotonic() + 120
            while len(list(Path(folder, "rollups").glob("*.parquet"))) < DAYS and time.monotonic() < deadline:
                time.sleep(0.5)
            status = Path(f"/proc/{server.pid}/status").read_text()
        finally:
            server.terminate()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _forget(folder: str) -> None:
    """Have the system drop the files from its page cache."""
    for path in Path(folder).rglob("*.parquet"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _batches(records: int, size: int = 500_000) -> Iterator[Batch]:
    """In the order of time, a day after the other."""
    for day in range(DAYS):
        start = workload.END - (DAYS - day) * workload.DAY_NS
        times = np.sort(np.random.default_rng(day).integers(start, start + workload.DAY_NS, records // DAYS))
        for first in range(0, len(times), size):
            yield _with_gauges(times[first : first + size], seed=day * 1_000 + first)


def _with_gauges(times: workload.Integers, seed: int) -> Batch:
    """Requests, and in place of the rarer routes what somebody measures of a machine."""
    work = workload.draw(len(times), seed)
    made = workload.batch(times, work)
    gauge: Any = pa.array(work.routes >= len(NAMES) - len(GAUGES))
    number: Any = pa.array(work.routes)
    columns: dict[str, Any] = {
        "name": pa.array(NAMES).take(number),
        "metric_type": pc.if_else(gauge, "system", "api_request"),
        "unit": pc.if_else(gauge, "%", "ms"),
        "success": pc.if_else(gauge, pa.scalar(None, pa.bool_()), made.table["success"]),
        "metadata": pc.if_else(gauge, "{}", made.table["metadata"]),
    }
    table = made.table
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return Batch(table, made.positions)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _elapsed(look: Any) -> float:
    started = time.perf_counter()
    look()
    return (time.perf_counter() - started) * 1e3
