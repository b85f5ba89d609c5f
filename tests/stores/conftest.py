"""A lake without journals."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lakes import lake_with

from tallymark.stores.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = lake_with(tmp_path / "metrics")
    yield lake
    lake.close()
