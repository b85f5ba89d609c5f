"""What docs/review.md shows works as it is written there."""

import re
from pathlib import Path

import pytest
from recording import output, python, stored

from tallymark.cli import app
from tallymark.review.corrections import MAX_COMPARED

PAGE = (Path(__file__).parents[2] / "docs" / "review.md").read_text("utf-8")


def test_the_samples_in_their_order(tmp_path: Path) -> None:
    samples = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    where = f"import os; os.chdir({str(tmp_path)!r})\n"
    assert "overview" not in output(python("-c", where + samples), 120)
    types = {record.metric_type for record in stored(tmp_path / "metrics")}
    assert types == {"processing_session", "processing", "correction"}


def test_the_commands_exist() -> None:
    shown = set(re.findall(r"^\$ tallymark (\w+)", PAGE, re.MULTILINE))
    registered = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {"pseudonym", "review", "erase"} <= shown <= registered


@pytest.mark.parametrize("said", [f"{MAX_COMPARED:,} characters", "`slow_stage_ms` (10,000)"])
def test_the_numbers_are_those_of_the_code(said: str) -> None:
    assert said in PAGE
