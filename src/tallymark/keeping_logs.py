"""Removing lines from the structured log while applications write to it.

Its writers lock the file itself for each line, and look then whether it still has its name: so all of them leave a file
that is replaced under that lock. They rotate under it, too.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa

from tallymark.batch import SCHEMA
from tallymark.query import Query
from tallymark.stores.duck import Engine

LineMatch = Callable[[Sequence[bytes]], Sequence[bool]]
"""Which of some lines are to be removed."""

_Identity = tuple[int, int]

CHUNK_BYTES: Final = 1 << 22
ROUNDS: Final = 20
"""How often a file is tried again that is rotated meanwhile."""

_IN_LINES: Final = ("session_id", "trace_id", "service")


def line_match(query: Query) -> LineMatch | None:
    """Which lines a query means: those with such a session, trace or service; any other field of a line counts as
    metadata. None where it asks for what lines do not have, or for what is not so.
    """
    texts, engine = set(), Engine()
    for found in query.filters:
        plain = found.op in ("=", "in") and None not in found.values
        if not plain or not (found.field in _IN_LINES or found.field.startswith("metadata.")):
            return None
        texts |= {json.dumps(value)[1:-1].encode() for value in found.values if isinstance(value, str)}

    def matches(lines: Sequence[bytes]) -> Sequence[bool]:
        rows = [_row(number, _fields(line)) for number, line in enumerate(lines)]
        match = np.zeros(len(lines), bool)
        match[engine.ids(query, pa.Table.from_pylist(rows, schema=SCHEMA))["seq"].to_numpy()] = True
        for number, line in enumerate(lines):
            # Half a line, of a writer that died: what it is about can only be guessed.
            if not line.endswith(b"}\n") and any(text and text in line for text in texts):
                match[number] = True
        return match.tolist()

    return matches


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _row(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    """A line as if it was a record."""
    texts = {name: fields[name] for name in _IN_LINES if isinstance(fields.get(name), str)}
    row = {"journal": "", "seq": number, "timestamp": 0, "service": "", "metric_type": "log", "name": "log"}
    return row | {"value": 0.0, "unit": "1", "metadata": json.dumps(fields)} | texts


def erase_lines(log: Path, matches: LineMatch, left: list[str]) -> int:
    """Remove the lines that match from a log and from the files that it was rotated into; how many they were.

    Args:
        left: is told of files that could not be looked into or written.
    """
    removed = 0
    done: set[_Identity | None] = set()
    refused: dict[Path, str] = {}
    # Again until every file is one that was looked into: rotation gives them other names meanwhile.
    for _ in range(ROUNDS):
        waiting = [path for path in _files(log) if _identity(path) not in done and path not in refused]
        if not waiting:
            break
        for path in waiting:
            try:
                removed += _erase_in(path, log, matches, done)
            except FileNotFoundError:
                continue
            except OSError as error:
                refused[path] = f"{error.strerror}"
    else:
        refused |= dict.fromkeys(waiting, "it was not there each time that it was to be looked into")
    left += [f"{path}: {why}" for path, why in refused.items()]
    ours = _files(log)
    left += [
        f"{path}: no file that the log writes; it was not looked into"
        for path in sorted(log.parent.glob(f"{log.name}*"))
        if path not in ours
    ]
    return removed


def _files(log: Path) -> list[Path]:
    """The file itself and those that it was rotated into."""
    numbered = re.compile(re.escape(log.name) + r"(\.\d+)?")
    return sorted(path for path in log.parent.glob("*") if numbered.fullmatch(path.name))


def _identity(file: Path | int) -> _Identity | None:
    """What tells a file from others, whatever its name; None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _erase_in(path: Path, log: Path, matches: LineMatch, done: set[_Identity | None]) -> int:
    """Remove the lines that match from one file; how many they were. What it is now is ``done``.

    Raises:
        FileNotFoundError: it has another name now.
        OSError: it cannot be looked into or written.
    """
    real = Path(os.path.realpath(path))  # of a link, what it leads to
    new = real.with_name(f".{real.name}.erasing")  # one that was left behind is written over
    with real.open("rb") as source:
        try:
            with new.open("wb") as target:
                # Most of it without the lock: applications do not wait long for it.
                removed = _copy(source, target, matches)
                if removed or source.tell() < os.fstat(source.fileno()).st_size:
                    with _locked(log):
                        if not _named(source, real):
                            raise FileNotFoundError  # rotated: it has another name
                        removed += _copy(source, target, matches, to_end=True)
                        if removed:
                            target.flush()
                            shutil.copystat(real, new)
                            with contextlib.suppress(OSError):
                                shutil.chown(new, real.stat().st_uid, real.stat().st_gid)
                            os.fsync(target.fileno())
                            new.replace(real)
                done.add(_identity((target if removed else source).fileno()))
        finally:
            new.unlink(missing_ok=True)
    return removed


def _copy(source: IO[bytes], target: IO[bytes], matches: LineMatch, *, to_end: bool = False) -> int:
    """Copy the lines that do not match; how many did. What is after the last line end is left for later."""
    removed = 0
    while lines := source.readlines(CHUNK_BYTES):
        if not lines[-1].endswith(b"\n") and not to_end:
            source.seek(-len(lines.pop()), os.SEEK_CUR)
            if not lines:
                break
        for line, match in zip(lines, matches(lines), strict=True):
            removed += match
            if not match:
                target.write(line)
    return removed


@contextlib.contextmanager
def _locked(log: Path) -> Iterator[None]:
    """Hold the lock that the writers of a log take, where there is a log."""
    while True:
        try:
            file = log.open("rb")
        except FileNotFoundError:
            yield
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _named(file, log):
                yield
                return


def _named(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
