"""The structured log: what a line holds, and how it is installed."""

import enum
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallymark import config
from tallymark.integrations import log_lines
from tallymark.integrations import logging as structured
from tallymark.integrations.logging import METRIC, JsonFormatter, JsonLinesHandler, install, log_event
from tallymark.logs import MAX_LINE
from tallymark.privacy import forbidden_word, looks_private
from tallymark.trace import current_session_id, current_trace_id

from .logged import lines

HOSTILE = 'a\nb\r\n\x00\x1b[2J\x7f\x85\x9b\u2028\u2029\u202e{"level":"critical"}\\'


def line_of(message: object, *arguments: object, **extra: object) -> dict[str, Any]:
    """The one line that a record becomes."""
    record = logging.makeLogRecord({"name": "shop", "levelname": "INFO", "msg": message, "args": arguments, **extra})
    text = JsonFormatter("shop").format(record)
    assert text.isascii()
    assert text.isprintable()
    parsed = json.loads(text, parse_constant=_no_constant)
    assert isinstance(parsed, dict)
    return parsed


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


# What a line holds


@pytest.mark.usefixtures("handler")
def test_a_line(logger: logging.Logger, path: Path) -> None:
    before = datetime.now(UTC)
    trace, session = current_trace_id.set("4bf92f35"), current_session_id.set("abc123")
    try:
        logger.log(METRIC, "took %d ms", 12, extra={"event_type": "done", "stage": "ai"})
    finally:
        current_trace_id.reset(trace)
        current_session_id.reset(session)
    (line,) = lines(path)
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert before.replace(microsecond=0) <= moment <= datetime.now(UTC)
    assert list(line.items()) == [
        ("level", "metric"),
        ("event_type", "done"),
        ("message", "took 12 ms"),
        ("session_id", "abc123"),
        ("trace_id", "4bf92f35"),
        ("service", "shop"),
        ("logger", "shop.checkout"),
        ("process_id", os.getpid()),
        ("stage", "ai"),
    ]


def test_times_have_microseconds_and_are_utc() -> None:
    assert line_of("x", created=1758920400)["timestamp"] == "2025-09-26T21:00:00.000000Z"


@pytest.mark.usefixtures("handler")
def test_without_context(logger: logging.Logger, path: Path) -> None:
    logger.warning("careful")
    (line,) = lines(path)
    assert (line["level"], line["event_type"]) == ("warning", "shop.checkout")
    assert (line["session_id"], line["trace_id"]) == (None, None)


def test_the_names_of_levels() -> None:
    assert logging.getLevelName(METRIC) == "METRIC"
    assert logging.INFO < METRIC < logging.WARNING


def test_ids_that_are_given_win_over_the_context() -> None:
    token = current_trace_id.set("context")
    try:
        assert line_of("x", trace_id="given")["trace_id"] == "given"
        assert line_of("x")["trace_id"] == "context"
    finally:
        current_trace_id.reset(token)


def test_fields_with_names_that_are_taken_are_renamed() -> None:
    line = line_of("x", service="mine", timestamp=1, fields={"message": "m", "level": 2, "extra_message": "n"})
    assert (line["service"], line["message"], line["level"]) == ("shop", "x", "info")
    assert (line["extra_service"], line["extra_timestamp"], line["extra_level"]) == ("mine", 1, 2)
    assert {line["extra_message"], line["extra_extra_message"]} == {"m", "n"}


class _Broken:
    def __str__(self) -> str:
        raise ZeroDivisionError("no")

    __repr__ = __str__


class _BrokenDict(dict[str, int]):
    def items(self) -> NoReturn:
        raise ZeroDivisionError("no")

    __iter__ = keys = __len__ = items


class _Liar:
    def __getattribute__(self, name: str) -> NoReturn:
        raise ZeroDivisionError("no")


class _Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (12, 12),
        (1.5, 1.5),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (2**63, 2**63),
        (10**5000, "[integer of 16610 bits]"),
        (_Colour.RED, "red"),
        (Path("/tmp/x"), "/tmp/x"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (b"bytes\xff", "bytes\\xff"),
        (ValueError("why"), "why"),
        ((1, [2, {"a": {3}}]), [1, [2, {"a": [3]}]]),
        ({1: "one", None: 2}, {"1": "one", "None": 2}),
        ("\ud800", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        (_Broken(), "[unreadable _Broken]"),
        ({"in": [_Broken(), 1]}, {"in": ["[unreadable _Broken]", 1]}),
        (_BrokenDict(a=1), {"a": 1}),
        (_Liar(), "[unreadable _Liar]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(value: object, expected: object) -> None:
    assert line_of("x", it=value)["it"] == expected


def test_objects_that_hold_themselves() -> None:
    endless: list[object] = [1]
    endless.append(endless)
    assert line_of("x", it=endless)["it"] == [1, [1, [1, [1, [1, "…"]]]]]


def test_messages_that_do_not_fit_their_arguments() -> None:
    assert line_of("%d of %d", "x")["message"] == "%d of %d"
    assert line_of(_Broken())["message"] == "[unreadable _Broken]"
    assert line_of({"a": 1})["message"] == "{'a': 1}"
    assert line_of("now", created="never")["timestamp"].endswith("Z")


def test_lines_are_bounded() -> None:
    face = "\U0001f600" * 50_000
    deep = {f"key {n}": {f"key {m}": face for m in range(300)} for n in range(300)}
    try:
        raise ValueError(face)
    except ValueError:
        exc_info = sys.exc_info()
    record = logging.makeLogRecord({"msg": face, "exc_info": exc_info, "stack_info": face, "name": face})
    record.__dict__.update({f"{n}{face}": deep for n in range(1000)}, trace_id=face, event_type=face, levelname=face)
    line = JsonFormatter("shop").format(record)
    assert len(line) < MAX_LINE
    assert json.loads(line)["message"].endswith("…")


@pytest.mark.parametrize("place", ["message", "field", "key", "nested", "event_type", "session_id", "error"])
def test_nothing_makes_a_second_line(logger: logging.Logger, handler: JsonLinesHandler, path: Path, place: str) -> None:
    match place:
        case "message":
            logger.info("%s", HOSTILE)
        case "key":
            logger.info("x", extra={HOSTILE: 1})
        case "nested":
            logger.info("x", extra={"it": {HOSTILE: [HOSTILE]}})
        case "error":
            logger.error("x", exc_info=ValueError(HOSTILE))
        case _:
            logger.info("x", extra={place: HOSTILE})
    (line,) = lines(path)
    kept = HOSTILE.replace("\x00", "\ufffd")
    assert kept in str([*line, *line.values()]) or repr(kept)[1:-1] in str(line)
    assert line["level"] in ("info", "error")
    assert handler.failures == 0


def test_a_formatter_of_somebody_else_writes_single_lines_too(
    logger: logging.Logger, handler: JsonLinesHandler, path: Path
) -> None:
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.info("a\nb")
    assert path.read_text() == "a\\nb\n"


_texts = st.text(st.characters(), max_size=200)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(_texts, values, max_size=4),
    max_leaves=10,
)


def _cleaned(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {
            _cleaned(key): "[forbidden]" if forbidden_word(str(key)) else _cleaned(item) for key, item in value.items()
        }
    return value


def _holds_private(value: object) -> bool:
    if isinstance(value, str):
        return looks_private(value) is not None
    if isinstance(value, dict):
        return any(_holds_private(key) or _holds_private(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_private, value))


def _deep(value: object) -> int:
    items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return 1 + max(map(_deep, items), default=0)


@settings(max_examples=300, deadline=None)
@given(message=_texts, value=_values)
def test_any_text_and_any_field_come_back(message: str, value: object) -> None:
    line = line_of(message.replace("%", "%%"), it=value)
    if not _holds_private(message):
        assert line["message"] == _cleaned(message)[:8192]  # type: ignore[index]
    cleaned = _cleaned(value)
    # Lone surrogates and NUL may make two keys one.
    if not _holds_private(value) and _deep(value) <= log_lines.MAX_DEPTH and "\ufffd" not in str(cleaned):
        assert line["it"] == cleaned


# Exceptions


@pytest.mark.usefixtures("handler")
def test_exceptions_are_fields(logger: logging.Logger, path: Path) -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer\nline") from inner
    except ValueError:
        logger.exception("it failed")
    (line,) = lines(path)
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert (line["exception_type"], line["exception_message"]) == ("ValueError", "outer\nline")
    assert "KeyError: 'inner'" in line["exception_stack"]
    assert "direct cause" in line["exception_stack"]
    assert 'raise ValueError("outer\\nline") from inner' in line["exception_stack"]


def test_exceptions_that_cannot_be_shown() -> None:
    class Broken(Exception):
        __str__ = _Broken.__str__

    try:
        raise Broken
    except Broken:
        line = line_of("x", exc_info=sys.exc_info())
    assert line["exception_type"] == "Broken"
    assert line["exception_message"] == "[unreadable Broken]"
    assert "<exception str() failed>" in line["exception_stack"]
    assert "exception_type" not in line_of("x", exc_info=(None, None, None))


def test_endless_recursion_is_cut() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    try:
        deeper(0)
    except RecursionError:
        line = line_of("x", exc_info=sys.exc_info())
    assert line["exception_type"] == "RecursionError"
    assert len(line["exception_stack"]) <= log_lines.MAX_STACK


def test_what_a_queue_made_of_an_exception_is_kept() -> None:
    assert line_of("x", exc_text="Traceback …")["exception_stack"] == "Traceback …"
    assert line_of("x", stack_info="Stack …")["exception_stack"] == "Stack …"


# Privacy


def test_what_looks_private_is_masked_everywhere() -> None:
    mail = "bob@example.com"
    try:
        raise ValueError("no mailbox bob@example.com")
    except ValueError:
        line = line_of("to %s", mail, to=mail, many=[mail], exc_info=sys.exc_info(), **{mail: 1})
    assert "example.com" not in json.dumps(line)
    assert (line["message"], line["to"], line["many"]) == ("to [email]", "[email]", ["[email]"])
    assert line["[email]"] == "[forbidden]"  # a mask is a name, too
    assert line["exception_message"] == "no mailbox [email]"
    # The line of the source in which the address stands, too.
    assert 'raise ValueError("no mailbox [email]")' in line["exception_stack"]


def test_a_secret_is_not_saved_by_being_cut() -> None:
    for at in range(log_lines.MAX_TEXT - 20, log_lines.MAX_TEXT + 2):
        assert "bob@ex" not in line_of("x" * (at - 1) + " bob@example.com")["message"]


def test_forbidden_names() -> None:
    line = line_of("x", password="hunter2", userId=7, it={"api_key": "k", "deep": [{"email": "e"}]}, tokens_used=5)
    assert line["password"] == line["userId"] == line["it"]["api_key"] == "[forbidden]"
    assert line["it"]["deep"] == [{"email": "[forbidden]"}]
    assert line["tokens_used"] == 5


def test_ids_of_users() -> None:
    pseudonym = "admin_" + "bcdfghjklmnpqrst" + "bcdf"
    assert line_of("x", admin_user_id=pseudonym)["admin_user_id"] == pseudonym
    assert line_of("x", admin_user_id="admin_99999")["admin_user_id"] == "[forbidden]"
    assert line_of("x", password=pseudonym)["password"] == "[forbidden]"
    assert line_of("x", admin_user_id=None)["admin_user_id"] is None
    record = logging.makeLogRecord({"msg": "x", "admin_user_id": 99999, "password": "p"})
    line = json.loads(JsonFormatter("shop", raw_ids=True).format(record))
    assert (line["admin_user_id"], line["password"]) == (99999, "[forbidden]")


# Set up


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("TALLYMARK_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TALLYMARK_SERVICE", "shop")
    config.settings.cache_clear()
    yield monkeypatch
    config.settings.cache_clear()


@pytest.mark.usefixtures("environment")
def test_install_in_one_line(logger: logging.Logger, tmp_path: Path) -> None:
    logger.setLevel(logging.ERROR)
    made = install(logger="shop.checkout")
    logger.info("hello")
    logger.debug("not this")
    (line,) = lines(tmp_path / "store" / "logs" / "metrics.jsonl")
    assert (line["service"], line["message"]) == ("shop", "hello")
    assert install(logger=logger, level="WARNING") is made
    assert [found for found in logger.handlers if isinstance(found, JsonLinesHandler)] == [made]
    assert made.level == logging.WARNING
    with pytest.raises(ValueError, match="LOUD"):
        install(logger=logger, level="LOUD")


@pytest.mark.usefixtures("environment")
def test_install_on_the_root(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)
    made = install(path, level=METRIC)
    try:
        log_event("warmed_up", "Ready", seconds=2)
        logging.getLogger("anything").info("less than a metric")
    finally:
        root.removeHandler(made)
        made.close()
    assert [(line["event_type"], line["level"], line["seconds"]) for line in lines(path)] == [
        ("warmed_up", "metric", 2)
    ]


def test_where_metrics_are_disabled_there_is_no_file(
    environment: pytest.MonkeyPatch, logger: logging.Logger, path: Path
) -> None:
    environment.setenv("ENABLE_METRICS", "false")
    assert isinstance(install(path, logger=logger), logging.NullHandler)
    logger.warning("hello")
    assert not any(isinstance(found, JsonLinesHandler) for found in logger.handlers)
    assert not path.parent.exists()


def test_events(logger: logging.Logger, handler: JsonLinesHandler, path: Path) -> None:
    events = logging.getLogger(structured.EVENTS)
    events.addHandler(handler)
    try:
        log_event("nobody", "listens")
        events.setLevel(METRIC)
        # Names that logging refuses in extra, and those of the line itself.
        log_event("correction_recorded", "100 % done", session_id="abc123", name="n", args=1, module="m", level="l")
    finally:
        events.setLevel(logging.NOTSET)
        events.removeHandler(handler)
    (line,) = lines(path)
    assert (line["event_type"], line["message"], line["level"]) == ("correction_recorded", "100 % done", "metric")
    assert (line["session_id"], line["args"], line["module"], line["extra_level"]) == ("abc123", 1, "m", "l")
    assert line["name"] == "[forbidden]"


def test_settings_that_make_no_sense(path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        JsonLinesHandler(path, max_bytes=0)
    with pytest.raises(ValueError, match="at least 1"):
        JsonLinesHandler(path, keep=0)
