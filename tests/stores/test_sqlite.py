"""SQLite: the contract of a store, other processes, faults, what is left on the disk, and the views of the schema."""

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording import eventually, output, python

import tallymark
from tallymark import Metrics
from tallymark.batch import CLOSED
from tallymark.errors import RefusedError, StoreError
from tallymark.query import Filter, Query
from tallymark.store import open_store
from tallymark.stores.sqlite import link as sqlite_link
from tallymark.stores.sqlite.link import wal_fault
from tallymark.stores.sqlite.store import Sqlite
from tallymark.testing.conformance import NewStore, StoreConformance
from tallymark.testing.rows import JOURNALS, NOON, batch, count, row


class TestSqlite(StoreConformance):
    @pytest.fixture
    def new_store(self, tmp_path: Path) -> NewStore:
        return lambda: Sqlite(tmp_path / f"{uuid.uuid4().hex}.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics ?#%.db"


@pytest.fixture
def store(path: Path) -> Iterator[Sqlite]:
    with Sqlite(path) as store:
        yield store


# -- queries -------------------------------------------------------------------------------------------------


def test_reading_makes_no_file(store: Sqlite, path: Path) -> None:
    assert count(store) == 0
    assert (store.info().stored, store.positions(JOURNALS), store.delete(Query())) == (0, {}, 0)
    assert store.purge(NOON) == []
    store.maintain(NOON, None)
    assert not list(path.parent.iterdir())


def test_very_many_values_are_no_tree_that_is_too_deep(store: Sqlite) -> None:
    store.write(batch([row(seq, name=f"n{seq}", error=f"e{seq}") for seq in range(1_000)]))
    names = Filter("name", "in", tuple(f"n{number}" for number in range(0, 2_000, 2)))
    errors = Filter("error", "in", tuple(f"e{number}" for number in range(1_000)))
    query = Query(filters=(names, *[errors] * 3), aggregates=("count",))
    assert store.aggregate(query)["count"].to_pylist() == [500]
    assert store.delete(Query(filters=(names, errors))) == 500


def test_a_scan_by_metadata_goes_through_as_much_as_it_has_to(store: Sqlite) -> None:
    """Pages grow; a match may lie in the first and in the last."""
    rows = [row(seq, metadata={"n": seq}, timestamp=NOON + seq // 3) for seq in range(9_000)]
    store.write(batch(rows))
    few = Query.build(agg=(), where={"metadata.n": [8_999, 6_000, 5_999, 1, 0]})
    assert [one["seq"] for one in store.scan(few).to_pylist()] == [8_999, 6_000, 5_999, 1, 0]
    two = Query.build(
        agg=(), where=["metadata.n<7000"], limit=2, order_by="timestamp", cursor=f"{NOON}-{JOURNALS[0]}-1"
    )
    assert [one["seq"] for one in store.scan(two).to_pylist()] == [2, 3]


def test_any_sqlite_file_with_other_tables_may_hold_a_store(store: Sqlite, path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE system_metrics (mine)")
        other.execute("CREATE TABLE alembic_version (version_num)")
        other.execute("INSERT INTO alembic_version VALUES ('of the application')")
    assert count(store) == 0
    store.write(batch([row(0)]))
    assert count(store) == 1
    assert other.execute("SELECT * FROM alembic_version").fetchall() == [("of the application",)]
    assert other.execute("SELECT count(mine) FROM system_metrics").fetchall() == [(0,)]
    assert other.execute("SELECT count(*) FROM metrics").fetchall() == [(1,)]
    other.close()


def test_what_is_no_database_is_said_to_be_none(store: Sqlite, path: Path) -> None:
    path.write_bytes(b"no database " * 1_000)
    with pytest.raises(StoreError, match=r"cannot read sqlite:///.*file is not a database") as read:
        count(store)
    assert isinstance(read.value.__cause__, sqlite3.Error)
    with pytest.raises(StoreError, match=r"cannot write to sqlite:///.*file is not a database"):
        store.write(batch([row(0)]))


def test_a_row_that_a_rule_is_against_is_refused(store: Sqlite, path: Path) -> None:
    store.write(batch([row(0)]))
    with sqlite3.connect(path) as other:
        other.execute(
            "CREATE TRIGGER never BEFORE INSERT ON tallymark_rows WHEN NEW.value = 666"
            " BEGIN SELECT RAISE(ABORT, 'not that one'); END"
        )
    other.close()
    with pytest.raises(RefusedError, match=r"not that one"):
        store.write(batch([row(1), row(2, value=666.0)]))
    assert (count(store), store.positions(JOURNALS)) == (1, {JOURNALS[0]: 1})


# -- other processes, and faults -----------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tallymark.stores.sqlite.store import Sqlite
from tallymark.testing.rows import JOURNALS, batch, row

store = Sqlite(Path(sys.argv[1]))
first = store.positions(JOURNALS).get(JOURNALS[0], 0)
for start in range(first, first + int(sys.argv[2]), 500):
    store.write(batch([row(seq, value=float(seq), error="x" * (seq % 300)) for seq in range(start, start + 500)]))
    print(start + 500, flush=True)
store.close()
"""

READER = """
import sys
from pathlib import Path
from tallymark.query import Query
from tallymark.stores.sqlite.store import Sqlite
from tallymark.testing.rows import JOURNALS, count

store = Sqlite(Path(sys.argv[1]))
seen = 0
while seen < int(sys.argv[2]):
    before = store.positions(JOURNALS).get(JOURNALS[0], 0)
    found = count(store)
    groups = store.aggregate(Query.build(group_by="name", agg=["count", "p50"])).to_pylist()
    by_group = sum(one["count"] for one in groups)
    after = store.positions(JOURNALS).get(JOURNALS[0], 0)
    assert found % 500 == by_group % 500 == 0, (found, by_group)
    assert seen <= before <= found <= by_group <= after, (seen, before, found, by_group, after)
    assert found <= store.info().stored
    seen = found
"""


@contextlib.contextmanager
def running(*programs: tuple[str, ...]) -> Iterator[None]:
    """Run programs at once, all to their end; none outlives a test that fails."""
    processes = [python("-c", *arguments) for arguments in programs]
    try:
        yield
        for process in processes:
            output(process, 120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_others_read_whole_batches_while_one_writes(path: Path) -> None:
    reader, writer = (READER, str(path), "10000"), (WRITER, str(path), "10000")
    with running(reader, reader, writer):
        pass


def test_two_processes_may_make_the_file_and_write_at_once(path: Path) -> None:
    """Both write the same journal; what the other has written is not written again."""
    writer = (WRITER, str(path), "3000")
    with running(writer, writer):
        pass
    with Sqlite(path) as store:
        assert count(store) == store.info().stored == store.positions(JOURNALS)[JOURNALS[0]] >= 3_000


def test_a_writer_may_be_killed_at_any_instant(path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    returned = 0
    for _ in range(5):
        with python("-c", WRITER, str(path), "1000000") as writer:
            assert writer.stdout is not None
            for _ in range(chance.randrange(1, 4)):
                returned = int(writer.stdout.readline())
            # Somewhere in the next batch: it takes a few milliseconds. Not when the file grows: it does not for ever.
            wal = path.with_name(path.name + "-wal")
            written = wal.stat().st_mtime_ns
            if chance.random() < 0.7:
                eventually(lambda wal=wal, written=written: wal.stat().st_mtime_ns != written)  # type: ignore[misc]
            writer.kill()
            writer.communicate()
        with Sqlite(path) as store:
            position = store.positions(JOURNALS)[JOURNALS[0]]
            assert position >= returned
            assert position % 500 == 0
            found = store.aggregate(Query.build(agg=["count", "sum"])).to_pylist()[0]
            assert (found["count"], found["sum"]) == (position, sum(range(position)))
            assert store.info().stored == position
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    other.close()


def test_a_disk_that_is_full_keeps_nothing_by_half(store: Sqlite, path: Path) -> None:
    store.write(batch([row(0)]))
    more = batch([row(seq, error=f"{seq:0500}") for seq in range(1, 20_000)])
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = path.with_name(path.name + "-wal").stat().st_size + 3_000_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write to .*(full|I/O error)"):
            store.write(more)
        assert (count(store), store.info().stored) == (1, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    store.write(more)
    assert (count(store), store.info().stored) == (20_000, 20_000)


def test_a_file_that_was_replaced_is_another_store(store: Sqlite, path: Path) -> None:
    store.write(batch([row(0)]))
    assert count(store) == 1
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    assert count(store) == 0
    store.write(batch([row(0), row(1)]))
    assert count(store) == 2


def test_a_forked_child_reads_and_writes_for_itself(store: Sqlite) -> None:
    store.write(batch([row(0)]))
    assert store.info().stored == 1
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            store.write(batch([row(1)]))
            failed = 0 if store.info().stored == 2 else 2
            store._link.close()
        finally:
            os._exit(failed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.write(batch([row(2)]))
    assert count(store) == 3


def test_the_fault_of_the_library_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, faulty in [((3, 7, 0), True), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 53, 0), False)]:
        monkeypatch.setattr("sqlite3.sqlite_version_info", version)
        assert (wal_fault() is not None) == faulty


# -- what is left on the disk --------------------------------------------------------------------------------


def traces(path: Path, secret: str) -> list[str]:
    return [file.name for file in path.parent.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


def test_nothing_is_left_of_what_was_deleted_after_a_purge(store: Sqlite, path: Path) -> None:
    """Rows come between others, so that pages were split and rows moved."""
    secret = "0f1e2d3c-subject"
    chance = random.Random(7)
    for journal in JOURNALS:
        rows = [
            row(
                seq,
                journal=journal,
                timestamp=NOON + chance.randrange(1_000_000),
                session_id=secret if seq % 7 == 0 else f"other-{seq}",
                name=f"of {secret}" if seq % 7 == 0 else "checkout",
                metadata={"who": secret if seq % 7 == 0 else "x" * chance.randrange(200)},
            )
            for seq in range(2_000)
        ]
        store.write(batch(rows))
        store.delete(Query.build(agg=(), where={"metadata.who": "x"}))
    assert traces(path, secret)
    assert store.delete(Query.build(agg=(), session_id=secret)) == 858
    assert store.purge(NOON) == []
    assert traces(path, secret) == []
    assert store.info().stored + store.info().deleted == 6_000
    store.write(batch([row(2_000, name="new")]))
    assert count(store, name="new") == 1


def test_a_purge_says_so_where_somebody_reads_the_old_state(
    store: Sqlite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_link, "WAIT_SECONDS", 0.1)
    store.write(batch([row(seq, session_id="subject") for seq in range(100)]))
    with Sqlite(path) as other, other._link.reading() as connection:
        assert connection is not None
        connection.execute("SELECT count(*) FROM tallymark_rows").fetchall()
        store.delete(Query())
        (problem,) = store.purge(NOON)
        assert "-wal: what was deleted is still in it" in problem
    assert store.purge(NOON) == []
    assert traces(path, "subject") == []


def test_upkeep_gives_room_back(store: Sqlite, path: Path) -> None:
    store.write(batch([row(seq, error="x" * 500) for seq in range(5_000)], **{JOURNALS[0]: CLOSED}))
    store.delete(Query())
    store.maintain(NOON, None)
    store.close()
    assert path.stat().st_size < 200_000


# -- the schema ----------------------------------------------------------------------------------------------


def schema_of(path: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    connection.close()
    return found


NEXT = """
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE tallymark_rows ADD COLUMN colour TEXT DEFAULT 'red'")
    op.execute("CREATE INDEX tallymark_rows_series ON tallymark_rows (series, timestamp)")
"""


def test_a_schema_that_grew_is_that_of_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who knows only the older one goes on, with its connections as they are."""
    revisions = tmp_path / "revisions"
    shutil.copytree(sqlite_link.REVISIONS, revisions)
    (revisions / "versions" / "0002_colour.py").write_text(NEXT, "utf-8")
    paths = [tmp_path / "old.db", tmp_path / "new.db"]
    with Sqlite(paths[0]) as older:
        older.write(batch([row(0)]))
        assert count(older) == 1
        monkeypatch.setattr(sqlite_link, "REVISIONS", revisions)
        monkeypatch.setattr(sqlite_link, "REVISION", "0002")
        for path in paths:
            with Sqlite(path) as newer:
                newer.write(batch([row(0, journal=JOURNALS[1])]))
        monkeypatch.undo()
        assert schema_of(paths[0]) == schema_of(paths[1])
        older.write(batch([row(1)]))
        assert (count(older), older.scan(Query(limit=1)).num_rows) == (3, 1)
    with Sqlite(paths[0]) as older:
        older.write(batch([row(2)]))
        assert (count(older), older.delete(Query())) == (4, 4)


def test_alembic_is_loaded_only_where_there_is_something_to_do(path: Path) -> None:
    program = "import sys; from pathlib import Path; from tallymark.stores.sqlite.store import Sqlite"
    program += "; from tallymark.testing.rows import batch, row; store = Sqlite(Path(sys.argv[1]))"
    program += (
        "; store.write(batch([row(int(sys.argv[2]))])); print('alembic' in sys.modules, 'sqlalchemy' in sys.modules)"
    )
    assert output(python("-c", program, str(path), "0")) == "True True\n"
    assert output(python("-c", program, str(path), "1")) == "False False\n"


def test_a_schema_that_was_not_finished_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallymark.stores.sqlite.migrations.sqlite3.complete_statement", lambda text: False)
    with Sqlite(path) as store, pytest.raises(AssertionError):
        store.write(batch([row(0)]))
    monkeypatch.undo()
    with Sqlite(path) as store:
        assert count(store) == 0
        store.write(batch([row(0)]))
        assert count(store) == 1


# -- with everything else ------------------------------------------------------------------------------------


def test_the_store_behind_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = "sqlite:///metrics.db"
    with open_store(url) as store:
        store.write(batch([row(0)]))
        assert store.info().url == url
    with open_store(f"sqlite:////{str(tmp_path)[1:]}/metrics.db") as store:
        assert count(store) == 1


def test_from_the_recorder_to_the_command_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'metrics.db'}"
    with Metrics(url, service="shop") as metrics:
        for number in range(10):
            metrics.record_operation("api_request", "GET /users", float(number), metadata={"region": "eu"})
        with tallymark.open(url) as reader:  # what waits in the journals is brought first
            assert reader.query(since=None, group_by="metadata.region", agg=["count"]).rows() == [
                {"metadata.region": "eu", "count": 10}
            ]
            info = reader.info()
            assert (info.stored, info.pending, info.dropped) == (10, 0, {})
    assert tallymark_command("query", url, "--agg", "count,p50", "--json").startswith('{"count":10')


def tallymark_command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tallymark", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(" ", "")


def test_erasing_leaves_no_byte_beside_the_file(tmp_path: Path) -> None:
    url, secret = f"sqlite:///{tmp_path / 'metrics.db'}", "subject-4f0c"
    with Metrics(url, service="shop") as metrics:
        for number in range(300):
            metrics.record("operation", "x", 1.0, session_id=secret if number % 3 == 0 else None)
        metrics.flush(timeout=120)
        metrics.record("operation", "x", 1.0, session_id=secret)  # this one waits in a journal
        assert traces(tmp_path / "metrics.db", secret)
        tallymark_command("erase", url, "--session", secret, "--yes")
        assert traces(tmp_path / "metrics.db", secret) == []
        with tallymark.open(url) as reader:
            assert (reader.info().stored, reader.info().deleted) == (200, 101)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alembic", None)
    with (
        Sqlite(tmp_path / "metrics.db") as store,
        pytest.raises(StoreError, match=r'package alembic; hint: pip install "tallymark\[sqlite\]"'),
    ):
        store.write(batch([row(0)]))
