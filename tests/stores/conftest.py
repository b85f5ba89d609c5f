"""A lake without journals, and databases of PostgreSQL and ClickHouse."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lakes import lake_with

from tallymark.stores.lake.store import Lake

if TYPE_CHECKING:
    from stores import postgres_stores
    from stores.clickhouse_stores import Databases


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = lake_with(tmp_path / "metrics")
    yield lake
    lake.close()


@pytest.fixture(scope="module")
def postgres() -> "Iterator[postgres_stores.Databases]":
    from stores.postgres_stores import databases

    with databases() as found:
        yield found


@pytest.fixture
def database(postgres: "postgres_stores.Databases") -> str:
    """The URL of a database in PostgreSQL, with the schema of a store."""
    return postgres.prepared()


@pytest.fixture(scope="module")
def all_databases(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Databases]":
    from stores.clickhouse_stores import engine

    with engine(str(tmp_path_factory.mktemp("clickhouse"))) as found:
        yield found


@pytest.fixture
def databases(all_databases: "Databases") -> "Iterator[Databases]":
    yield all_databases
    all_databases.sweep()
