"""ClickHouse, by its engine in this process."""

import uuid
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import pytest

from tallymark.stores.clickhouse import ClickHouse
from tallymark.testing.conformance import NewStore, StoreConformance


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the engine; one folder may be open in a process at a time."""
    path = tmp_path_factory.mktemp("clickhouse")
    client = clickhouse_connect.get_client(interface="chdb", path=str(path))
    yield client
    client.close()


@pytest.fixture
def new_store(engine: Any) -> Iterator[NewStore]:
    made: list[tuple[str, Any]] = []

    def make() -> ClickHouse:
        database = f"t{uuid.uuid4().hex}"
        engine.command(f"CREATE DATABASE {database}")
        client = clickhouse_connect.get_client(interface="chdb", path=engine.path, database=database)
        made.append((database, client))
        return ClickHouse(f"clickhouse://host/{database}", client=client)

    yield make
    for database, client in made:
        client.close()
        engine.command(f"DROP DATABASE {database} SYNC")


class TestContract(StoreConformance):
    """What every store does."""

    @pytest.fixture
    def new_store(self, new_store: NewStore) -> NewStore:
        return new_store
