"""What importing costs an application, and what recording brings into it."""

import json
import statistics
import subprocess
import sys
from tempfile import TemporaryDirectory

from bench import Row

IMPORT = """
import time
started = time.process_time_ns()
import {module}
print(time.process_time_ns() - started)
"""

RECORD = """
import json, sys
before = set(sys.modules)
import tallymark
with tallymark.Metrics({folder!r}, max_queue_size=1_000_000) as metrics:
    for number in range(200_000):
        metrics.record_operation("api_request", "GET /users", 12.5, metadata={{"number": number % 10}})
        if not number % 1000:
            with metrics.track_operation("resize"):
                pass
    metrics.flush(timeout=60)
    assert not metrics.get_stats().dropped
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""

HEAVY = {
    *("asyncio", "deltalake", "duckdb", "fastapi", "numpy", "opentelemetry", "pandas", "polars", "prometheus_client"),
    *("psutil", "pyarrow", "pydantic", "rich", "sqlite3", "starlette", "typer", "uvicorn"),
}


def run(quick: bool = False) -> list[Row]:
    """The CPU time of the import statement in a fresh interpreter, the middle of many; what was loaded by recording."""
    taken: dict[str, list[float]] = {"tallymark": [], "prometheus_client": [], "opentelemetry.sdk.metrics": []}
    for _ in range(7 if quick else 25):
        for module, times in taken.items():
            times.append(int(_python(IMPORT.format(module=module))) / 1e6)
    ms = {module: statistics.median(times) for module, times in taken.items()}
    with TemporaryDirectory(prefix="tallymark-bench-") as folder:
        loaded = set(json.loads(_python(RECORD.format(folder=folder))))
    heavy = sorted(HEAVY & loaded)
    return [
        Row("import tallymark", ms["tallymark"], "ms", "import prometheus_client", ms["prometheus_client"], 0.3),
        Row(
            "import tallymark",
            ms["tallymark"],
            "ms",
            "import opentelemetry.sdk.metrics",
            ms["opentelemetry.sdk.metrics"],
        ),
        Row("heavy packages that recording loads", len(heavy), "", limit=0, note=", ".join(heavy)),
    ]


def _python(code: str) -> str:
    """What some code prints in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
