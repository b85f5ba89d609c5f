"""The code of docs/other-engines.md, run in a process of its own as often as a test asks for it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tallymark.query import Query
from tallymark.stores.lake.store import Lake
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, JOURNALS, MINUTE, NOON, batch, row

PAGE = (Path(__file__).parents[2] / "docs" / "other-engines.md").read_text("utf-8")

NAMES = ["checkout", "GET /users/{id}", "оплата", "支払い 🧾", 'it\'s "quoted"\n\\', ""]

# Runs the code for each line that comes, and answers with the rows, as JSON, in a line with a mark of its own.
_LOOP = """
import json, sys, traceback
code, rows = sys.argv[1:]
scope = {}
for line in sys.stdin:
    try:
        exec(code, scope)
        found = eval(rows, scope)
    except Exception:
        found = traceback.format_exc()
    print("\\nFOUND " + json.dumps(found, default=str), flush=True)
"""


def code_of(section: str, language: str = "python") -> str:
    """The code under a heading of the page."""
    found = re.search(rf"^## {section}\n.*?^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, section
    return found[1]


class Recipe:
    """The recipe of one engine, ready to be asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.pid = process.pid
        self._process = process

    def rows(self) -> list[Row]:
        """What it says now, each row with the columns of :func:`asked`."""
        return _plain(self.found())

    def found(self) -> list[Any]:
        """What it says now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("again", file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("FOUND "):
                found = json.loads(line.removeprefix("FOUND "))
                assert isinstance(found, list), found
                return found
        raise AssertionError("it ended")


@contextmanager
def recipe(code: str, rows: str, folder: Path, environment: dict[str, str]) -> Iterator[Recipe]:
    """Some code that looks at the lake ``folder/metrics``; ``rows`` is Python for its answer as a list of dicts."""
    with (folder / "errors").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, code, rows],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield Recipe(process)
    finally:
        process.communicate(timeout=120)  # its input ends, and so does it


def asked(folder: Path) -> list[Row]:
    """What ``tallymark query`` says of the same."""
    what = "--group-by name --window 5m --since 2025-01-01T00:00Z --until 2025-03-01T00:00Z"
    aggregates = "count,sum,avg,min,max,last,p50,p95,p99,success_rate"
    done = subprocess.run(
        [sys.executable, "-m", "tallymark", "query", "metrics", "--json", *what.split(), "--agg", aggregates],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return _plain([json.loads(line) for line in done.stdout.splitlines()])


def fill(lake: Lake) -> None:
    """Three days in several files, with every kind of outcome, and rows of tallymark's own."""
    random = Random(7)
    for part in range(4):
        rows = [
            row(
                part * 1_000 + number,
                journal=JOURNALS[0],
                timestamp=NOON + (part % 3 - 1) * DAY + random.randrange(-30, 30) * MINUTE,
                name=random.choice(NAMES),
                value=random.lognormvariate(3, 1),
                success=random.choice([None, True, False]),
                metadata={"region": random.choice(NAMES)},
            )
            for number in range(500)
        ]
        rows.append(row(part * 1_000 + 999, metric_type="tallymark", name="dropped", metadata={"reason": "full"}))
        lake.write(batch(rows))


def check(recipe: Recipe, folder: Path) -> None:
    """The answers of an engine are those of ``tallymark query``: as recorded, with deletions, and compacted."""
    lake = Lake(folder / "metrics")
    fill(lake)
    _compare(recipe, folder)
    assert lake.delete(Query.build(agg=(), name="checkout", where=["value<20"])) > 0
    _compare(recipe, folder)
    assert lake.delete(Query.build(agg=(), until=NOON // DAY * DAY)) > 0  # a whole day
    lake.compact()
    _compare(recipe, folder)
    lake.close()


def _compare(recipe: Recipe, folder: Path) -> None:
    expected, found = sorted(asked(folder), key=_place), recipe.rows()
    assert len(expected) > len(NAMES)
    assert list(map(_place, found)) == list(map(_place, expected))
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.keys() == ours.keys()
        for column, value in ours.items():
            # They add up in another order.
            assert theirs[column] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), column


def _place(one: Row) -> tuple[bytes, float]:
    return one["name"].encode(), one["window_start"]


def _plain(rows: list[dict[str, Any]]) -> list[Row]:
    """The same spelling for times, and one column for each percentile."""
    plain = []
    for one in rows:
        together = one.pop("p50_p95_p99", None)
        if together is not None:
            one |= zip(("p50", "p95", "p99"), together, strict=True)
        moment = datetime.fromisoformat(one["window_start"])
        one["window_start"] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        plain.append(one)
    return plain
