"""SQLite."""

import uuid
from pathlib import Path

import pytest

from tallymark.stores.sqlite import Sqlite
from tallymark.testing.conformance import NewStore, StoreConformance


class TestSqlite(StoreConformance):
    @pytest.fixture
    def new_store(self, tmp_path: Path) -> NewStore:
        return lambda: Sqlite(tmp_path / f"{uuid.uuid4().hex}.db")
