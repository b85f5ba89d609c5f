"""Runs every bench in a process of its own and prints one table: ``python -m bench [--quick] [--write]``.

Progress goes to standard error. The exit code is 1 when a limit is missed or a bench failed.
"""

import argparse
import importlib
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from bench import Row

# Whether each runs without the compiled core.
BENCHES = (
    ("recording", False),
    ("recording", True),
    ("pipeline", False),
    ("pipeline", True),
    ("pipeline_api", False),
    ("visibility", False),
    ("queries", False),
    ("long_ranges", False),
    ("readers", False),
    ("memory", False),
    ("imports", False),
    ("middleware", False),
    ("celery", False),
    ("collectors", False),
    ("into_sqlite", False),
    ("into_postgres", False),
    ("into_clickhouse", False),
    ("migrate", False),
)

PACKAGES = (
    *("tallymark", "msgspec", "deltalake", "duckdb", "pyarrow", "numpy"),
    *("psycopg", "sqlalchemy", "clickhouse-connect", "chdb"),
    *("prometheus-client", "opentelemetry-sdk", "prometheus-fastapi-instrumentator", "fastapi"),
)

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- begin of what `python -m bench --write` wrote -->", "<!-- end -->"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer turns and smaller stores, for a first impression")
    parser.add_argument("--write", action="store_true", help=f"put the results into docs/{PAGE.name}")
    parser.add_argument("--only", metavar="BENCH", help="print the rows of one bench as JSON", choices=_names())
    options = parser.parse_args()
    if options.only:
        rows: list[Row] = importlib.import_module(f"bench.{options.only}").run(options.quick)
        print(msgspec.json.encode(rows).decode())
        return 0
    if options.write and options.quick:
        parser.error("--write takes the figures of a whole run")
    rows, failed = _run_all(options.quick)
    Console(width=None if sys.stdout.isatty() else 170).print(_table(rows))
    if options.write:
        _write(rows)
    return 1 if failed or any(row.ok is False for row in rows) else 0


def _names() -> list[str]:
    return sorted({name for name, _ in BENCHES})


def _run_all(quick: bool) -> tuple[list[Row], bool]:
    """The rows of every bench, and whether one failed."""
    rows: list[Row] = []
    failed = False
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="tallymark-bench-") as cache:
        for name, pure in BENCHES:
            title = f"{name}, pure Python" if pure else name
            with Progress(*columns, console=Console(stderr=True)) as progress:
                progress.add_task(title, total=None)
                command = [sys.executable, "-m", "bench", "--only", name, *(["--quick"] if quick else [])]
                done = subprocess.run(command, env=_environment(cache, pure), stdout=subprocess.PIPE)
            if done.returncode:
                failed = True
                print(f"the bench {title!r} failed", file=sys.stderr)
            else:
                rows += msgspec.json.decode(done.stdout.splitlines()[-1], type=list[Row])
    return rows, failed


def _environment(cache: str, pure: bool) -> dict[str, str]:
    """Compiled modules are kept, as an installed package has them, whatever this environment prefers."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": cache, "TALLYMARK_PURE_PYTHON": "1" if pure else ""}


def _table(rows: list[Row]) -> Table:
    table = Table("what", _right("tallymark"), "peer", _right("ratio"), _right("limit"), "ok")
    for row in rows:
        what = Text(row.what)
        if row.note:
            what.append(f"\n{row.note}", "dim")
        peer = Text(_peer(row) if row.peer else "")
        ok = Text(_ok(row), {True: "green", False: "bold red", None: ""}[row.ok])
        table.add_row(what, _figure(row.value, row.unit), peer, _ratio(row), _limit(row), ok)
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}".strip() if value >= 100 or value == int(value) else f"{value:.3g} {unit}".strip()


def _peer(row: Row) -> str:
    return f"{row.peer}: {_figure(row.peer_value or 0.0, row.unit)}"


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.3g} ×"


def _limit(row: Row) -> str:
    if row.limit is None:
        return ""
    return f"≤ {row.limit:g} ×" if row.ratio is not None else f"≤ {_figure(row.limit, row.unit)}"


def _ok(row: Row) -> str:
    return {True: "yes", False: "NO", None: ""}[row.ok]


def _write(rows: list[Row]) -> None:
    """Put the results between the marks of the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    head = ["| what | tallymark | peer | ratio | limit | kept |", "| --- | ---: | --- | ---: | ---: | --- |"]
    lines = [_machine(), "", *head]
    for row in rows:
        what = f"{row.what} ({row.note})" if row.note else row.what
        peer = _peer(row) if row.peer else ""
        cells = (what, _figure(row.value, row.unit), peer, _ratio(row), _limit(row), _ok(row))
        lines.append(f"| {' | '.join(cells)} |")
    PAGE.write_text("\n".join([f"{before}{BEGIN}", *lines, "", f"{END}{after}"]), "utf-8")


def _machine() -> str:
    """Where and with what it was measured."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on a machine ({platform.machine()}) with {os.cpu_count()} cores and "
        f"{memory:.0f} GiB of memory, {platform.system()}, {platform.python_implementation()} "
        f"{platform.python_version()}, with other load on it ({os.getloadavg()[1]:.1f} processes ready to run, on the "
        f"average of five minutes, these benches included). {packages}."
    )


if __name__ == "__main__":
    sys.exit(main())
