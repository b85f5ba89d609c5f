"""What the collectors cost the process that they run in: the machine's, Redis' and PostgreSQL's, each every 5 s."""

import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from bench import Row
from tallymark import Metrics
from tallymark.collectors import system
from tallymark.collectors.collector import Collector
from tallymark.collectors.postgres import PostgresCollector
from tallymark.collectors.redis import RedisCollector
from tallymark.collectors.system import SystemCollector

# Where the real servers of the tests are.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

INTERVAL_SECONDS = 5.0

PATIENT_SECONDS = 30.0
"""A time-out for a machine that is busy with other things."""


def run(quick: bool = False) -> list[Row]:
    """CPU seconds of this process for one sample of every collector, over the interval, as a share of one core.

    What the servers do for it is not in it: they usually run elsewhere.
    """
    rounds = 50 if quick else 300
    # One after the other there would be no time between two samples to measure rates over, and they would be left out.
    system._SHORTEST_WINDOW_SECONDS = 0.0
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="tallymark-bench-"))
        metrics = stack.enter_context(Metrics(folder, service="bench"))
        collectors, missing = _collectors(stack, metrics)
        shares = {}
        for name, collector in collectors.items():
            stack.callback(collector.stop)
            shares[name] = 100.0 * _seconds(collector, rounds) / INTERVAL_SECONDS
        for name, collector in collectors.items():
            # One that could not ask would cost next to nothing.
            if not collector.status().get("connected", True):
                raise RuntimeError(f"{name} was not reached: the figure is not that of its collector")
    parts = ", ".join(f"{name} {share:.2g} %" for name, share in shares.items())
    note = f"{parts}; {rounds} samples of each, one after the other" + "".join(
        f"; without {name}, which is not installed" for name in missing
    )
    rows.append(Row("CPU of all collectors at 5 s, of one core", sum(shares.values()), "%", limit=1.0, note=note))
    return rows


def _collectors(stack: ExitStack, metrics: Metrics) -> tuple[dict[str, Collector], list[str]]:
    """By name, and the names of servers that there are none of."""
    from services.postgres import postgres_server
    from services.redis import redis_server

    collectors: dict[str, Collector] = {"machine": SystemCollector(metrics)}
    missing = []
    try:
        url = stack.enter_context(redis_server())
        collectors["Redis"] = RedisCollector(metrics, url, timeout_seconds=PATIENT_SECONDS)
    except pytest.skip.Exception:
        missing.append("Redis")
    try:
        url = stack.enter_context(postgres_server("shared_preload_libraries=pg_stat_statements"))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        collectors["PostgreSQL"] = PostgresCollector(metrics, url, timeout_seconds=PATIENT_SECONDS)
    except pytest.skip.Exception:
        missing.append("PostgreSQL")
    return collectors, missing


def _seconds(collector: Collector, rounds: int) -> float:
    """CPU seconds of one sample, in whichever thread."""
    collector.collect_once()  # connects
    before = _cpu_seconds()
    for _ in range(rounds):
        collector.collect_once()
    return (_cpu_seconds() - before) / rounds


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
