"""The store in PostgreSQL, while its server, its backends and the wire to it fail: nothing is lost or doubled."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from recording import DEADLINE_SECONDS, eventually
from services.postgres import run_as_server
from services.wire import Wire, wire

import tallymark
from tallymark import Metrics
from tallymark.batch import Batch
from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.shipper import ship_once
from tallymark.stores.postgres.store import Postgres
from tallymark.testing.rows import JOURNALS, NOON, batch, count, row

from .postgres_stores import Databases

ROWS = 3_000


@pytest.fixture
def line(database: str) -> Iterator[tuple[Wire, str]]:
    """A wire to the server, and the URL of the database at its end."""
    with wire(urlsplit(database).port or 0) as made:
        yield made, database.replace(f":{urlsplit(database).port}/", f":{made.port}/")


def some_batch() -> Batch:
    return batch([row(seq, timestamp=NOON + seq) for seq in range(ROWS)])


def assert_stored_once(url: str) -> None:
    with Postgres(url) as store:
        store.write(some_batch())
        assert (count(store), store.info().stored) == (ROWS, ROWS)
        assert store.positions(JOURNALS) == {JOURNALS[0]: ROWS}


@contextlib.contextmanager
def background(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Do something in a thread; yields what it raised, which is known when the block is over."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield raised
    thread.join()


class Server:
    """The processes of a server."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            ((folder,),) = connection.execute("SHOW data_directory").fetchall()
        self._folder = Path(folder)
        self._command = (self._folder / "postmaster.opts").read_text().split(" ", 1)[1].strip()

    @property
    def _main(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        """As a crash: nothing is tidied up."""
        run_as_server(["pg_ctl", "stop", "-D", str(self._folder), "-m", "immediate", "-s"])

    def start(self) -> None:
        options = self._command.replace('"', "").replace(f"-D {self._folder}", "")
        log = self._folder / "restarted.log"
        run_as_server(["pg_ctl", "start", "-D", str(self._folder), "-w", "-s", "-l", str(log), "-o", options])

    def _children(self, main: int) -> list[int]:
        eventually(lambda: psutil.Process(main).status() == psutil.STATUS_STOPPED)
        return [int(child) for child in Path(f"/proc/{main}/task/{main}/children").read_text().split()]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(main := self._main, signal.SIGSTOP)
        # From now on none is added, and none is taken off the list when it ends.
        children = self._children(main)
        for process in children:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in (*children, main):  # which takes those off the list that have ended
                os.kill(process, signal.SIGCONT)


# -- the server --------------------------------------------------------------------------------------------------


def test_a_server_that_crashes_and_comes_back(
    postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application records all the time, and shipping goes on afterwards."""
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path))
    url = postgres.empty()
    machine = Server(postgres.server)
    recorded = 0

    def record(metrics: Metrics) -> None:
        nonlocal recorded
        for _ in range(500):
            metrics.record("order", "checkout", 1.0)
            recorded += 1

    with Postgres(url) as store, Metrics(url, service="shop") as metrics:
        metrics._sealer.look = lambda journal: None  # type: ignore[method-assign]  # nobody else ships meanwhile
        for _ in range(2):
            record(metrics)
            metrics.flush(timeout=60)
            assert store.info().stored == recorded  # the store's own connection breaks each time
            machine.stop()
            record(metrics)
            with pytest.raises(StoreError, match="cannot read"):
                ship_once(url)
            with pytest.raises(StoreError, match="cannot read"):
                store.info()
            record(metrics)
            machine.start()
        metrics.flush(timeout=60)
        assert store.info().stored == recorded
    with tallymark.open(url) as reader:
        assert reader.info().recorded == recorded
        assert reader.query(agg="count").rows()[0]["count"] == recorded


def test_a_frozen_server_is_given_up(database: str) -> None:
    with Postgres(database, patience_seconds=2) as store:
        store.write(batch([row(0, journal=JOURNALS[1])]))
        with Server(database).frozen():
            started = time.monotonic()
            with pytest.raises(StoreError, match="cannot write"):
                store.write(some_batch())
            with pytest.raises(StoreError, match="cannot read"):
                store.positions(JOURNALS)
            assert time.monotonic() - started < 60
        store.write(some_batch())
        assert store.info().stored == ROWS + 1


def test_recording_does_not_wait_for_a_frozen_server(
    postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path))
    url = postgres.empty()
    with Metrics(url, service="shop") as metrics:
        metrics.record("order", "checkout", 1.0)
        metrics.flush(timeout=60)
        with Server(postgres.server).frozen():
            for _ in range(1000):
                metrics.record("order", "checkout", 1.0)
            assert metrics.get_stats().dropped == {}
        metrics.flush(timeout=60)
    with tallymark.open(url) as reader:
        assert reader.info().stored == 1001


# -- in the middle of a COPY -------------------------------------------------------------------------------------


def terminate(url: str, process: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", [process])


def kill(url: str, process: int) -> None:
    """Then PostgreSQL throws everybody out, and recovers."""
    os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("end", [terminate, kill])
def test_a_backend_that_dies_in_the_middle_of_a_copy(
    database: str, line: tuple[Wire, str], end: Callable[[str, int], None]
) -> None:
    clogged, url = line
    clogged.clogs_after = 50_000
    with Postgres(url) as store, background(lambda: store.write(some_batch())) as raised:
        assert clogged.clogged.wait(DEADLINE_SECONDS)
        end(database, _copying(database))
        clogged.unclog()
    assert [type(error) for error in raised] == [StoreError]
    eventually(lambda: _contents(database) is not None)
    assert _contents(database) == (0, 0, {})
    assert_stored_once(database)


def test_a_writer_that_dies_in_the_middle_of_a_copy(database: str, line: tuple[Wire, str]) -> None:
    """Another that has the same batch waits for it, and no longer."""
    clogged, url = line
    clogged.clogs_after = 50_000
    with Postgres(url) as first, Postgres(database) as second:
        with background(lambda: first.write(some_batch())) as raised:
            assert clogged.clogged.wait(DEADLINE_SECONDS)
            with background(lambda: second.write(some_batch())) as none:
                eventually(lambda: _waits(database))
                clogged.close()
        assert [type(error) for error in raised] == [StoreError]
        assert none == []
    assert_stored_once(database)


def test_of_two_writers_of_one_batch_the_second_adds_nothing(database: str, line: tuple[Wire, str]) -> None:
    clogged, url = line
    clogged.clogs_after = 50_000
    with Postgres(url) as first, Postgres(database) as second:
        with background(lambda: first.write(some_batch())) as raised:
            assert clogged.clogged.wait(DEADLINE_SECONDS)
            with background(lambda: second.write(some_batch())) as also_raised:
                eventually(lambda: _waits(database))
                clogged.unclog()
        assert raised + also_raised == []
    assert_stored_once(database)


def test_a_writer_that_is_silent_does_not_keep_its_locks(database: str, line: tuple[Wire, str]) -> None:
    clogged, url = line
    with Postgres(url, patience_seconds=2) as first, Postgres(database) as second:
        clogged.clogs_after = 2_000  # behind BEGIN, before COPY
        with background(lambda: first.write(some_batch())) as raised:
            assert clogged.clogged.wait(DEADLINE_SECONDS)
            second.write(some_batch())
            clogged.unclog()
        assert [type(error) for error in raised] == [StoreError]
    assert_stored_once(database)


# -- the answer --------------------------------------------------------------------------------------------------


def test_a_commit_whose_answer_is_lost(database: str, line: tuple[Wire, str]) -> None:
    cut, url = line
    with Postgres(url) as store:
        store.write(batch([row(0, journal=JOURNALS[1])]))
        cut.cut_after = b"COMMIT"
        with pytest.raises(StoreError):
            store.write(some_batch())
        assert cut.was_cut.is_set()
        cut.cut_after = None
        with Postgres(database) as other:
            assert other.positions(JOURNALS)[JOURNALS[0]] == ROWS  # it was committed
        store.write(some_batch())
        assert (count(store), store.info().stored) == (ROWS + 1, ROWS + 1)


def test_a_deletion_whose_answer_is_lost_is_counted_once(database: str, line: tuple[Wire, str]) -> None:
    cut, url = line
    with Postgres(url) as store:
        store.write(some_batch())
        cut.cut_after = b"COMMIT"
        with pytest.raises(StoreError):
            store.delete(Query())
        cut.cut_after = None
        store.delete(Query())
        info = store.info()
        assert (info.stored, info.deleted) == (0, ROWS)


def test_a_row_that_a_constraint_refuses_is_set_aside(
    postgres: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path))
    url = postgres.empty()
    with Postgres(url) as store:
        store.write(batch([row(0, name="first")]))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE tallymark.records ADD CONSTRAINT small CHECK (value < 1000)")
    with Metrics(url, service="test") as metrics:
        for number in range(50):
            metrics.record("job", f"n{number}", 1e6 if number in (7, 8, 49) else 1.0)
    while ship_once(url) is None:
        pass
    with tallymark.open(url) as reader:
        info = reader.info()
        assert (info.stored, info.pending, info.dropped) == (48, 0, {"refused": 3})
    (refused,) = tmp_path.rglob("refused.ndjson")
    lines = [json.loads(line) for line in refused.read_text().splitlines()]
    assert [line["name"] for line in lines] == ["n7", "n8", "n49"]
    assert all("small" in line["refused"] for line in lines)


def _copying(url: str) -> int:
    """The process that is at a COPY."""
    found: list[int] = []

    def look() -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            rows = connection.execute("SELECT pid FROM pg_stat_progress_copy WHERE tuples_processed >= 0").fetchall()
        found[:] = [pid for (pid,) in rows]
        return bool(found)

    eventually(look)
    return found[0]


def _waits(url: str) -> bool:
    """Whether somebody waits for a lock."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall()
    return bool(rows)


def _contents(url: str) -> tuple[int, int, dict[str, int]] | None:
    """What is stored; None while the server recovers. It may still take a connection before it notices a crash."""
    try:
        with Postgres(url) as store:
            return count(store), store.info().stored, store.positions(JOURNALS)
    except StoreError:
        return None
