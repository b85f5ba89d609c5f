"""Erasing one subject: afterwards no byte of its records is in the folder of the store, and nothing else is gone."""

import fcntl
import gzip
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from recording import DEADLINE_SECONDS, books, clone, eventually, live, output, python, recording, ship, stored

from tallymark import Metrics, keeping
from tallymark.integrations.logging import JsonLinesHandler, log_event
from tallymark.keeping import Erased
from tallymark.lane import ENTRIES_AT, ENTRY_SIZE, JOURNALS
from tallymark.lane_reader import lanes
from tallymark.maintenance import MAINTAIN_LOCK
from tallymark.query import Query
from tallymark.shipper import Shipper, shipping_lock, shipping_turn
from tallymark.store import open_store
from tallymark.stores.lake.store import Lake

SUBJECT = "session-4f0c-of-ännä-'\"\\"
"""Hostile: quotes, a backslash, and letters beyond ASCII."""


def said(_: str) -> None:
    """Nobody listens."""


def erase(folder: Path, session: str = SUBJECT, logs: tuple[Path, ...] = (), **more: Any) -> Erased:
    lake = open_store(str(folder))
    try:
        return keeping.erase(lake, folder, Query.build(agg=(), session_id=session, **more), said, logs)
    finally:
        lake.close()


def traces(folder: Path, subject: str = SUBJECT) -> list[str]:
    """The files in which anything of the subject is: as it is, as JSON has it, and in what Parquet has compressed."""
    spellings = [subject.encode(), json.dumps(subject)[1:-1].encode()]
    found = []
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += json.dumps(parquet.read_table(file, partitioning=None).to_pylist(), default=str).encode()
        if any(spelling in content for spelling in spellings):
            found.append(str(file.relative_to(folder)))
    return found


def record_some(metrics: Metrics, name: str, count: int = 30) -> None:
    """A third of them of the subject."""
    for number in range(count):
        session = SUBJECT if number % 3 == 0 else f"other-{number}"
        metrics.record("job", name, float(number), session_id=session, error=f"by {session}", success=False)


@pytest.mark.usefixtures("core")
def test_nothing_of_the_subject_is_left_while_applications_record(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "stored")
        metrics.flush()
        record_some(metrics, "in the journal")
        assert {name.partition("/")[0] for name in traces(folder)} == {"journals", "table"}
        done = erase(folder)
        assert (done.records, done.overwritten, done.left, done.newer) == (20, 20, (), 0)
        assert traces(folder) == []
        # The lane is in use: what comes next is read, shipped and counted as ever.
        record_some(metrics, "afterwards")
        assert [record.name for record in stored(folder)].count("afterwards") == 30
        stats, info = metrics.get_stats(), books(folder)
        assert (stats.total_recorded, stats.total_persisted, stats.queue_size) == (90, 60, 30)
        assert (info.stored, info.pending, info.deleted, info.dropped) == (40, 30, 20, {})
        assert info.recorded == stats.total_recorded
        metrics.flush()
    ship(folder)
    info = books(folder)
    assert (info.stored, info.pending, info.deleted, info.dropped) == (70, 0, 20, {})
    names = [record.name for record in stored(folder) if record.session_id != SUBJECT]
    assert {name: names.count(name) for name in names} == {"stored": 20, "in the journal": 20, "afterwards": 20}


def test_only_the_subject_is_erased(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        before = {record.id: record for record in stored(folder) if record.session_id != SUBJECT}
        lane_before = {row["seq"]: row for row in live(folder) if row["session_id"] != SUBJECT}
        assert erase(folder).records == 10
        assert {record.id: record for record in stored(folder)} == before
        assert {row["seq"]: row for row in live(folder)} == lane_before


def test_erasing_again_changes_nothing(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        erase(folder)
        (lane,) = (folder / JOURNALS).glob("*.journal")
        content, info = lane.read_bytes(), books(folder)
        assert erase(folder) == Erased(0, 0, 0, (), 0)
        assert (lane.read_bytes(), books(folder)) == (content, info)


def test_an_erasure_that_was_interrupted_is_finished_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        with monkeypatch.context() as patched:
            patched.setattr(Lake, "delete", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                erase(folder)
        with monkeypatch.context() as patched:
            patched.setattr("tallymark.lane_reader.os.fdatasync", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                erase(folder)
        assert traces(folder) != []
        assert erase(folder).left == ()
        assert traces(folder) == []
        assert books(folder).deleted == 10


def test_what_cannot_be_read_in_a_journal_is_overwritten_too(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        (lane,) = (folder / JOURNALS).glob("*.journal")
        first = next(row["seq"] for row in live(folder) if row["session_id"] == SUBJECT)
        with lane.open("r+b") as file:
            file.seek(ENTRIES_AT + first * ENTRY_SIZE + 33)  # in its value
            file.write(b"\xff")
        done = erase(folder)
        assert (done.records, done.left) == (9, ())
        assert traces(folder) == []
        info = books(folder)
        assert (info.stored, info.pending, info.deleted, info.dropped) == (20, 0, 9, {"corrupt": 1})
    ship(folder)
    assert books(folder).recorded == 30


def test_a_journal_that_is_shipped_anew_has_no_corrupt_records(folder: Path) -> None:
    """Somebody removed the table; what was erased stays erased and is not taken for damage."""
    with recording(folder) as metrics:
        record_some(metrics, "a")
        erase(folder)
        shutil.rmtree(folder / "table")
        ship(folder)
        info = books(folder)
        assert (info.stored, info.pending, info.dropped) == (20, 0, {})


def test_journals_of_the_dead_are_shipped_and_erased(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        (lane,) = (folder / JOURNALS).glob("*.journal")
        for number in range(3):
            clone(lane, number)
        assert erase(folder).records == 40
        assert traces(folder) == []


def test_a_journal_that_cannot_be_read_is_named(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        (folder / JOURNALS / "damaged.journal").write_bytes(SUBJECT.encode() * 500)
        (sentence,) = erase(folder).left
        assert "damaged.journal" in sentence


def test_a_stray_file_is_named(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        metrics.flush()
        file = next((folder / "table").rglob("*.parquet"))
        file.with_name("stray.parquet").write_bytes(file.read_bytes())
        (sentence,) = erase(folder).left
        assert "stray.parquet" in sentence
        assert traces(folder) == [str(file.with_name("stray.parquet").relative_to(folder))]


def test_by_metadata_and_by_trace(folder: Path) -> None:
    with recording(folder) as metrics:
        for number in range(20):
            metrics.record("job", "a", 1.0, metadata={"user": f"user-{number}x"}, trace_id=f"trace-{number}x")
        lake = open_store(str(folder))
        for query in (Query.build(agg=(), where=["metadata.user=user-1x"]), Query.build(agg=(), trace_id="trace-2x")):
            assert keeping.erase(lake, folder, query, said).records == 1
        lake.close()
        assert traces(folder, "user-1x") == traces(folder, "trace-2x") == []
        assert len(stored(folder)) == 18
        assert traces(folder, "user-3x") != []


def test_old_versions_of_the_table_hold_nothing(folder: Path) -> None:
    """Checkpoints, and files that were replaced by others long before."""
    with recording(folder) as metrics:
        lake = open_store(str(folder))
        for _ in range(30):
            record_some(metrics, "a", 3)
            ship(folder)
        assert isinstance(lake, Lake)
        lake.compact(2**62)
        record_some(metrics, "a", 3)
        for _ in range(60):
            ship(folder)
            metrics.record("job", "filler", 1.0)
        assert list((folder / "table" / "_delta_log").glob("*.checkpoint.parquet"))
        assert erase(folder).records == 31
        assert traces(folder) == []
        lake.close()


def test_a_writer_that_never_stops_is_not_disturbed(folder: Path) -> None:
    """Erasing again and again under a writer: every record of the others is there at the end."""
    writer = python("-c", WRITER, str(folder))
    eventually(lambda: folder.is_dir() and len(live(folder)) > 100)
    erased = 0
    for _ in range(5):
        erased += erase(folder).records
        for lane in lanes(folder / JOURNALS):
            assert lane.read(0).corrupt == 0
    (folder / "stop").touch()
    wrote = json.loads(output(writer, 120))
    ship(folder)
    erased += erase(folder).records
    assert erased == wrote["subject"]
    info = books(folder)
    assert (info.stored, info.deleted, info.pending, info.dropped) == (wrote["other"], wrote["subject"], 0, {})
    assert traces(folder) == []


WRITER = f"""
import json, os, pathlib, sys, time
from tallymark import Metrics
folder = pathlib.Path(sys.argv[1])
counts = {{"subject": 0, "other": 0}}
metrics = Metrics(folder, service="writer", max_queue_size=20_000_000)
metrics.start()
parent = os.getppid()
while not (folder / "stop").exists() and os.getppid() == parent:
    for number in range(20):
        kind = "other" if number % 4 else "subject"
        metrics.record("job", kind, 1.0, session_id={SUBJECT!r} if kind == "subject" else f"o{{number}}")
        counts[kind] += 1
    time.sleep(0.001)  # millions of records would only take longer
metrics.stop(60)
print(json.dumps(counts))
"""


# -- beside shippers and upkeep ------------------------------------------------------------------------------


def test_it_takes_turns_with_a_shipper_on_duty(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        lake = open_store(str(folder))
        shipper = Shipper(lake, folder / JOURNALS, interval_seconds=0.01)
        shipper.start()
        try:
            eventually(lambda: books(folder).pending == 0)
            assert erase(folder).records == 10
            record_some(metrics, "b")
            eventually(lambda: books(folder).pending == 0)  # it is on duty again
        finally:
            shipper.stop()
            lake.close()


def test_it_says_that_it_waits(folder: Path) -> None:
    with recording(folder) as metrics:
        record_some(metrics, "a")
        heard: list[str] = []
        lake = open_store(str(folder))
        query = Query.build(agg=(), session_id=SUBJECT)
        work = threading.Thread(target=lambda: keeping.erase(lake, folder, query, heard.append))
        with shipping_lock(folder / JOURNALS) as free, (folder / MAINTAIN_LOCK).open("w") as upkeep:
            assert free
            fcntl.flock(upkeep, fcntl.LOCK_EX)
            work.start()
            eventually(lambda: any("shipper" in text for text in heard))
        work.join(DEADLINE_SECONDS)
        assert not work.is_alive()
        assert traces(folder) == []
        lake.close()


def test_turns_are_kept_apart(folder: Path) -> None:
    inside = []

    def take() -> None:
        with shipping_turn(folder / JOURNALS, lambda: None):
            inside.append(1)
            assert len(inside) == 1
            inside.pop()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert inside == []


# -- the structured log --------------------------------------------------------------------------------------


@pytest.fixture
def log(folder: Path) -> Path:
    return folder / "logs" / "metrics.jsonl"


@pytest.fixture
def handler(log: Path) -> Iterator[JsonLinesHandler]:
    handler = JsonLinesHandler(log, max_bytes=4_000, keep=100)
    logger = logging.getLogger("tallymark.events")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)
    handler.close()


def lines_of(log: Path) -> list[dict[str, Any]]:
    files = sorted(log.parent.glob("metrics.jsonl*"), key=lambda file: -int(file.suffix[1:].replace("jsonl", "0")))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


@pytest.mark.usefixtures("handler")
def test_lines_of_the_structured_log_are_erased(folder: Path, log: Path) -> None:
    """In rotated files too; whoever writes goes on in the new file."""
    for number in range(40):
        log_event("step", "done", session_id=SUBJECT if number % 4 == 0 else f"other-{number}", number=number)
    assert len(list(log.parent.glob("metrics.jsonl.*"))) > 1
    log.chmod(0o640)
    before = lines_of(log)
    with recording(folder):
        done = erase(folder, logs=(log,))
        assert (done.records, done.lines, done.left) == (0, 10, ())
        assert lines_of(log) == [line for line in before if line["session_id"] != SUBJECT]
        assert traces(folder) == []
        assert log.stat().st_mode & 0o777 == 0o640
        log_event("step", "afterwards", session_id="other")
        assert lines_of(log)[-1]["message"] == "afterwards"
        assert erase(folder, logs=(log,)).lines == 0


def test_no_line_of_others_is_lost_while_they_write(folder: Path, log: Path, handler: JsonLinesHandler) -> None:
    handler.max_bytes = 20_000
    done = threading.Event()
    wrote: list[int] = []

    def write() -> None:
        while not done.is_set() and len(wrote) < 400:
            session = SUBJECT if len(wrote) % 2 else "other"
            log_event("step", "x", session_id=session, number=len(wrote))
            wrote.append(len(wrote))

    writer = threading.Thread(target=write)
    with recording(folder):
        writer.start()
        eventually(lambda: len(wrote) > 20)
        while writer.is_alive():
            assert erase(folder, logs=(log,)).left == ()
        writer.join()
        assert erase(folder, logs=(log,)).left == ()
    assert handler.failures == handler.lost == 0
    assert [line["number"] for line in lines_of(log)] == wrote[::2]


@pytest.mark.usefixtures("handler")
def test_which_lines_a_query_means(folder: Path, log: Path) -> None:
    log_event("step", "a", user="u7", number=404)
    log_event("step", "b", user="u8", number="404")
    log_event("step", "c", session_id="s")
    lake = open_store(str(folder))
    with recording(folder) as metrics:
        metrics.record("job", "a", 1.0)

        def lines(*where: str) -> int | None:
            return keeping.erase(lake, folder, Query.build(agg=(), where=where), said, (log,)).lines

        # What lines do not have, or what is true of all that have no such field, is left alone.
        assert [lines("value>=2"), lines("metadata.user!=u7"), lines("session_id=null"), lines("name=x")] == [None] * 4
        assert lines("metadata.user=u7", "metadata.number=405") == 0
        assert lines("metadata.user=u7") == 1
        assert lines("metadata.number=404") == 1
        assert lines("session_id=s") == 1
        assert lines_of(log) == []
    lake.close()


def test_half_a_line_and_other_files(folder: Path, log: Path) -> None:
    log.parent.mkdir(parents=True)
    whole = json.dumps({"session_id": "other", "message": "kept"}).encode() + b"\n"
    half = json.dumps({"session_id": SUBJECT, "message": "torn"}).encode()[:-5]
    log.write_bytes(whole + half + b"\n" + b"\xff\x00 not JSON\n" + whole + half)
    (log.parent / "metrics.jsonl.2.gz").write_bytes(gzip.compress(half))
    with recording(folder):
        done = erase(folder, logs=(log,))
    assert done.lines == 2
    assert log.read_bytes() == whole + b"\xff\x00 not JSON\n" + whole
    (sentence,) = done.left
    assert "metrics.jsonl.2.gz" in sentence
    assert sorted(log.parent.iterdir()) == [log, log.parent / "metrics.jsonl.2.gz"]


def test_nothing_but_half_a_line_is_of_the_subject(folder: Path, log: Path) -> None:
    log.parent.mkdir(parents=True)
    whole = json.dumps({"session_id": "other", "message": "kept"}).encode() + b"\n"
    log.write_bytes(whole + json.dumps({"session_id": SUBJECT, "message": "torn"}).encode()[:-5])
    with recording(folder):
        assert erase(folder, logs=(log,)).lines == 1
    assert log.read_bytes() == whole


def test_a_log_that_is_a_link(folder: Path, log: Path, tmp_path: Path) -> None:
    log.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text(json.dumps({"session_id": SUBJECT}) + "\n")
    log.symlink_to(elsewhere)
    with recording(folder):
        assert erase(folder, logs=(log,)).lines == 1
    assert log.is_symlink()
    assert elsewhere.read_bytes() == b""


def test_links_that_lead_nowhere_are_named_and_the_others_looked_into(folder: Path, log: Path) -> None:
    log.parent.mkdir(parents=True)
    lost, loop = (log.with_name(f"{log.name}.{number}") for number in (1, 2))
    lost.symlink_to("nowhere")
    loop.symlink_to(loop)
    last = log.with_name(f"{log.name}.3")
    last.write_text(json.dumps({"session_id": SUBJECT}) + "\n")
    with recording(folder):
        done = erase(folder, logs=(log,))
    assert done.lines == 1
    assert last.read_bytes() == b""
    assert [sentence.partition(": ")[0] for sentence in sorted(done.left)] == [str(lost), str(loop)]
