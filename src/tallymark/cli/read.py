"""The commands that only read: ``query``, ``tail`` and ``info``."""

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from tallymark import location
from tallymark.cli.stores import DEFAULT_STORE, StoreArgument, open_existing

if TYPE_CHECKING:
    from tallymark.reader import Answer, Reader
    from tallymark.record import Record

USUAL_AGGREGATES = ("count", "avg", "p95", "error_rate")
TABLE_ROWS = 100
MOST_LINES = 1_000_000
POLL_SECONDS = 0.2

OVERLAP_NS = 2_000_000_000
"""How much later than its timestamp a record may become visible and still be followed: between taking the
time and writing the record a process may be off the CPU."""

TypeOption = Annotated[
    list[str] | None, typer.Option("--type", metavar="TYPE", help="Only this metric type; may be repeated.")
]
NameOption = Annotated[
    list[str] | None, typer.Option("--name", metavar="NAME", help="Only this name; may be repeated.")
]
ServiceOption = Annotated[
    list[str] | None, typer.Option("--service", metavar="SERVICE", help="Only this service; may be repeated.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="EXPR",
        help="A condition such as metadata.region=eu, value>=100, success=false; all of them must hold.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, on stdout.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(short_help="Count, average and compare what was recorded.")(query)
    app.command(short_help="The last records; -f follows them live.")(tail)
    app.command(short_help="How many records a store holds, and how large it is.")(info)


def query(
    store: StoreArgument = DEFAULT_STORE,
    metric_type: TypeOption = None,
    name: NameOption = None,
    service: ServiceOption = None,
    where: WhereOption = None,
    window: Annotated[str | None, typer.Option(metavar="LENGTH", help="One row for each 30s, 5m, 1h, 1d …")] = None,
    agg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="count sum avg min max last rate success_rate error_rate p50 p95 p99.9 …, with commas.",
        ),
    ] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(metavar="FIELDS", help="Columns and metadata keys, with commas.")
    ] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="now-15m, now-7d, 2026-11-22T08:00, …")] = "now-1h",
    until: Annotated[str, typer.Option(metavar="TIME", help="The end, itself not included.")] = "now",
    order_by: Annotated[
        list[str] | None, typer.Option(metavar="FIELDS", help="With commas; -count for descending.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help=f"At most this many rows; a table has {TABLE_ROWS} unless told."),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values with a header, on stdout.")] = False,
) -> None:
    """\b
    Examples:
      tallymark query                    every series of the last hour
      tallymark query --type api_request --window 5m --agg count,p95
      tallymark query --group-by name,metadata.region --order-by -count
      tallymark query ./demo-metrics --where success=false --json

    What was recorded, counted and compared. With no --agg, --group-by or --window: one row for each
    series, the busiest first.

    With --json each row is one JSON object on a line of its own (jq -s makes them one list); times are in
    UTC. Tables show times in the time zone of this machine.
    """
    from tallymark.cli.output import print_csv, print_json, print_table
    from tallymark.reader import SERIES

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other", param_hint="--csv")
    overview = not (agg or group_by or window)
    most = TABLE_ROWS if limit is None and not (as_json or as_csv) else None
    with open_existing(store) as reader:
        answer = reader.query(
            **_columns(metric_type, name, service),
            where=where or (),
            since=since,
            until=until,
            window=window,
            agg=_split(agg) or USUAL_AGGREGATES,
            group_by=SERIES if overview else _split(group_by),
            order_by=_split(order_by) or (("-count",) if overview else ()),
            # One more than is shown, to know whether there are more.
            limit=limit if most is None else most + 1,
        )
    rows = answer.rows()[:most]
    columns = list(answer.columns())
    if as_json:
        for row in rows:
            print_json(row)
    elif as_csv:
        print_csv(columns, rows)
    elif rows:
        print_table(columns, rows)
    _explain(answer, len(rows), store, since)


def _explain(answer: "Answer", rows: int, store: str, since: str) -> None:
    from tallymark.cli.output import message

    if not rows:
        message(
            f"no record matches; hint: look further back than --since {since}, "
            f"or see what there is: tallymark info {location.shown(store)}"
        )
        return
    if len(answer) > rows:
        message(f"these are the first {rows:,} rows, there are more; hint: --limit N, or --json for all")
        return
    parts = [f"{_counted(rows, 'row')} from {_counted(answer.samples, 'record')}"]
    if answer.relative_error is None:
        parts.append("exact")
    else:
        parts.append(f"percentiles within {math.ceil(1_000 * answer.relative_error) / 10} %")
    if answer.source != "raw":
        parts.append(f"from {answer.source}")
    elif answer.scanned is not None and answer.scanned > answer.samples:
        parts.append(f"{answer.scanned:,} scanned")
    message(", ".join(parts), "dim")


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _split(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


def _columns(metric_type: list[str] | None, name: list[str] | None, service: list[str] | None) -> dict[str, Any]:
    given = {"metric_type": metric_type, "name": name, "service": service}
    return {column: values for column, values in given.items() if values}


def tail(
    store: StoreArgument = DEFAULT_STORE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with every new record, until Ctrl-C.")] = False,
    lines: Annotated[
        int,
        typer.Option("--lines", "-n", min=0, max=MOST_LINES, metavar="N", help="How many of the last records."),
    ] = 20,
    metric_type: TypeOption = None,
    name: NameOption = None,
    service: ServiceOption = None,
    where: WhereOption = None,
    logs: Annotated[bool, typer.Option("--logs", help="The structured log in place of the records.")] = False,
    level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="With --logs: this level and above; debug, info, metric, …")
    ] = None,
    grep: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --logs: the text is in the message or a field.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """\b
    Examples:
      tallymark tail                             the last 20 records
      tallymark tail -f                          and every new one, live
      tallymark tail -f --where success=false    failures only
      tallymark tail -f -n 0 --json | jq .value
      tallymark tail -f --logs --level warning   the log that applications write

    The last records, oldest first. With -f each new record is shown once, within a fraction of a second;
    Ctrl-C ends it with exit code 130. A record that arrives with a timestamp more than 2 s in the past is
    not followed.
    """
    if logs:
        others = {"--type": metric_type, "--name": name, "--service": service, "--where": where}
        _tail_log(store, follow, lines, level, grep, as_json, [option for option, given in others.items() if given])
        return
    if level is not None or grep is not None:
        raise typer.BadParameter("it is for the log; hint: --logs", param_hint="--level" if level else "--grep")
    from tallymark.cli.output import console, message, print_json, record_json, record_line

    out = console()

    def show(records: Iterable["Record"]) -> int:
        shown = 0
        for shown, record in enumerate(records, 1):  # noqa: B007  # it is what is returned
            if as_json:
                print_json(record_json(record))
            else:
                out.print(record_line(record), soft_wrap=True)
        return shown

    with open_existing(store) as reader:
        conditions = {**_columns(metric_type, name, service), "where": where or ()}
        following = Following(reader, conditions, lines)
        shown = show(following.last())
        if not follow:
            if not shown and lines:
                message(f"no record matches; hint: tallymark info {location.shown(store)}")
            return
        while True:
            show(following.new())
            time.sleep(POLL_SECONDS)


def _tail_log(
    store: str, follow: bool, lines: int, level: str | None, grep: str | None, as_json: bool, others: list[str]
) -> None:
    from tallymark.cli.logs import tail_log
    from tallymark.logs import LogFilter

    if others:
        raise typer.BadParameter("it is for records; with --logs there are --level and --grep", param_hint=others[0])
    try:
        wanted = LogFilter(level=level and level.lower(), text=grep or None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--level") from None
    tail_log(store, wanted, follow=follow, lines=lines, as_json=as_json)


class Following:
    """The last records of a store, then every record that is added: each one once, oldest first.

    Records of several processes become visible slightly out of order. So every look starts a little
    before the one before it, and the ids that were already seen are left out.
    """

    def __init__(self, reader: "Reader", conditions: dict[str, Any], lines: int) -> None:
        self._reader = reader
        self._conditions = conditions
        self._lines = lines
        self._looked = time.time_ns()
        self._seen: dict[UUID, int] = {}
        self._floor = self._looked

    def last(self) -> list["Record"]:
        """The last records that there are now."""
        if not self._lines:
            return []
        found = self._reader.records(**self._conditions, limit=self._lines).records
        self._seen = {record.id: record.timestamp for record in found}
        # What is older than these was left out on purpose, and is not news.
        self._floor = found[-1].timestamp if len(found) == self._lines else 0
        return found[::-1]

    def new(self) -> list["Record"]:
        """The records that have been added since the last look."""
        now = time.time_ns()
        start = max(self._floor, self._looked - OVERLAP_NS)
        new = [
            record
            for page in self._reader.pages(**self._conditions, since=start, order_by="timestamp")
            for record in page.records
            if record.id not in self._seen
        ]
        self._seen = {known: when for known, when in self._seen.items() if when >= start}
        self._seen.update((record.id, record.timestamp) for record in new)
        self._looked = max(now, self._looked)
        return new


def info(store: StoreArgument = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """\b
    Examples:
      tallymark info
      tallymark info ./demo-metrics --json

    The books of a store: recorded = stored + pending + dropped + deleted. Pending records are already part of every
    answer; they only wait to be moved into the store.
    """
    from rich import filesize

    from tallymark.cli.output import print_json, print_table

    with open_existing(store) as reader:
        found = reader.info()
    books = {
        "url": found.url,
        "recorded": found.recorded,
        "stored": found.stored,
        "pending": found.pending,
        "dropped": dict(found.dropped),
        "deleted": found.deleted,
        "bytes": found.bytes,
    }
    if as_json:
        print_json(books)
        return
    dropped = sum(found.dropped.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items() if count)
    print_table(
        ("", "records", "note"),
        [
            {"": "recorded", "records": found.recorded, "note": found.url},
            {"": "stored", "records": found.stored, "note": f"{filesize.decimal(found.bytes)} on disk"},
            {"": "pending", "records": found.pending, "note": "in journals"},
            {"": "dropped", "records": dropped, "note": reasons},
            {"": "deleted", "records": found.deleted, "note": "too old, or erased"},
        ],
    )
