"""The arithmetic of docs/scaling.md: worked out by hand where that can be done, and the right way round elsewhere."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import stores
from bench.capacity import (
    ONE_DAY,
    Assumed,
    Plan,
    bridged_seconds,
    inserts_a_second,
    journal_days,
    lines,
    newest,
    plan,
    transaction_days,
)
from bench.measured import PAGE, Measured, keep, kept, marks, replaced, table
from bench.parts import DELAYED, MERGED_AT_ONCE, REFUSED, simulate

ROUND = Measured(
    store="postgresql",
    records=30_000_000,
    on="2026-01-01",
    cores=2,
    load=1.0,
    rate=100_000,
    write_us=8.0,
    upkeep_us=2.0,
    bytes=100.0,
    written=400.0,
    few_ms=10.0,
    few_cpu_ms=6.0,
    wire=200.0,
    queries={ONE_DAY: 500.0},
)
"""Figures that a head can work with."""

CLUSTER = replace(
    ROUND, store="clickhouse", write_us=2.0, upkeep_us=0.5, bytes=20.0, part_cpu_ms=10.0, merge_cpu_ms=1.0
)

rates = st.floats(1.0, 2e6)


def ordered(less: Plan, more: Plan) -> bool:
    """Whether one needs at most as much of everything as another."""
    return (
        less.size.shards * less.size.cores <= more.size.shards * more.size.cores
        and less.disk * less.size.shards <= more.disk * more.size.shards * (1 + 1e-9)
        and less.network <= more.network
        and less.inserts <= more.inserts
        and less.month <= more.month * (1 + 1e-9)
    )


def test_a_plan_that_was_worked_out_by_hand() -> None:
    assumed = Assumed(
        retention_days=10,
        replicas=2,
        peak=2.0,
        ingest_share=0.5,
        fill=0.8,
        host_rate=1_000,
        ship_seconds=20,
        vcpu_hour=0.05,
        gb_month=0.1,
    )
    found = plan(ROUND, 10_000, assumed)
    assert found.stops is None
    assert found.inserts == pytest.approx(10 / 20)  # ten machines, each every 20 s
    # 2 x 10,000 a second of 10 us are 0.2 of a core, and half an insert a second of 6 ms is 0.003.
    assert found.size.busy == pytest.approx(0.203)
    assert (found.size.shards, found.size.cores, found.replicas) == (1, 2, 2)
    # 10,000 x 864,000 s of 100 bytes are 864 GB, of a disk that is full to 80 %.
    assert found.disk == pytest.approx(1.08e12)
    # At the peak 20,000 records of 200 bytes come in, and 100 bytes of each go to the other copy.
    assert found.network == pytest.approx(6e6)
    # Of one of 30 days, 1,000,000 records, half a second on two cores: a microsecond of a core each.
    assert found.day_seconds == pytest.approx(864.0 / 4)
    assert found.month == pytest.approx(4 * 730 * 0.05 + 2 * 1_080 * 0.1)


def test_a_cluster_that_was_worked_out_by_hand() -> None:
    found = plan(CLUSTER, 1_000_000, Assumed(ship_seconds=50, fill=0.8, disk_bytes=10e12))
    assert found.stops is None
    assert found.inserts == pytest.approx(1_000 / 50)
    # 2.592e12 records of 20 bytes are 51.84 TB, and a disk takes 8 of them.
    assert found.size.shards == 7
    assert found.disk == pytest.approx(51.84e12 / 7 / 0.8)
    # Of each machine: 4 cores / 7 for the rows, 20 parts of 10 ms, and a seventh of 20 inserts of 6 ms; then merges.
    assert found.size.parts is not None
    assert found.size.busy - found.size.parts.cores == pytest.approx(4 / 7 + 0.2 + 0.12 / 7)


def test_what_is_about_one_thing() -> None:
    assert bridged_seconds(1_000) == 1_000  # a million records, by default
    assert bridged_seconds(500, 3_600_000) == 7_200
    assert journal_days(65_536) == pytest.approx(500_000 / 86_400)
    assert transaction_days(1_000) == pytest.approx(200_000 / 86_400)


def test_machines_ship_at_their_interval_or_when_a_journal_file_is_full() -> None:
    assert inserts_a_second(1_000_000, Assumed(ship_seconds=1)) == pytest.approx(1_000)
    assert inserts_a_second(1_000_000, Assumed(ship_seconds=1_000)) == pytest.approx(1_000_000 / 65_536)
    assert inserts_a_second(0.5, Assumed(ship_seconds=10)) == pytest.approx(0.1)


@settings(deadline=None, max_examples=40)
@given(rates, st.floats(1.0, 20.0))
def test_more_records_need_no_less(rate: float, times: float) -> None:
    assert ordered(plan(ROUND, rate), plan(ROUND, rate * times))


@settings(deadline=None, max_examples=40)
@given(rates, st.floats(1.0, 400.0), st.floats(1.0, 3.0))
def test_longer_and_more_copies_need_no_less(rate: float, days: float, times: float) -> None:
    usual = plan(ROUND, rate, Assumed(retention_days=days))
    assert ordered(usual, plan(ROUND, rate, Assumed(retention_days=days * times)))
    assert ordered(usual, plan(ROUND, rate, Assumed(retention_days=days, replicas=3)))
    assert ordered(usual, plan(ROUND, rate, Assumed(retention_days=days, peak=2.0 * times)))


@settings(deadline=None, max_examples=5)
@given(st.integers(1, 40))
def test_a_cluster_holds_what_it_is_planned_for(hundreds: int) -> None:
    found = plan(CLUSTER, hundreds * 100_000.0)
    assert found.stops is None
    assert found.size.parts is not None
    assert found.size.parts.most <= DELAYED
    assert found.size.busy <= found.size.cores / 2
    assert found.disk <= Assumed().disk_bytes
    assert found.month >= plan(CLUSTER, hundreds * 50_000.0).month


def test_what_one_machine_cannot_do_is_said() -> None:
    assert "one writer" in str(plan(replace(ROUND, store="lake"), 60_000).stops)
    assert plan(replace(ROUND, store="lake"), 40_000).stops is None
    assert plan(replace(ROUND, store="lake"), 40_000).inserts == pytest.approx(40_000 / 65_536)  # of one machine
    assert "vCPU of one machine" in str(plan(ROUND, 2_000_000, Assumed(retention_days=0.1)).stops)
    assert "a disk of" in str(plan(ROUND, 100_000).stops)
    assert "ship less often" in str(plan(CLUSTER, 5_000_000, Assumed(ship_seconds=1)).stops)
    assert plan(CLUSTER, 5_000_000, Assumed(ship_seconds=30)).stops is None


def test_parts_pile_up_where_nothing_merges_them() -> None:
    found = simulate(10, 1_000, 0.0, CLUSTER, seconds=400)
    assert found.delayed_after == DELAYED // 10 + 1
    assert found.refused_after == REFUSED // 10 + 1
    assert (found.merged, found.cores) == (0.0, 0.0)


def test_parts_are_merged_where_there_is_room() -> None:
    found = simulate(10, 1_000, 8.0, CLUSTER)
    assert found.holds
    assert found.most < MERGED_AT_ONCE * 3
    # 36 million records in parts of a thousand: as often as parts of five or more make one of them.
    assert 2 < found.merged < 7
    # Each part is merged once as one of 1,000 records, which is most of all parts that are.
    records, parts = found.merged * 10_000 * 0.5e-6, 10 * 1e-3
    assert records + parts <= found.cores <= records + 1.5 * parts


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 60), st.integers(10, 5_000), st.floats(0.1, 4.0), st.integers(1, 3))
def test_more_processors_leave_no_more_delays(inserts: int, records: int, cores: float, times: int) -> None:
    few = simulate(inserts, records, cores, CLUSTER, seconds=300)
    many = simulate(inserts, records, cores * 2**times, CLUSTER, seconds=300)
    assert many.holds or not few.holds
    assert few.cores <= cores + 1e-9


def test_new_figures_take_the_place_of_old_ones(tmp_path: Path) -> None:
    file, order = tmp_path / "stores.json", ("postgresql", "clickhouse")
    assert kept(file) == []
    keep([CLUSTER, ROUND], order, file)
    newer = replace(ROUND, rate=200_000.0)
    larger = replace(ROUND, records=90_000_000)
    assert keep([larger, newer], order, file) == kept(file) == [newer, larger, CLUSTER]
    assert newest(kept(file)) == {"postgresql": larger, "clickhouse": CLUSTER}


def test_a_part_of_the_page_is_replaced_and_nothing_else() -> None:
    begin, end = marks("x")
    page = f"before\n\n{begin}\nold\n{end}\n\nafter\n"
    assert replaced(page, "x", ["new", ""]) == f"before\n\n{begin}\nnew\n\n{end}\n\nafter\n"
    assert replaced(replaced(page, "x", ["new"]), "x", ["old"]) == page
    with pytest.raises(ValueError, match="no part of y"):
        replaced(page, "y", [])
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]


@pytest.mark.parametrize("kind", ["lake", "sqlite"])
def test_a_store_is_measured(kind: str) -> None:
    found = stores.measure(kind, 2_000)
    assert (found.store, found.records) == (kind, 2_000)
    assert min(found.rate, found.bytes, found.few_ms, found.wire) > 0
    assert found.write_us >= 0  # CPU is counted in steps of 10 ms
    assert list(found.queries) == [*stores.QUERIES, stores.BEFORE_UPKEEP]
    assert None not in found.queries.values()
    assert f"| {kind} | 2,000 | {found.rate:,.0f} |" in "\n".join(stores.lines([found]))
    assert "lake with 1 and 10 and 100 million" in stores.missing([found])


def test_the_page_has_the_tables_that_follow_from_what_was_measured() -> None:
    """Whoever changes the arithmetic, an assumption or a figure runs ``python -m bench.capacity --write``."""
    page = PAGE.read_text("utf-8")
    assert replaced(page, "bench.capacity", lines(kept())) == page
    assert replaced(page, "bench.stores", stores.lines(kept())) == page
