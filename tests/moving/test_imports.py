"""Files into a store: as they were, once, and nothing of a file that has a fault."""

import csv
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallymark import ndjson
from tallymark.batch import SCHEMA, Batch
from tallymark.clock import SystemClock
from tallymark.delivery import REFUSED_FILE, Lot, deliver
from tallymark.errors import RefusedError, StoreError
from tallymark.moving import arrivals, reading
from tallymark.moving.arrivals import LOCK_FILE, MOVES, Brought, alone_into, bring
from tallymark.moving.export import export_file
from tallymark.moving.formats import FORMATS, Format
from tallymark.moving.imports import check_files, import_files
from tallymark.privacy import MASK, PiiPolicy
from tallymark.query import Query
from tallymark.record import COLUMNS
from tallymark.store import Store
from tallymark.stores.json_files.batch_file import batch_text
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row, table

from .conftest import KINDS, NewStore
from .rows import content, filled, in_order, some_rows

LINE = {"timestamp": "2025-01-31T12:00:00Z", "metric_type": "operation", "name": "x", "value": 1.5}


def run(
    store: Store, *paths: Path, service: str | None = "shop", pii: PiiPolicy = MASK, dry_run: bool = False
) -> Brought:
    """Import files, and what became of all of them together."""
    checked = check_files(paths, service, pii, lambda *_: None)
    done = Brought()
    for each in import_files(store, checked, lambda *_: None, dry_run=dry_run):
        done.add(each)
    return done


def exported(store: Store, path: Path, kind: Format) -> Path:
    export_file(store, Query(), path, kind, asked={}, resume=False, progress=lambda *_: None)
    return path


def lines(path: Path, *records: dict[str, Any]) -> Path:
    """A file of NDJSON."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# -- as they were, and once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "form"), [*(("lake", form) for form in FORMATS), *((kind, "ndjson") for kind in KINDS if kind != "lake")]
)
def test_what_was_exported_comes_back(new_store: NewStore, tmp_path: Path, kind: str, form: Format) -> None:
    rows = some_rows(90)
    path = exported(filled(new_store("lake"), rows), tmp_path / f"x.{form}", form)
    store = new_store(kind)
    assert run(store, path, dry_run=True) == Brought(90, 0)
    assert count(store) == 0
    assert run(store, path) == Brought(90, 0)
    assert list(map(repr, content(store))) == list(map(repr, in_order(rows)))
    assert run(store, path) == Brought(0, 90)
    assert run(store, path, dry_run=True) == Brought(0, 90)
    assert (count(store), store.info().stored) == (90, 90)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_store_recorded_itself_is_there_already(new_store: NewStore, tmp_path: Path, kind: str) -> None:
    """Half of the file was shipped, with positions; the other half is what the store lost since."""
    rows = some_rows(60)
    path = exported(filled(new_store("lake"), rows), tmp_path / "x.ndjson", "ndjson")
    store = filled(new_store(kind), rows[::2])
    assert run(store, path) == Brought(30, 30)
    assert content(store) == in_order(rows)
    # What the shipper brings from then on is not hindered.
    news = [row(1_000, journal=JOURNALS[0], timestamp=NOON + DAY)]
    store.write(batch(news))
    assert count(store) == 61


def test_the_same_file_in_every_format_is_the_same(lake: Store, new_store: NewStore, tmp_path: Path) -> None:
    filled(lake, some_rows(30))
    paths = [exported(lake, tmp_path / f"x.{form}", form) for form in FORMATS]
    store = new_store("lake")
    assert run(store, *paths) == Brought(30, 60)
    assert run(lake, *paths) == Brought(0, 90)


def test_it_goes_on_where_it_was_stopped(lake: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ROWS", 10)
    rows = some_rows(55)
    path = exported(filled(lake, rows), tmp_path / "x.csv", "csv")
    from tallymark.stores.lake.store import Lake

    with Lake(tmp_path / "other") as store:
        checked = check_files([path], None, MASK, lambda *_: None)

        def stop(_what: str, done: int, _total: int | None) -> None:
            if done >= 30:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_files(store, checked, stop)
        assert count(store) == 30
        assert run(store, path) == Brought(25, 30)
        assert content(store) == in_order(rows)


def test_one_id_several_times_in_a_file_is_one_record(lake: Store, tmp_path: Path) -> None:
    line = ndjson.encode(row(1))
    (tmp_path / "x.ndjson").write_bytes(line * 3 + ndjson.encode(row(2)))
    assert run(lake, tmp_path / "x.ndjson") == Brought(2, 2)
    assert [one["seq"] for one in content(lake)] == [1, 2]


def test_records_in_no_order(lake: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ROWS", 7)
    monkeypatch.setattr(arrivals, "PAGE_ROWS", 2)  # so that much lies between
    rows = [row(seq, timestamp=NOON + seq * 37 % 100 * DAY) for seq in range(100)]
    (tmp_path / "x.ndjson").write_bytes(b"".join(map(ndjson.encode, rows)))
    filled(lake, rows[:33])
    assert run(lake, tmp_path / "x.ndjson") == Brought(67, 33)
    assert run(lake, tmp_path / "x.ndjson") == Brought(0, 100)
    assert content(lake) == in_order(rows)


def test_what_a_store_refused_can_be_imported(lake: Store, tmp_path: Path) -> None:
    class Picky(type(lake)):  # type: ignore[misc]
        def write(self, batch: Batch) -> None:
            if "bad" in batch.table["name"].to_pylist():
                raise RefusedError("no bad ones")
            super().write(batch)

    rows = [row(seq, name="bad" if seq in (3, 7) else "good") for seq in range(10)]
    with Picky(tmp_path / "picky") as store:
        deliver(store, [Lot(JOURNALS[0], 65_536, table(rows), {}, 10, 10)], tmp_path, SystemClock())
        assert count(store) == 8
        path = tmp_path / REFUSED_FILE
        assert run(lake, path) == Brought(2, 0)
        assert [one["seq"] for one in content(lake)] == [3, 7]
        # Into the store that refuses them still: they are named, and others are stored.
        path.write_bytes(path.read_bytes() + ndjson.encode(row(20)))
        done = run(store, path)
        assert (done.written, done.present, len(done.refused)) == (1, 0, 2)
        assert all("no bad ones" in sentence for sentence in done.refused)
        assert count(store) == 9


def test_a_store_that_refuses_everything(lake: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_REFUSED", 5)

    class Broken(type(lake)):  # type: ignore[misc]
        def write(self, batch: Batch) -> None:
            raise RefusedError("no")

    with Broken(tmp_path / "broken") as store, pytest.raises(RefusedError, match="refuses more than 5 records"):
        bring(store, table([row(seq) for seq in range(10)]))


def test_one_at_a_time_into_a_store(tmp_path: Path) -> None:
    url = str(tmp_path / "metrics")
    with (
        alone_into(url),
        pytest.raises(StoreError, match="another import or migrate brings records into"),
        alone_into(url),
    ):
        pass
    with alone_into(url):
        assert (tmp_path / "metrics" / LOCK_FILE).exists()


def test_moves_are_counted_by_one_position(lake: Store, tmp_path: Path) -> None:
    for first in range(3):
        bring(lake, table([row(first)]))
    bring(lake, table([row(first)]))
    assert lake.positions([MOVES, JOURNALS[0]]) == {MOVES: 3}


# -- files of other programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "ndjson", "jsonl"])
def test_records_without_ids(lake: Store, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"theirs.{ending}"
    if ending == "csv":
        path.write_text(
            "\ufeffTimestamp,metric_type,name,value,success,metadata,error\n"
            '2025-01-31T12:00:00Z,operation,"a ""b""\nc",1.5,TRUE,"{""k"": 1}",\n'
            "\n2025-01-31 13:00:00.000000001+01:00,operation,'=1+1,-2e3,,,why\n",
            encoding="utf-8",
        )
    else:
        first = LINE | {"name": 'a "b"\nc', "success": True, "metadata": {"k": 1}}
        other = LINE | {"timestamp": "2025-01-31 13:00:00.000000001+01:00", "name": "=1+1", "value": -2e3}
        lines(path, first, other | {"error": "why", "success": None})
    assert run(lake, path) == Brought(2, 0)
    one, two = content(lake)
    assert (one["timestamp"], one["name"], one["value"], one["success"]) == (NOON, 'a "b"\nc', 1.5, True)
    assert (one["service"], one["unit"], one["metadata"], one["error"]) == ("shop", "1", '{"k":1}', None)
    assert (two["timestamp"], two["name"], two["value"], two["success"]) == (NOON + 1, "=1+1", -2000.0, None)
    assert (two["error"], two["metadata"], two["journal"], two["seq"]) == ("why", "{}", one["journal"], 1)
    assert uuid.UUID(one["journal"]).version == 8
    # Under another name it is the same file; with another line it is another.
    path.rename(tmp_path / f"renamed.{ending}")
    assert run(lake, tmp_path / f"renamed.{ending}") == Brought(0, 2)
    with (tmp_path / f"renamed.{ending}").open("a") as file:
        file.write("\n")
    assert run(lake, tmp_path / f"renamed.{ending}") == Brought(2, 0)


def test_some_have_ids_and_some_do_not(lake: Store, tmp_path: Path) -> None:
    (tmp_path / "x.ndjson").write_bytes(
        ndjson.encode(row(7)) + json.dumps(LINE).encode() + b"\n" + ndjson.encode(row(8))
    )
    assert run(lake, tmp_path / "x.ndjson") == Brought(3, 0)
    assert sorted(one["seq"] for one in content(lake)) == [1, 7, 8]


def test_secrets_of_others_are_masked_and_what_was_recorded_stays(lake: Store, tmp_path: Path) -> None:
    mail = "jane@example.com"
    foreign = LINE | {"name": mail, "error": f"to {mail}", "trace_id": mail, "metadata": {"to": [mail]}, "value": 1}
    lines(tmp_path / "theirs.ndjson", foreign)
    run(lake, tmp_path / "theirs.ndjson")
    (found,) = content(lake)
    assert mail not in repr(found)
    assert "[email]" in found["metadata"]
    recorded = row(0, name=mail, timestamp=NOON - 1, metadata={"to": mail})  # with pii="allow"
    (tmp_path / "ours.ndjson").write_bytes(ndjson.encode(recorded))
    run(lake, tmp_path / "ours.ndjson")
    assert content(lake)[0] == recorded
    with pytest.raises(StoreError, match=r"theirs\.ndjson: line 1: ") as caught:
        run(lake, tmp_path / "theirs.ndjson", pii=PiiPolicy.of("reject"))
    assert mail not in str(caught.value)


def test_batch_files(lake: Store, tmp_path: Path) -> None:
    """Those that tallymark wrote come back as they were, and those of others are checked as if recorded now."""
    rows = [row(seq, success=seq % 2 == 0, value=1.5 + seq) for seq in range(20)]
    ours, theirs = tmp_path / "metrics_20250131_120000_000000.json", tmp_path / "metrics_20250131_120001_000000.json"
    ours.write_bytes(batch_text(table(rows), NOON))
    record = {
        "operation_type": "api_request",
        "operation_name": "GET /jane@example.com",
        "duration_ms": 42.5,
        "timestamp": "2025-01-31T12:00:01",
        "success": False,
        "error_message": "jane@example.com \ud800",
        "metadata": {"region": "eu"},
    }
    theirs.write_text(json.dumps({"records": [record] * 3, "total_records": 3}))
    assert run(lake, ours, theirs) == Brought(23, 0)
    assert run(lake, ours, theirs, service="other") == Brought(0, 23)
    found = content(lake)
    assert found[:20] == rows
    assert [one["seq"] for one in found[20:]] == [0, 1, 2]
    assert found[20]["name"] == "GET /[email]"
    assert found[20]["service"] == "shop"
    assert "jane" not in repr(found[20])


# -- faults --------------------------------------------------------------------------------------------------

GOOD = ndjson.encode(row(0)).decode()


def own(**given: Any) -> str:
    """A line with an id."""
    return json.dumps(json.loads(GOOD) | given) + "\n"


def foreign(**given: Any) -> str:
    """A line without one."""
    return json.dumps({name: value for name, value in (LINE | given).items() if value != "gone"}) + "\n"


NDJSON_FAULTS = {
    "{": "line 3: Input data was truncated",
    "[]": "line 3: Expected `object`, got `array`",
    "null": "line 3: Expected `object`",
    "\x00": "line 3: ",
    "[" * 100_000: "line 3: ",
    own(metadata="x"): "line 3: metadata must be a JSON object",
    own(metadata=[1]): "line 3: metadata must be a JSON object",
    own(metadata={"a": "x" * 17_000}): r"line 3: metadata is \d+ bytes of JSON; at most 16384 are allowed",
    own(metadata={"a": [[[[[[[[]]]]]]]]}): "line 3: metadata is nested too deep",
    own(metadata={"a": "\0"}): "line 3: metadata must not hold NUL",
    own(metadata={"\ud800": 1}): "line 3: JSON is malformed",
    own(id="7"): r"line 3: .*id",
    own(name=""): "line 3: name must not be empty",
    own(name="x" * 201): "line 3: name has 201 characters; at most 200 are allowed",
    own(name="a\0b"): "line 3: name must not hold NUL",
    own(name=None): "line 3: name must not be empty",
    own(timestamp=None): "line 3: timestamp must not be empty",
    own(name=7): r"line 3: Expected `str.*, got `int` - at `\$\.name`",
    own(error="x" * 1_001): "line 3: error has 1001 characters",
    own(metric_type="tallymark"): "line 3: metric_type 'tallymark' is reserved",
    own(timestamp="2101-01-01T00:00:00Z"): "line 3: timestamp must lie between the years 1970 and 2100",
    own(timestamp="1969-12-31T23:59:59Z"): "line 3: timestamp must lie between the years 1970 and 2100",
    own(timestamp="yesterday"): "line 3: timestamp: use RFC 3339",
    own(value="1"): r"line 3: Expected `float.*\$\.value",
    GOOD.replace("1.0", "1e999"): "line 3: ",
    GOOD.replace("1.0", "NaN"): "line 3: ",
    own(colour="red"): "line 3: Object contains unknown field `colour`",
    foreign(name="gone"): "line 3: name is missing",
    foreign(value="gone"): "line 3: value is missing",
    foreign(timestamp="gone"): "line 3: timestamp is missing",
    foreign(metric_type="tallymark"): "line 3: metric_type 'tallymark' is reserved",
    foreign(timestamp="2300-01-01"): "line 3: timestamp must lie between",
    foreign(timestamp=1_700_000_000): r"line 3: Expected `str.*\$\.timestamp",
    foreign(metadata={"password": "x"}): "line 3: metadata has the forbidden key 'password'",
    foreign(metadata={"a": [[[[[[[[]]]]]]]]}): "line 3: .*nested too deep",
    foreign(metadata=[1]): "line 3: metadata must be a JSON object",
    foreign(trace_id="x" * 129): "line 3: trace_id has 129 characters",
    "x" * (1 << 21): "line 3: it is longer than 1,048,576 characters",
}


@pytest.mark.parametrize("number", range(len(NDJSON_FAULTS)))
def test_a_fault_is_named_and_nothing_is_imported(lake: Store, tmp_path: Path, number: int) -> None:
    fault, words = list(NDJSON_FAULTS.items())[number]
    good, bad = lines(tmp_path / "good.ndjson", LINE), tmp_path / "bad.ndjson"
    bad.write_text(GOOD + "\n" + fault.rstrip("\n") + "\n" + GOOD, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(StoreError, match=rf"bad\.ndjson: {words}"):
        run(lake, good, bad)
    assert count(lake) == 0


def test_a_service_has_to_be_said(lake: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"line 1: service is missing; hint: --service NAME"):
        run(lake, lines(tmp_path / "x.ndjson", LINE), service=None)
    assert run(lake, lines(tmp_path / "x.ndjson", LINE | {"service": "theirs"}), service=None).written == 1


HEADER = "timestamp,metric_type,name,value,unit,success,metadata,id\n"
CSV_FAULTS = {
    "a,b\n1,2\n": "line 1: there is no column 'a'; the columns are id,timestamp,",
    HEADER.replace(",", ";"): "line 1: there is no column 'timestamp;metric_type",
    HEADER.replace("unit", "name"): "line 1: the column 'name' is there twice",
    "timestamp,name,value\n": "line 1: the column 'metric_type' is missing",
    HEADER + "1\n": "line 2: it has 1 cells, and the header has 8",
    HEADER + "2025-01-31,o,n,1,ms,,,\n2025-01-31,o,n,1e999,ms,,,\n": "line 3: value must be finite",
    HEADER + "2025-01-31,o,n,1_0,ms,,,\n": "line 2: value must be a number",
    HEADER + '2025-01-31,o,n,"1,5",ms,,,\n': "line 2: value must be a number",
    HEADER + "31.1.2025,o,n,1,ms,,,\n": "line 2: timestamp: use RFC 3339",
    HEADER + "2025-01-31,o,n,1,ms,yes,,\n": "line 2: success must be true, false or empty",
    HEADER + "2025-01-31,o,n,1,ms,,{},7\n": "line 2: id must be a UUID",
    HEADER + "2025-01-31,o,n,1,ms,,{,\n": "line 2: metadata must be a JSON object",
    HEADER + '2025-01-31,o,"a\n\nb",1,ms,,[],\n': "line 2: metadata must be a JSON object",
    HEADER + '2025-01-31,o,"a': "line 2: unexpected end of data",
    HEADER + '2025-01-31,o,"' + "x" * 200_000 + '",1,ms,,,\n': r"line 2: field larger than field limit",
    HEADER + "2025-01-31,o,,1,ms,,,\n": "line 2: name is missing",
    HEADER + "2025-01-31,o,',1,ms,,,\n": r"line 2: name \(operation_name\) must not be empty",
    HEADER + f"2025-01-31,o,',1,ms,,{{}},{uuid.uuid4()}\n": "line 2: service must not be empty",
}


@pytest.mark.parametrize("number", range(len(CSV_FAULTS)))
def test_a_fault_in_csv(lake: Store, tmp_path: Path, number: int) -> None:
    text, words = list(CSV_FAULTS.items())[number]
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=rf"x\.csv: {words}"):
        run(lake, tmp_path / "x.csv")
    assert count(lake) == 0


def test_bytes_that_are_no_text(lake: Store, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(HEADER.encode() + b"2025-01-31,o,\xff\xfe,1,ms,,,\n")
    with pytest.raises(StoreError, match=r"x\.csv: after line \d: it is not in UTF-8"):
        run(lake, tmp_path / "x.csv")
    (tmp_path / "x.ndjson").write_bytes(b'{"name":"\xff"}\n')
    with pytest.raises(StoreError, match=r"x\.ndjson: line 1: "):
        run(lake, tmp_path / "x.ndjson")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": pa.array([1.0, float("nan"), 1.0])}, "row 2: value must be finite"),
        ({"name": pa.array(["a", "b", None])}, "row 3: name must not be empty"),
        ({"journal": pa.array(["0" * 32, "0" * 32, "x"])}, "row 3: id must be one that tallymark gave"),
        ({"journal": pa.array(["f" * 32] * 3)}, "row 1: id must be one that tallymark gave"),
        ({"seq": pa.array([0, 1, 1 << 41])}, "row 3: id must be one that tallymark gave"),
        ({"metadata": pa.array(["{}", "{}", "{]"])}, "row 3: metadata must be a JSON object"),
        ({"value": pa.array(["a", "b", "c"])}, "is no such file of Parquet"),
        ({"unit": None}, "columns: unit missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_fault_in_parquet(lake: Store, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    columns = dict(zip(SCHEMA.names, table(some_rows(3)).columns, strict=True)) | change
    pq.write_table(
        pa.table({name: column for name, column in columns.items() if column is not None}), tmp_path / "x.parquet"
    )
    with pytest.raises(StoreError, match=words):
        run(lake, tmp_path / "x.parquet")
    assert count(lake) == 0


def test_parquet_as_other_programs_write_it(lake: Store, tmp_path: Path) -> None:
    rows = table(some_rows(20))
    columns: dict[str, Any] = {name: rows[name] for name in reversed(SCHEMA.names)}
    columns["name"] = columns["name"].cast(pa.large_string())
    columns["service"] = columns["service"].combine_chunks().dictionary_encode()
    columns["seq"] = columns["seq"].cast(pa.int32())
    pq.write_table(pa.table(columns | {"date": pa.array(["x"] * 20)}), tmp_path / "x.parquet")
    assert run(lake, tmp_path / "x.parquet") == Brought(20, 0)
    assert content(lake) == in_order(rows.to_pylist())


@pytest.mark.parametrize("name", ["x.csv", "x.ndjson", "x.parquet", "x.json"])
@pytest.mark.parametrize("content", [b"\x00\xff\x1f\x8b" * 50, b"PAR1" + bytes(60) + b"PAR1"], ids=["noise", "parquet"])
def test_a_file_that_is_something_else(lake: Store, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=name.replace(".", r"\.")):
        run(lake, tmp_path / name)


def test_what_is_no_file(lake: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "x.txt").touch()
    (tmp_path / "empty.json").touch()
    (tmp_path / "empty.parquet").touch()
    for name, words in {
        "": "is a folder; hint: name the files in it, or migrate from a store",
        "none.csv": "there is no such file",
        "pipe.csv": "is no regular file",
        "x.txt": "Its name has to end in .csv .ndjson .jsonl .parquet .json",
        "empty.json": "is no batch file",
        "empty.parquet": "is no such file of Parquet",
    }.items():
        with pytest.raises(StoreError, match=words):
            run(lake, tmp_path / name)


@pytest.mark.parametrize("name", ["x.csv", "x.ndjson", "header.csv"])
def test_a_file_with_nothing_in_it(lake: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(HEADER if name == "header.csv" else "")
    assert run(lake, tmp_path / name) == Brought(0, 0)


def test_a_file_that_changes_meanwhile(lake: Store, tmp_path: Path) -> None:
    path = lines(tmp_path / "x.ndjson", LINE)
    checked = check_files([path], "shop", MASK, lambda *_: None)
    lines(path, LINE, LINE)
    with pytest.raises(StoreError, match="has changed meanwhile"):
        import_files(lake, checked, lambda *_: None)
    assert count(lake) == 0


def test_the_columns_in_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "moving.md").read_text("utf-8")
    assert ",".join(COLUMNS) in page
    assert next(csv.reader([",".join(COLUMNS)])) == list(COLUMNS)
