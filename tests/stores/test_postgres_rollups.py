"""Rollups of partitions in PostgreSQL: made once, in the database, and copied by who reads."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tallymark.location import local_folder
from tallymark.query import Query
from tallymark.store import Store
from tallymark.stores.postgres import rollups as postgres_rollups
from tallymark.stores.postgres.store import Postgres
from tallymark.stores.rollups import Rollups
from tallymark.testing.rows import DAY, MINUTE, batch, row

from .postgres_stores import Databases
from .rolled_days import LATER, TOTAL, NewStore, RolledDaysContract, every_day_counts, late
from .rolling import MIDNIGHT, assert_answers, spread

__all__ = ["every_day_counts"]

OpenOn = Callable[[str], Postgres]


@pytest.fixture(autouse=True)
def _of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(postgres_rollups, "MOST_READ", 1)


def asked(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def listed(url: str) -> list[str]:
    """The days that have rollups in the database, of whatever version."""
    found = asked(
        url, "SELECT to_char(to_timestamp(first / 1e9) AT TIME ZONE 'UTC', 'YYYYMMDD') FROM tallymark.rollups"
    )
    return sorted(day for (day,) in found)


def copies(url: str) -> list[Path]:
    """Whatever is in the folder of rollups of a store on this machine."""
    return sorted((local_folder(url) / "rollups").glob("*"))


def days_of(found: list[Path]) -> list[str]:
    return [path.name.rpartition("-")[0].replace("-", "") for path in found]


class TestPostgres(RolledDaysContract):
    @pytest.fixture
    def new_store(self, postgres: Databases) -> NewStore:
        def made() -> Postgres:
            url = postgres.prepared()
            store = Postgres(url)
            store.place = url  # type: ignore[attr-defined]
            return store

        return made

    def made(self, store: Store) -> list[str]:
        url = store.place  # type: ignore[attr-defined]
        assert {path.name for path in local_folder(url).glob("*")} <= {"rollups"}
        return listed(url)


@pytest.fixture
def on_machine(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenOn]:
    """The store, as a machine of that name has it."""
    opened = []

    def on(name: str) -> Postgres:
        monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path / name))
        opened.append(Postgres(database))
        return opened[-1]

    yield on
    for store in opened:
        store.close()


@pytest.fixture
def store(database: str) -> Iterator[Postgres]:
    with Postgres(database) as found:
        yield found


def test_what_one_machine_makes_others_copy(on_machine: OpenOn, database: str, tmp_path: Path) -> None:
    maker, reader = on_machine("maker"), on_machine("reader")
    rows = spread(300, last=MIDNIGHT + 3 * DAY)
    maker.write(batch(rows))
    maker.roll_up(LATER)
    assert listed(database) == ["20250131", "20250201", "20250202"]
    assert not (tmp_path / "reader").exists()
    part = Query.build(since=MIDNIGHT + DAY, agg=["count", "p50"])
    assert assert_answers(reader, rows, part, "1d rollups and raw").scanned == 0
    assert days_of(copies(database)) == ["20250201", "20250202"]
    more = late(rows)
    maker.write(batch(more))
    assert assert_answers(reader, rows + more, TOTAL, "1d rollups and raw").scanned == 120
    maker.roll_up(LATER)
    assert assert_answers(reader, rows + more, TOTAL, "1d rollups and raw").scanned == 0
    maker.delete(Query(end=MIDNIGHT + DAY))
    maker.write(batch(late(rows + more, when=MIDNIGHT + 2 * DAY)))
    maker.roll_up(LATER)
    rows = [*rows[100:], *late(rows + more, when=MIDNIGHT + 2 * DAY)]
    assert assert_answers(reader, rows, TOTAL, "1d rollups and raw").scanned == 0
    assert days_of(copies(database)) == ["20250201", "20250202"]


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage"])
def test_a_copy_that_is_damaged_is_copied_anew(store: Postgres, database: str, damage: str) -> None:
    rows = spread(200, last=MIDNIGHT + 2 * DAY)
    store.write(batch(rows))
    store.roll_up(LATER)
    assert_answers(store, rows, TOTAL, "1d rollups and raw")
    copy = copies(database)[0]
    whole = copy.read_bytes()
    contents = {"empty": b"", "cut": whole[:-20], "garbage": bytes(200) + whole[200:-50] + bytes(50)}
    copy.unlink()
    if damage != "gone":
        copy.write_bytes(contents[damage])
    with Postgres(database) as other:  # with nothing in memory
        assert assert_answers(other, rows, TOTAL, "1d rollups and raw").scanned == 0
    assert copies(database)[0].read_bytes() == whole


def test_rollups_that_are_damaged_in_the_database_cost_time_only(store: Postgres, database: str) -> None:
    rows = spread(200, last=MIDNIGHT + 2 * DAY)
    store.write(batch(rows))
    store.roll_up(LATER)
    asked(database, r"UPDATE tallymark.rollups SET data = '\x00'::bytea")
    assert assert_answers(store, rows, TOTAL, "raw").scanned == 200


def test_who_can_keep_no_copies_reads_the_records(
    on_machine: OpenOn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maker, reader = on_machine("maker"), on_machine("reader")
    rows = spread(100)
    maker.write(batch(rows))
    maker.roll_up(LATER)
    (tmp_path / "reader").write_text("no folder")
    for _ in range(3):
        assert_answers(reader, rows, TOTAL, "raw")
    assert caplog.text.count("there can be no copies") == 1


def test_a_role_that_may_only_read_has_the_help_of_rollups(
    store: Postgres, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = spread(100)
    store.write(batch(rows))
    store.roll_up(LATER)
    role = f"r{uuid.uuid4().hex}"
    asked(database, f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA tallymark TO {role}")
    asked(database, f"GRANT SELECT ON ALL TABLES IN SCHEMA tallymark TO {role}")
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path / "viewer"))
    with Postgres(database.replace("tallymark@", f"{role}:x@")) as viewer:
        assert assert_answers(viewer, rows, TOTAL, "1d rollups and raw").scanned == 0


def test_several_machines_that_look_after_it_at_once(on_machine: OpenOn, database: str) -> None:
    stores = [on_machine(f"m{number}") for number in range(3)]
    rows = spread(300, last=MIDNIGHT + 3 * DAY)
    stores[0].write(batch(rows))
    barrier = threading.Barrier(len(stores))
    failures: list[BaseException] = []

    def work(store: Postgres) -> None:
        barrier.wait()
        try:
            store.roll_up(LATER)
            assert_answers(store, rows, TOTAL)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stores[0].roll_up(LATER)
    assert listed(database) == ["20250131", "20250201", "20250202"]
    assert assert_answers(stores[1], rows, TOTAL, "1d rollups and raw").scanned == 0


def test_what_another_is_reading_for_rollups_is_left_to_him(store: Postgres, database: str) -> None:
    rows = spread(200, last=MIDNIGHT + 2 * DAY)
    store.write(batch(rows))
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [(0x74616C6C79 << 24) + MIDNIGHT // DAY])
        store.roll_up(LATER)
        assert listed(database) == ["20250201"]
    store.roll_up(LATER)
    assert listed(database) == ["20250131", "20250201"]


def test_rollups_in_a_newer_format_are_left_alone(
    store: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = spread(100)
    store.write(batch(rows))
    store.roll_up(LATER)
    asked(database, "UPDATE tallymark.rollups SET format = 99")
    assert_answers(store, rows, TOTAL, "raw")
    store.roll_up(LATER)
    assert asked(database, "SELECT format FROM tallymark.rollups") == [(99,)]
    asked(database, "UPDATE tallymark.rollups SET format = 0")
    assert_answers(store, rows, TOTAL, "raw")
    store.roll_up(LATER)
    assert_answers(store, rows, TOTAL, "1d rollups and raw")


@pytest.mark.parametrize(
    ("question", "source"),
    [
        ({}, "1d rollups and raw"),
        ({"since": MIDNIGHT + DAY + MINUTE}, "10m, 1h, 4h, 1d rollups and raw"),
        ({"since": MIDNIGHT + 2 * DAY + DAY // 2, "until": MIDNIGHT + 4 * DAY}, "raw"),
        ({"since": MIDNIGHT + 3 * DAY - 61 * MINUTE, "until": MIDNIGHT + 3 * DAY}, "1h rollups and raw"),
    ],
    ids=str,
)
def test_where_much_is_left_to_fetch_the_database_aggregates(
    store: Postgres, monkeypatch: pytest.MonkeyPatch, question: dict[str, Any], source: str
) -> None:
    """Of four days the last one has no rollups."""
    monkeypatch.setattr(postgres_rollups, "MOST_READ", 0.4)
    rows = spread(4000, last=MIDNIGHT + 4 * DAY)
    store.write(batch(rows))
    store.roll_up(MIDNIGHT + 3 * DAY)
    assert_answers(store, rows, Query.build(**question, agg=["count", "p50"]), source)


def test_a_day_that_is_dropped_takes_its_rollups_along(store: Postgres, database: str) -> None:
    store.write(batch(spread(200, last=MIDNIGHT + 2 * DAY)))
    store.roll_up(LATER)
    asked(database, "DELETE FROM tallymark.parts WHERE name = 'records_20250131'")
    assert listed(database) == ["20250201"]


def test_a_purge_leaves_no_byte_of_rollups_that_are_gone(store: Postgres, database: str) -> None:
    rows = [*spread(50, last=MIDNIGHT + 2 * DAY), row(60, session_id="s-1", name="subject-4f0c", timestamp=MIDNIGHT)]
    store.write(batch(rows))
    store.roll_up(LATER)
    assert_answers(store, rows, TOTAL, "1d rollups and raw")
    assert len(copies(database)) == 2
    store.delete(Query.build(agg=(), session_id="s-1"))

    def pages() -> int:
        ((size,),) = asked(database, "SELECT pg_table_size('tallymark.rollups')")
        return int(size)

    before = pages()
    assert store.purge(LATER) == []
    assert pages() < before
    assert len(copies(database)) == 1
    assert_answers(store, rows[:-1], TOTAL, "1d rollups and raw")


def test_connections_that_are_lost_while_rollups_are_made(
    store: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = spread(100)
    store.write(batch(rows))
    make = Rollups.make

    def lose_the_connection(self: Rollups, file: str) -> Any:
        asked(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()",
        )
        return make(self, file)

    monkeypatch.setattr(Rollups, "make", lose_the_connection)
    store.roll_up(LATER)  # its connections are made anew
    assert listed(database) == ["20250131"]
    assert_answers(store, rows, TOTAL, "1d rollups and raw")
