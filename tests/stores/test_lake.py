"""Writing to the lake, opening it, and reading it while others write and compact."""

import itertools
import json
import shutil
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from lakes import Live, lake_with

from tallymark.batch import CLOSED, SCHEMA, Batch
from tallymark.errors import ConfigError, StoreError
from tallymark.query import Query
from tallymark.store import open_store
from tallymark.stores.lake.store import Lake
from tallymark.stores.retention import Retention
from tallymark.testing.conformance import NewStore, StoreConformance
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, of_journal, row, table


class TestContract(StoreConformance):
    """What every store does."""

    @pytest.fixture
    def new_store(self, tmp_path: Path) -> NewStore:
        numbers = itertools.count()
        return lambda: lake_with(tmp_path / str(next(numbers)))


# -- writing -------------------------------------------------------------------------------------------------


def test_a_lake_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "nothing")
    assert lake.scan(Query()).schema == SCHEMA
    assert lake.aggregate(Query.build(window="1h")).to_pylist() == []
    assert lake.aggregate(Query.build()).to_pylist() == []
    assert lake.info().recorded == 0
    assert lake.positions(JOURNALS) == {}
    assert (lake.delete(Query()), lake.compact(), lake.vacuum()) == (0, 0, 0)
    assert lake.maintain(NOON, Retention()).deleted == 0
    assert not (tmp_path / "nothing").exists()


def test_a_closed_journal_gives_nothing_and_takes_nothing(tmp_path: Path) -> None:
    rows = [row(seq) for seq in range(3)]
    live = Live(JOURNALS[0], table(rows), {"full": 2})
    lake = lake_with(tmp_path, [live])
    assert lake.info().dropped == {"full": 2}
    own = row(99, service="tallymark", metric_type="tallymark", name="dropped", value=2.0, unit="1")
    own["metadata"] = json.dumps({"reason": "full"})
    closing = batch([*rows, own], **{JOURNALS[0]: CLOSED})
    for _ in range(2):
        lake.write(closing)
    info = lake.info()
    assert (info.stored, info.pending, info.dropped, info.recorded) == (3, 0, {"full": 2}, 5)
    assert count(lake) == 3
    assert count(lake, metric_type="tallymark") == 1
    assert lake.positions([JOURNALS[0]]) == {JOURNALS[0]: CLOSED}


def test_files_say_what_is_in_them_to_anything_that_reads_delta(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0, name="quote ' and \x07"), row(1, timestamp=NOON + DAY)]))
    found = pa.table(DeltaTable(tmp_path / "metrics" / "table").to_pyarrow_table())
    days = [datetime(2025, 1, 31).date(), datetime(2025, 2, 1).date()]
    assert sorted(one["date"] for one in found.to_pylist()) == days
    assert "quote ' and \x07" in found["name"].to_pylist()


@pytest.mark.parametrize("name", ["a b", "ü日本", "a'b", "a*b", "a?b", "{a}", "a#b&c;d"])
def test_a_folder_may_have_almost_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "axb").mkdir()
    for folder in ("axb", name):
        lake = lake_with(tmp_path / folder)
        lake.write(batch([row(0)]))
        lake.write(batch([row(1)]))
        assert count(lake) == 2, folder


@pytest.mark.parametrize("name", ["a%20b", "a[1]", "a\\b", "a^b", "a|b", "a\nb"])
def test_a_folder_that_delta_cannot_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot hold"):
        Lake(tmp_path / name)


def test_errors_of_the_driver_become_store_errors(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("in the way")
    with pytest.raises(StoreError, match=f"cannot write to {tmp_path}") as caught:
        Lake(tmp_path).write(batch([row(0)]))
    assert caught.value.__cause__ is not None


def test_a_missing_file_is_an_error_and_not_an_endless_loop(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0)]))
    (only,) = (tmp_path / "metrics").rglob("*.parquet")
    only.unlink()
    with pytest.raises(StoreError, match="cannot read"):
        count(lake)


def test_a_lake_may_be_removed_and_made_anew(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0), row(1)]))
    assert count(lake) == 2
    shutil.rmtree(tmp_path / "metrics")
    assert count(lake) == 0
    lake.write(batch([row(0)]))
    assert count(lake) == 1
    shutil.rmtree(tmp_path / "metrics")
    # As many versions as there were, but other files.
    lake_with(tmp_path / "metrics").write(batch([row(0), row(1), row(2)]))
    assert count(lake) == 3


# -- at the same time ----------------------------------------------------------------------------------------


def test_a_query_survives_the_removal_of_its_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the table and the reading, the files are replaced and removed."""
    for seq in range(4):
        lake.write(batch([row(seq)]))
    run, times = lake._engine.run, 0

    def late(*arguments: Any) -> pa.Table:
        nonlocal times
        times += 1
        if times == 1:
            lake.compact(NOON + DAY)
            lake.vacuum(0)
        return run(*arguments)

    monkeypatch.setattr(lake._engine, "run", late)
    assert count(lake) == 4
    assert times == 2


def test_every_reader_sees_every_record_once_while_others_ship_and_compact(tmp_path: Path) -> None:
    """The journals shrink by their deletion only; what is shipped is in both for a moment."""
    rows = [row(number // 3, journal=JOURNALS[number % 3]) for number in range(90)]
    live = {journal: Live(journal, table(of_journal(rows, journal))) for journal in JOURNALS}
    shared = Lake(tmp_path, live=lambda _: list(live.values()))
    done = threading.Event()
    failures: list[object] = []

    def ship(journal: str) -> None:
        writer = lake_with(tmp_path)
        own = of_journal(rows, journal)
        for start in range(0, 30, 5):
            writer.write(batch(own[start : start + 5]))
        writer.write(Batch(SCHEMA.empty_table(), {journal: CLOSED}))
        live.pop(journal)

    def read(lake: Lake) -> None:
        while not done.is_set():
            seen = lake.scan(Query()).select(["journal", "seq"]).to_pylist()
            if len(seen) != 90 or len({(one["journal"], one["seq"]) for one in seen}) != 90:
                failures.append(len(seen))

    def keep() -> None:
        keeper = lake_with(tmp_path)
        while not done.is_set():
            keeper.compact(NOON + DAY)
            keeper.vacuum(0)

    def guarded(target: Any, *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                failures.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    others = [guarded(read, shared), guarded(read, shared), guarded(keep)]
    for thread in [guarded(ship, journal) for journal in JOURNALS]:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert failures == []
    assert not live
    assert count(shared) == 90
    assert shared.info().stored == 90


def test_two_writers_of_the_same_batch_keep_it_once(tmp_path: Path) -> None:
    rows = [row(seq) for seq in range(20)]
    barrier = threading.Barrier(4)

    def write() -> None:
        lake = lake_with(tmp_path)
        barrier.wait()
        lake.write(batch(rows))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(lake_with(tmp_path)) == 20


# -- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "lake:"])
def test_a_store_is_found_by_its_url(tmp_path: Path, prefix: str) -> None:
    url = f"{prefix}{tmp_path}/metrics"
    store = open_store(url)
    store.write(batch([row(0)]))
    assert store.info().url == url
    assert (tmp_path / "metrics" / "table").is_dir()


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "postgresql:secret", "mysql:x", "lake:", ""])
def test_another_kind_of_url_is_refused_without_telling_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="no store for") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.delitem(sys.modules, "tallymark.stores.lake.store")
    monkeypatch.delitem(sys.modules, "tallymark.stores.lake.delta")
    with pytest.raises(ConfigError, match=r'deltalake.*pip install "tallymark\[lake\]"'):
        open_store("./metrics")
