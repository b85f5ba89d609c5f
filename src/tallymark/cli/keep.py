"""The commands that look after a store: ``ship``, ``compact``, ``prune`` what is old, ``erase`` one subject."""

import contextlib
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallymark.cli.stores import DEFAULT_STORE, StoreArgument, existing
from tallymark.errors import QueryError, StoreError

if TYPE_CHECKING:
    from tallymark.keeping import Erased, Found
    from tallymark.query import Query
    from tallymark.store import Store

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be forgotten.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document, on stdout.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(short_help="Move what was recorded from the journals into the store.")(ship)
    app.command(short_help="Join small files, and give room back.")(compact)
    app.command(short_help="Forget what is old.")(prune)
    app.command(short_help="Erase the records of one session, trace or person.")(erase)


def ship(
    store: StoreArgument = DEFAULT_STORE,
    once: Annotated[bool, typer.Option("--once", help="End when everything that waits is moved.")] = False,
    every: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="The longest that a record waits.", show_default="1s to 30s, by the store"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: one JSON document, on stdout.")] = False,
) -> None:
    """\b
    Examples:
      tallymark ship postgresql://metrics@db/metrics
      tallymark ship --once

    Moves what applications on this machine record from their journals into the store, for as long as it runs, and
    joins small files. Applications do that themselves, with a short-lived process every so often; where this runs
    they leave it alone, and records are in the store within the time of --every. `tallymark serve` does the same.

    While a store is away the journals keep everything. Ctrl-C ends it; nothing is lost.
    """
    from tallymark.cli.output import message, print_json
    from tallymark.location import local_folder, shown
    from tallymark.times import parse_length

    seconds = None if every is None else parse_length(every, "every") / 1e9
    if seconds is not None and seconds <= 0:
        raise QueryError("every: must be longer than nothing")
    if once:
        existing(store).close()
        moved = _ship_once(store)
        if as_json:
            print_json({"store": shown(store), "records": moved})
        elif moved is None:
            message("somebody else is shipping at this moment; nothing was done")
        else:
            message(f"{moved:,} records moved")
        return
    from tallymark.upkeep import upkeep

    _end_on_sigterm()
    with contextlib.suppress(KeyboardInterrupt), upkeep(store, None, seconds=seconds):
        message(f"shipping from {local_folder(store) / 'journals'} to {shown(store)}; Ctrl-C ends it")
        threading.Event().wait()
    message("ended", "dim")


def _ship_once(store: str) -> int | None:
    """How many records were moved; None where somebody else is at it."""
    from tallymark.shipper import ship_once

    moved = 0
    while (shipped := ship_once(store)) is not None:
        moved += shipped.records
        if not shipped.records:
            return moved
    return moved or None


def _end_on_sigterm() -> None:
    """As with Ctrl-C: so service managers end a process."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def compact(store: StoreArgument = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """\b
    Examples:
      tallymark compact
      tallymark compact sqlite:///metrics.db --json

    Does at once what `tallymark serve` does every few minutes: joins small files into large ones, gives the room of
    what was deleted back, makes ready what answers about long ranges are read from. Deletes no record. Queries go on
    meanwhile.
    """
    import time

    from tallymark.cli.output import message, print_json
    from tallymark.maintenance import alone, trusts

    opened, folder = _opened(store)
    before = opened.info()
    folder.mkdir(parents=True, exist_ok=True)
    with opened, alone(folder, lambda: _say("waiting for the upkeep that is at work …")):
        _say("joining files …")
        done = opened.maintain(time.time_ns(), None, strays=trusts(folder))
        opened.roll_up(time.time_ns())
        after = opened.info()
    if as_json:
        print_json({"compacted": done.compacted, "vacuumed": done.vacuumed, "bytes": after.bytes})
        return
    message(f"{done.compacted:,} files joined, {done.vacuumed:,} removed")
    message(f"{before.bytes:,} bytes before, {after.bytes:,} now")


def prune(
    store: StoreArgument = DEFAULT_STORE,
    older_than: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="30d, 12h, …; by default as the settings have it, whole days.")
    ] = None,
    metric_type: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only this metric type; may be repeated.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    yes: YesOption = False,
    trust_clock: Annotated[
        bool, typer.Option("--trust-clock", help="Believe this machine's clock, though it was not watched for a day.")
    ] = False,
) -> None:
    """\b
    Examples:
      tallymark prune --dry-run                    what the settings say is too old
      tallymark prune --older-than 90d
      tallymark prune --older-than 7d --type api_request --yes

    Forgets old records and gives their room on the disk back at once. Without --older-than: what the settings
    retention_days and retention say, which `tallymark serve` does by itself. Whatever reads the store with
    another program than tallymark at that moment may have to start again.

    A clock that jumps must not delete anything: nothing is deleted before this machine's clock has been seen
    running steadily for a day, by whatever works on the store. --trust-clock does without.
    """
    import time

    from tallymark import keeping
    from tallymark.cli.output import message
    from tallymark.maintenance import trusts

    queries = _expired(older_than, metric_type, time.time_ns())
    opened, folder = _opened(store)
    found = keeping.find(opened, queries)
    if not as_json:
        _show(found, "nothing is that old")
    deleted = 0
    if found.records and not dry_run:
        if not (trusts(folder) or trust_clock):
            raise StoreError(
                "nothing was deleted: the clock of this machine has not been seen running steadily for a day, so what "
                "is old cannot be told; hint: if `date` is right, --trust-clock; else try again tomorrow"
            )
        _ask(f"Forget {found.records:,} records for ever?", yes)
        deleted = keeping.prune(opened, folder, queries, _say)
        message(f"{deleted:,} records are forgotten")
    if as_json:
        _print(found, dry_run, deleted)


def erase(
    store: StoreArgument = DEFAULT_STORE,
    session: Annotated[str | None, typer.Option(metavar="ID", help="The records of this session.")] = None,
    trace: Annotated[str | None, typer.Option(metavar="ID", help="The records of this trace.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="The records for which this holds: metadata.user=u7. May be repeated."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """\b
    Examples:
      tallymark erase --session 4f0c2a --dry-run
      tallymark erase --session 4f0c2a
      tallymark erase --where metadata.user=user_bcdfghjklmnpqrstbcdf --yes

    Removes every byte of the records of one subject from the folder of the store: from its Parquet files, from
    the journals that applications are writing to, and its lines from the structured log. With several options
    all of them must hold. Applications may go on; what they record of the subject from then on are new records.

    Where something could not be removed, it is named, and the exit code is 1; the command can be run again.
    Backups and other copies are not touched.
    """
    from tallymark import keeping
    from tallymark.query import Query

    if session is None and trace is None and not where:
        raise QueryError("erase: name --session, --trace or --where")
    query = Query.build(agg=(), where=where or (), session_id=session, trace_id=trace)
    opened, folder = _opened(store)
    found = keeping.find(opened, [query])
    if not as_json:
        _show(found, "no record matches")
    if dry_run:
        if as_json:
            _print(found, True, 0)
        return
    # Also where no record is found: an erasure that was interrupted is finished by the next.
    _ask(f"Erase {found.records:,} records, and what the structured log says, for ever?", yes)
    done = keeping.erase(opened, folder, query, _say, _logs(folder))
    _report(done)
    if as_json:
        more = {"overwritten": done.overwritten, "log_lines": done.lines, "newer": done.newer, "left": list(done.left)}
        _print(found, False, done.records, **more)
    if done.left:
        raise typer.Exit(1)


def _opened(store: str) -> tuple["Store", Path]:
    from tallymark.location import local_folder

    return existing(store), local_folder(store)


def _expired(older_than: str | None, metric_types: list[str] | None, now: int) -> list["Query"]:
    """What is too old: as it was said, to the instant; else as the settings have it, in whole days."""
    from tallymark.config import settings
    from tallymark.query import Filter, Query
    from tallymark.stores.retention import Retention
    from tallymark.times import parse_length

    if older_than is None:
        queries = Retention(settings().retention_days, settings().retention).expired(now)
    else:
        length = parse_length(older_than, "older-than")
        if length <= 0:
            raise QueryError("older-than: must be longer than nothing")
        queries = [Query(end=now - length)] if length < now else []
    only = (Filter("metric_type", "in", tuple(metric_types)),) if metric_types else ()
    return [replace(query, filters=query.filters + only) for query in queries]


def _logs(folder: Path) -> list[Path]:
    """The structured logs in the folder of a store, and the one of the settings."""
    from tallymark.config import settings

    found = {path.with_name(path.name.partition(".jsonl")[0] + ".jsonl") for path in (folder / "logs").glob("*.jsonl*")}
    configured = settings().log_file
    return sorted(found | ({configured} if configured is not None else set()))


def _ask(question: str, yes: bool) -> None:
    from tallymark.cli.output import message

    if yes:
        return
    if not sys.stdin.isatty():
        raise StoreError("nothing was deleted: there is no terminal to ask at; hint: --yes")
    if not typer.confirm(question, err=True):
        message("nothing was deleted")
        raise typer.Exit(1)


def _say(text: str) -> None:
    from tallymark.cli.output import message

    message(text, "dim")


def _show(found: "Found", nothing: str) -> None:
    from tallymark.cli.output import message, print_table

    if not found.records:
        message(nothing)
        return
    rows = [{"metric_type": metric_type, "records": count} for metric_type, count in found.by_type.items()]
    print_table(("metric_type", "records"), rows)
    days = " to ".join(dict.fromkeys(filter(None, (_day(found.first), _day(found.last)))))
    message(f"{found.records:,} records, of {days} (UTC)", "dim")


def _report(done: "Erased") -> None:
    from tallymark.cli.output import message

    live = f", {done.overwritten:,} of them in journals that are in use too" if done.overwritten else ""
    message(f"{done.records:,} records are erased{live}")
    if done.lines is None:
        message("the structured log was left alone: its lines have no such field")
    elif done.lines:
        message(f"{done.lines:,} lines of the structured log are erased")
    if done.newer:
        message(f"{done.newer:,} records came in meanwhile, and are new ones; hint: run it again", "yellow")
    for sentence in done.left:
        message(f"left: {sentence}", "yellow")


def _print(found: "Found", dry_run: bool, deleted: int, **more: Any) -> None:
    from tallymark.cli.output import print_json

    about = {"records": found.records, "by_type": found.by_type}
    days = {"oldest_day": _day(found.first), "newest_day": _day(found.last)}
    print_json({"dry_run": dry_run, **about, **days, "deleted": deleted, **more})


def _day(timestamp: int | None) -> str | None:
    from tallymark.times import utc_day

    return None if timestamp is None else utc_day(timestamp)
