"""Rows that a store refuses: they are set aside and counted, and the others are stored."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import recording

from tallymark import keeping, ndjson
from tallymark.batch import Batch
from tallymark.clock import SystemClock
from tallymark.delivery import MOST_REFUSED, REFUSED_FILE
from tallymark.errors import RefusedError, StoreError
from tallymark.lane import JOURNALS
from tallymark.query import Query
from tallymark.shipper import ship
from tallymark.stores.lake.store import Lake
from tallymark.testing.rows import row


class Picky(Lake):
    """A lake that refuses some names, as a constraint in a database does."""

    refuses: Callable[[str], bool] = staticmethod(lambda name: name.startswith("poison"))

    def write(self, batch: Batch) -> None:
        if any(self.refuses(str(name)) for name in batch.table["name"].to_pylist()):
            raise RefusedError("a constraint says no")
        super().write(batch)


def refused(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / JOURNALS / REFUSED_FILE).read_text().splitlines()]


def record(folder: Path, names: list[str], **more: str) -> None:
    with recording(folder) as metrics:
        for number, name in enumerate(names):
            metrics.record("job", name, float(number), metadata={"n": number}, **more)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=15)
@given(poisoned=st.sets(st.integers(0, 29), max_size=12))
def test_what_is_refused_is_set_aside_and_the_rest_is_stored(
    tmp_path_factory: pytest.TempPathFactory, poisoned: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    names = [f"{'poison' if number in poisoned else 'good'}-{number}" for number in range(30)]
    record(folder, names[:20])
    record(folder, names[20:])
    lake = Picky(folder)
    ship(lake, folder / JOURNALS, SystemClock())
    found = lake.scan(Query(order_by=("timestamp",)))["name"].to_pylist()
    assert found == [name for name in names if name.startswith("good")]
    info = lake.info()
    assert (info.stored, info.pending, info.recorded) == (30 - len(poisoned), 0, 30)
    assert info.dropped == ({"refused": len(poisoned)} if poisoned else {})
    if poisoned:
        aside = refused(folder)
        assert [each["name"] for each in aside] == [name for name in names if name.startswith("poison")]
        assert {each["refused"] for each in aside} == {"a constraint says no"}
        assert (folder / JOURNALS / REFUSED_FILE).stat().st_mode & 0o777 == 0o600
    assert not list((folder / JOURNALS).glob("*.lane"))


def test_a_live_journal_goes_on_behind_what_was_refused(folder: Path) -> None:
    lake = Picky(folder)
    with recording(folder) as metrics:
        for name in ("good", "poison", "good"):
            metrics.record("job", name, 1.0)
            ship(lake, folder / JOURNALS, SystemClock())
            ship(lake, folder / JOURNALS, SystemClock())
        info = lake.info()
        assert (info.stored, info.pending, info.dropped) == (2, 0, {"refused": 1})
    ship(lake, folder / JOURNALS, SystemClock())
    assert (lake.info().stored, lake.info().recorded, len(refused(folder))) == (2, 3, 1)


def test_a_store_that_refuses_everything_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallymark.delivery.MOST_REFUSED", 5)
    assert MOST_REFUSED > 5
    record(folder, ["good", *(f"poison-{number}" for number in range(20)), "good"])
    lake = Picky(folder)
    with pytest.raises(StoreError, match="more than 5 records of a batch: a constraint says no"):
        ship(lake, folder / JOURNALS, SystemClock())
    info = lake.info()
    assert (info.stored, info.pending, info.dropped, info.recorded) == (1, 16, {"refused": 5}, 22)
    lake.refuses = lambda name: False
    ship(lake, folder / JOURNALS, SystemClock())
    assert (lake.info().stored, lake.info().recorded) == (17, 22)


def test_what_was_refused_is_erased_too(folder: Path) -> None:
    record(folder, ["poison", "good", "poison"], session_id="s-4711")
    record(folder, ["poison"], session_id="other")
    lake = Picky(folder)
    done = keeping.erase(lake, folder, Query.build(agg=(), session_id="s-4711"), lambda text: None)
    assert done.left == ()
    assert [each["session_id"] for each in refused(folder)] == ["other"]
    for path in folder.rglob("*"):
        assert not path.is_file() or b"s-4711" not in path.read_bytes(), path


@pytest.mark.parametrize("timestamp", [0, 1, 999_999_999, 1_738_324_800_123_456_789, 4_102_444_799_999_999_999])
def test_a_line_is_the_record(timestamp: int) -> None:
    whole = row(7, timestamp=timestamp, success=False, error="bad\n", session_id="é\u2028", description="d")
    whole["metadata"] = '{"b":1.0,"a":"\\u0007"}'
    line = ndjson.encode(whole)
    assert line.count(b"\n") == 1
    assert ndjson.decode(line) == whole


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"colour":"red"}', "colour"),
        (b"[]", "array"),
        (b"{", "truncated"),
        (ndjson.encode(row(0)).replace(b'"value":1.0', b'"value":"x"'), "value"),
        (ndjson.encode(row(0)).replace(b"2025-01-31T", b"2025-13-31T"), "timestamp"),
    ],
)
def test_what_is_no_line_is_refused_by_name(line: bytes, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ndjson.decode(line)
