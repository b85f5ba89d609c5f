"""The store in PostgreSQL: what every store does, and what is its own."""

from collections.abc import Iterator

import pytest

from tallymark.stores.postgres import Postgres
from tallymark.testing.conformance import NewStore, StoreConformance

from .postgres_stores import Databases, databases


@pytest.fixture(scope="module")
def new_database() -> Iterator[Databases]:
    with databases() as found:
        yield found


class TestPostgres(StoreConformance):
    @pytest.fixture
    def new_store(self, new_database: Databases) -> NewStore:
        return lambda: Postgres(new_database.prepared())
