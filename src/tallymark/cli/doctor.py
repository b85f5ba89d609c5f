"""The command ``doctor``: one record on its whole way, each hop timed, and what to do where it gets stuck."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallymark.cli.stores import DEFAULT_STORE, StoreArgument
from tallymark.errors import StoreError

if TYPE_CHECKING:
    from tallymark import Metrics
    from tallymark.reader import Reader

LEAST_FREE_BYTES = 256 * 1024**2
BELIEVABLE_YEARS = (2025, 2099)
OTHER_PROCESS_SECONDS = 60.0
LIBRARIES = {
    "msgspec": "tallymark",
    "deltalake": "tallymark[lake]",
    "duckdb": "tallymark[lake]",
    "numpy": "tallymark[lake]",
    "pyarrow": "tallymark[lake]",
    "psutil": "tallymark[system]",
    "fastapi": "tallymark[server]",
    "uvicorn": "tallymark[server]",
}
DRIVERS = {
    "sqlite": {"alembic": "tallymark[sqlite]"},
    "postgresql": dict.fromkeys(("psycopg", "pgpq", "alembic"), "tallymark[postgres]"),
    "clickhouse": {"clickhouse-connect": "tallymark[clickhouse]"},
}
"""What a store of some kind needs besides."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(short_help="Check this installation: one record, every hop, timed.")(doctor)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was checked.
        ok: whether it passed.
        detail: what was found.
        hint: what to do, where it did not pass.
        ms: how long it took, where that is of interest.
    """

    check: str
    ok: bool
    detail: str
    hint: str = ""
    ms: float | None = None


def doctor(
    store: StoreArgument = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, on stdout.")] = False,
) -> None:
    """\b
    Examples:
      tallymark doctor
      tallymark doctor /var/lib/metrics --json

    Checks the installation, the folder and the clock; then records something, finds it from another
    process, moves it into the store and reads it from there. Leaves that one record, of the type "doctor",
    in the store. Exit code 1 when a check fails.
    """
    from rich.text import Text

    from tallymark.cli.output import console, print_json, visible
    from tallymark.location import local_folder, shown, split

    scheme, _ = split(store)
    findings: list[Finding] = []
    out = console()

    def report(finding: Finding) -> None:
        findings.append(finding)
        if as_json:
            return
        line = Text("ok    ", "green") if finding.ok else Text("FAIL  ", "bold red")
        line.append(f"{finding.check:<34}", "default")
        line.append("" if finding.ms is None else f"{finding.ms:>10,.3f} ms  ", "default")
        line.append(visible(finding.detail), "dim")
        out.print(line, soft_wrap=True)
        if finding.hint:
            out.print(Text(f"      hint: {visible(finding.hint)}"), soft_wrap=True)

    report(_python())
    report(_libraries(LIBRARIES | DRIVERS.get(scheme, {})))
    report(_clock())
    if scheme == "sqlite":
        report(_sqlite())
    folder = local_folder(store)
    report(_folder(folder))
    if findings[-1].ok:
        report(_free_space(folder))
    if all(finding.ok for finding in findings):
        _Journey(store, report).run()
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "store": shown(store), "checks": [asdict(finding) for finding in findings]})
    if not ok:
        raise typer.Exit(1)


def _python() -> Finding:
    import tallymark
    from tallymark.core import core

    version = ".".join(map(str, sys.version_info[:3]))
    speed = "in pure Python, which records slower" if core is None else "with its compiled core"
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        f"{version}, tallymark {tallymark.__version__} {speed}, {sys.executable}",
        "" if sys.version_info >= (3, 11) else "tallymark needs Python 3.11 or newer",
    )


def _libraries(wanted: dict[str, str]) -> Finding:
    found: list[str] = []
    missing: dict[str, str] = {}
    for library, extra in wanted.items():
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            missing[library] = extra
    if not missing:
        return Finding("libraries", True, ", ".join(found))
    extras = " ".join(f"'{extra}'" for extra in sorted(set(missing.values())))
    return Finding("libraries", False, f"missing: {', '.join(missing)}", f"pip install {extras}")


def _sqlite() -> Finding:
    import sqlite3

    from tallymark.stores.sqlite.link import wal_fault

    return Finding("sqlite", True, wal_fault() or f"SQLite {sqlite3.sqlite_version}")


def _clock() -> Finding:
    now = time.time()
    ok = BELIEVABLE_YEARS[0] <= time.gmtime(now).tm_year <= BELIEVABLE_YEARS[1]
    return Finding(
        "clock",
        ok,
        time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)),
        "" if ok else "set the clock of this machine (timedatectl set-ntp true): timestamps would be wrong",
    )


def _folder(folder: Path) -> Finding:
    started = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tallymark")
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(
            "folder can be written",
            False,
            f"{folder}: {error.strerror}",
            "choose another folder, or let this user write to it: chown, chmod",
        )
    return Finding("folder can be written", True, str(folder.resolve()), ms=_since(started))


def _free_space(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    ok = usage.free >= LEAST_FREE_BYTES
    return Finding(
        "free space",
        ok,
        f"{usage.free / 1024**3:,.1f} GiB of {usage.total / 1024**3:,.1f} GiB",
        "" if ok else f"free at least {LEAST_FREE_BYTES // 1024**2} MiB, or choose a folder on another disk",
    )


def _since(started: float) -> float:
    """Milliseconds since a reading of ``time.perf_counter``."""
    return (time.perf_counter() - started) * 1000


class _Journey:
    """One record, followed from the call into the store. Ends at the first hop that fails."""

    def __init__(self, store: str, report: Callable[[Finding], None]) -> None:
        self._store = store
        self._report = report
        self._run = uuid.uuid4().hex
        self._value = float(os.getpid())
        self._started = time.time_ns()
        self._id: uuid.UUID | None = None

    def run(self) -> None:
        import tallymark
        from tallymark.location import split

        scheme, place = split(self._store)
        in_folder = scheme == "lake" and "://" not in place
        with (
            tallymark.Metrics(self._store, service="tallymark-doctor") as metrics,
            tallymark.open(self._store) as reader,
        ):
            every_hop = (
                (
                    "record -> journal",
                    lambda: self._record(metrics),
                    "see what was dropped, and why: tallymark info",
                ),
                (
                    "journal -> query",
                    lambda: self._query(reader),
                    "TALLYMARK_DEBUG=1 tallymark query shows where the error comes from",
                ),
                (
                    "journal -> query, other process",
                    self._query_elsewhere,
                    "journals are shared memory: the folder must be on a disk of this machine",
                ),
                (
                    "journal -> store, shipped",
                    lambda: self._seal(metrics),
                    "try it alone: tallymark ship --once",
                ),
                (
                    "store -> read back",
                    self._read_parquet if in_folder else lambda: self._read_back(reader),
                    "another process may have removed it: tallymark info",
                ),
            )
            for name, step, hint in every_hop:
                if not self._hop(name, step, hint):
                    break

    def _hop(self, name: str, step: Callable[[], str], hint: str) -> bool:
        started = time.perf_counter()
        try:
            detail = step()
        except Exception as error:  # whatever it is, it is a finding
            self._report(Finding(name, False, f"{type(error).__name__}: {error}", hint, _since(started)))
            return False
        self._report(Finding(name, True, detail, ms=_since(started)))
        return True

    def _record(self, metrics: "Metrics") -> str:
        started = time.perf_counter()
        metrics.record("doctor", "round_trip", self._value, metadata={"run": self._run})
        took = time.perf_counter() - started
        dropped = metrics.get_stats().dropped
        if any(dropped.values()):
            raise StoreError(f"the record was dropped: {dropped}")
        return f"the call itself {took * 1e6:,.0f} µs, the making of a journal included"

    def _query(self, reader: "Reader") -> str:
        found = reader.records(where={"metric_type": "doctor", "metadata.run": self._run}).records
        if [record.value for record in found] != [self._value]:
            raise StoreError(f"expected the record once, found it {len(found)} times")
        self._id = found[0].id
        return f"id {self._id}"

    def _query_elsewhere(self) -> str:
        command = [sys.executable, "-m", "tallymark", "tail", "--lines", "2", "--json"]
        command += ["--type", "doctor", "--where", f"metadata.run={self._run}"]
        # Not as an argument, which every user of the machine can see: it may hold a password.
        environment = os.environ | {"TALLYMARK_STORE": self._store}
        done = subprocess.run(command, capture_output=True, text=True, timeout=OTHER_PROCESS_SECONDS, env=environment)
        if done.returncode:
            raise StoreError(done.stderr.strip() or f"exit code {done.returncode}")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        if [record["id"] for record in found] != [str(self._id)]:
            raise StoreError(f"expected the record once, found it {len(found)} times")
        return "the start of Python included"

    def _seal(self, metrics: "Metrics") -> str:
        metrics.flush()
        waiting = metrics.get_stats().queue_size
        if waiting:
            raise StoreError(f"{waiting} records are still in the journal")
        return "the start of a process that ships included"

    def _read_back(self, reader: "Reader") -> str:
        if self._id is None or reader.get(self._id) is None:
            raise StoreError("the record is not in the store")
        info = reader.info()
        return f"{info.stored:,} records, {info.bytes / 1024**2:,.1f} MiB in {info.url}"

    def _read_parquet(self) -> str:
        from pyarrow import parquet

        from tallymark.batch import record_id
        from tallymark.location import local_folder
        from tallymark.stores.lake.delta import Delta

        files = Delta(local_folder(self._store) / "table").snapshot(start=self._started).files
        for file in files:
            table = parquet.read_table(file, columns=["journal", "seq"], filters=[("metric_type", "=", "doctor")])
            if any(record_id(row["journal"], row["seq"]) == self._id for row in table.to_pylist()):
                return file
        raise StoreError(f"the record is in none of {len(files)} files")
