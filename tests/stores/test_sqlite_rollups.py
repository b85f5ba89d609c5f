"""Rollups of days in SQLite: files beside the database."""

import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording import output, python

from tallymark import keeping
from tallymark.maintenance import maintain
from tallymark.query import Query
from tallymark.store import Store
from tallymark.stores.sqlite.store import Sqlite
from tallymark.testing import ManualClock
from tallymark.testing.rows import DAY, JOURNALS, batch, row

from .rolled_days import BY_NAME, LATER, TOTAL, NewStore, RolledDaysContract, every_day_counts, late
from .rolling import MIDNIGHT, assert_answers, spread

__all__ = ["every_day_counts"]


def sidecars(path: Path) -> list[Path]:
    """Whatever is in the folder of rollups of a store."""
    return sorted((path.with_name(path.name + ".tallymark") / "rollups").glob("*"))


class TestSqlite(RolledDaysContract):
    @pytest.fixture
    def new_store(self, tmp_path: Path) -> NewStore:
        return lambda: Sqlite(tmp_path / f"metrics [x]?*#% {uuid.uuid4().hex}.db")

    def made(self, store: Store) -> list[str]:
        assert isinstance(store, Sqlite)
        folder = store._path.with_name(store._path.name + ".tallymark")
        assert {path.name for path in folder.glob("*")} <= {"rollups", "writing.lock"}
        return [path.name.rpartition("-")[0].replace("-", "") for path in sidecars(store._path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


@pytest.fixture
def store(path: Path) -> Iterator[Sqlite]:
    with Sqlite(path) as found:
        yield found


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage"])
def test_a_damaged_rollup_costs_time_only(
    store: Sqlite, path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = spread(200, last=MIDNIGHT + 2 * DAY)
    store.write(batch(rows))
    store.roll_up(LATER)
    sidecar = sidecars(path)[0]
    whole = sidecar.read_bytes()
    contents = {"empty": b"", "cut": whole[:-20], "garbage": bytes(200) + whole[200:-50] + bytes(50)}
    sidecar.unlink()
    if damage != "gone":
        sidecar.write_bytes(contents[damage])
    assert_answers(store, rows, TOTAL, "1d rollups and raw" if damage == "gone" else "raw")
    assert ("without rollups" in caplog.text) == (damage != "gone")
    store.roll_up(LATER)
    assert assert_answers(store, rows, TOTAL, "1d rollups and raw").scanned == 0
    assert sidecar in sidecars(path)


def test_what_a_dead_maker_left_is_removed(store: Sqlite, path: Path) -> None:
    store.write(batch(spread(10)))
    folder = path.with_name(path.name + ".tallymark")
    (folder / "rollups-dead").mkdir()
    (folder / "rollups-dead" / "2025-01-31-1.parquet").write_bytes(b"half")
    (folder / "rollups").mkdir()
    for stray in ("2025-01-31-1.1.parquet", "2025-01-31-1.0.parquet", "x.1.parquet.new"):
        (folder / "rollups" / stray).write_bytes(b"half")
    store.purge(LATER)
    assert sorted(one.name for one in folder.rglob("*")) == ["rollups", "writing.lock"]
    store.roll_up(LATER)
    assert len(sidecars(path)) == 1


def test_a_file_that_is_brought_back_from_a_copy_has_no_rollups_of_another_time(store: Sqlite, path: Path) -> None:
    rows = spread(100)
    store.write(batch(rows))
    store.close()
    copy = shutil.copy(path, path.with_name("copy.db"))
    more = late(rows)
    store.write(batch(more))
    store.roll_up(LATER)
    assert_answers(store, rows + more, TOTAL, "1d rollups and raw")
    store.close()
    Path(copy).replace(path)
    assert_answers(store, rows, TOTAL, "raw")
    others = late(rows, when=MIDNIGHT, count=21)
    store.write(batch(others))
    assert_answers(store, rows + others, TOTAL, "raw")


WRITER = """
import sys
from pathlib import Path
from tallymark.stores.sqlite.store import Sqlite
from tallymark.testing.rows import JOURNALS, MINUTE, NOON, batch, row

with Sqlite(Path(sys.argv[1])) as store:
    store.write(batch([row(seq, journal=JOURNALS[1], timestamp=NOON + seq * MINUTE) for seq in range(10)]))
"""


def test_what_another_process_writes_is_seen(store: Sqlite, path: Path) -> None:
    rows = spread(200, last=MIDNIGHT + 2 * DAY)
    store.write(batch(rows))
    store.roll_up(LATER)
    assert_answers(store, rows, BY_NAME, "1h rollups and raw")
    output(python("-c", WRITER, str(path)), 120)
    rows += [row(seq, journal=JOURNALS[1], timestamp=MIDNIGHT + DAY // 2 + seq * 60_000_000_000) for seq in range(10)]
    assert assert_answers(store, rows, BY_NAME, "1h rollups and raw").scanned == 110


def test_two_who_look_after_it_and_one_who_reads(store: Sqlite, path: Path) -> None:
    """One of them does it, and both others see the right answer all the time."""
    rows = spread(300, last=MIDNIGHT + 3 * DAY)
    store.write(batch(rows))
    folder = path.with_name(path.name + ".tallymark")
    clock = ManualClock(LATER)
    failures: list[BaseException] = []

    def work(do: str) -> None:
        try:
            with Sqlite(path) as own:
                for _ in range(5):
                    if do == "read":
                        assert_answers(own, rows, TOTAL)
                    else:
                        maintain(own, folder, clock, None)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(do,)) for do in ("look after", "look after", "read")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(sidecars(path)) == 3
    assert assert_answers(store, rows, TOTAL, "1d rollups and raw").scanned == 0


@pytest.mark.parametrize("how", ["erase", "prune"])
def test_rollups_do_not_outlive_records_that_are_erased(store: Sqlite, path: Path, how: str) -> None:
    rows = [*spread(50), row(60, session_id="s-1", value=123.456, timestamp=MIDNIGHT)]
    store.write(batch(rows))
    store.roll_up(LATER)
    assert len(sidecars(path)) == 1
    folder = path.with_name(path.name + ".tallymark")
    (folder / "journals").mkdir()
    query = Query.build(agg=(), session_id="s-1")
    if how == "erase":
        assert keeping.erase(store, folder, query, lambda _: None).records == 1
    else:
        assert keeping.prune(store, folder, [query], lambda _: None) == 1
    assert sidecars(path) == []
    assert_answers(store, rows[:-1], TOTAL, "raw")
