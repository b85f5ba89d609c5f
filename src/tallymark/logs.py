"""Reads the structured log while it is written, from a position on, across rotation.

The newest lines are in the file itself, the older ones in ``….1``, ``….2`` and so on. A position names a file by its
first line, which holds for whatever name and place the file has later, and an offset in it.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

LEVELS: Final = {"debug": 10, "info": 20, "metric": 25, "warning": 30, "error": 40, "critical": 50}
"""The levels by name, the least important first."""

MAX_LINE: Final = 2**20
"""Bytes of the longest line that is read; a longer one is skipped. What tallymark writes is shorter."""

ROUND_BYTES: Final = 2**20
"""How much is read of a log at a time."""

LAST_BYTES: Final = 64 * 2**20
"""How far back the last lines are looked for."""

_BLOCK: Final = 2**18
_IDENTITY_BYTES: Final = 512
_POSITION: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,18})", re.ASCII)
_NUMBERED: Final = re.compile(r"\.([0-9]{1,9})", re.ASCII)
_MOMENT: Final = re.compile(rb'"timestamp": ?"([ -~]{1,40}?)"')
_LOOKS: Final = 50

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log.

    Attributes:
        fields: what it says.
        text: the line as it stands in the file, without its end.
        position: the end of the line, for :meth:`LogFollower.resume`.
    """

    fields: dict[str, Any]
    text: str
    position: str


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines are wanted; all conditions have to hold.

    Attributes:
        level: this one of :data:`LEVELS` and above. A line of a level that is not among them is taken for ``info``.
        text: stands, in any case, in the message or in the name or value of a field.
        trace_id: the line's.
        session_id: the line's.
        since: lines of this moment and later.
    """

    level: str | None = None
    text: str | None = None
    trace_id: str | None = None
    session_id: str | None = None
    since: datetime | None = None

    def __post_init__(self) -> None:
        if self.level is not None and self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        if self.since is not None and self.since.tzinfo is None:
            raise ValueError("since must have a time zone")

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether a line with these fields is wanted."""
        return (
            (self.level is None or _level(fields) >= LEVELS[self.level])
            and (self.trace_id is None or fields.get("trace_id") == self.trace_id)
            and (self.session_id is None or fields.get("session_id") == self.session_id)
            and (self.since is None or _is_since(fields, self.since))
            and (self.text is None or _says(fields, self.text.casefold()))
        )


def _level(fields: Mapping[str, Any]) -> int:
    level = fields.get("level")
    if not isinstance(level, str):
        return LEVELS["info"]
    known = LEVELS.get(level.lower())
    if known is None:
        number = level.lower().removeprefix("level ")  # what logging calls a level without a name
        known = int(number) if number.isascii() and number.isdigit() and len(number) < 9 else LEVELS["info"]
    return known


def _is_since(fields: Mapping[str, Any], since: datetime) -> bool:
    try:
        moment = datetime.fromisoformat(fields["timestamp"])
    except (KeyError, TypeError, ValueError):
        return False
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) >= since


def _says(value: object, wanted: str) -> bool:
    match value:
        case str():
            return wanted in value.casefold()
        case dict():
            return any(wanted in str(key).casefold() or _says(item, wanted) for key, item in value.items())
        case list():
            return any(_says(item, wanted) for item in value)
        case None | bool():
            return False
        case _:
            return wanted in str(value)


class LogFollower:
    """Reads a log: first the last lines or from a position on, then what is added. To be closed, or used in ``with``.

    Without :meth:`last` or :meth:`resume` it begins with the oldest line that there is. The log need not exist yet. One
    thread at a time.

    Args:
        path: the file that is written to.
        wanted: the lines that are wanted.

    Attributes:
        skipped: lines so far that were no JSON objects, or too long.
        gap: lines may be missing between those that were returned before and after: their file was rotated away,
            replaced, or emptied. Whoever tells it sets it back.
        at_end: whether the last call of :meth:`new` saw all that there was.
    """

    def __init__(self, path: str | os.PathLike[str], wanted: LogFilter | None = None) -> None:
        self.path = Path(path)
        self.skipped = 0
        self.gap = False
        self.at_end = False
        self._wanted = wanted or LogFilter()
        self._file: _File | None = None
        self._parts = bytearray()
        self._too_long = False
        self._seen = ""  # the latest time that a line had
        self._again_until = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def position(self) -> str | None:
        """The end of the last complete line that was looked at; None before the first."""
        return None if self._file is None else self._file.position(self._file.line_end)

    def last(self, count: int) -> list[LogLine]:
        """The last lines that are wanted, oldest first; reading goes on behind them.

        Raises:
            OSError: the log cannot be read.
        """
        files = _open_all(self.path)
        found: list[LogLine] = []
        budget = LAST_BYTES
        for file in reversed(files):
            end = file.size()
            if file is files[-1]:
                end = file.line_end = file.read_end = _end_of_lines(file, end)
            for line, line_end in _backwards(file, end):
                if len(found) >= count or budget <= 0:
                    break
                budget -= len(line or b"") + 1
                found.extend(self._parsed(line, file, line_end))
        self._go_to(files, len(files) - 1)
        return found[::-1]

    def resume(self, position: str) -> bool:
        """Go on behind the line that had this position. False, and nothing else, where that is not there any more.

        Raises:
            OSError: the log cannot be read.
        """
        named = _POSITION.fullmatch(position)
        if named is None:
            return False
        identity, offset = named[1], int(named[2])
        files = _open_all(self.path)
        for index, file in enumerate(files):
            if file.identity() == identity and 0 < offset <= file.size() and file.read(1, offset - 1) == b"\n":
                file.line_end = file.read_end = offset
                self._go_to(files, index)
                return True
        for file in files:
            file.close()
        return False

    def new(self) -> list[LogLine]:
        """The next lines that are wanted, as many as a bounded piece of the log has; none where none was added.

        Raises:
            OSError: the log cannot be read.
        """
        found: list[LogLine] = []
        budget = ROUND_BYTES
        self.at_end = False
        while budget > 0:
            if self._file is None:
                files = _open_all(self.path)
                if not files:
                    self.at_end = True
                    break
                self._go_to(files, 0)
            assert self._file is not None
            block = self._file.read(min(_BLOCK, budget))
            budget -= len(block)
            if block:
                found.extend(self._lines(self._file, block))
            elif found:
                break  # a gap comes before the lines of a call, not among them
            elif self._file.size() < self._file.read_end:
                self._begin_again()
            elif not self._next():
                self.at_end = True
                break
        return found

    def _lines(self, file: "_File", block: bytes) -> Iterator[LogLine]:
        file.read_end += len(block)
        begin = 0
        while (cut := block.find(b"\n", begin)) >= 0:
            line = bytes(self._parts) + block[begin:cut]
            file.line_end = file.read_end - len(block) + cut + 1
            yield from self._parsed(None if self._too_long else line, file, file.line_end)
            self._parts.clear()
            self._too_long = False
            begin = cut + 1
        # Of a line that is too long nothing is kept.
        self._parts += block[begin:]
        if len(self._parts) > MAX_LINE:
            self._too_long = True
            self._parts.clear()

    def _parsed(self, line: bytes | None, file: "_File", line_end: int) -> Iterator[LogLine]:
        try:
            if line is not None and not line.strip():
                return
            if line is None or len(line) > MAX_LINE:
                raise ValueError("too long")
            fields = _decode(line)
            text = line.decode()
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.skipped += 1
            return
        moment = fields.get("timestamp")
        if isinstance(moment, str):
            if moment <= self._again_until:
                return
            self._again_until = ""
            self._seen = max(self._seen, moment)
        if self._wanted.matches(fields):
            yield LogLine(fields, text, file.position(line_end) or "")

    def _begin_again(self) -> None:
        assert self._file is not None
        self.gap = True
        self._file.line_end = self._file.read_end = 0
        self._file.forget_identity()
        self._parts.clear()
        self._too_long = False

    def _next(self) -> bool:
        """Go to the file that follows; False where there is none yet."""
        assert self._file is not None
        try:
            if os.path.samestat(os.stat(self.path), self._file.stat):
                return False
        except FileNotFoundError:
            pass  # between being renamed and being made again
        files = _open_all(self.path)
        current = next((i for i, file in enumerate(files) if os.path.samestat(file.stat, self._file.stat)), None)
        following = self._where_it_was(files) if current is None else current + 1
        # A file that was renamed is complete, but its last line may have come after we looked.
        if following >= len(files) or self._file.read(1):
            for file in files:
                file.close()
            return following < len(files)
        if current is None:
            self.gap = True
            self._again_until = self._seen
        if self._parts or self._too_long:
            self.skipped += 1  # its writer was killed
        self._go_to(files, following)
        return True

    def _where_it_was(self, files: list["_File"]) -> int:
        """Of a file that is gone: the one to go on with. It was rotated away, or lines were removed from it, and those
        that are left are another file.
        """
        begun = [index for index, file in enumerate(files) if file.first_moment() <= self._seen]
        return begun[-1] if begun else 0

    def _go_to(self, files: list["_File"], index: int) -> None:
        self.close()
        self._parts.clear()
        self._too_long = False
        for number, file in enumerate(files):
            if number == index:
                self._file = file
            else:
                file.close()


class _File:
    """An open file of the log, whatever it is called by now."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.stat = os.fstat(self._descriptor)
        self.read_end = 0
        self.line_end = 0
        self._identity: str | None = None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, count: int, at: int | None = None) -> bytes:
        return os.pread(self._descriptor, count, self.read_end if at is None else at)

    def identity(self) -> str | None:
        """What tells this file from others, wherever it is moved; None while it has no complete line."""
        if self._identity is None:
            head, newline, _ = self.read(_IDENTITY_BYTES, 0).partition(b"\n")
            if newline or len(head) == _IDENTITY_BYTES:
                self._identity = hashlib.blake2b(head, digest_size=8).hexdigest()
        return self._identity

    def first_moment(self) -> str:
        found = _MOMENT.search(self.read(_IDENTITY_BYTES, 0).partition(b"\n")[0])
        return "" if found is None else found[1].decode()

    def forget_identity(self) -> None:
        self._identity = None

    def position(self, offset: int) -> str | None:
        identity = self.identity() if offset else None
        return None if identity is None else f"{identity}-{offset}"


def _end_of_lines(file: _File, end: int) -> int:
    """Where the last complete line ends."""
    while end > 0:
        start = max(0, end - _BLOCK)
        cut = file.read(end - start, start).rfind(b"\n")
        if cut >= 0:
            return start + cut + 1
        end = start
    return 0


def _backwards(file: _File, end: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line before ``end``, the last first, with where it ends; None for one that is too long."""
    rest = b""  # the end of the line whose beginning was not read yet
    too_long = False
    line_end = end
    if end and file.read(1, end - 1) == b"\n":
        end -= 1
    while end > 0:
        start = max(0, end - _BLOCK)
        block = file.read(end - start, start)
        stop = len(block)
        while (cut := block.rfind(b"\n", 0, stop)) >= 0:
            yield (None if too_long else block[cut + 1 : stop] + rest), line_end
            rest, too_long = b"", False
            line_end = start + cut + 1
            stop = cut
        rest = block[:stop] + rest
        if len(rest) > MAX_LINE:
            rest, too_long = b"", True
        end = start
    if rest or too_long:
        yield (None if too_long else rest), line_end


def _open_all(path: Path) -> list[_File]:
    """The files of a log, oldest first; none where there is none.

    Files are renamed while this looks at them. So it looks until it sees the same twice.
    """
    before: list[_File] | None = None
    for _ in range(_LOOKS):
        files = _open_each(path)
        same = before is not None and files is not None and _are_same(before, files)
        for file in before or ():
            file.close()
        if same or files == []:
            break
        before = files
    return files or []


def _are_same(some: list[_File], others: list[_File]) -> bool:
    return len(some) == len(others) and all(
        os.path.samestat(one.stat, other.stat) for one, other in zip(some, others, strict=True)
    )


def _open_each(path: Path) -> list[_File] | None:
    """The files by their numbers; None where one was renamed meanwhile."""
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    rest = (name.removeprefix(path.name) for name in names if name.startswith(path.name))
    endings = [ending for ending in rest if not ending or _NUMBERED.fullmatch(ending)]
    files: list[_File] = []
    try:
        for ending in sorted(endings, key=lambda ending: int(ending[1:] or 0), reverse=True):
            files.append(_File(f"{path}{ending}"))  # noqa: PERF401  # those before a failure are to be closed
    except OSError as error:
        for file in files:
            file.close()
        if isinstance(error, FileNotFoundError):
            return None
        raise
    others = [file for file in files if not stat.S_ISREG(file.stat.st_mode)]
    for file in others:
        file.close()
    return [file for file in files if file not in others]
