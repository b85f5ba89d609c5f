"""``tallymark tail --logs``."""

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallymark.integrations.logging import JsonLinesHandler

from .conftest import HOSTILE, Program, eventually
from .test_tail import Followed


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[JsonLinesHandler]:
    """Writes the log of ``./metrics``."""
    made = JsonLinesHandler(tmp_path / "metrics" / "logs" / "metrics.jsonl", service="shop")
    yield made
    made.close()


def write(handler: JsonLinesHandler, message: str = "hello", level: int = logging.INFO, **fields: object) -> None:
    values = {"name": "shop.orders", "msg": "%s", "args": (message,), "levelno": level, "fields": fields}
    handler.handle(logging.makeLogRecord({**values, "levelname": logging.getLevelName(level)}))


def test_the_last_lines_for_people(tallymark: Program, handler: JsonLinesHandler) -> None:
    for number in range(5):
        write(handler, f"hello {number}", number=number)
    lines = tallymark("tail", "--logs", "-n", "2").stdout.splitlines()
    assert [line.partition("info")[2] for line in lines] == [
        '      shop  shop.orders  hello 3  {"number": 3}',
        '      shop  shop.orders  hello 4  {"number": 4}',
    ]


def test_json(tallymark: Program, handler: JsonLinesHandler) -> None:
    write(handler, HOSTILE, session_id="abc")
    (line,) = tallymark.rows("tail", "--logs")
    assert (line["message"], line["session_id"], line["service"]) == (HOSTILE, "abc", "shop")


def test_what_is_wanted(tallymark: Program, handler: JsonLinesHandler) -> None:
    write(handler, "one")
    write(handler, "two", logging.ERROR)
    write(handler, "three", logging.CRITICAL, stage="Straße")
    assert [line["message"] for line in tallymark.rows("tail", "--logs", "--level", "Warning")] == ["two", "three"]
    assert [line["message"] for line in tallymark.rows("tail", "--logs", "--grep", "STRASSE")] == ["three"]
    assert tallymark("tail", "--logs", "--grep", "nothing").stdout == ""


def test_another_store(tallymark: Program, handler: JsonLinesHandler, tmp_path: Path) -> None:
    write(handler)
    (tmp_path / "metrics").rename(tmp_path / "other")
    assert len(tallymark.rows("tail", "./other", "--logs")) == 1
    tallymark.environment["METRICS_LOG_FILE"] = str(tmp_path / "other" / "logs" / "metrics.jsonl")
    assert len(tallymark.rows("tail", "--logs")) == 1


def test_follow(tallymark: Program, handler: JsonLinesHandler) -> None:
    # The log does not exist yet.
    followed = Followed(tallymark.start("tail", "--logs", "-f", "--json"))

    def written_and_seen() -> bool:
        write(handler)
        return bool(followed.lines)

    eventually(written_and_seen)
    write(handler, "end")
    eventually(lambda: followed.rows()[-1]["message"] == "end")
    assert followed.interrupt() == 130
    assert followed.process.stderr is not None
    assert followed.process.stderr.read() == ""


def test_a_log_that_is_emptied_is_told(tallymark: Program, handler: JsonLinesHandler) -> None:
    for _ in range(3):
        write(handler, "before")
    followed = Followed(tallymark.start("tail", "--logs", "-f", "--json"))
    eventually(lambda: len(followed.lines) == 3)
    os.truncate(handler.path, 0)
    write(handler, "after")
    eventually(lambda: len(followed.lines) == 4)
    assert followed.interrupt() == 130
    assert followed.process.stderr is not None
    assert "lines are missing here" in followed.process.stderr.read()


def test_no_text_is_obeyed_by_a_terminal(tallymark: Program, handler: JsonLinesHandler, tmp_path: Path) -> None:
    write(handler, HOSTILE, logging.INFO, **{HOSTILE: HOSTILE})
    with handler.path.open("a") as file:  # another program wrote this
        fields = {"timestamp": HOSTILE, "level": HOSTILE, "event_type": [HOSTILE], "service": HOSTILE}
        file.write(json.dumps({**fields, "message": {HOSTILE: 1}}) + "\n")
    done = tallymark("tail", "--logs")
    assert len(done.stdout.splitlines()) == 2
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "[red]x[/red]" in done.stdout


def test_colours_on_a_terminal(tallymark: Program, handler: JsonLinesHandler, tmp_path: Path) -> None:
    write(handler, "careful", logging.WARNING)
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "tallymark", "tail", "--logs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=side, stdin=side, timeout=120)
    os.close(side)
    assert done.returncode == 0
    assert b"\x1b[33m  warning" in os.read(main, 10_000)
    os.close(main)


def test_nothing_to_show_is_said(tallymark: Program, handler: JsonLinesHandler) -> None:
    assert "there is no log at" in tallymark("tail", "--logs").stderr
    write(handler)
    assert "matches" in tallymark("tail", "--logs", "--level", "error").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--logs", "--level", "loud"), "level must be one of debug"),
        (("--logs", "--type", "t"), "--level and --grep"),
        (("--level", "error"), "--logs"),
        (("--grep", "x"), "--logs"),
    ],
)
def test_options_that_do_not_go_together(tallymark: Program, arguments: tuple[str, ...], said: str) -> None:
    assert said in tallymark("tail", *arguments, code=2).stderr


def test_a_log_that_cannot_be_read(tallymark: Program, handler: JsonLinesHandler) -> None:
    handler.path.parent.mkdir(parents=True)
    handler.path.symlink_to(handler.path)
    assert "cannot be read" in tallymark("tail", "--logs", code=1).stderr
