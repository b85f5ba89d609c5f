"""The commands that move records: ``export``, ``import`` and ``migrate``."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallymark.cli.read import NameOption, ServiceOption, TypeOption, WhereOption
from tallymark.cli.stores import existing, settled
from tallymark.errors import QueryError, StoreError

if TYPE_CHECKING:
    from tallymark.moving.arrivals import Brought
    from tallymark.moving.formats import Format
    from tallymark.moving.migrate import Migrated, Window
    from tallymark.moving.progress import Progress
    from tallymark.query import Query

SinceOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="now-30d, 2026-11-01, …", show_default="the first record")
]
UntilOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="The end, itself not included.", show_default="the newest record")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document, on stdout.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(short_help="Write records to a CSV, NDJSON or Parquet file.")(export)
    app.command("import", short_help="Bring records from files into a store.")(import_)
    app.command(short_help="Copy everything from one store to another.")(migrate)


def export(
    places: Annotated[
        list[str],
        typer.Argument(metavar="[STORE] FILE", help="The store, unless the usual, and the file; - is stdout."),
    ],
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="csv, ndjson or parquet.", show_default="by the file's ending"),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    metric_type: TypeOption = None,
    name: NameOption = None,
    service: ServiceOption = None,
    where: WhereOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an export that did not come to its end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """\b
    Examples:
      tallymark export metrics.parquet
      tallymark export ./demo-metrics errors.csv --since now-7d --where success=false
      tallymark export - --type api_request | jq .value

    Writes every record that matches to a file, the oldest first, as `tallymark import` takes it. In CSV an apostrophe
    stands before texts that a spreadsheet would take for formulas.

    The file is there when it is complete; until then FILE.part keeps what is done, and --resume goes on with it, after
    Ctrl-C too.
    """
    from tallymark.cli.output import message, print_json
    from tallymark.location import absolute, shown
    from tallymark.moving.export import PART, STATE, check_file, export_file
    from tallymark.moving.formats import format_of

    if len(places) > 2:
        raise typer.BadParameter("at most a store and a file", param_hint="FILE")
    store, file = settled(places[0] if len(places) == 2 else None), places[-1]
    kind = format_of(file, form)
    given = {"type": metric_type, "name": name, "service": service, "where": where, "since": since, "until": until}
    query = _query(since, until, where, metric_type=metric_type, name=name, service=service)
    if file == "-":
        if resume or as_json:
            raise typer.BadParameter("stdout has the records", param_hint="--resume" if resume else "--json")
        _export_stream(store, query, kind)
        return
    path = check_file(Path(file))
    asked = {"store": shown(absolute(store)), "format": kind, **given}

    def kept() -> str:
        part = path.with_name(path.name + PART)
        return f"what is done is in {part}; hint: --resume goes on" if (part / STATE).exists() else "nothing is done"

    with _moving(kept) as progress, existing(store) as opened:
        try:
            done = export_file(opened, query, path, kind, asked=asked, resume=resume, progress=progress)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}; {kept()}") from error
    if as_json:
        print_json({"file": str(path), "format": kind, "records": done.records, "resumed": done.resumed})
        return
    before = f", {done.resumed:,} of them before" if done.resumed else ""
    message(f"{done.records:,} records in {path}{before}")


def _export_stream(store: str, query: "Query", kind: "Format") -> None:
    from tallymark.cli.output import message
    from tallymark.moving.export import export_stream

    if kind == "parquet" and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is nothing for a terminal", param_hint="--format")
    with _moving(lambda: "stdout has a part of the records") as progress, existing(store) as opened:
        records = export_stream(opened, query, kind, sys.stdout.buffer, progress)
    message(f"{records:,} records", "dim")


def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="CSV, NDJSON, Parquet, or JSON batch files.")],
    to: Annotated[
        str | None, typer.Option(metavar="STORE", help="Where they go.", show_default="the setting store, ./metrics")
    ] = None,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="The service of records that do not say it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the files, and say what is new.")] = False,
    as_json: JsonOption = False,
) -> None:
    """\b
    Examples:
      tallymark import metrics.parquet --to postgresql://metrics@db/metrics
      tallymark import old/metrics_*.json --service shop
      tallymark import measured.csv --service shop --dry-run

    Brings records from files into a store: those of `tallymark export`, what a store refused (refused.ndjson), JSON
    batch files, and CSV or NDJSON of other programs with the same columns (timestamp, metric_type, name and value at
    least). What the store has already is left out, so a file may be imported again, also after Ctrl-C.

    All files are checked before anything is written. What other programs wrote is masked like what is recorded.
    """
    from tallymark.cli.output import message, print_json
    from tallymark.config import settings
    from tallymark.location import shown
    from tallymark.model import check_text
    from tallymark.moving.arrivals import alone_into
    from tallymark.moving.imports import check_files, import_files
    from tallymark.privacy import PiiPolicy
    from tallymark.store import open_store

    store, pii = settled(to), PiiPolicy.of(settings().pii)
    try:
        service = None if service is None else check_text("service", service, pii=pii)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--service") from None
    with (
        _moving(lambda: "what was written stays; the same command goes on") as progress,
        open_store(store) as opened,
    ):
        checked = check_files(files, service, pii, progress)
        with contextlib.nullcontext() if dry_run else alone_into(store):
            found = import_files(opened, checked, progress, dry_run=dry_run)
    if as_json:
        each = [
            {"file": str(file.path), "records": records, "imported": done.written, "present": done.present}
            | {"refused": done.refused}
            for (file, records), done in zip(checked, found, strict=True)
        ]
        print_json({"store": shown(store), "dry_run": dry_run, "files": each})
    else:
        new, present = sum(done.written for done in found), sum(done.present for done in found)
        message(f"{new:,} records {'are new' if dry_run else 'imported'}, {present:,} were in {shown(store)} already")
    _end_where_refused(found)


def migrate(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store with the records.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The store that gets them.")],
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
) -> None:
    """\b
    Examples:
      tallymark migrate ./metrics postgresql://metrics@db/metrics
      tallymark migrate ./metrics sqlite:///archive.db --until now-30d

    Copies all records from one store to another, and what the first knows of dropped ones, up to the newest that there
    is now. Then both are compared, day by day: number of records, and a checksum of all that is in them. Where a day
    differs the exit code is 1.

    What TO has already is left out, so running it again goes on after Ctrl-C, and brings what came meanwhile. To move
    while applications record: migrate, have them record to TO, migrate again.
    """
    from tallymark.cli.output import print_json
    from tallymark.location import absolute, shown
    from tallymark.moving.arrivals import alone_into
    from tallymark.moving.migrate import migrate as run
    from tallymark.store import open_store

    query = _query(since, until)
    if absolute(source) == absolute(target):
        raise QueryError("migrate: FROM and TO are the same store")
    with (
        _moving(lambda: "what was copied stays; the same command goes on") as progress,
        existing(source) as one,
        open_store(target) as two,
        alone_into(target),
    ):
        done = run(one, two, query, progress)
    if as_json:
        print_json(
            {
                "from": shown(source),
                "to": shown(target),
                "records": done.records,
                "copied": done.brought.written,
                "others": done.others,
                "refused": done.brought.refused,
                "same": not done.differing,
                "windows": [_window(window) for window in done.windows],
            }
        )
    else:
        _tell(done, shown(target))
    _end_where_refused([done.brought])
    if done.differing:
        raise typer.Exit(1)


def _tell(done: "Migrated", target: str) -> None:
    from tallymark.cli.output import message, print_table

    message(
        f"{done.brought.written:,} records copied; {len(done.windows):,} days compared, of {done.records:,} records"
    )
    if done.others:
        message(f"{target} has {done.others:,} others of those days", "dim")
    if not done.differing:
        message("all of them are the same")
        return
    columns = ("day", "records", "checksum", "to_records", "to_checksum")
    print_table(columns, [_window(window) for window in done.differing])
    hint = "hint: run it again; where records were deleted on purpose meanwhile, that is the difference"
    differ = "1 day differs" if len(done.differing) == 1 else f"{len(done.differing):,} days differ"
    message(f"error: {differ}; {hint}", "red")


def _window(window: "Window") -> dict[str, Any]:
    from tallymark.times import utc_day

    return {
        "day": utc_day(window.day),
        "records": window.source.records,
        "checksum": str(window.source),
        "to_records": window.target.records,
        "to_checksum": str(window.target),
        "same": window.same,
    }


def _end_where_refused(found: "list[Brought]") -> None:
    """Say what a store refused, if it did, and end with 1."""
    from tallymark.cli.output import message

    refused = [sentence for done in found for sentence in done.refused]
    for sentence in refused[:10]:
        message(f"refused: {sentence}", "red")
    if refused:
        message(f"error: the store refused {len(refused):,} records; all others are in it", "red")
        raise typer.Exit(1)


def _query(since: str | None, until: str | None, where: list[str] | None = None, **columns: Any) -> "Query":
    from tallymark.query import Query

    given = {column: values for column, values in columns.items() if values}
    return Query.build(agg=(), since=since, until=until, where=where or (), **given)


@contextmanager
def _moving(kept: Callable[[], str]) -> Generator["Progress"]:
    """Shows how far something is, where stderr is a terminal. Ctrl-C ends it with 130 and with a word on what is kept.

    The first Ctrl-C waits for what is under way, since not every library that may be at work then passes on what a
    signal's handler raises: DuckDB was seen to go on. The second does not wait.
    """
    from tallymark.cli.output import message

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        if stopping:
            os._exit(130)
        stopping = True
        message("stopping …; Ctrl-C again does not wait", "dim")

    with _bar() as bar:

        def progress(what: str, done: int, total: int | None) -> None:
            bar(what, done, total)
            if stopping:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield progress
        except KeyboardInterrupt:
            message(f"stopped; {kept()}")
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _bar() -> Generator["Progress"]:
    """Shows how far something is, where stderr is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from tallymark.cli.output import console, visible

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(visible(what), total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
