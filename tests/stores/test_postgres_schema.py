"""The schema in PostgreSQL: who makes it, who upgrades it, and who goes on meanwhile."""

import re
import shutil
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory
from recording import output, python
from services import find_program
from services.postgres import PROGRAMS

from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.stores.postgres.store import Postgres
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

from .postgres_stores import Databases

WRITE = """
import sys
from tallymark.stores.postgres.store import Postgres
from tallymark.testing.rows import batch, row
with Postgres(sys.argv[1]) as store:
    input()
    store.write(batch([row(0, journal=sys.argv[2])]))
print([name for name in ("alembic", "sqlalchemy") if name in sys.modules])
"""

NEXT = r"""
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.execute("ALTER TABLE tallymark.records ADD COLUMN host text COLLATE \"C\" DEFAULT 'unknown'")
    op.execute("CREATE TABLE tallymark.hosts (name text PRIMARY KEY)")
"""


@pytest.fixture
def newer(tmp_path: Path) -> type[Postgres]:
    """The store of a later version, which knows one revision more."""
    folder = tmp_path / "100% revisions"
    shutil.copytree(Postgres.revisions, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "v0002_hosts.py").write_text(NEXT)

    class Newer(Postgres):
        revision = "0002"
        revisions = folder

    return Newer


def revision(url: str) -> str:
    with psycopg.connect(url) as connection:
        ((found,),) = connection.execute("SELECT version_num FROM tallymark.alembic_version").fetchall()
    return str(found)


def schema(url: str) -> str:
    """As SQL."""
    program = find_program("pg_dump", *(str(folder / "pg_dump") for folder in PROGRAMS))
    dump = subprocess.run([program, "-s", "-d", url], capture_output=True, text=True, check=True).stdout
    return re.sub(r"^\\(un)?restrict .*$", "", dump, flags=re.MULTILINE)


def test_the_revision_is_the_newest_that_there_is() -> None:
    directory = ScriptDirectory(str(Postgres.revisions))
    assert directory.get_current_head() == Postgres.revision


def test_several_processes_make_it_at_once(postgres: Databases) -> None:
    url = postgres.empty()
    processes = [python("-c", WRITE, url, JOURNALS[number], stdin=subprocess.PIPE) for number in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        output(process, 120)
    with Postgres(url) as store:
        assert store.info().stored == 2


def test_alembic_is_loaded_for_an_upgrade_only(postgres: Databases) -> None:
    process = python("-c", WRITE, postgres.prepared(), JOURNALS[0], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert output(process, 120) == "[]\n"


def test_reading_makes_nothing(postgres: Databases) -> None:
    url = postgres.empty()
    with Postgres(url) as store, psycopg.connect(url, autocommit=True) as connection:
        assert store.scan(Query()).num_rows == store.info().recorded == store.delete(Query()) == 0
        store.maintain(NOON, None)
        store.purge(NOON)
        assert connection.execute("SELECT to_regnamespace('tallymark')").fetchall() == [(None,)]


def test_a_new_store_is_like_one_that_was_upgraded(postgres: Databases, newer: type[Postgres]) -> None:
    old, new = postgres.empty(), postgres.empty()
    with Postgres(old) as store:
        store.write(batch([row(0)]))
    with newer(old) as store:
        store.write(batch([row(1), row(2, timestamp=NOON + DAY)]))
        assert count(store) == 3
    with newer(new) as store:
        store.write(batch([row(0)]))
        store.write(batch([row(1), row(2, timestamp=NOON + DAY)]))
    assert revision(old) == revision(new) == "0002"
    assert schema(old) == schema(new)
    assert "hosts" in schema(old)


def test_older_applications_write_during_an_upgrade_and_afterwards(postgres: Databases, newer: type[Postgres]) -> None:
    url = postgres.empty()
    failures: list[BaseException] = []
    began, stop = threading.Event(), threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        try:
            with Postgres(url) as store:
                while not stop.is_set() or written < 20:
                    store.write(batch([row(written, timestamp=NOON + written % 50 * DAY)]))
                    written += 1
                    began.set()
        except BaseException as error:
            failures.append(error)
            began.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert began.wait(60)
    with newer(url) as store:
        store.write(batch([row(0, journal=JOURNALS[1])]))
        assert revision(url) == "0002"
    stop.set()
    thread.join()
    assert failures == []
    with Postgres(url) as store:
        store.write(batch([row(written, timestamp=NOON + 60 * DAY)]))
        assert store.info().stored == count(store) == written + 2
        assert store.scan(Query()).num_rows == written + 2
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT DISTINCT host FROM tallymark.records").fetchall() == [("unknown",)]
    assert revision(url) == "0002"


def test_an_upgrade_does_not_make_others_wait_for_a_table_in_use(
    postgres: Databases, newer: type[Postgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallymark.stores.postgres.store.LOCK_MILLISECONDS", 50)
    url = postgres.empty()
    with Postgres(url) as older:
        older.write(batch([row(0)]))
        with newer(url) as store:
            with psycopg.connect(url) as reader:
                reader.execute("SELECT FROM tallymark.records")
                with pytest.raises(StoreError, match="lock timeout"):
                    store.write(batch([row(1)]))
                older.write(batch([row(1)]))
            store.write(batch([row(2)]))
            assert store.info().stored == 3
    assert revision(url) == "0002"
