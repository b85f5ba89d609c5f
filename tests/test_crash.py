"""SIGKILL, at any instant, of whoever records and of whoever ships: nothing lost, nothing doubled, nothing invented."""

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from recording import books, eventually, output, python, ship

import tallymark

KILLS = 2_000 if os.environ.get("TALLYMARK_SOAK") else 200
"""Over both ways to record."""


def found(folder: Path) -> Counter[tuple[int, int]]:
    """How often each (child, number) is found by a query."""
    with tallymark.open(folder) as reader:
        answer = reader.query(
            since=None, metric_type="crash", group_by=["metadata.child", "metadata.number"], agg=["count"]
        )
    return Counter({(int(row["metadata.child"]), int(row["metadata.number"])): row["count"] for row in answer.rows()})


def assert_exact(returned: list[int], counts: Counter[tuple[int, int]]) -> None:
    """Every call that returned is there once; the call that was under way may be there too; and nothing else."""
    assert set(counts.values()) <= {1}
    children: dict[int, set[int]] = {child: set() for child in range(len(returned))}
    for child, number in counts:
        children[child].add(number)
    for child, last in enumerate(returned):
        wanted = set(range(1, last + 1))
        lost, extra = sorted(wanted - children[child]), sorted(children[child] - wanted)
        assert not lost, f"child {child} lost {len(lost)} of {last}, from {lost[0]} on"
        assert extra in ([], [last + 1]), f"child {child} has {extra[:9]} beyond {last}"


def test_a_killed_recorder_loses_nothing(folder: Path, core: str) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    nursery = python("-m", "nursery", str(folder), str(KILLS // 2), str(seed))
    returned = [int(line) for line in output(nursery, 600).split()]
    assert len(returned) == KILLS // 2
    assert sum(returned) > 100
    assert_exact(returned, found(folder))
    before = books(folder)
    assert before.stored == 0
    assert before.dropped == {}
    ship(folder)
    assert_exact(returned, found(folder))
    after = books(folder)
    assert (after.recorded, after.stored, after.pending, after.dropped) == (before.pending, before.pending, 0, {})
    assert not list((folder / "journals").glob("*.journal"))


def test_a_killed_shipper_loses_and_doubles_nothing(folder: Path, core: str) -> None:
    chance = random.Random(seed := random.randrange(1 << 30))
    print("seed", seed)
    nursery = python("-m", "nursery", str(folder), "30", str(seed))
    stop = threading.Event()
    killed = 0

    def kill_shippers() -> None:
        nonlocal killed
        while not stop.is_set():
            shipper = subprocess.Popen([sys.executable, "-m", "tallymark.shipper", str(folder)])
            # About as long as the imports take, and then some: most die while they write.
            stop.wait(chance.uniform(0.3, 1.2))
            if shipper.poll() is None:
                killed += 1
            shipper.kill()
            shipper.wait()

    killer = threading.Thread(target=kill_shippers)
    killer.start()
    try:
        returned = [int(line) for line in output(nursery, 600).split()]
        eventually(lambda: killed >= 5, 120)
    finally:
        stop.set()
        killer.join()
    assert_exact(returned, found(folder))
    ship(folder)
    assert_exact(returned, found(folder))
    assert books(folder).pending == 0


@pytest.mark.parametrize("bound", [100, 1000])
def test_the_books_of_a_killed_recorder_are_exact(folder: Path, core: str, bound: int) -> None:
    """With a journal that is full most of the time."""
    script = f"""
import os, struct, sys, mmap
from tallymark import Metrics
metrics = Metrics({str(folder)!r}, max_queue_size={bound})
metrics._sealer.look = lambda journal: None  # nobody ships, so it stays full
metrics.start()
returned = 0
while True:
    metrics.record("crash", "x", 1.0)
    returned += 1
    if returned in (5_000, 5_001):
        os.write(1, b"%d\\n" % returned)
        if returned == 5_001:
            os.kill(os.getpid(), 9)
"""
    child = python("-c", script)
    out, err = child.communicate(timeout=120)
    assert all("being dropped" in line for line in err.splitlines()), err
    returned = int(out.split()[-1])
    counted = books(folder)
    assert counted.recorded == returned
    assert counted.dropped == {"journal_full": returned - counted.pending}
    # Whole lanes, and in each a series takes two entries.
    assert bound * 0.9 <= counted.pending <= bound + 128
    ship(folder)
    shipped = books(folder)
    assert (shipped.recorded, shipped.stored, shipped.dropped) == (returned, counted.pending, counted.dropped)
