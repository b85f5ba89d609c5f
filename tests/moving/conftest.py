"""Stores of every kind, and records of all sorts to move."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from stores.postgres_stores import Databases, databases

from tallymark.store import Store, open_store
from tallymark.stores.clickhouse.store import ClickHouse

KINDS = ["lake", "sqlite", "postgresql", "clickhouse", "json"]

NewStore = Callable[[str], Store]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    with databases() as found:
        yield found


@pytest.fixture(scope="module")  # no longer: the next module may open another folder
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of ClickHouse's engine; one folder may be open in a process at a time."""
    client = clickhouse_connect.get_client(interface="chdb", path=str(tmp_path_factory.mktemp("clickhouse")))
    yield client
    client.close()


@pytest.fixture
def new_store(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewStore]:
    """An empty store of a kind, each time it is called."""
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path / "state"))
    with ExitStack() as stack:

        def make(kind: str) -> Store:
            name = uuid.uuid4().hex
            if kind == "clickhouse":
                engine = request.getfixturevalue("engine")
                engine.command(f"CREATE DATABASE t{name}")
                stack.callback(engine.command, f"DROP DATABASE t{name} SYNC")
                client = clickhouse_connect.get_client(interface="chdb", path=engine.path, database=f"t{name}")
                stack.callback(client.close)
                return stack.enter_context(ClickHouse(f"clickhouse://host/t{name}", client=client))
            if kind == "postgresql":
                databases: Databases = request.getfixturevalue("postgres")
                return stack.enter_context(open_store(databases.prepared()))
            place = tmp_path / name
            urls = {"lake": str(place), "sqlite": f"sqlite:///{place}.db", "json": f"json:{place}"}
            return stack.enter_context(open_store(urls[kind]))

        yield make


@pytest.fixture
def lake(new_store: NewStore) -> Store:
    """An empty lake."""
    return new_store("lake")
