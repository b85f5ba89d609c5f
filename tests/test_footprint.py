"""What recording takes: memory, modules, threads."""

from pathlib import Path

import pytest
from recording import books, output, python

pytestmark = pytest.mark.usefixtures("core")

HEAVY = {
    *("numpy", "pyarrow", "pandas", "duckdb", "deltalake", "asyncio", "pydantic", "fastapi", "typer", "rich"),
    *("psutil", "sqlite3", "http.client"),
}

MODULES = f"""
import sys
before = set(sys.modules)
import tallymark
heavy = {HEAVY!r}
assert not (found := heavy & set(sys.modules)), found
metrics = tallymark.Metrics(sys.argv[1], flush_interval_seconds=0.05, max_queue_size=512)
with metrics:
    for number in range(300):
        metrics.record_operation("a", "b", 1.0, metadata={{"list": [number]}})
    with metrics.track_operation("work"):
        pass
    metrics.get_stats()
    metrics.flush(100)
assert not (found := heavy & set(sys.modules)), found
assert not list(name for name in sys.modules if name.startswith(("tallymark.stores", "tallymark.reader")))
print(len(set(sys.modules) - before))
"""


def test_nothing_heavy_is_loaded_into_the_application(folder: Path) -> None:
    loaded = int(output(python("-c", MODULES, str(folder)), 120))
    assert loaded < 110


MEMORY = """
import resource, sys
from tallymark import Metrics

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = IDLE
metrics = Metrics(sys.argv[1], max_queue_size=2_000_000)
metrics.start()
for number in range(1_000_000):
    metrics.record_operation("a", f"b{number % 50}", number / 7, metadata={"x": number, "y": "zzzzzzzz", "z": True})
after = peak()
stats = metrics.get_stats()
assert stats.total_recorded == 1_000_000 and not stats.dropped, stats
metrics.stop(300)
print(int(after - before))
"""


def test_a_million_records_take_little_memory(folder: Path) -> None:
    idle = output(
        python("-c", "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"), 120
    )
    grown = int(output(python("-c", MEMORY.replace("IDLE", idle.strip()), str(folder)), 400))
    assert grown <= 60
    info = books(folder)
    assert (info.stored + info.pending, info.dropped) == (1_000_000, {})
