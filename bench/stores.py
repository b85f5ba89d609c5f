"""What each kind of store takes, holds and answers: ``python -m bench.stores [STORE …] [--records N …] [--write]``.

Each store and number has a process to itself. What was measured is kept in ``bench/stores.json``, where new figures
take the place of old ones, and with ``--write`` the tables of docs/scaling.md are made of it.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import psutil

from bench import capacity, workload
from bench.measured import FEW, Measured, keep, kept, put, table
from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.shipper import BATCH_ROWS
from tallymark.store import Store

DAYS: Final = 30
TURNS: Final = 3
LONG_SECONDS: Final = 20.0
"""A query that takes so long is asked once."""

SMALL_WRITES: Final = 20
PARTS: Final = 90
"""No more than one merge takes."""

STORES: Final = ("lake", "sqlite", "postgresql", "clickhouse", "json")
MOST: Final = {"json": 10_000_000}
"""It reads all files of the range for an answer: of 100 million that would take ten minutes."""

USUAL: Final = (1_000_000, 10_000_000, 100_000_000)
"""Of the table; what is missing of these is named below it."""

HOUR_NS: Final = workload.DAY_NS // 24

LONG: Final = "everything, 30 days by 6 h, p95"
BEFORE_UPKEEP: Final = "the same before upkeep, so without rollups"

QUERIES: Final = {
    "one series, 1 h by minute": Query.build(
        since=workload.END - 2 * HOUR_NS,
        until=workload.END - HOUR_NS,
        name=workload.ROUTES[3],
        window="1m",
        agg=("count", "avg", "p95"),
    ),
    capacity.ONE_DAY: Query.build(
        since=workload.END - workload.DAY_NS,
        until=workload.END,
        window="15m",
        group_by="name",
        agg=("count", "p50", "p95", "p99"),
    ),
    "one series, 1 day by a metadata key": Query.build(
        since=workload.END - 4 * workload.DAY_NS,
        until=workload.END - 3 * workload.DAY_NS,
        name=workload.ROUTES[0],
        group_by="metadata.region",
        agg=("count", "p95"),
    ),
    LONG: Query.build(
        since=workload.END - DAYS * workload.DAY_NS, until=workload.END, window="6h", agg=("count", "avg", "p95")
    ),
}


@dataclass(frozen=True)
class Used:
    """What this process and those that it started have used so far: seconds of CPU, bytes written to files."""

    cpu: float
    written: int

    @classmethod
    def now(cls) -> "Used":
        """By now. Those that have ended count where their parent is among these."""
        cpu, written = 0.0, 0
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                cpu += sum(process.cpu_times()[:4])
                written += process.io_counters().write_bytes
        return cls(cpu, written)


def measure(kind: str, records: int) -> Measured:
    """Fill a new store and ask it."""
    with TemporaryDirectory(prefix="tallymark-bench-") as folder, _OPEN[kind](Path(folder)) as store:
        for batch in workload.batches(FEW, FEW, days=1):
            store.write(batch)  # loads what it needs, and makes the tables
        before = Used.now()
        seconds, cpu, wire = 0.0, 0.0, 0
        for batch in workload.batches(records, BATCH_ROWS, days=DAYS):
            used, started = Used.now(), time.perf_counter()
            store.write(batch)
            seconds += time.perf_counter() - started
            cpu += Used.now().cpu - used.cpu
            wire += batch.table.nbytes
        before_upkeep = _asked(store, QUERIES[LONG])
        used = Used.now()
        store.maintain(workload.END + workload.DAY_NS, None)
        store.roll_up(workload.END + workload.DAY_NS)
        if kind == "clickhouse":
            _merge(store)
        after = Used.now()
        info = store.info()
        if info.stored != records + FEW:
            raise RuntimeError(f"not everything was stored: {info}")
        queries = {what: _asked(store, query) for what, query in QUERIES.items()} | {BEFORE_UPKEEP: before_upkeep}
        few, few_cpu = _few(store)
        part, merge = _parts(store) if kind == "clickhouse" else (None, None)
    return Measured(
        store=kind,
        records=records,
        on=f"{datetime.now(UTC):%Y-%m-%d}",
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 1),
        rate=round(records / seconds),
        write_us=round(cpu / records * 1e6, 3),
        upkeep_us=round((after.cpu - used.cpu) / records * 1e6, 3),
        bytes=round(info.bytes / records, 1),
        written=round((after.written - before.written) / records, 1),
        few_ms=round(few * 1e3, 2),
        few_cpu_ms=round(few_cpu * 1e3, 2),
        wire=round(wire / records, 1),
        queries=queries,
        part_cpu_ms=part,
        merge_cpu_ms=merge,
    )


def _asked(store: Store, query: Query) -> float | None:
    """Milliseconds, the best of some turns."""
    best = None
    for _ in range(TURNS):
        started = time.perf_counter()
        try:
            store.aggregate(query)
        except StoreError as error:
            print(error, file=sys.stderr)
            return None
        took = time.perf_counter() - started
        best = min(took, best or took)
        if took > LONG_SECONDS:
            break
    return round((best or 0.0) * 1e3, 1)


def _few(store: Store) -> tuple[float, float]:
    """Seconds for a write of few records of one day, and of them CPU; the middle of some."""
    took, cpu = [], []
    for batch in workload.batches(SMALL_WRITES * FEW, FEW, days=1):
        used, started = Used.now(), time.perf_counter()
        store.write(batch)
        took.append(time.perf_counter() - started)
        cpu.append(Used.now().cpu - used.cpu)
    return statistics.median(took), statistics.mean(cpu)  # CPU is counted in steps of 10 ms


def _merge(store: Any) -> None:
    """What a server of ClickHouse does by itself in the course of a day."""
    from tallymark.stores.clickhouse.tables import RECORDS

    store._command(f"OPTIMIZE TABLE {RECORDS} FINAL")


def _parts(store: Any) -> tuple[float, float]:
    """Milliseconds of CPU for each of many small parts of ClickHouse: to make it, and to merge it."""
    from tallymark.stores.clickhouse.tables import RECORDS

    client, copy = store._connected(), f"{RECORDS}_parts"
    client.command(f"CREATE TABLE {copy} AS {RECORDS}")
    client.command(f"SYSTEM STOP MERGES {copy}")
    before = Used.now().cpu
    for batch in workload.batches(PARTS * FEW, FEW, days=1):
        client.insert_arrow(copy, batch.table, settings={"async_insert": 0})
    made = Used.now().cpu
    client.command(f"SYSTEM START MERGES {copy}")
    client.command(f"OPTIMIZE TABLE {copy} FINAL")
    return round((made - before) / PARTS * 1e3, 2), round((Used.now().cpu - made) / PARTS * 1e3, 2)


# -- the stores, each new and empty ---------------------------------------------------------------------------


@contextmanager
def _lake(folder: Path) -> Iterator[Store]:
    from tallymark.stores.lake.store import Lake

    with Lake(folder / "lake") as store:
        yield store


@contextmanager
def _sqlite(folder: Path) -> Iterator[Store]:
    from tallymark.stores.sqlite.store import Sqlite

    with Sqlite(folder / "metrics.db") as store:
        yield store


@contextmanager
def _postgresql(folder: Path) -> Iterator[Store]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from services.postgres import postgres_server
    from stores.postgres_stores import Databases

    from bench.into_postgres import SETTINGS
    from tallymark.stores.postgres.store import Postgres

    os.environ["TALLYMARK_STATE"] = str(folder / "state")
    with postgres_server(*SETTINGS) as server, Postgres(Databases(server).prepared()) as store:
        yield store


@contextmanager
def _clickhouse(folder: Path) -> Iterator[Store]:
    import clickhouse_connect

    from tallymark.stores.clickhouse.store import ClickHouse

    client: Any = clickhouse_connect.get_client(interface="chdb", path=str(folder))
    try:
        yield ClickHouse("clickhouse://bench/default", client=client)
    finally:
        client.close()


@contextmanager
def _json(folder: Path) -> Iterator[Store]:
    from tallymark.stores.json_files.store import JsonFiles

    with JsonFiles(folder / "json") as store:
        yield store


_OPEN: Final[dict[str, Callable[[Path], AbstractContextManager[Store]]]] = dict(
    zip(STORES, (_lake, _sqlite, _postgresql, _clickhouse, _json), strict=True)
)


# -- the command ----------------------------------------------------------------------------------------------


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.stores", description=__doc__)
    parser.add_argument("stores", nargs="*", metavar="STORE", help=f"of {', '.join(STORES)}; by default all of them")
    parser.add_argument("--records", type=int, nargs="+", default=[USUAL[0]], help="how many; several numbers: in turn")
    parser.add_argument("--write", action="store_true", help="keep the figures, and put them into docs/scaling.md")
    parser.add_argument("--one", action="store_true", help="measure here, and print it as JSON")
    options = parser.parse_args()
    if unknown := set(options.stores) - set(STORES):
        parser.error(f"there is no store {', '.join(unknown)}")
    if options.one:
        print(msgspec.json.encode(measure(options.stores[0], options.records[0])).decode())
        return 0
    found, failed = [], False
    for records in options.records:
        for kind in options.stores or STORES:
            print(f"{kind}, {min(records, MOST.get(kind, records)):,} records …", file=sys.stderr)
            if one := _apart(kind, min(records, MOST.get(kind, records))):
                found.append(one)
            else:
                failed = True
    if options.write:
        put("bench.stores", lines(keep(found, STORES)))
        put("bench.capacity", capacity.lines(kept()))
    print("\n".join(lines(found)))
    return int(failed)


def _apart(kind: str, records: int) -> Measured | None:
    """Measured in a process of its own."""
    command = [sys.executable, "-m", "bench.stores", kind, "--one", "--records", str(records)]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    return None if done.returncode else msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


def lines(rows: list[Measured]) -> list[str]:
    """The tables of the page."""
    taken = table(
        [
            *("store", "records", "in, records/s", "CPU a record", "upkeep", "bytes a record", "written for it"),
            *(f"{FEW} records", "on", "load"),
        ],
        [
            [
                *(each.store, f"{each.records:,}", f"{each.rate:,.0f}", f"{each.write_us:.2f} µs"),
                *(f"{each.upkeep_us:.2f} µs", f"{each.bytes:.1f}", f"{each.written:,.0f}", f"{each.few_ms:.0f} ms"),
                *(each.on, f"{each.load:.1f}"),
            ]
            for each in rows
        ],
    )
    names = [*QUERIES, BEFORE_UPKEEP]
    asked = table(
        ["store", "records", *names],
        [[each.store, f"{each.records:,}", *(_ms(each, name) for name in names)] for each in rows],
    )
    return [*taken, "", *asked, "", missing(rows)]


def _ms(one: Measured, query: str) -> str:
    if query not in one.queries:
        return "–"
    took = one.queries[query]
    return "gave up" if took is None else f"{took:,.0f} ms"


def missing(rows: list[Measured]) -> str:
    """Which of the usual numbers were not run."""
    have = {(each.store, each.records) for each in rows}
    lacking = {
        kind: [f"{records // 1_000_000}" for records in USUAL if (kind, records) not in have]
        for kind in STORES
        if kind not in MOST
    }
    named = [f"{kind} with {' and '.join(numbers)} million" for kind, numbers in lacking.items() if numbers]
    return (
        f"Not run: {'; '.join(named)}."
        if named
        else "Every one of them was run with 1, 10 and 100 million, JSON files with 1 and 10."
    )


if __name__ == "__main__":
    sys.exit(main())
