"""``tallymark export``, ``import`` and ``migrate``."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tallymark.batch import SCHEMA, Batch
from tallymark.cli import app
from tallymark.record import COLUMNS
from tallymark.store import open_store
from tallymark.testing.rows import DAY, JOURNALS, NOON, row, table

from .conftest import HOSTILE, PROGRAM, Program, eventually


def many(folder: Path, number: int = 200_000) -> Path:
    """A lake with enough records that a command takes its time."""
    seqs = np.arange(number)
    columns: dict[str, Any] = {
        "journal": pa.repeat(JOURNALS[0], number),
        "seq": seqs,
        "timestamp": NOON + seqs * 3_000_000_000,
        "service": pa.repeat("shop", number),
        "metric_type": pa.repeat("operation", number),
        "name": pa.repeat("checkout", number),
        "value": seqs / 7,
        "unit": pa.repeat("ms", number),
        "success": pa.nulls(number, pa.bool_()),
        "metadata": pa.array([f'{{"n":{each}}}' for each in range(number)]),
    }
    rows = pa.table([columns.get(field.name, pa.nulls(number, pa.string())) for field in SCHEMA], schema=SCHEMA)
    with open_store(str(folder)) as store:
        store.write(Batch(rows))
    return folder


@pytest.fixture(scope="session")
def recorded_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many(tmp_path_factory.mktemp("many") / "metrics")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the test is the current one, in this process too."""
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*arguments: str, code: int) -> str:
    """What the command line says on stderr, run in this process."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.stderr
    return " ".join(done.stderr.split())


def count(tallymark: Program, store: str) -> int:
    return sum(each["count"] for each in tallymark.rows("query", store, "--since", "2020-01-01", "--agg", "count"))


@pytest.mark.usefixtures("shop")
class TestExport:
    @pytest.mark.parametrize("name", ["x.csv", "x.ndjson", "x.parquet"])
    def test_a_file_of_each_format(self, tallymark: Program, name: str) -> None:
        (done,) = tallymark.rows("export", name)
        assert done == {
            "file": str(tallymark.folder / name),
            "format": name.partition(".")[2],
            "records": 30,
            "resumed": 0,
        }
        path = tallymark.folder / name
        found = {
            "x.csv": lambda: len(list(csv.DictReader(path.read_text().splitlines()))),
            "x.ndjson": lambda: len(path.read_text().splitlines()),
            "x.parquet": lambda: pq.read_table(path).num_rows,
        }
        assert found[name]() == 30
        assert [each.name for each in tallymark.folder.iterdir() if each.name.startswith("x")] == [name]

    def test_what_it_says(self, tallymark: Program) -> None:
        done = tallymark("export", "metrics", "x.csv", "--where", "success=false")
        assert done.stdout == ""
        assert done.stderr == f"10 records in {tallymark.folder / 'x.csv'}\n"

    def test_to_stdout(self, tallymark: Program) -> None:
        done = tallymark("export", "-", "--type", "checkout")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert {line["metric_type"] for line in lines} == {"checkout"}
        assert (len(lines), done.stderr) == (10, "10 records\n")
        done = tallymark("export", "-", "--format", "csv", "--name", "pay")
        assert done.stdout.splitlines()[0] == ",".join(COLUMNS)
        assert len(list(csv.reader(io.StringIO(done.stdout)))) == 11

    def test_parquet_to_stdout(self, tallymark: Program) -> None:
        with (tallymark.folder / "x.parquet").open("wb") as file:
            command = [*PROGRAM, "export", "-", "--format", "parquet"]
            subprocess.run(command, cwd=tallymark.folder, stdout=file, stderr=subprocess.DEVNULL, check=True)
        assert pq.read_table(tallymark.folder / "x.parquet").num_rows == 30

    def test_times(self, tallymark: Program) -> None:
        assert tallymark.rows("export", "x.csv", "--since", "now+1h")[0]["records"] == 0
        assert tallymark.rows("export", "x.csv", "--until", "now-1h")[0]["records"] == 0
        assert tallymark.rows("export", "x.csv", "--since", "now-1h")[0]["records"] == 30

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["x.txt"], 2, "format: the ending of 'x.txt' says none; use one of .csv"),
            (["postgresql://u:hunter2@h/x"], 2, "error: format: this is a store, not a file; name a file too"),
            (["x", "--format", "xml"], 2, "format: there is no 'xml'"),
            (["a", "b", "c.csv"], 2, "at most a store and a file"),
            (["none", "x.csv"], 1, "there is no store at 'none'"),
            (["metrics"], 2, "format: "),
            (["folder.csv"], 1, "folder.csv is a folder; hint: name a file in it"),
            (["none/x.csv"], 1, "there is no folder"),
            (["-", "--resume"], 2, "stdout has the records"),
            (["-", "--json"], 2, "stdout has the records"),
            (["x.csv", "--where", "colour"], 2, "where: 'colour' is no condition"),
            (["x.csv", "--since", "yesterday"], 2, "since: 'yesterday' is no time"),
            ([], 2, "Missing argument"),
        ],
        ids=str,
    )
    def test_bad_arguments(self, here: Path, arguments: list[str], code: int, words: str) -> None:
        (here / "folder.csv").mkdir()
        assert words in said("export", *arguments, code=code)

    def test_a_folder_that_may_not_be_written(self, tallymark: Program) -> None:
        (tallymark.folder / "x.csv.part").write_text("of somebody else")
        done = tallymark("export", "x.csv", code=1)
        assert "error: cannot write" in done.stderr
        assert "x.csv: File exists; nothing is done" in done.stderr

    def test_a_progress_bar_for_people_only(self, tallymark: Program) -> None:
        master, terminal = pty.openpty()
        command = [*PROGRAM, "export", "x.csv"]
        process = subprocess.Popen(command, cwd=tallymark.folder, stdout=subprocess.PIPE, stderr=terminal)
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(master, 65_536)
            except OSError:
                break
        os.close(master)
        assert process.communicate()[0] == b""
        assert process.returncode == 0
        assert b"exporting" in shown
        assert b"30/30" in shown
        assert "exporting" not in tallymark("export", "y.csv").stderr


def stop(process: "subprocess.Popen[str]", how: signal.Signals, when: Callable[[], bool]) -> bool:
    """Send a signal as soon as something is true; False where the process was quicker than this one, and is over."""
    eventually(lambda: when() or process.poll() is not None)
    if process.poll() is not None:
        return False
    process.send_signal(how)
    return True


class TestStopped:
    @pytest.mark.parametrize("name", ["x.csv", "x.ndjson", "x.parquet"])
    def test_ctrl_c_and_resume(self, tallymark: Program, recorded_many: Path, name: str) -> None:
        part = tallymark.folder / f"{name}.part"
        process = tallymark.start("export", str(recorded_many), name)
        while not stop(process, signal.SIGINT, (part / "state.json").exists):
            (tallymark.folder / name).unlink()
            process = tallymark.start("export", str(recorded_many), name)
        _, errors = process.communicate()
        assert (process.returncode, "Traceback" in errors) == (130, False), errors
        assert f"stopped; what is done is in {part}; hint: --resume goes on" in errors
        assert not (tallymark.folder / name).exists()
        other = tallymark("export", str(recorded_many), name, "--resume", "--since", "2020-01-01", code=2)
        assert "has another since" in other.stderr
        (done,) = tallymark.rows("export", str(recorded_many), name, "--resume")
        assert done["records"] == 200_000
        assert 0 < done["resumed"] < 200_000
        assert not part.exists()

    def test_a_full_disk(self, tallymark: Program, recorded_many: Path) -> None:
        namespace = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
        disk = tallymark.folder / "disk"
        disk.mkdir()
        mount = f"mount -t tmpfs -o size=20m tmpfs {disk}"
        trial = subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, text=True)
        if trial.returncode:
            pytest.skip(f"a disk of its own cannot be mounted: {trial.stderr}")
        export = f"{' '.join(PROGRAM)} export {recorded_many} {disk}/x.ndjson"
        script = f"""
            {mount} && {export}; echo "code $?"; ls {disk}
            mount -o remount,size=200m {disk} && {export} --resume --json && wc -l < {disk}/x.ndjson && ls {disk}
        """
        done = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True)
        assert f"cannot write {disk}/x.ndjson: No space left on device; what is done is in {disk}" in done.stderr
        first, listed, summary, lines, at_last = done.stdout.splitlines()
        assert (first, listed, int(lines), at_last) == ("code 1", "x.ndjson.part", 200_000, "x.ndjson")
        assert json.loads(summary)["records"] == 200_000
        assert json.loads(summary)["resumed"] > 0

    def test_import_is_stopped_and_goes_on(self, tallymark: Program, recorded_many: Path) -> None:
        tallymark("export", str(recorded_many), "x.parquet")
        for how in (signal.SIGINT, signal.SIGKILL):
            process = tallymark.start("import", "x.parquet", "--to", "sqlite:///b.db")
            stopped = stop(process, how, (tallymark.folder / "b.db").exists)
            _, errors = process.communicate()
            assert "Traceback" not in errors
            if stopped and how == signal.SIGINT:
                assert process.returncode == 130
                assert "stopped; what was written stays; the same command goes on" in errors
        (done,) = tallymark.rows("import", "x.parquet", "--to", "sqlite:///b.db")
        assert done["files"][0]["imported"] + done["files"][0]["present"] == 200_000
        assert count(tallymark, "sqlite:///b.db") == 200_000

    def test_migrate_is_killed_and_goes_on(self, tallymark: Program, recorded_many: Path) -> None:
        target = tallymark.folder / "b"
        seen = set[Path]()

        def has_written() -> bool:
            return len(set(target.glob("table/_delta_log/*.json")) - seen) > 1

        for how in (signal.SIGKILL, signal.SIGINT):
            process = tallymark.start("migrate", str(recorded_many), "b")
            stopped = stop(process, how, has_written)
            seen.update(target.glob("table/_delta_log/*.json"))
            _, errors = process.communicate()
            assert "Traceback" not in errors
            if stopped and how == signal.SIGINT:
                assert process.returncode == 130
                assert "stopped; what was copied stays; the same command goes on" in errors
        (done,) = tallymark.rows("migrate", str(recorded_many), "b")
        assert (done["same"], done["records"], done["others"]) == (True, 200_000, 0)
        assert done["copied"] < 200_000
        assert count(tallymark, "b") == 200_000


@pytest.mark.usefixtures("shop")
class TestImport:
    def test_there_and_back(self, tallymark: Program) -> None:
        tallymark("export", "x.csv")
        done = tallymark("import", "x.csv", "--to", "other", "--dry-run")
        assert (done.stdout, done.stderr) == ("", "30 records are new, 0 were in other already\n")
        assert not (tallymark.folder / "other").exists()
        assert tallymark("import", "x.csv", "--to", "other").stderr == "30 records imported, 0 were in other already\n"
        (again,) = tallymark.rows("import", "x.csv", "--to", "other")
        (each,) = again["files"]
        assert again["store"] == "other"
        assert each == {"file": "x.csv", "records": 30, "imported": 0, "present": 30, "refused": []}
        assert tallymark.rows("import", "x.csv")[0]["files"][0]["present"] == 30  # where they came from

    def test_several_files_and_a_fault_in_the_last(self, tallymark: Program) -> None:
        tallymark("export", "a.csv", "--type", "checkout")
        (tallymark.folder / "b.ndjson").write_text('{"name": "x"}\n')
        done = tallymark("import", "a.csv", "b.ndjson", "--to", "other", code=1)
        assert done.stderr == "error: b.ndjson: line 1: timestamp is missing\n"
        assert not (tallymark.folder / "other" / "table").exists()

    def test_hostile_texts_in_names_and_contents(self, tallymark: Program) -> None:
        name = f"{HOSTILE.replace('/', '')}.csv"
        (tallymark.folder / name).write_text(f'timestamp,metric_type,name,value\n2025-01-31,"{HOSTILE}",,1\n')
        errors = tallymark("import", name, "--to", "other", code=1).stderr
        assert "\x1b" not in errors
        assert "\x07" not in errors
        assert errors.endswith("line 2: name is missing\n")

    def test_the_service_of_others(self, tallymark: Program) -> None:
        line = '{"timestamp":"2025-01-31T12:00:00Z","metric_type":"o","name":"n","value":1}\n'
        (tallymark.folder / "x.ndjson").write_text(line)
        assert "hint: --service NAME" in tallymark("import", "x.ndjson", "--to", "o", code=1).stderr
        assert "--service" in tallymark("import", "x.ndjson", "--to", "o", "--service", " ", code=2).stderr
        assert tallymark.rows("import", "x.ndjson", "--to", "o", "--service", "s")[0]["files"][0]["imported"] == 1

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["none.csv"], 1, "none.csv: there is no such file"),
            (["metrics"], 1, "metrics is a folder; hint: name the files in it, or migrate from a store"),
            (["x.csv", "--to", "ftp://x"], 1, "no store for"),
            ([], 2, "Missing argument"),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("here")
    def test_bad_arguments(self, arguments: list[str], code: int, words: str) -> None:
        assert words in said("import", *arguments, code=code)


@pytest.mark.usefixtures("shop")
class TestMigrate:
    def test_it_says_what_it_did(self, tallymark: Program) -> None:
        done = tallymark("migrate", "metrics", "sqlite:///b.db")
        assert done.stdout == ""
        assert "30 records copied" in done.stderr
        assert "all of them are the same" in done.stderr
        (again,) = tallymark.rows("migrate", "metrics", "sqlite:///b.db")
        assert {name: again[name] for name in ("from", "to", "records", "copied", "others", "refused", "same")} == {
            "from": "metrics",
            "to": "sqlite:///b.db",
            "records": 30,
            "copied": 0,
            "others": 0,
            "refused": [],
            "same": True,
        }
        assert sum(window["records"] for window in again["windows"]) == 30
        assert all(window["checksum"] == window["to_checksum"] for window in again["windows"])

    def test_days_that_differ(self, tallymark: Program) -> None:
        rows = [row(seq, timestamp=NOON + seq * DAY) for seq in range(3)]
        for name, content in (("a", rows), ("b", [rows[1] | {"value": 2.0}])):
            with open_store(str(tallymark.folder / name)) as store:
                store.write(Batch(table(content)))
        done = tallymark("migrate", "a", "b", code=1)
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["day", "2025-02-01"]
        assert "error: 1 day differs" in done.stderr
        found = json.loads(tallymark("migrate", "a", "b", "--json", code=1).stdout)
        assert [window["day"] for window in found["windows"] if not window["same"]] == ["2025-02-01"]
        assert found["same"] is False

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["metrics", "./metrics"], 2, "migrate: FROM and TO are the same store"),
            (["none", "metrics"], 1, "there is no store at 'none'"),
            (["metrics", "ftp://x"], 1, "no store for"),
            (["metrics", "postgresql://me:secret@127.0.0.1:1/x"], 1, "me:***@127.0.0.1:1/x"),
            (["metrics"], 2, "Missing argument"),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("here")
    def test_bad_arguments(self, arguments: list[str], code: int, words: str) -> None:
        errors = said("migrate", *arguments, code=code)
        assert words in errors
        assert "secret" not in errors
