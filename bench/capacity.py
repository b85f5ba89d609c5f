"""What a fleet needs: arithmetic from the figures that were measured to so many records a second.

``python -m bench.capacity [--write]`` prints the tables of docs/scaling.md. Nothing here is measured: it takes what
``python -m bench.stores --write`` kept, and the assumptions below, each with its name.
"""

import argparse
import inspect
import sys
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from bench.measured import Measured, kept, put, table
from bench.parts import Parts, simulate
from tallymark.journal import LANE_ENTRIES
from tallymark.lane import ENTRY_SIZE, HEAP_PER_ENTRY
from tallymark.recorder import Metrics

DAY: Final = 86_400
MEASURED_DAYS: Final = 30
"""Over which bench.stores spreads its records."""
HOURS_A_MONTH: Final = 730
GB: Final = 1e9
TB: Final = 1e12

ONE_DAY: Final = "all series, 24 h by 15 min, p50 p95 p99"
"""The query of bench.stores that is used here."""

LOADS: Final = (10_000, 1_000_000, 10_000_000)

MAX_QUEUE: Final[int] = inspect.signature(Metrics).parameters["max_queue_size"].default
JOURNAL_BYTES: Final = ENTRY_SIZE + HEAP_PER_ENTRY
"""Of the disk of an application, for each record that waits."""

ONE_MACHINE: Final = ("lake", "sqlite", "json")
"""What is in a folder: applications are on the same machine, and one process writes at a time."""

LAKE_JOURNALS: Final = 500_000
"""Positions in a lake with which opening it took 250 ms: docs/architecture.md."""

SEALED: Final = 15
"""Seconds between two children that ship, where no ``tallymark ship`` runs: tallymark.sealer.SEEN_SECONDS."""


@dataclass(frozen=True)
class Assumed:
    """What is assumed; every one of them may be another.

    Attributes:
        retention_days: how long records are kept. The default of tallymark.
        replicas: copies of everything, of PostgreSQL (a standby) and ClickHouse. The others are on one machine.
        peak: how many times the average the busiest minutes are. Machines are for the peak, disks for the average.
        ingest_share: of the processors that ingestion may take; the rest is for questions.
        fill: of a disk that may be full. Merges and VACUUM need room beside what they write anew.
        sizes: vCPU of the machines that one can have, the largest last. A vCPU is taken to do what a core here does.
        disk_bytes: the largest disk of a machine. 16 TiB, as of gp3 for a long time:
            https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html
        host_rate: records/s of one application machine with one process.
        ship_seconds: between two inserts of a machine: ``tallymark ship --every 30s``.
        keeper_cores: of the three machines of ClickHouse Keeper, together. Only where there are replicas.
        vcpu_hour: USD. An example: half of what an m7g.large costs in us-east-1, 0.0816, in June 2026;
            https://aws.amazon.com/ec2/pricing/on-demand/
        gb_month: USD. An example: gp3 in us-east-1; https://aws.amazon.com/ebs/pricing/
    """

    retention_days: float = 30
    replicas: int = 2
    peak: float = 2.0
    ingest_share: float = 0.5
    fill: float = 0.7
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    disk_bytes: float = 16 * 2**40
    host_rate: float = 1_000
    ship_seconds: float = 30
    keeper_cores: int = 6
    vcpu_hour: float = 0.0408
    gb_month: float = 0.08


@dataclass(frozen=True)
class Size:
    """How large the machines are.

    Attributes:
        shards: machines that share the records.
        cores: of each machine.
        busy: how many of them ingestion takes at the peak.
        parts: of ClickHouse, simulated; None for others.
    """

    shards: int
    cores: int
    busy: float
    parts: Parts | None


@dataclass(frozen=True)
class Plan:
    """What a store needs for a load.

    Attributes:
        stops: why it is not for that load. The other figures are those of the attempt.
        size: the machines.
        replicas: copies of each.
        disk: bytes of each machine's disk.
        network: bytes/s at the peak, from applications and between replicas.
        inserts: from all application machines, a second.
        day_seconds: a question that reads all records of 24 hours one by one.
        month: USD.
    """

    stops: str | None
    size: Size
    replicas: int
    disk: float
    network: float
    inserts: float
    day_seconds: float
    month: float


def inserts_a_second(rate: float, assumed: Assumed) -> float:
    """Of all application machines: each ships at its interval, and earlier when a file of its journal is full."""
    hosts = ceil(rate / assumed.host_rate)
    seconds = min(assumed.ship_seconds, LANE_ENTRIES / (rate / hosts))
    return hosts / seconds


def plan(store: Measured, rate: float, assumed: Assumed | None = None) -> Plan:
    """What a store needs for so many records a second, on the average.

    Args:
        store: its measured figures.
        rate: records/s.
    """
    assumed = assumed or Assumed()
    cluster = store.store == "clickhouse"
    replicas = assumed.replicas if store.store in ("clickhouse", "postgresql") else 1
    one_machine = store.store in ONE_MACHINE
    inserts = inserts_a_second(rate, replace(assumed, host_rate=rate) if one_machine else assumed)
    stored = rate * DAY * assumed.retention_days * store.bytes
    if cluster:
        size = _sized(store, rate, max(1, ceil(stored / (assumed.fill * assumed.disk_bytes))), assumed)
    else:
        busy = assumed.peak * rate * store.cpu_us / 1e6 + inserts * store.few_cpu_ms / 1e3
        size = Size(1, _fitting(busy, assumed) or assumed.sizes[-1], busy, None)
    disk = stored / size.shards / assumed.fill
    machines = size.shards * replicas
    keeper = assumed.keeper_cores if cluster and replicas > 1 else 0
    a_record = (store.queries.get(ONE_DAY) or 0.0) / 1e3 * store.cores / (store.records / MEASURED_DAYS)
    return Plan(
        stops=_stops(store, rate, size, disk, assumed),
        size=size,
        replicas=replicas,
        disk=disk,
        network=assumed.peak * rate * (store.wire + store.bytes * (replicas - 1)),
        inserts=inserts,
        day_seconds=rate * DAY * a_record / (size.cores * machines),
        month=(size.cores * machines + keeper) * HOURS_A_MONTH * assumed.vcpu_hour
        + disk * machines / GB * assumed.gb_month,
    )


def _sized(store: Measured, rate: float, shards: int, assumed: Assumed) -> Size:
    """The smallest machines, of so many shards or as many more as it takes, in which merges keep up."""
    inserts = inserts_a_second(rate, assumed)
    while True:
        for cores in assumed.sizes:
            found = on_shards(store, rate, inserts, shards, cores, assumed)
            if found.parts is not None and found.parts.holds:
                return found
        # Of what a part costs, more shards take nothing away.
        if inserts * _part_seconds(store) > assumed.sizes[-1] * assumed.ingest_share:
            return found
        shards = ceil(shards * 1.2)


def on_shards(store: Measured, rate: float, inserts: float, shards: int, cores: int, assumed: Assumed) -> Size:
    """What one machine of a cluster has to do. An insert holds records of all series, hence of all shards: each gets a
    part of every insert.
    """
    writing = (
        assumed.peak * rate * store.write_us / 1e6 / shards
        + inserts * _part_seconds(store)
        + inserts * store.few_cpu_ms / 1e3 / shards
    )
    left = cores * assumed.ingest_share - writing
    parts = simulate(inserts, assumed.peak * rate / inserts / shards, max(0.0, left), store)
    return Size(shards, cores, writing + parts.cores, parts)


def _part_seconds(store: Measured) -> float:
    return (store.part_cpu_ms or 0.0) / 1e3


def _fitting(busy: float, assumed: Assumed) -> int | None:
    return next((cores for cores in assumed.sizes if cores * assumed.ingest_share >= busy), None)


def _stops(store: Measured, rate: float, size: Size, disk: float, assumed: Assumed) -> str | None:
    """Everything that speaks against it."""
    reasons = []
    if store.store in ONE_MACHINE and rate * assumed.peak > store.rate:
        reasons.append(f"one writer at a time, and {store.rate:,.0f} records/s were measured")
    if size.parts is not None and not size.parts.holds:
        reasons.append("too many parts: ship less often")
    if size.parts is None and size.busy > assumed.sizes[-1] * assumed.ingest_share:
        reasons.append(f"ingestion takes {size.busy:,.0f} vCPU of one machine")
    if size.parts is None and disk > assumed.disk_bytes:
        reasons.append(f"a disk of {disk / TB:,.0f} TB")
    return "; ".join(reasons) or None


def journal_days(rate: float) -> float:
    """Days until a lake has as many journals as it opens in 250 ms, if all of them are full."""
    return LAKE_JOURNALS * LANE_ENTRIES / rate / DAY


def bridged_seconds(process_rate: float, queue: float = MAX_QUEUE) -> float:
    """How long a store may be away before a process that records so much a second drops records."""
    return queue / process_rate


def transaction_days(inserts: float, freeze_max_age: float = 200e6) -> float:
    """Days between two vacuums that PostgreSQL insists on, with a transaction for each insert.

    Args:
        freeze_max_age: autovacuum_freeze_max_age; its default:
            https://www.postgresql.org/docs/current/runtime-config-vacuum.html
    """
    return freeze_max_age / inserts / DAY


# -- the page -------------------------------------------------------------------------------------------------


def newest(rows: list[Measured]) -> dict[str, Measured]:
    """Of each store the figures with the most records."""
    return {each.store: each for each in sorted(rows, key=lambda each: each.records)}


def lines(rows: list[Measured], assumed: Assumed | None = None) -> list[str]:
    """The tables of the page."""
    assumed = assumed or Assumed()
    stores = newest(rows)
    if not {"lake", "sqlite", "postgresql", "clickhouse"} <= set(stores):
        return ["Nothing is computed before all stores were measured."]
    return [
        *_needs(stores, assumed),
        "",
        *_shipping(stores["clickhouse"], assumed),
        "",
        *_bridges(),
        "",
        *_ends(stores, assumed),
    ]


def _needs(stores: dict[str, Measured], assumed: Assumed) -> list[str]:
    head = ["records/s", "store", "shards × copies", "vCPU each (busy)", "disk each", "all disks"]
    head += ["network", "inserts/s", "24 h one by one", "USD a month"]
    rows = [
        [f"{rate:,}", kind, *_need(plan(stores[kind], rate, assumed), 1, len(head) - 2)]
        for rate in LOADS
        for kind in ("lake", "sqlite", "postgresql", "clickhouse")
    ]
    cells = round(LOADS[-1] / LOADS[-2])
    cell = plan(stores["clickhouse"], LOADS[-2], assumed)
    rows.append([f"{LOADS[-1]:,}", f"clickhouse, {cells} clusters", *_need(cell, cells, len(head) - 2)])
    return table(head, rows)


def _need(needs: Plan, times: int, columns: int) -> list[str]:
    """The cells for so many of a plan, side by side."""
    if needs.stops:
        return [f"no: {needs.stops}", *[""] * (columns - 1)]
    size, machines = needs.size, times * needs.size.shards * needs.replicas
    return [
        *(f"{times * size.shards} × {needs.replicas}", f"{size.cores} ({size.busy:.2g})", f"{needs.disk / TB:,.2f} TB"),
        *(f"{needs.disk * machines / TB:,.1f} TB", f"{times * needs.network * 8 / GB:,.2g} Gbit/s"),
        *(f"{times * needs.inserts:,.1f}", _time(needs.day_seconds), f"{times * needs.month:,.0f}"),
    ]


def _shipping(store: Measured, assumed: Assumed) -> list[str]:
    """How often application machines ship, and what that does to one ClickHouse machine of the plan."""
    rows = []
    for rate in LOADS[1:]:
        usual = plan(store, rate, assumed).size
        hosts = ceil(rate / assumed.host_rate)
        for seconds in (1, SEALED, 30, 60):
            inserts = inserts_a_second(rate, replace(assumed, ship_seconds=seconds))
            size = on_shards(store, rate, inserts, usual.shards, usual.cores, assumed)
            parts = size.parts
            rows.append(
                [
                    *(f"{hosts:,}, every {seconds} s", f"{usual.shards} × {usual.cores} vCPU", f"{inserts:,.0f}"),
                    *(f"{rate / inserts:,.0f}", f"{rate / inserts / usual.shards:,.0f}"),
                    *(f"{inserts * usual.shards:,.0f}", f"{inserts * _part_seconds(store):.1f}", *_said(parts)),
                ]
            )
    head = ["machines that ship", "shards", "inserts/s", "records of one", "of its part", "parts/s of all shards"]
    return table([*head, "vCPU to make those of one", "times merged", "most parts", "so it"], rows)


def _said(parts: Parts | None) -> tuple[str, ...]:
    return ("", "", "") if parts is None else (f"{parts.merged:.1f}", f"{parts.most:,}", parts.verdict)


def _bridges() -> list[str]:
    rows = []
    for rate in (100, 1_000, 10_000):
        hour = rate * 3_600
        rows.append(
            [
                *(f"{rate:,}", _time(bridged_seconds(rate)), f"{MAX_QUEUE * JOURNAL_BYTES / 1e6:,.0f} MB"),
                *(f"`max_queue_size={hour:,}`".replace(",", "_"), f"{hour * JOURNAL_BYTES / 1e6:,.0f} MB"),
            ]
        )
    head = ["records/s of a process", "default bridges", "with", "an hour takes", "with a disk of"]
    return table(head, rows)


def _ends(stores: dict[str, Measured], assumed: Assumed) -> list[str]:
    rows = []
    for hosts in (1, 10, 100):
        rate = hosts * assumed.host_rate
        often, seldom = (inserts_a_second(rate, replace(assumed, ship_seconds=each)) for each in (1, 30))
        written = rate * stores["postgresql"].written / 1e6
        rows.append(
            [
                *(f"{rate:,.0f}", f"{journal_days(rate):,.1f} days"),
                *(
                    f"{written:,.0f} MB/s",
                    f"{transaction_days(often):,.0f} days",
                    f"{transaction_days(seldom):,.0f} days",
                ),
            ]
        )
    head = ["records/s", "a lake has 500,000 journals after", "PostgreSQL writes to its disk"]
    head += ["PostgreSQL freezes, every 1 s", "every 30 s"]
    return table(head, rows)


def _time(seconds: float) -> str:
    for unit, length in (("days", DAY), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length or unit == "s":
            return f"{seconds / length:,.1f} {unit}" if seconds / length < 10 else f"{seconds / length:,.0f} {unit}"
    return ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    options = parser.parse_args()
    found = lines(kept())
    if options.write:
        put("bench.capacity", found)
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
