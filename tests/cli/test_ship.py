"""``tallymark ship`` and ``tallymark compact``."""

import json
import os
import signal
from pathlib import Path

import pytest
from recording import DEADLINE_SECONDS, books, recording

from tallymark.shipper import shipping_lock

from .conftest import Program, eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


def record(folder: Path, number: int) -> None:
    with recording(folder) as metrics:
        for _ in range(number):
            metrics.record("job", "done", 1.0)


def test_ship_once_moves_everything_and_ends(tallymark: Program, folder: Path) -> None:
    record(folder, 30)
    assert books(folder).pending == 30
    assert "30 records moved" in tallymark("ship", "--once").stderr
    assert json.loads(tallymark("ship", "--once", "--json").stdout) == {"store": "./metrics", "records": 0}
    assert (books(folder).stored, books(folder).pending) == (30, 0)


def test_ship_once_leaves_it_to_who_ships(tallymark: Program, folder: Path) -> None:
    record(folder, 3)
    with shipping_lock(folder / "journals") as free:
        assert free
        assert "somebody else" in tallymark("ship", "--once").stderr
        assert json.loads(tallymark("ship", "--once", "--json").stdout)["records"] is None
    assert books(folder).pending == 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ship_moves_what_comes_until_it_is_ended(tallymark: Program, folder: Path, how: signal.Signals) -> None:
    process = tallymark.start("ship", "--every", "100ms")
    assert process.stderr is not None
    assert "Ctrl-C ends it" in process.stderr.readline()
    for round_ in range(1, 4):
        with recording(folder) as metrics:
            metrics.record("job", "done", 1.0)
            eventually(lambda wanted=round_: books(folder).stored == wanted)  # type: ignore[misc]
    os.killpg(process.pid, how)
    out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out, errors.strip()) == (0, "", "ended")


def test_ship_refuses_what_makes_no_sense(tallymark: Program, folder: Path) -> None:
    assert "there is no store" in tallymark("ship", "--once", code=1).stderr
    assert "every: " in tallymark("ship", "--every", "0s", code=2).stderr
    assert "every: " in tallymark("ship", "--every", "soon", code=2).stderr
    assert not folder.exists()


def test_compact_joins_files_of_days_that_are_over(tallymark: Program, folder: Path) -> None:
    for _ in range(3):
        with recording(folder) as metrics:
            metrics.ingest("job", "done", 1.0, timestamp=1_738_324_800_000_000_000)
        tallymark("ship", "--once")
    (done,) = tallymark.rows("compact")
    assert done["compacted"] == 3
    assert tallymark.rows("compact")[0]["compacted"] == 0
    assert "0 files joined" in tallymark("compact").stderr
    assert books(folder).stored == 3
