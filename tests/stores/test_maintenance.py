"""What keeps a lake small: deletion, compaction, vacuum."""

import os
from pathlib import Path

from tallymark.query import Query
from tallymark.stores.lake import store as lake_module
from tallymark.stores.lake.store import Lake
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

# -- upkeep --------------------------------------------------------------------------------------------------


def test_delete_forgets_what_is_older(lake: Lake) -> None:
    lake.write(batch([row(seq, timestamp=NOON + seq * DAY // 2) for seq in range(10)]))
    assert lake.delete(Query(end=NOON + DAY // 2)) == 1
    assert lake.delete(Query(end=NOON // DAY * DAY + 2 * DAY)) == 2
    assert lake.delete(Query(end=NOON // DAY * DAY + 2 * DAY)) == 0
    assert count(lake) == 7
    assert lake.positions(JOURNALS) == {JOURNALS[0]: 10}


def test_compaction_pays_for_days_that_are_over_and_for_many_small_files(lake: Lake) -> None:
    for seq in range(3):
        lake.write(batch([row(seq)]))
    assert lake.compact(NOON) == 0
    assert lake.compact(NOON + DAY) == 3
    assert lake.compact(NOON + DAY) == 0
    for seq in range(3, 3 + lake_module.MANY_FILES):
        lake.write(batch([row(seq)]))
    assert lake.compact(NOON) > lake_module.MANY_FILES
    assert count(lake) == 3 + lake_module.MANY_FILES


def test_vacuum_leaves_files_that_a_query_may_be_reading(lake: Lake, tmp_path: Path) -> None:
    for seq in range(2):
        lake.write(batch([row(seq)]))
    lake.compact(NOON + DAY)
    assert lake.vacuum() == 0
    assert lake.vacuum(0) == 2
    assert len(list((tmp_path / "metrics").rglob("*.parquet"))) == 1
    assert count(lake) == 2


def test_vacuum_takes_what_a_dead_writer_left_once_it_is_old(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(0)]))
    (kept,) = (tmp_path / "metrics").rglob("*.parquet")
    old, new = kept.with_name("old.parquet"), kept.with_name("new.parquet")
    for stray in (old, new):
        stray.write_bytes(b"half a file")
    os.utime(old, (0, 0))
    assert lake.vacuum() == 0
    assert lake.vacuum(strays=True) == 1
    assert (old.exists(), new.exists(), kept.exists()) == (False, True, True)
