"""ClickHouse reads the lake as docs/other-engines.md says."""

import os
from pathlib import Path

import pytest

from .recipes import check, code_of, recipe

ROWS = "[dict(row) for row in answer.named_results()]"


@pytest.mark.parametrize("place", ["plain", "o'clock 100 ü"])
def test_its_answers_are_those_of_tallymark(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir()
    with recipe(code_of("ClickHouse"), ROWS, folder, dict(os.environ)) as clickhouse:
        check(clickhouse, folder)
