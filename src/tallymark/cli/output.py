"""How the command line writes: data on stdout, everything else on stderr, and no text that the terminal
obeys.

Names and metadata come from anywhere. Whatever is not printable is shown as an escape (``\\x1b``), and
nothing is ever read as markup.
"""

import csv
import json
import math
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tallymark.record import Record

Row = Mapping[str, Any]

PERCENTAGES = frozenset({"success_rate", "error_rate"})

# Wide enough for any row: what is piped is never wrapped or cut to some terminal's width.
_UNLIMITED = 100_000


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: no markup, no emoji codes, no highlighting. Colours only on a
    terminal.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=stderr,
        width=None if stream.isatty() else _UNLIMITED,
    )


def message(text: str, style: str = "") -> None:
    """One message for the person at the terminal."""
    console(stderr=True).print(Text(visible(text), style=style))


def visible(text: str) -> str:
    """The text with everything that is not printable written as a backslash escape: control characters,
    colour codes, line breaks, marks that turn the direction of writing around.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def to_json(value: object) -> str:
    """One line of JSON in ASCII, so that nothing in it reaches a terminal unescaped. Times are RFC 3339
    in UTC; a number that JSON cannot hold is null.
    """
    # DEL is the one control character that the encoder leaves as it is; outside of strings it cannot occur.
    return json.dumps(_plain(value), allow_nan=False).replace("\x7f", "\\u007f")


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _readable_json(value: object) -> str:
    return visible(json.dumps(_plain(value), ensure_ascii=False))


def print_json(value: object) -> None:
    """One JSON document on one line of stdout, seen by a reading process at once."""
    print(to_json(value), flush=True)


def print_csv(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Comma-separated values with a header line; one line for each row, whatever is in its texts."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([visible(column) for column in columns])
    for row in rows:
        writer.writerow([_csv_cell(row[column]) for column in columns])


def _csv_cell(value: object) -> object:
    plain = _plain(value)
    if isinstance(plain, dict | list):
        return to_json(plain)
    return visible(plain) if isinstance(plain, str) else plain


def print_table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """A table for people: numbers to the right, times in the local time zone."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        numeric = any(_is_number(row[column]) for row in rows)
        table.add_column(
            Text(visible(column) + (" %" if column in PERCENTAGES else "")),
            justify="right" if numeric else "left",
            no_wrap=numeric or column == "window_start",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_cell(row[column])) for column in columns))
    console().print(table)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value:,}"
        case float():
            return number(value)
        case datetime():
            return local_time(value)
        case dict() | list():
            return _readable_json(value)
        case _:
            return visible(str(value))


def number(value: float) -> str:
    """A number with the digits that matter: ``12,345.6``, ``0.0123``, ``1.2e+20``."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1e15:
        digits = max(0, 3 - len(str(int(abs(value))))) if abs(value) >= 1 else 4
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def local_time(when: datetime, *, milliseconds: bool = False) -> str:
    """``2026-11-22 02:00:00 CET``: in the time zone of this machine, which is named."""
    local = when.astimezone()
    fraction = f".{local.microsecond // 1000:03d}" if milliseconds else ""
    return f"{local:%Y-%m-%d %H:%M:%S}{fraction} {local:%Z}"


def record_json(record: Record) -> dict[str, Any]:
    """A record as JSON: every field, ``timestamp`` in RFC 3339 with nanoseconds."""
    fields: dict[str, Any] = msgspec.structs.asdict(record)
    seconds, nanoseconds = divmod(record.timestamp, 1_000_000_000)
    fields["timestamp"] = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
    return fields


def record_line(record: Record) -> Text:
    """A record as one line for people."""
    line = Text(no_wrap=False)
    when = datetime.fromtimestamp(record.timestamp / 1e9, UTC)
    line.append(local_time(when, milliseconds=True), style="dim")
    line.append(f"  {visible(record.service)}", style="cyan")
    line.append(f"  {visible(record.metric_type)}")
    line.append(f"  {visible(record.name)}", style="bold")
    line.append(f"  {number(record.value)}{'' if record.unit == '1' else ' ' + visible(record.unit)}")
    if record.success is True:
        line.append("  ok", style="green")
    elif record.success is False:
        line.append("  failed", style="red")
    if record.error is not None:
        line.append(f": {visible(record.error)}", style="red")
    if record.metadata:
        line.append(f"  {_readable_json(record.metadata)}", style="dim")
    return line
