"""Files of records: what is in them, and that they are there as a whole."""

import csv
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from recording import DEADLINE_SECONDS

from tallymark import ndjson
from tallymark.batch import SCHEMA, record_id
from tallymark.errors import QueryError, StoreError
from tallymark.moving import pages
from tallymark.moving.export import PART, STATE, Exported, export_file, export_stream
from tallymark.moving.formats import FORMATS, Format, csv_header, csv_rows, format_of, ndjson_rows
from tallymark.moving.reading import SourceFile
from tallymark.privacy import ALLOW
from tallymark.query import Query
from tallymark.record import COLUMNS
from tallymark.store import Store
from tallymark.testing.oracle import Row
from tallymark.testing.rows import DAY, NOON, row, table

from .rows import HOSTILE, filled, in_order, records, some_rows

ASKED = {"store": "here"}


def export(store: Store, path: Path, kind: Format, *, resume: bool = False, stop_after: int | None = None) -> Exported:
    """Export everything, or until so many pages are done."""
    seen = 0

    def progress(_what: str, _done: int, _total: int | None) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_after:
            raise KeyboardInterrupt

    return export_file(store, Query(), path, kind, asked=ASKED, resume=resume, progress=progress)


def read_back(path: Path) -> list[Row]:
    return [one for rows in SourceFile(path, None, ALLOW).tables() for one in rows.to_pylist()]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of ten records."""
    monkeypatch.setattr(pages.pages, "__defaults__", (10,))


# -- what is in them -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(rows=records())
def test_each_format_keeps_every_bit(tmp_path: Path, rows: list[Row]) -> None:
    encoded = {"csv": csv_header() + csv_rows(table(rows)), "ndjson": ndjson_rows(table(rows))}
    for kind, content in encoded.items():
        path = tmp_path / f"x.{kind}"
        path.write_bytes(content)
        assert list(map(repr, read_back(path))) == list(map(repr, rows))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.usefixtures("small_pages")
def test_what_a_store_has_is_in_the_file(lake: Store, tmp_path: Path, kind: Format) -> None:
    rows = some_rows(105)
    filled(lake, rows)
    path = tmp_path / f"out.{kind}"
    assert export(lake, path, kind) == Exported(105, 0)
    assert list(map(repr, read_back(path))) == list(map(repr, in_order(rows)))
    assert [name for name in os.listdir(tmp_path) if "out" in name] == [path.name]


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_a_file_too(lake: Store, tmp_path: Path, kind: Format) -> None:
    path = tmp_path / f"out.{kind}"
    assert export(lake, path, kind) == Exported(0, 0)
    assert read_back(path) == []
    if kind == "csv":
        assert path.read_bytes() == csv_header() == ",".join(COLUMNS).encode() + b"\r\n"


def test_no_cell_is_a_formula(lake: Store) -> None:
    rows = [row(seq, name=text, error=text, session_id=text, value=-1.5) for seq, text in enumerate(["", *HOSTILE])]
    text = (csv_header() + csv_rows(table(rows))).decode()
    for cells in csv.DictReader(io.StringIO(text, newline="")):
        for name in set(COLUMNS) - {"value"}:
            assert not cells[name].startswith(("=", "+", "-", "@", "\t", "\r", "\n")), cells[name]
        assert cells["value"] == "-1.5"


def test_a_spreadsheet_would_see_this() -> None:
    made = row(
        5, name="=1+1", error="it's", trace_id="", description=None, success=False, value=2.5, timestamp=NOON + 7
    )
    header, line = (csv_header() + csv_rows(table([made]))).decode().splitlines()
    assert (
        header
        == "id,timestamp,service,metric_type,name,value,unit,success,error,trace_id,session_id,metadata,description"
    )
    identifier = record_id(made["journal"], 5)
    assert line == f"{identifier},2025-01-31T12:00:00.000000007Z,shop,operation,'=1+1,2.5,ms,false,it's,',,{{}},"


def test_ndjson_is_one_line_a_record_whatever_is_in_it() -> None:
    spaced = row(0) | {"metadata": '{\n  "a": "x\\ny",\r\n  "b": 1.0\n}'}
    lines = ndjson_rows(table([spaced, *some_rows(40)])).splitlines()
    assert len(lines) == 41
    assert json.loads(lines[0])["metadata"] == {"a": "x\ny", "b": 1.0}
    assert [ndjson.decode(line) for line in lines[1:]] == some_rows(40)


def test_parquet_says_what_it_is_and_others_read_it(lake: Store, tmp_path: Path) -> None:
    filled(lake, some_rows(30))
    export(lake, tmp_path / "x.parquet", "parquet")
    found = pq.read_table(tmp_path / "x.parquet")
    assert found.schema.metadata == {b"tallymark.records": b"1"}
    assert found.schema.equals(SCHEMA)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.usefixtures("small_pages")
def test_a_stream_has_the_same(lake: Store, tmp_path: Path, kind: Format) -> None:
    rows = some_rows(35)
    filled(lake, rows)
    with (tmp_path / f"out.{kind}").open("wb") as stream:
        assert export_stream(lake, Query(), kind, stream, lambda *_: None) == 35
    assert read_back(tmp_path / f"out.{kind}") == in_order(rows)


def test_only_what_was_asked_for(lake: Store, tmp_path: Path) -> None:
    filled(lake, [row(seq, timestamp=NOON + seq * DAY, name=f"n{seq % 2}") for seq in range(10)])
    query = Query.build(agg=(), since=NOON + DAY, until=NOON + 6 * DAY, name="n1")
    path = tmp_path / "x.ndjson"
    done = export_file(lake, query, path, "ndjson", asked={}, resume=False, progress=lambda *_: None)
    assert (done.records, [one["seq"] for one in read_back(path)]) == (3, [1, 3, 5])


# -- as a whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("torn", [False, True], ids=["stopped", "torn"])
@pytest.mark.usefixtures("small_pages")
def test_it_goes_on_wherever_it_was_stopped(lake: Store, tmp_path: Path, kind: Format, torn: bool) -> None:
    rows = some_rows(47)
    filled(lake, rows)
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"x.{kind}"
    export(lake, whole, kind)
    folder = tmp_path / f"x.{kind}{PART}"
    for stop_after in range(1, 4):
        with pytest.raises(KeyboardInterrupt):
            export(lake, path, kind, stop_after=stop_after)
        assert not path.exists()
        before = so_far(folder)
        if torn:  # killed while it wrote the next page
            for each in folder.glob("data"):
                each.write_bytes(each.read_bytes() + b'"torn,\n{"id')
            (folder / f"{stop_after:06}.parquet").write_bytes(b"PAR1torn")
        done = export(lake, path, kind, resume=True)
        assert done == Exported(47, before)
        assert read_back(path) == read_back(whole)
        if kind != "parquet":
            assert path.read_bytes() == whole.read_bytes()
        assert not folder.exists()
        path.unlink()


def so_far(folder: Path) -> int:
    """How many records are in a file that is not complete."""
    found: int = json.loads((folder / STATE).read_text())["records"]
    assert found > 0
    return found


@pytest.mark.usefixtures("small_pages")
def test_stopped_again_and_again(lake: Store, tmp_path: Path) -> None:
    rows = some_rows(60)
    filled(lake, rows)
    path = tmp_path / "x.csv"
    done = 0
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            export(lake, path, "csv", resume=True, stop_after=1)
        before, done = done, so_far(tmp_path / "x.csv.part")
        assert done > before
    assert export(lake, path, "csv", resume=True) == Exported(60, done)
    assert read_back(path) == in_order(rows)


@pytest.mark.usefixtures("small_pages")
def test_what_came_since_it_began_is_for_the_next(lake: Store, tmp_path: Path) -> None:
    filled(lake, [row(seq) for seq in range(20)])
    path = tmp_path / "x.ndjson"
    with pytest.raises(KeyboardInterrupt):
        export(lake, path, "ndjson", stop_after=1)
    filled(lake, [row(seq, timestamp=NOON + DAY) for seq in range(20, 30)])
    assert export(lake, path, "ndjson", resume=True).records == 20
    assert export(lake, path, "ndjson").records == 30


@pytest.mark.usefixtures("small_pages")
def test_the_file_that_was_there_stays_until_the_new_one_is_complete(lake: Store, tmp_path: Path) -> None:
    filled(lake, some_rows(20))
    path = tmp_path / "x.csv"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        export(lake, path, "csv", stop_after=1)
    assert path.read_text() == "before"
    export(lake, path, "csv")  # from the beginning
    assert len(read_back(path)) == 20


@pytest.mark.usefixtures("small_pages")
def test_only_the_same_can_be_gone_on_with(lake: Store, tmp_path: Path) -> None:
    filled(lake, some_rows(20))
    path = tmp_path / "x.csv"
    with pytest.raises(KeyboardInterrupt):
        export(lake, path, "csv", stop_after=1)
    with pytest.raises(QueryError, match=r"resume: what was begun in .* has another store, since"):
        export_file(
            lake, Query(), path, "csv", asked={"store": "there", "since": "x"}, resume=True, progress=lambda *_: None
        )
    assert export(lake, path, "csv", resume=True).resumed > 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.usefixtures("small_pages")
def test_what_was_begun_and_is_damaged_is_not_gone_on_with(lake: Store, tmp_path: Path, kind: Format) -> None:
    filled(lake, some_rows(20))
    path = tmp_path / f"x.{kind}"
    with pytest.raises(KeyboardInterrupt):
        export(lake, path, kind, stop_after=1)
    folder = path.with_name(path.name + PART)
    (victim,) = set(folder.iterdir()) - {folder / STATE}
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"is not as it was left; hint: export again, without --resume"):
        export(lake, path, kind, resume=True)
    (folder / STATE).write_text("{")
    with pytest.raises(StoreError, match=r"state\.json is not as it was left"):
        export(lake, path, kind, resume=True)
    assert export(lake, path, kind).records == 20


@pytest.mark.usefixtures("small_pages")
def test_killed_between_the_last_record_and_the_name(
    lake: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(lake, some_rows(20))
    path = tmp_path / "x.csv"
    replace = os.replace

    def before(source: Any, target: Any) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    def after(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target) == path:
            raise KeyboardInterrupt

    for interrupted in (before, after):
        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(lake, path, "csv")
        monkeypatch.setattr(os, "replace", replace)
        assert export(lake, path, "csv", resume=True) == Exported(20, 20)
        assert len(read_back(path)) == 20
        assert not path.with_name("x.csv.part").exists()
        path.unlink()


def test_one_at_a_time(lake: Store, tmp_path: Path) -> None:
    filled(lake, some_rows(20))
    path = tmp_path / "x.csv"
    first_page, go_on = threading.Event(), threading.Event()

    def progress(*_: object) -> None:
        first_page.set()
        go_on.wait(DEADLINE_SECONDS)

    thread = threading.Thread(
        target=lambda: export_file(lake, Query(), path, "csv", asked={}, resume=False, progress=progress)
    )
    thread.start()
    try:
        assert first_page.wait(DEADLINE_SECONDS)
        with pytest.raises(StoreError, match="another export is writing"):
            export(lake, path, "csv")
    finally:
        go_on.set()
        thread.join()
    assert len(read_back(path)) == 20


def test_a_store_that_fails_leaves_nothing(tmp_path: Path) -> None:
    from tallymark.stores.lake.store import Lake

    (tmp_path / "broken" / "table" / "_delta_log").mkdir(parents=True)
    (tmp_path / "broken" / "table" / "_delta_log" / f"{0:020}.json").write_text("{")
    with Lake(tmp_path / "broken") as store, pytest.raises(StoreError):
        export(store, tmp_path / "x.csv", "csv")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_link_stays_a_link(lake: Store, tmp_path: Path) -> None:
    filled(lake, some_rows(3))
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    export(lake, tmp_path / "link.csv", "csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read_back(tmp_path / "target.csv")) == 3


def test_where_no_file_can_be(lake: Store, tmp_path: Path) -> None:
    filled(lake, some_rows(3))
    os.mkfifo(tmp_path / "pipe.csv")
    for name, words in {
        ".": "is a folder; hint: name a file in it",
        "none/x.csv": "there is no folder",
        "pipe.csv": "is no regular file; hint: - writes to stdout",
    }.items():
        with pytest.raises(StoreError, match=words):
            export(lake, tmp_path / name, "csv")
    (tmp_path / "x.csv.part").write_text("a file of somebody's")
    with pytest.raises(FileExistsError):
        export(lake, tmp_path / "x.csv", "csv")
    assert (tmp_path / "x.csv.part").read_text() == "a file of somebody's"


def test_the_format_of_a_file() -> None:
    assert [format_of(name, None) for name in ("a.csv", "b.NDJSON", "c.jsonl", "d.e.parquet", "-")] == [
        *("csv", "ndjson", "ndjson", "parquet", "ndjson")
    ]
    assert format_of("x", "CSV") == "csv"
    for name, form in (("x", None), ("x.json", None), ("x.csv", "xml"), ("sqlite:///metrics.db", None)):
        with pytest.raises(QueryError, match=r"^format: "):
            format_of(name, form)
