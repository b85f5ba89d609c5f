"""The commands of workflows and corrections: ``review`` and ``pseudonym``."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tallymark.cli.stores import DEFAULT_STORE, StoreArgument, open_existing

Row = dict[str, Any]

USUAL_HOURS = 24.0
USUAL_DAYS = 28

# In this order.
_SHORTER = {"total_": "", "_time_ms": "_ms", "_duration_ms": "_ms", "success_rate": "success_%", "_": " "}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(short_help="How long the stages of a workflow take, and who corrected what.")(review)
    # Ids of chats may be negative, and are no options.
    app.command(
        short_help="What is stored in place of the id of a person.", context_settings={"ignore_unknown_options": True}
    )(pseudonym)


def review(
    store: StoreArgument = DEFAULT_STORE,
    hours: Annotated[float, typer.Option(metavar="N", help="How many of the last hours.")] = USUAL_HOURS,
    days: Annotated[
        int, typer.Option(metavar="N", help="How many of the last days for what admins did, at most 366.")
    ] = USUAL_DAYS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, on stdout.")] = False,
    csv: Annotated[str | None, typer.Option(metavar="FOLDER", help="Write CSV files into this folder instead.")] = None,
) -> None:
    """\b
    Examples:
      tallymark review
      tallymark review --hours 168 --json | jq .alerts
      tallymark review --csv ./report

    Sessions, stages and human corrections: the averages of the last hours, alerts, the stage that takes the
    most time, and how the work of each admin develops. Admins are shown by their pseudonyms, and the labels
    that the application gave them.

    From when on a stage is called slow, and a correction rate high, is said by the settings slow_stage_ms and
    correction_rate_percent.
    """
    from tallymark.cli.output import message, print_json
    from tallymark.config import settings
    from tallymark.errors import ConfigError
    from tallymark.review.export import write_csv
    from tallymark.review.report import review as report_on

    if as_json and csv is not None:
        raise typer.BadParameter("--json and --csv exclude each other", param_hint="--csv")
    thresholds = settings()
    with open_existing(store) as reader:
        try:
            report = report_on(
                reader,
                hours,
                days,
                slow_stage_ms=thresholds.slow_stage_ms,
                correction_rate_percent=thresholds.correction_rate_percent,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    if as_json:
        print_json(report)
    elif csv is not None:
        try:
            files = write_csv(report, csv)
        except OSError as error:
            raise ConfigError(f"cannot write to {csv}: {error.strerror}; hint: name another folder") from error
        for file in files:
            message(f"wrote {file}")
    else:
        _print(report)


def _print(report: Row) -> None:
    from rich.text import Text

    from tallymark.cli.output import console, message, print_table, visible

    out = console()
    overview, stages = report["overview"], report["processing_by_stage"]
    if not stages and not report["corrections"]["by_type"] and not report["admin_performance"]["admins"]:
        message("no stage and no correction was recorded in this time; hint: --hours 168")
        return
    print_table(*_headed([overview]))
    tables: dict[str, list[Row]] = {
        "stages": _keyed("stage", stages),
        "corrections": _keyed("type", report["corrections"]["by_type"]),
        "admins": _keyed("admin", report["corrections"]["by_admin"]),
        f"admins, last {report['admin_performance']['period']['days']} days": [
            _trends(row) for row in _keyed("admin", report["admin_performance"]["admins"])
        ],
        "system metrics": _keyed("name", report["system_metrics"]),
    }
    for title, rows in tables.items():
        if rows:
            out.print(Text(f"\n{title}", "bold"))
            print_table(*_headed(rows))
    if report["bottleneck"]:
        stage, share = report["bottleneck"]["stage"], report["bottleneck"]["share_of_time"]
        out.print(Text(f"\nbottleneck: {visible(stage)} takes {share:.1f} % of the time"), soft_wrap=True)
    for alert in report["alerts"]:
        colour = "red" if alert["severity"] == "critical" else "yellow"
        out.print(Text(f"{alert['severity']}: {visible(alert['message'])}", colour), soft_wrap=True)


def _headed(rows: list[Row]) -> tuple[list[str], list[Row]]:
    """Rows with shorter words over them, for people."""

    def words(column: str) -> str:
        for long, short in _SHORTER.items():
            column = column.replace(long, short)
        return column

    renamed = [{words(column): value for column, value in row.items()} for row in rows]
    return list(renamed[0]), renamed


def _keyed(key: str, rows: Mapping[str, Row]) -> list[Row]:
    return [{key: name, **row} for name, row in rows.items()]


def _trends(row: Row) -> Row:
    """The row with the direction of each trend in its place."""
    return {
        column: (value["direction"] or "too few days") if isinstance(value, dict) else value
        for column, value in row.items()
    }


def pseudonym(
    identifier: Annotated[
        str, typer.Argument(metavar="ID", help="The id; - reads it from stdin, and leaves it in no history.")
    ],
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="user, chat, admin or message; every kind unless told.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="The store that the application records to; it holds the key."),
    ] = None,
) -> None:
    """\b
    Examples:
      tallymark pseudonym 12345
      tallymark pseudonym --kind chat -100200300
      tallymark query --where "metadata.user=$(tallymark pseudonym --kind user 12345)"

    What was recorded about somebody is found, and erased, by the pseudonym that stands in place of the id.
    It is made with the setting pseudonym_key, or with the key in the folder of the store.
    """
    import sys

    from tallymark.cli.output import message, visible
    from tallymark.config import settings
    from tallymark.review.pseudonyms import KINDS, Pseudonyms

    configured = settings()
    secret = configured.pseudonym_key
    pseudonyms = Pseudonyms(
        configured.store if store is None else store,
        key=None if secret is None else secret.get_secret_value(),
        raw_ids=configured.raw_ids,
    )
    given = sys.stdin.readline().rstrip("\r\n") if identifier == "-" else identifier
    try:
        found = [pseudonyms.known(each, given) for each in KINDS if kind is None or each == kind]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not found:
        raise typer.BadParameter(f"there is no such kind; use {', '.join(KINDS)}", param_hint="--kind")
    for line in found:
        print(visible(line))
    if configured.raw_ids:
        message("ids are stored as they are (the setting raw_ids)", "dim")
