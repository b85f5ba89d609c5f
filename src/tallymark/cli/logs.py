"""``tallymark tail --logs``: the structured log as lines for people, or as JSON."""

import json
import time
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from tallymark.cli.output import console, local_time, message, print_json, visible
from tallymark.errors import StoreError
from tallymark.logs import LogFilter, LogFollower, LogLine

POLL_SECONDS: Final = 0.2

STYLES: Final = {
    "debug": "dim",
    "info": "green",
    "metric": "cyan",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
}

# Said before the others, or of no use to a person.
_TOLD: Final = frozenset({"timestamp", "level", "service", "event_type", "message", "logger", "process_id"})


def tail_log(store: str, wanted: LogFilter, *, follow: bool, lines: int, as_json: bool) -> None:
    """Show the last lines of a store's log, and with ``follow`` every new one.

    Raises:
        StoreError: the log cannot be read.
    """
    from tallymark.config import Settings

    path = Settings(store=store).log_path
    try:
        with LogFollower(path, wanted) as log:
            last = log.last(lines)
            _show(last, as_json)
            if not last and lines and not follow:
                message(f"no line of {path} matches" if path.exists() else f"there is no log at {path}")
            while follow:
                _show(log.new(), as_json)
                if log.gap:
                    log.gap = False
                    message("lines are missing here: the log was rotated away, or emptied", "yellow")
                if log.at_end:
                    time.sleep(POLL_SECONDS)
    except OSError as error:
        raise StoreError(f"the log {path} cannot be read: {error.strerror}") from error


def _show(lines: list[LogLine], as_json: bool) -> None:
    out = console()
    for line in lines:
        if as_json:
            print_json(line.fields)
        else:
            out.print(_line(line.fields), soft_wrap=True)


def _line(fields: dict[str, Any]) -> Text:
    """A line for people. Another program may have written it: nothing is taken for granted."""
    level = str(fields.get("level", ""))
    line = Text(no_wrap=False)
    line.append(_time(fields.get("timestamp")), style="dim")
    line.append(f"  {visible(level):8}", style=STYLES.get(level, ""))
    line.append(f"  {visible(str(fields.get('service', '')))}", style="cyan")
    line.append(f"  {visible(str(fields.get('event_type', '')))}", style="bold")
    line.append(f"  {visible(str(fields.get('message', '')))}")
    rest = {key: value for key, value in fields.items() if key not in _TOLD and value is not None}
    if rest:
        line.append(f"  {visible(json.dumps(rest, ensure_ascii=False))}", style="dim")
    return line


def _time(value: object) -> str:
    try:
        moment = datetime.fromisoformat(str(value))
        return local_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC), milliseconds=True)
    except (ValueError, OverflowError):
        return visible(str(value))
