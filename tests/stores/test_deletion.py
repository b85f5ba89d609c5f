"""What is deleted, what stays, and that the books and the log of the table tell no more than they should."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from lakes import lake_with
from pyarrow import parquet

from tallymark.query import Query
from tallymark.stores import deletion
from tallymark.stores.lake.delta import Deletion
from tallymark.stores.lake.store import Lake
from tallymark.testing.questions import SUBJECTS
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row


def rows_of(lake: Lake, **question: Any) -> Counter[str]:
    found = lake.aggregate(Query.build(group_by="name", **question)).to_pylist()
    return Counter({one["name"]: one["count"] for one in found})


def test_metadata_has_its_usual_meaning(lake: Lake) -> None:
    codes = [404, "404", 404.0, "four", None, True]
    lake.write(batch([row(seq, metadata={"code": code, "user": {"a.b": seq}}) for seq, code in enumerate(codes)]))
    assert lake.delete(Query.build(agg=(), where=["metadata.code=404"])) == 3
    assert lake.delete(Query.build(agg=(), where=['metadata.user."a.b"=3'])) == 1
    assert lake.delete(Query.build(agg=(), where=["metadata.code=null"])) == 1
    assert count(lake) == 1


def test_what_names_a_person_is_not_in_the_log_of_the_table(lake: Lake, tmp_path: Path) -> None:
    secret = "person-4711"
    rows = [row(seq, session_id=secret, metadata={"user": secret}, name=secret if seq else "x") for seq in range(3)]
    lake.write(batch([*rows, row(3, timestamp=NOON + DAY, session_id=secret), row(4), row(5, timestamp=NOON + DAY)]))
    assert lake.delete(Query.build(agg=(), where=[f"metadata.user={secret}"], name=secret)) == 2
    assert lake.delete(Query.build(agg=(), session_id=secret)) == 2
    lake.vacuum(0)
    DeltaTable(tmp_path / "metrics" / "table").create_checkpoint()
    for file in (tmp_path / "metrics").rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file
            if file.suffix == ".parquet":
                assert secret not in str(parquet.read_table(file, partitioning=None).to_pylist()), file


def test_a_day_that_goes_as_a_whole_costs_only_a_commit(lake: Lake, tmp_path: Path) -> None:
    lake.write(batch([row(seq, timestamp=NOON + seq * DAY // 4) for seq in range(8)]))
    before = set((tmp_path / "metrics").rglob("*.parquet"))
    assert lake.delete(Query(end=NOON // DAY * DAY + DAY)) == 2
    assert set((tmp_path / "metrics").rglob("*.parquet")) == before
    assert lake.delete(Query(end=NOON // DAY * DAY + DAY + DAY // 4)) == 1
    assert len(set((tmp_path / "metrics").rglob("*.parquet")) - before) == 1


def test_records_come_into_the_books_as_deleted_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than go in one commit."""
    monkeypatch.setattr("tallymark.stores.lake.store.MAX_IDS", 7)
    rows = [row(seq, journal=JOURNALS[seq % 3], timestamp=NOON + seq * DAY // 16) for seq in range(80)]
    of_session = [one | {"session_id": "s"} for one in rows[::2]]
    lake.write(batch(of_session + rows[1::2]))
    assert lake.delete(Query.build(agg=(), session_id="s")) == 40
    info = lake.info()
    assert (info.stored, info.deleted, info.recorded) == (40, 40, 80)
    # Written again by a shipper that did not know: they stay forgotten.
    lake.write(batch(of_session))
    assert lake.info() == info


def test_conditions_that_may_be_in_a_log() -> None:
    def sql(**question: Any) -> str | None:
        return deletion.condition(Query.build(agg=(), **question))

    assert sql(since=5, until=7, where=["metric_type=a b", "metric_type!=c"]) == (
        "metric_type <> 'tallymark' AND metric_type IN ('a b') AND metric_type NOT IN ('c')"
        " AND timestamp >= 5 AND timestamp < 7"
    )
    for field in ("session_id", "trace_id", "service", "name", "error", "metadata.x"):
        assert sql(where={field: "x"}) is None, field
    for text in ("m<m", "m=a'b", "m!=a\\b"):
        assert sql(where=[text.replace("m", "metric_type", 1)]) is None, text


@pytest.mark.parametrize("text", [*SUBJECTS, "plain"])
def test_a_deletion_that_others_come_before_is_done_again(lake: Lake, tmp_path: Path, text: str) -> None:
    """Then delta-rs writes the condition as text and reads it again."""
    lake.write(batch([row(0, metric_type=text), row(1, metric_type=text, timestamp=NOON + DAY), row(2)]))
    delete, late = lake._delta.delete, [3, 4]

    def delete_late(deletion: Deletion) -> None:
        if late:
            lake_with(tmp_path / "metrics").write(batch([row(late.pop(0), metric_type=text)]))
        delete(deletion)

    lake._delta.delete = delete_late  # type: ignore[method-assign]
    query = Query.build(agg=(), metric_type=text)
    assert lake.delete(query) == 4
    assert (count(lake), lake.info().deleted, late) == (1, 4, [])


def test_deleting_while_others_write_and_compact(tmp_path: Path) -> None:
    """Every record of one session goes, every other stays, and the books agree."""
    done = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write() -> None:
        writer = lake_with(tmp_path)
        for first in range(4, 60, 4):
            writer.write(batch([row(seq, session_id="s" if seq % 2 else "t") for seq in range(first, first + 4)]))

    def keep() -> None:
        keeper = lake_with(tmp_path)
        while not done.is_set():
            keeper.compact(NOON + DAY)
            keeper.vacuum(0)

    deleted = 0
    lake = lake_with(tmp_path)
    lake.write(batch([row(seq, session_id="s" if seq % 2 else "t") for seq in range(4)]))
    writer, keeper = guarded(write), guarded(keep)
    try:
        while writer.is_alive():
            deleted += lake.delete(Query.build(agg=(), session_id="s"))
    finally:
        done.set()
        writer.join()
        keeper.join()
    deleted += lake.delete(Query.build(agg=(), session_id="s"))
    assert failures == []
    assert (deleted, count(lake)) == (30, 30)
    info = lake.info()
    assert (info.stored, info.deleted) == (30, 30)
