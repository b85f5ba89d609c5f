"""Reading the structured log: filters, positions, and what happens to files meanwhile."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallymark import logs
from tallymark.integrations.logging import JsonLinesHandler
from tallymark.logs import LogFilter, LogFollower, LogLine

START = datetime(2026, 1, 1, tzinfo=UTC)


class Log:
    """A log that a test writes as it likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def line(self, **fields: Any) -> bytes:
        moment = (START + timedelta(seconds=self.count)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        fields = {"timestamp": moment, "level": "info", "message": "hello", "number": self.count, **fields}
        self.count += 1
        return json.dumps(fields).encode() + b"\n"

    def write(self, count: int = 1, **fields: Any) -> None:
        self.append(b"".join(self.line(**fields) for _ in range(count)))

    def append(self, text: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(text)

    def rotate(self, keep: int = 10) -> None:
        for number in range(keep - 1, 0, -1):
            if self.numbered(number).exists():
                self.numbered(number).replace(self.numbered(number + 1))
        self.path.replace(self.numbered(1))

    def numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "metrics.jsonl")


@pytest.fixture
def follower(log: Log) -> Iterator[LogFollower]:
    with LogFollower(log.path) as made:
        yield made


def numbers(lines: list[LogLine]) -> list[int]:
    return [line.fields["number"] for line in lines]


def rest(follower: LogFollower) -> list[int]:
    """The numbers of all lines that there are now."""
    found = numbers(follower.new())
    while not follower.at_end:
        found += numbers(follower.new())
    return found


# Following


def test_a_log_that_does_not_exist_yet(log: Log, follower: LogFollower) -> None:
    assert follower.last(10) == []
    assert follower.new() == []
    assert follower.at_end
    assert follower.position is None
    log.write(2)
    assert rest(follower) == [0, 1]
    assert not follower.gap


def test_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    with LogFollower(tmp_path / "a" / "b.jsonl") as follower:
        assert (follower.last(1), follower.new(), follower.at_end) == ([], [], True)
    (tmp_path / "file").write_text("")
    with LogFollower(tmp_path / "file" / "b.jsonl") as follower:
        assert follower.new() == []


def test_each_line_once(log: Log, follower: LogFollower) -> None:
    log.write(3)
    assert rest(follower) == [0, 1, 2]
    assert rest(follower) == []
    log.write(2)
    assert rest(follower) == [3, 4]


def test_half_a_line_is_waited_for(log: Log, follower: LogFollower) -> None:
    line = log.line()
    for at in range(0, len(line) - 1, 7):
        log.append(line[at : min(at + 7, len(line) - 1)])
        assert follower.new() == []
        assert follower.position is None
    log.append(b"\n")
    assert rest(follower) == [0]
    assert follower.skipped == 0


def test_what_is_no_line_is_skipped_and_counted(log: Log, follower: LogFollower) -> None:
    bad = [
        b"",
        b"  ",
        b"{",
        b"[1]",
        b'"text"',
        b"12",
        b"\xff\xfe",
        b"\0\0\0",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a":' * 9999,
    ]
    for text in bad:
        log.append(text + b"\n")
        log.write()
    assert rest(follower) == list(range(len(bad)))
    assert follower.skipped == len(bad) - 2  # empty lines are nothing
    with LogFollower(log.path) as other:
        assert numbers(other.last(100)) == list(range(len(bad)))
        assert other.skipped == follower.skipped


@pytest.mark.parametrize("size", [logs.MAX_LINE - 200, logs.MAX_LINE + 1, 3 * logs.MAX_LINE])
def test_huge_lines_are_bounded(log: Log, follower: LogFollower, size: int) -> None:
    log.write(pad="x" * size)
    log.write()
    fits = size < logs.MAX_LINE
    assert rest(follower) == ([0, 1] if fits else [1])
    assert follower.skipped == (0 if fits else 1)
    assert len(follower._parts) < logs.MAX_LINE
    with LogFollower(log.path) as other:
        assert numbers(other.last(10)) == ([0, 1] if fits else [1])
        assert other.skipped == follower.skipped


def test_a_line_without_end_takes_no_memory(log: Log, follower: LogFollower) -> None:
    log.write()
    log.append(b"x" * (4 * logs.MAX_LINE))
    assert rest(follower) == [0]
    assert len(follower._parts) <= logs.MAX_LINE
    log.append(b"\n")
    log.write()
    assert rest(follower) == [1]
    assert follower.skipped == 1


def test_a_call_reads_a_bounded_piece(log: Log, follower: LogFollower) -> None:
    log.write(200, pad="x" * 20_000)
    assert len(follower.new()) < 100
    assert not follower.at_end
    assert rest(follower)[-1] == 199


# Rotation


def test_across_rotation(log: Log, follower: LogFollower) -> None:
    log.write(2)
    assert rest(follower) == [0, 1]
    log.write()
    log.rotate()
    assert rest(follower) == [2]  # the new file does not exist yet
    log.write()
    assert rest(follower) == [3]
    for _ in range(4):
        log.rotate()
        log.write()
    assert rest(follower) == [4, 5, 6, 7]
    assert (follower.gap, follower.skipped) == (False, 0)


def test_from_the_oldest_file_on(log: Log, follower: LogFollower) -> None:
    for _ in range(12):
        log.write()
        log.rotate(keep=20)
    log.write()
    log.path.with_name("metrics.jsonl.old").write_bytes(log.line())
    log.path.with_name("metrics.jsonl.1.gz").write_bytes(log.line())
    log.path.with_name("metrics.jsonl2").write_bytes(log.line())
    assert rest(follower) == list(range(13))
    assert numbers(follower.last(3)) == [10, 11, 12]
    assert numbers(follower.last(100)) == list(range(13))
    assert rest(follower) == []


def test_half_a_line_at_the_end_of_a_rotated_file(log: Log, follower: LogFollower) -> None:
    log.write()
    log.append(b'{"number": ')
    assert rest(follower) == [0]
    log.rotate()
    log.write()
    assert rest(follower) == [1]
    assert follower.skipped == 1
    with LogFollower(log.path) as other:
        assert numbers(other.last(10)) == [0, 1]
        assert other.skipped == 1


def test_a_file_that_was_rotated_away_is_a_gap(log: Log, follower: LogFollower) -> None:
    log.write()
    assert rest(follower) == [0]
    for _ in range(4):
        log.write()
        log.rotate(keep=2)
        log.write()
    # What is still in the file that is open is read first, and comes before the gap.
    assert numbers(follower.new()) == [1]
    assert not follower.gap
    found = rest(follower)
    assert follower.gap
    assert found == list(range(found[0], 9))


def test_a_file_that_was_emptied_is_a_gap(log: Log, follower: LogFollower) -> None:
    log.write(3)
    assert rest(follower) == [0, 1, 2]
    position = follower.position
    log.path.write_bytes(log.line())
    assert rest(follower) == [3]
    assert follower.gap
    assert follower.position != position


def test_a_file_from_which_lines_were_removed(log: Log, follower: LogFollower) -> None:
    log.write(5)
    log.rotate()
    log.write(5)
    log.rotate()
    log.write(5)
    assert rest(follower) == list(range(15))
    # Another file takes its place, without some of the lines.
    kept = [line for line in log.path.read_bytes().splitlines(True) if b'"number": 11' not in line]
    log.write()
    other = log.path.with_name("other")
    other.write_bytes(b"".join(kept))
    other.replace(log.path)
    log.write()
    assert rest(follower) == [15, 16]
    assert follower.gap


def test_reading_while_a_handler_rotates(tmp_path: Path) -> None:
    import logging

    path = tmp_path / "m.jsonl"
    handler = JsonLinesHandler(path, max_bytes=2_000, keep=10_000)

    def write() -> None:
        for number in range(1000):
            handler.handle(logging.makeLogRecord({"msg": "hello", "number": number}))
        handler.close()

    writer = threading.Thread(target=write)
    writer.start()
    found: list[int] = []
    with LogFollower(path) as follower:
        while writer.is_alive() or not follower.at_end:
            found += numbers(follower.new())
        found += rest(follower)
        assert found == list(range(1000))
        assert (follower.gap, follower.skipped) == (False, 0)


def test_the_last_lines_while_a_handler_rotates(tmp_path: Path) -> None:
    import logging

    path = tmp_path / "m.jsonl"
    handler = JsonLinesHandler(path, max_bytes=2_000, keep=10)
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            handler.handle(logging.makeLogRecord({"msg": "hello", "number": number}))
            number += 1
        handler.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            with LogFollower(path) as follower:
                found = numbers(follower.last(5))
                found += numbers(follower.new())
                if found and not follower.gap:
                    assert found == list(range(found[0], found[0] + len(found)))
    finally:
        done.set()
        writer.join()


def test_what_is_no_file(log: Log, follower: LogFollower) -> None:
    log.numbered(3).mkdir()
    os.mkfifo(log.numbered(2))
    log.write()
    assert rest(follower) == [0]
    assert numbers(follower.last(1)) == [0]


def test_a_log_that_may_not_be_read(log: Log, follower: LogFollower) -> None:
    log.path.symlink_to(log.path)
    with pytest.raises(OSError, match="symbolic links"):
        follower.new()


# The last lines


def test_the_last_lines(log: Log, follower: LogFollower) -> None:
    log.write(1000, pad="x" * 1000)
    assert numbers(follower.last(3)) == [997, 998, 999]
    assert numbers(follower.last(0)) == []
    assert rest(follower) == []
    assert numbers(follower.last(2000)) == list(range(1000))
    log.append(b'{"number": 1000')
    assert numbers(follower.last(2)) == [998, 999]
    log.append(b"}\n")
    assert rest(follower) == [1000]
    assert follower.skipped == 0


def test_looking_back_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LAST_BYTES", 10_000)
    log.write()
    log.write(1000, level="debug")
    with LogFollower(log.path, LogFilter(level="info")) as follower:
        assert follower.last(1) == []


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=30),
    count=st.integers(0, 35),
    block=st.integers(1, 80),
    torn=st.booleans(),
)
def test_backwards_is_forwards_turned_around(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], count: int, block: int, torn: bool
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "x.jsonl")
    for length in lengths:
        log.write(pad="x" * length)
    if torn:
        log.append(b'{"number"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "_BLOCK", block)
        with LogFollower(log.path) as forwards, LogFollower(log.path) as backwards:
            expected = forwards.new()
            found = backwards.last(count)
            assert found == (expected[-count:] if count else [])
            assert backwards.position == forwards.position
    shutil.rmtree(log.path.parent)


# Positions


def test_any_position_can_be_resumed(log: Log, follower: LogFollower) -> None:
    for _ in range(3):
        log.write(3)
        log.rotate()
    log.write(3)
    lines = follower.new()
    while not follower.at_end:
        lines += follower.new()
    assert [line.position for line in follower.last(100)] == [line.position for line in lines]
    for index, line in enumerate(lines):
        with LogFollower(log.path) as other:
            assert other.resume(line.position)
            assert rest(other) == list(range(index + 1, 12))
            assert not other.gap


def test_a_position_outlives_rotation(log: Log, follower: LogFollower) -> None:
    log.write(2)
    position = follower.last(1)[0].position
    for _ in range(5):
        log.write()
        log.rotate()
    log.write()
    with LogFollower(log.path) as other:
        assert other.resume(position)
        assert rest(other) == [2, 3, 4, 5, 6, 7]


def test_the_position_moves_on_where_nothing_is_wanted(log: Log) -> None:
    with LogFollower(log.path, LogFilter(level="error")) as follower:
        log.write(2)
        assert follower.new() == []
        first = follower.position
        log.write(2)
        assert follower.new() == []
        assert first is not None
        assert first != follower.position


def test_positions_that_are_gone(log: Log) -> None:
    log.write(3)
    with LogFollower(log.path) as follower:
        position = follower.last(1)[0].position
        identity, _, offset = position.partition("-")
        for wrong in (
            "",
            "-",
            "x" * 10_000,
            f"{identity}-",
            f"{identity}-0",
            f"{identity}--1",
            f"{identity}-{int(offset) - 1}",
            f"{identity}-{int(offset) + 1}",
            f"{identity}-{'9' * 18}",
            f"{identity}-{'9' * 30}",
            f"{'0' * 16}-{offset}",
            f"{position}\n",
            f" {position}",
            f"{identity}-²",
        ):
            assert not follower.resume(wrong), wrong
        # Nothing else happened.
        log.write()
        assert rest(follower) == [3]
    log.path.unlink()
    with LogFollower(log.path) as follower:
        assert not follower.resume(position)
        log.write(3)
        assert not follower.resume(position)  # another file in its place


def test_filters_while_reading(log: Log) -> None:
    for number in range(20):
        log.write(level="error" if number % 5 == 0 else "debug")
    with LogFollower(log.path, LogFilter(level="error")) as follower:
        assert numbers(follower.last(2)) == [10, 15]
        log.write(level="critical")
        log.write()
        assert rest(follower) == [20]
