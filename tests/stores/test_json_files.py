"""JSON batch files: the contract of a store, the shape of the files, and what happens when others touch them."""

import json
import resource
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
from recording import output, python, ship

import tallymark
from tallymark import Metrics
from tallymark.batch import CLOSED
from tallymark.errors import StoreError
from tallymark.query import Query
from tallymark.stores.json_files.batch_file import read_batch_file
from tallymark.stores.json_files.store import JsonFiles
from tallymark.testing.conformance import NewStore, StoreConformance
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

OPERATION = {
    "operation_type": "api_request",
    "operation_name": "GET /api/users",
    "duration_ms": 42.5,
    "timestamp": "2025-12-16T08:00:00.000000+00:00",
    "success": True,
    "error_message": None,
    "metadata": {"status_code": 200, "region": "us-east"},
}


def foreign(folder: Path, *records: dict[str, Any], name: str = "metrics_20251216_080005_123456.json") -> Path:
    """A file as the system of the document writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    content = {
        "records": list(records),
        "batch_timestamp": "2025-12-16T08:00:05.123456+00:00",
        "batch_id": "20251216_080005_123456",
        "total_records": len(records),
    }
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("metrics_*.json"))


class TestJsonFiles(StoreConformance):
    @pytest.fixture
    def new_store(self, tmp_path: Path) -> NewStore:
        return lambda: JsonFiles(tmp_path / uuid.uuid4().hex)


@pytest.fixture
def store(folder: Path) -> JsonFiles:
    return JsonFiles(folder)


# -- the files -----------------------------------------------------------------------------------------------


def test_a_file_has_the_name_and_the_shape_of_the_document(store: JsonFiles, folder: Path) -> None:
    given = {"metric_type": "api_request", "name": "GET /api/users", "value": 42.5, "success": True}
    store.write(batch([row(0, **given, metadata=OPERATION["metadata"], timestamp=1_765_872_000_000_000_000)]))
    (path,) = files(folder)
    content = json.loads(path.read_text("utf-8"))
    assert list(content) == ["records", "batch_timestamp", "batch_id", "total_records"]
    (record,) = content["records"]
    assert set(record.pop("tallymark")) == {"id", "service"}
    assert record == OPERATION
    assert list(record) == list(OPERATION)
    assert path.name == f"metrics_{content['batch_id']}.json"
    assert content["total_records"] == 1
    digits = "".join(character for character in content["batch_timestamp"].split("+")[0] if character.isdigit())
    assert digits == content["batch_id"].replace("_", "")


def test_what_is_no_operation_stays_readable_as_one(store: JsonFiles, folder: Path) -> None:
    values = [("s", 1.5, 1500.0), ("By", 7.0, 0.0), ("ms", -3.0, 0.0), ("d", 1e307, 0.0), ("us", 5.0, 0.005)]
    rows = [row(seq, unit=unit, value=value) for seq, (unit, value, _) in enumerate(values)]
    store.write(batch(rows))
    (path,) = files(folder)
    records = json.loads(path.read_text("utf-8"))["records"]
    assert [record["duration_ms"] for record in records] == [duration for _, _, duration in values]
    assert all(record["success"] is True for record in records)
    assert store.scan(Query(order_by=("timestamp",))).to_pylist() == rows


def test_a_file_holds_a_thousand_records_and_none_takes_the_place_of_another(store: JsonFiles, folder: Path) -> None:
    """All of these batches come within a second, and the clock may stand still."""
    moments = iter([NOON] * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallymark.stores.json_files.store.time.time_ns", lambda: next(moments))
        store.write(batch([row(seq) for seq in range(2_001)]))
        for journal in JOURNALS[1:]:
            store.write(batch([row(0, journal=journal)]))
    assert [path.name for path in files(folder)] == [f"metrics_20250131_120000_{number:06}.json" for number in range(5)]
    assert [read_batch_file(path).num_rows for path in files(folder)] == [1_000, 1_000, 1, 1, 1]
    assert count(store) == 2_003


def test_reading_makes_no_folder(store: JsonFiles, folder: Path) -> None:
    assert count(store) == 0
    assert (store.info().stored, store.positions(JOURNALS), store.delete(Query())) == (0, {}, 0)
    store.purge(NOON)
    assert not [path for path in folder.parent.rglob("*") if path.is_file()]


# -- exactly once --------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from tallymark.batch import CLOSED
from tallymark.query import Query
from tallymark.stores.json_files import store as json_files
from tallymark.stores.json_files.store import JsonFiles
from tallymark.testing.rows import JOURNALS, batch, row

what, folders = sys.argv[1], Path(sys.argv[2])

def step():
    global left
    left -= 1
    if left < 0:
        os._exit(9)

def before(module, name):
    original = getattr(module, name)
    def call(*arguments, **options):
        step()
        return original(*arguments, **options)
    setattr(module, name, call)

json_files.RECORDS_PER_FILE = 5
rows = [row(seq, session_id="s" if seq % 3 else None) for seq in range(12)]
for number in range(1_000):
    store = JsonFiles(folders / f"{number:03}")
    if what == "delete":
        store.write(batch(rows))
        store.close()
    child = os.fork()
    if child == 0:
        left = number
        for name in ("fsync", "replace", "ftruncate", "open"):
            before(os, name)
        before(Path, "unlink")
        if what == "write":
            store.write(batch(rows, **{JOURNALS[0]: CLOSED}))
        else:
            store.delete(Query.build(agg=(), session_id="s"))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(number)
        break
"""


@pytest.mark.parametrize("what", ["write", "delete"])
def test_a_writer_may_be_killed_at_any_step(tmp_path: Path, what: str) -> None:
    steps = int(output(python("-c", KILLED, what, str(tmp_path)), seconds=200))
    assert steps >= 8
    rows = [row(seq, session_id="s" if seq % 3 else None) for seq in range(12)]
    kept = sum(one["session_id"] is None for one in rows)
    found = set()
    for number in range(steps + 1):
        with JsonFiles(tmp_path / f"{number:03}") as store:
            if what == "write":
                before = count(store)
                assert store.positions(JOURNALS) == ({JOURNALS[0]: CLOSED} if before else {})
                assert store.info().recorded == before
                store.write(batch(rows, **{JOURNALS[0]: CLOSED}))
                assert (count(store), store.info().recorded) == (len(rows), len(rows))
            else:
                before = count(store)
                assert (store.info().stored, store.info().recorded) == (before, len(rows))
                store.delete(Query.build(agg=(), session_id="s"))
                assert (count(store), store.info().deleted) == (kept, len(rows) - kept)
            found.add(before)
            store.purge(NOON)
            assert not list((tmp_path / f"{number:03}").glob(".new-*"))
    assert found == (
        {0, len(rows)} if what == "write" else {kept, len(rows)}
    )  # all of it or nothing, and both happened


def test_a_disk_that_is_full_keeps_nothing_by_half(store: JsonFiles, folder: Path) -> None:
    store.write(batch([row(0)]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = batch([row(seq, error="x" * 500) for seq in range(1, 2_000)])
    for room in (0, 300, 30_000, 700_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(StoreError, match=r"cannot write to json:.*File too large"):
                store.write(more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(folder.glob(".new-*"))
        assert (count(store), count(JsonFiles(folder))) == (1, 1)
    signal.signal(signal.SIGXFSZ, before)
    store.write(more)
    assert count(JsonFiles(folder)) == 2_000


def test_a_log_that_is_damaged_is_no_empty_store(store: JsonFiles, folder: Path) -> None:
    store.write(batch([row(0)]))
    store.write(batch([row(1)]))
    log = folder / ".tallymark" / "files.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"{}x\n" + lines[2])
    with pytest.raises(StoreError, match=r"files\.jsonl is damaged at byte"):
        JsonFiles(folder).scan(Query())


def test_half_a_line_at_the_end_of_the_log_never_happened(store: JsonFiles, folder: Path) -> None:
    store.write(batch([row(0)]))
    with (folder / ".tallymark" / "files.jsonl").open("ab") as log:
        log.write(b'{"token":"x","files":{"metrics_')
    for one in (store, JsonFiles(folder)):
        assert count(one) == 1
    store.write(batch([row(1)]))
    assert count(JsonFiles(folder)) == 2


def test_a_long_log_is_shortened_under_those_who_read_it(
    store: JsonFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallymark.stores.json_files.ledger.MANY_LINES", 3)
    other = JsonFiles(folder)
    for seq in range(4):
        store.write(batch([row(seq)]))
        assert count(other) == seq + 1
    store.purge(NOON)
    assert (folder / ".tallymark" / "files.jsonl").read_bytes().count(b"\n") == 2
    store.write(batch([row(9)]))
    assert (count(other), count(store), other.positions(JOURNALS)) == (5, 5, {JOURNALS[0]: 10})


def test_many_small_files_are_joined(store: JsonFiles, folder: Path) -> None:
    with JsonFiles(folder) as other:
        for seq in range(40):
            store.write(batch([row(number) for number in range(seq * 40, seq * 40 + 40)]))
        foreign(folder, OPERATION)
        before = store.scan(Query()).to_pylist()
        names = {path.name for path in files(folder)}
        (newest,) = {max(names)}
        assert store.maintain(NOON, None).compacted == 38
        assert store.maintain(NOON, None).compacted == 0
        left = {path.name for path in files(folder)}
        assert left < names
        assert len(left) == 3
        assert newest in left
        assert store.scan(Query()).to_pylist() == other.scan(Query()).to_pylist() == before
        assert (store.info().stored, store.info().deleted) == (1_601, 0)


# -- what others do to the files -----------------------------------------------------------------------------


def test_files_that_somebody_removed_do_not_come_again(store: JsonFiles, folder: Path) -> None:
    rows = [row(seq) for seq in range(1_500)]
    store.write(batch(rows))
    files(folder)[0].unlink()
    assert (count(store), store.info().stored, store.info().deleted) == (500, 500, 1_000)
    store.write(batch(rows))
    assert (count(store), store.info().recorded) == (500, 1_500)


def test_files_that_somebody_edited_are_read_as_they_are(store: JsonFiles, folder: Path) -> None:
    store.write(batch([row(seq) for seq in range(3)]))
    (path,) = files(folder)
    content = json.loads(path.read_text("utf-8"))
    content["records"].pop()
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    assert (count(store), store.info().stored, store.info().deleted) == (2, 2, 1)


def test_files_of_others_are_read_beside_the_own(store: JsonFiles, folder: Path) -> None:
    path = foreign(folder, OPERATION, {**OPERATION, "success": False, "error_message": "timed out"})
    store.write(batch([row(0)]))
    assert (count(store), store.info().stored, count(store, success=False)) == (3, 3, 1)
    found = store.scan(Query.build(agg=(), name="GET /api/users", success=True)).to_pylist()
    assert found == read_batch_file(path).to_pylist()[:1]
    assert store.delete(Query.build(agg=(), success=False)) == 1
    assert (count(store), store.info().stored, store.info().recorded) == (2, 2, 3)
    again = store.scan(Query.build(agg=(), name="GET /api/users")).to_pylist()
    assert again == found  # with the id that it had


def test_a_file_is_only_read_where_it_may_hold_an_answer(store: JsonFiles, folder: Path) -> None:
    store.write(batch([row(seq, timestamp=NOON + seq) for seq in range(1_000)]))
    store.write(batch([row(1_000, timestamp=NOON + DAY)]))
    size = files(folder)[0].stat().st_size
    files(folder)[0].write_bytes(b"x" * size)
    assert count(store, since=NOON + 1_000, until=NOON + 2 * DAY) == 1
    with pytest.raises(StoreError, match=r"metrics_.*\.json is no batch file"):
        count(store, since=NOON + 999, until=NOON + 2 * DAY)


# -- files of others, one by one -----------------------------------------------------------------------------


def test_a_file_of_the_document_is_read(folder: Path) -> None:
    (found,) = read_batch_file(foreign(folder, OPERATION), service="shop").to_pylist()
    identifier = uuid.UUID(int=int(found.pop("journal"), 16) | found.pop("seq"))
    assert identifier.version == 8
    assert found == {
        "timestamp": 1_765_872_000_000_000_000,
        "service": "shop",
        "metric_type": "api_request",
        "name": "GET /api/users",
        "value": 42.5,
        "unit": "ms",
        "success": True,
        "error": None,
        "trace_id": None,
        "session_id": None,
        "metadata": '{"status_code":200,"region":"us-east"}',
        "description": None,
    }


def test_ids_are_those_of_the_content(folder: Path) -> None:
    first = read_batch_file(foreign(folder, OPERATION, OPERATION))
    same = read_batch_file(foreign(folder, OPERATION, OPERATION, name="metrics_20251216_080005.json"))
    other = read_batch_file(foreign(folder, OPERATION))
    assert first == same
    assert first["seq"].to_pylist() == [0, 1]
    assert first["journal"][0] != other["journal"][0]


def test_what_may_be_missing_or_spelt_otherwise(folder: Path) -> None:
    least = {key: OPERATION[key] for key in ("operation_type", "operation_name", "duration_ms", "timestamp")}
    spelt = [
        {**least, "duration_ms": 3},
        {**OPERATION, "timestamp": "2025-12-16T08:00:00"},
        {**OPERATION, "timestamp": "2025-12-16T09:00:00.000001+01:00", "metadata": None, "more": [1]},
        {**OPERATION, "error_message": "nul\0 " + "x" * 2_000, "metadata": {"a\0": ["\ud800", 1.0]}},
    ]
    found = read_batch_file(foreign(folder, *spelt)).to_pylist()
    assert [one["timestamp"] % 1_000_000_000 for one in found] == [0, 0, 1_000, 0]
    assert [one["value"] for one in found] == [3.0, 42.5, 42.5, 42.5]
    assert found[0]["success"] is True
    assert [found[0]["metadata"], found[2]["metadata"]] == ["{}", "{}"]
    assert found[3]["metadata"] == '{"a\ufffd":["\ufffd",1.0]}'
    assert found[3]["error"].startswith("nul\ufffd")
    assert len(found[3]["error"]) == 1_000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"operation_type": 7}, r"`\$\.records\[1\]\.operation_type`"),
        ({"operation_type": " "}, r"records\[1\]: operation_type must not be empty"),
        ({"operation_name": "x" * 201}, r"records\[1\]: operation_name has 201 characters"),
        ({"duration_ms": "fast"}, r"`\$\.records\[1\]\.duration_ms`"),
        ({"duration_ms": -1}, r"records\[1\]: duration_ms must be"),
        ({"duration_ms": float("nan")}, r"JSON is malformed"),
        ({"timestamp": "yesterday"}, r"`\$\.records\[1\]\.timestamp`"),
        ({"timestamp": "1969-12-31T23:59:59+00:00"}, r"records\[1\]: timestamp must lie between"),
        ({"success": "yes"}, r"`\$\.records\[1\]\.success`"),
        ({"metadata": [1]}, r"records\[1\]: metadata must be an object"),
        ({"tallymark": {"id": "7", "service": "s"}}, r"records\[1\]: tallymark\.id is no UUID"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_an_error_names_file_and_field(folder: Path, wrong: dict[str, Any], said: str) -> None:
    path = foreign(folder, OPERATION, {**OPERATION, **wrong})
    with pytest.raises(StoreError, match=rf"metrics_20251216_080005_123456\.json.*{said}"):
        read_batch_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"records": 1}', b"\xff\xfe", b'{"records":[', b"[" * 100_000], ids=repr
)
def test_what_is_no_batch_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics_x.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"metrics_x\.json is no batch file: "):
        read_batch_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*gone\.json: No such file"):
        read_batch_file(tmp_path / "gone.json")


# -- with everything else ------------------------------------------------------------------------------------


def test_from_the_recorder_to_the_files(tmp_path: Path) -> None:
    url = f"json:{tmp_path / 'metrics'}"
    with Metrics(url, service="shop") as metrics:
        metrics.record_operation("api_request", "GET /users", 42.5, metadata={"status_code": 200})
        metrics.record("system", "cpu", 7.0, "%")
        with tallymark.open(url) as reader:
            assert sorted(record.name for record in reader.records().records) == ["GET /users", "cpu"]
            info = reader.info()
            assert (info.stored, info.pending, info.dropped) == (2, 0, {})
    ship(url)
    (path,) = files(tmp_path / "metrics")
    assert read_batch_file(path)["name"].to_pylist() == ["GET /users", "cpu"]
