"""The files of the structured log: rotated, shared by processes, and on a disk where things go wrong."""

import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recording import end_alarm, eventually, in_threads

from tallymark.integrations import logging as structured
from tallymark.integrations.logging import JsonLinesHandler
from tallymark.logs import LogFollower, LogLine

from .logged import lines


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
        end_alarm(before)
    count = Counter(line["message"] for line in lines(path))
    assert count["hello"] == written
    # A signal that comes in while another one is logged may find the depth exceeded.
    assert handler.lost or count["signal"] == signals
    assert handler.failures == 0
