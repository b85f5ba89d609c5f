"""The structured log: what a line holds, and what becomes of it when things go wrong."""

import contextlib
import enum
import json
import logging
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import eventually, in_threads

from tallymark import config
from tallymark.integrations import log_lines
from tallymark.integrations import logging as structured
from tallymark.integrations.logging import METRIC, JsonFormatter, JsonLinesHandler, install, log_event
from tallymark.logs import MAX_LINE, LogFollower, LogLine
from tallymark.privacy import forbidden_word, looks_private
from tallymark.trace import current_session_id, current_trace_id

HOSTILE = 'a\nb\r\n\x00\x1b[2J\x7f\x85\x9b\u2028\u2029\u202e{"level":"critical"}\\'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "metrics.jsonl"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, which writes everything and tells nobody else."""
    made = logging.getLogger("shop.checkout")
    made.setLevel(1)
    made.propagate = False
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()
    made.setLevel(logging.NOTSET)
    made.propagate = True


@pytest.fixture
def handler(path: Path, logger: logging.Logger) -> JsonLinesHandler:
    made = JsonLinesHandler(path, service="shop")
    logger.addHandler(made)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line of the file; each has to be one JSON object, in ASCII without control characters."""
    text = path.read_text("ascii")
    assert text.endswith("\n")
    found = text[:-1].split("\n")
    assert all(line.isprintable() for line in found)
    return [json.loads(line) for line in found]


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


# Files


def everything(path: Path) -> tuple[list[LogLine], int]:
    """All lines of a log, across its files, and how many were none."""
    with LogFollower(path) as log:
        found = log.new()
        while not log.at_end:
            found += log.new()
        assert not log.gap
        return found, log.skipped


def test_rotation_keeps_so_many_files(logger: logging.Logger, path: Path) -> None:
    handler = JsonLinesHandler(path, max_bytes=1000, keep=3)
    logger.addHandler(handler)
    for number in range(100):
        logger.info("hello", extra={"number": number, "pad": "x" * 100})
    names = ["metrics.jsonl", "metrics.jsonl.1", "metrics.jsonl.2", "metrics.jsonl.3"]
    assert sorted(file.name for file in path.parent.iterdir()) == names
    assert all(file.stat().st_size <= 1000 for file in path.parent.iterdir())
    found, _ = everything(path)
    numbers = [line.fields["number"] for line in found]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) > 6


def test_a_line_larger_than_a_file_has_one_of_its_own(logger: logging.Logger, path: Path) -> None:
    logger.addHandler(JsonLinesHandler(path, max_bytes=1000))
    for pad in (10, 5000, 10):
        logger.info("hello", extra={"pad": "x" * pad})
    assert [len(line.fields["pad"]) for line in everything(path)[0]] == [10, 5000, 10]


def test_a_file_that_was_removed_or_moved_is_made_again(
    logger: logging.Logger, handler: JsonLinesHandler, path: Path
) -> None:
    logger.info("one")
    path.rename(path.with_name("moved"))
    logger.info("two")
    path.unlink()
    path.with_name("moved").unlink()
    path.parent.rmdir()
    logger.info("three")
    assert [line["message"] for line in lines(path)] == ["three"]
    assert handler.failures == 0


def test_after_half_a_line(logger: logging.Logger, handler: JsonLinesHandler, path: Path) -> None:
    logger.info("one")
    with path.open("a") as file:
        file.write('{"timestamp": "2026-')
    logger.info("two")
    found, skipped = everything(path)
    assert [line.fields["message"] for line in found] == ["one", "two"]
    assert skipped == 1
    assert handler.failures == 0


def test_threads(logger: logging.Logger, handler: JsonLinesHandler, path: Path) -> None:
    def work() -> None:
        for _ in range(200):
            logger.info("hello")

    in_threads(work, 8)
    assert len(lines(path)) == 1600
    assert handler.failures == handler.lost == 0


def in_children(work: Callable[[int], None], count: int) -> list[int]:
    """Start forked children; returns their ids."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return children


def wait_for(children: list[int]) -> None:
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


def test_eight_processes_that_rotate_lose_nothing(path: Path) -> None:
    def work(writer: int) -> None:
        handler = JsonLinesHandler(path, max_bytes=50_000, keep=1000)
        for number in range(500):
            fields = {"writer": writer, "number": number, "pad": "x" * (number % 300)}
            handler.handle(logging.makeLogRecord({"msg": "hello", "fields": fields}))
        handler.close()
        assert handler.lost == 0

    wait_for(in_children(work, 8))
    found, skipped = everything(path)
    assert skipped == 0
    assert len(list(path.parent.iterdir())) > 10
    for writer in range(8):
        mine = [line.fields["number"] for line in found if line.fields["writer"] == writer]
        assert mine == list(range(500))


def test_a_handler_that_is_forked_while_it_is_used(logger: logging.Logger, path: Path) -> None:
    handler = JsonLinesHandler(path, max_bytes=20_000, keep=1000)
    logger.addHandler(handler)
    logger.info("x", extra={"writer": -1})
    handler._waiting.append(b'{"writer": "waits"}\n')  # it is the parent's to write

    def work(writer: int) -> None:
        for _ in range(200):
            logger.info("x", extra={"writer": writer, "pad": "x" * 50})

    children = in_children(work, 4)
    for _ in range(200):
        logger.info("x", extra={"writer": "parent"})
    wait_for(children)
    found, skipped = everything(path)
    expected = {-1: 1, "waits": 1, "parent": 200, 0: 200, 1: 200, 2: 200, 3: 200}
    assert Counter(line.fields["writer"] for line in found) == expected
    assert skipped == 0


def test_a_fork_in_the_middle_of_writing(logger: logging.Logger, handler: JsonLinesHandler, path: Path) -> None:
    # As a thread that writes leaves it to the child of another.
    logger.info("before")
    handler._writing, handler._nested = True, 1
    wait_for(in_children(lambda _: logger.info("child"), 1))
    handler._writing, handler._nested = False, 0
    logger.info("after")
    assert [line["message"] for line in lines(path)] == ["before", "child", "after"]


def test_writers_that_are_killed(path: Path) -> None:
    chance = random.Random(7)

    def work(writer: int) -> None:
        handler = JsonLinesHandler(path, max_bytes=200_000, keep=100_000)
        number = 0
        while writer < 0 or number < 300:
            # Of many pages: a kill may come between two of them.
            fields = {
                "writer": writer,
                "number": number,
                **{f"pad {n}": "x" * 8000 for n in range(3 if writer < 0 else 0)},
            }
            handler.handle(logging.makeLogRecord({"msg": "hello", "fields": fields}))
            number += 1
        handler.close()
        assert handler.lost == 0

    def begun() -> bool:
        return path.exists() and path.stat().st_size > 0

    steady = in_children(work, 2)
    kills = 0
    while kills < 25:
        (victim,) = in_children(lambda _: work(-1), 1)
        eventually(begun)
        end = time.perf_counter() + chance.random() * 0.03
        while time.perf_counter() < end:
            pass
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        kills += 1
    wait_for(steady)
    found, skipped = everything(path)
    for writer in range(2):
        assert [line.fields["number"] for line in found if line.fields["writer"] == writer] == list(range(300))
    assert skipped <= kills
    # Nothing is left beside the files themselves.
    names = {file.name for file in path.parent.iterdir()}
    assert names == {path.name} | {f"{path.name}.{n}" for n in range(1, len(names))}


# What goes wrong


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again with the next record."""
    monkeypatch.setattr(structured, "RETRY_SECONDS", 0.0)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """A file that may not grow any more: writing fails in the middle of a line, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_written_waits(
    logger: logging.Logger, handler: JsonLinesHandler, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.info("zero bob@example.com")
    size = path.stat().st_size
    with full_disk(path):
        for word in ("one", "two bob@example.com"):
            logger.info(word)
        # Not half a line.
        assert path.stat().st_size == size
    assert (handler.failures, handler.lost) == (2, 0)
    logger.info("three")
    assert [line["message"] for line in lines(path)] == ["zero [email]", "one", "two [email]", "three"]
    # Said once, and without what was to be written.
    assert capsys.readouterr().err == f"tallymark: {path} cannot be written: File too large\n"


def test_waiting_is_bounded_and_the_log_says_what_is_lost(
    logger: logging.Logger, handler: JsonLinesHandler, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structured, "MAX_WAITING", 5)
    monkeypatch.setattr(structured, "RETRY_SECONDS", 3600.0)
    logger.info("first")
    with full_disk(path):
        for number in range(20):
            logger.info("waits", extra={"number": number})
        # Tried once: whoever logs does not wait for a disk that is full.
        assert (handler.failures, handler.lost) == (1, 15)
    handler.flush()
    found = lines(path)
    assert [line["number"] for line in found if line["message"] == "waits"] == [0, 1, 2, 3, 4]
    (told,) = [line for line in found if line["event_type"] == "log_lost"]
    assert (told["level"], told["message"], told["lost"]) == ("warning", "15 log records could not be written", 15)


def test_a_folder_that_cannot_be(tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    handler = JsonLinesHandler(tmp_path / "file" / "logs" / "x.jsonl")
    logger.addHandler(handler)
    logger.info("one")
    logger.info("two")
    logger.removeHandler(handler)
    handler.close()
    assert handler.lost == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("Not a directory")


@pytest.mark.usefixtures("at_once")
def test_silence_where_it_is_asked_for(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.addHandler(JsonLinesHandler(tmp_path))  # a folder
    logger.info("one")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("at_once")
def test_without_stderr(tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    handler = JsonLinesHandler(tmp_path)
    logger.addHandler(handler)
    logger.info("one")
    assert handler.failures == 1


def test_a_process_that_was_stopped_in_the_middle_holds_nobody_up_for_long(
    logger: logging.Logger, handler: JsonLinesHandler, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(structured, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(structured, "RETRY_SECONDS", 3600.0)
    logger.info("before")
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for number in range(100):
            logger.info("meanwhile", extra={"number": number})
        assert (handler.failures, handler.lost) == (1, 0)
    handler.flush()
    assert [line["message"] for line in lines(path)] == ["before", *["meanwhile"] * 100]


def test_logging_from_within_logging_ends(logger: logging.Logger, handler: JsonLinesHandler, path: Path) -> None:
    class Chatty:
        def __str__(self) -> str:
            logger.info("I am asked", extra={"who": self})
            return "chatty"

    logger.info("hello", extra={"who": Chatty()})
    lost = "1 log records could not be written"
    assert [line["message"] for line in lines(path)] == ["I am asked", lost, "hello"]
    logger.info("again")
    assert lines(path)[-1]["message"] == "again"


def test_a_signal_handler_that_logs(logger: logging.Logger, handler: JsonLinesHandler, path: Path) -> None:
    signals = written = 0

    def log_too(*_: object) -> None:
        nonlocal signals
        signals += 1
        logger.warning("signal")

    before = signal.signal(signal.SIGALRM, log_too)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        while signals < 50:
            logger.info("hello")
            written += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    count = Counter(line["message"] for line in lines(path))
    assert count["hello"] == written
    # A signal that comes in while another one is logged may find the depth exceeded.
    assert handler.lost or count["signal"] == signals
    assert handler.failures == 0
