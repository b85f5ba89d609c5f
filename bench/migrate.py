"""Five million records from a lake to PostgreSQL and back: the same content, and how long it takes.

PostgreSQL is the one of the system, started for this; where there is none, SQLite takes its place.
"""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import Row, workload
from tallymark.moving.checksum import Sums
from tallymark.moving.migrate import migrate
from tallymark.moving.pages import pages
from tallymark.query import Query
from tallymark.store import Store, open_store


def run(quick: bool = False) -> list[Row]:
    """Figures are of copying and comparing together, in one process."""
    records = 500_000 if quick else 5_000_000
    with TemporaryDirectory(prefix="tallymark-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        os.environ["TALLYMARK_STATE"] = str(folder / "state")
        kind, url = stack.enter_context(_elsewhere(folder))
        first, middle, last = (
            stack.enter_context(open_store(place)) for place in (str(folder / "a"), url, str(folder / "b"))
        )
        for batch in workload.batches(records):
            first.write(batch)
        there = _seconds(lambda: _move(first, middle))
        back = _seconds(lambda: _move(middle, last))
        again = _seconds(lambda: _move(first, last))
        if _content(first) != _content(last):
            raise AssertionError("what came back is not what was there")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        what = f"{records:,} records"
        return [
            Row(f"{what}, lake to {kind}, compared", records / there, "records/s", note=f"{there:.0f} s"),
            Row(f"{what}, {kind} to lake, compared", records / back, "records/s", note=f"{back:.0f} s"),
            Row("the same again, nothing to copy, lake and lake", records / again, "records/s", note=f"{again:.0f} s"),
            Row("memory of the process, at most", peak, "MB", limit=1500, note="it made the records too"),
        ]


@contextlib.contextmanager
def _elsewhere(folder: Path) -> Iterator[tuple[str, str]]:
    """The store in the middle: its name, and its URL."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import pytest
    from services.postgres import postgres_server

    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_server())
        except pytest.skip.Exception as error:
            print(f"without PostgreSQL: {error}", file=sys.stderr)
            yield "SQLite", f"sqlite:///{folder / 'middle.db'}"
        else:
            yield "PostgreSQL", url


def _move(source: Store, target: Store) -> None:
    done = migrate(source, target, Query(), _quiet)
    if done.differing or done.others or done.brought.refused:
        raise AssertionError(f"{len(done.differing)} days differ")


def _quiet(_what: str, _done: int, _total: int | None) -> None:
    return


def _content(store: Store) -> dict[int, object]:
    sums = Sums()
    for page in pages(store, Query()):
        sums.add(page)
    return dict(sums.days)


def _seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started
