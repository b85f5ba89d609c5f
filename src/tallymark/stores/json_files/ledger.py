"""What a folder of batch files is known by: a log of what was done to it, one line for each change.

The files alone would not do. Anybody may remove one to forget what is in it, and what was written before must not come
again then; and of several files all have to appear or none. So a change is made in this order: the new files are
written under other names; a line is appended to the log, synced, and with that the change has happened; the files get
their names. Whoever holds the lock next does what is left of it.
"""

import contextlib
import json
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tallymark.errors import StoreError
from tallymark.files import locked, replace_file
from tallymark.stores.json_files.batch_file import NAME

FOLDER: Final = ".tallymark"
LOG: Final = "files.jsonl"
LOCK: Final = "files.lock"
DRAFT: Final = ".new-"
"""What the name of a file begins with before the change has happened."""

MANY_LINES: Final = 1_000


class Known(NamedTuple):
    """What is known of a file.

    Attributes:
        rows: how many records it holds.
        bytes: its size; one that has another was changed by somebody else.
        first, last: the range of their timestamps (ns).
    """

    rows: int
    bytes: int
    first: int
    last: int


@dataclass
class Change:
    """What happens at once.

    Attributes:
        token: names the drafts of this change, and of no other.
        files: new files, or files whose content is replaced.
        gone: files that are removed.
        positions: how far journals are stored from now on.
        own: the store's own records, as rows.
        deleted: how many records are forgotten.
    """

    token: str = field(default_factory=lambda: os.urandom(8).hex())
    files: dict[str, Known] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    own: list[dict[str, Any]] = field(default_factory=list)
    deleted: int = 0


class Ledger:
    """The log of a folder. Its attributes are the sum of all changes, and valid while :meth:`locked`.

    Attributes:
        files: what is known of every file that was written here and not removed here.
        positions: how far each journal is stored.
        own: the store's own records.
        deleted: how many records were forgotten.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / FOLDER / LOG
        self._forget()

    def _forget(self) -> None:
        self.files: dict[str, Known] = {}
        self.positions: dict[str, int] = {}
        self.own: list[dict[str, Any]] = []
        self.deleted = 0
        self._last = Change()
        self._head = b""
        self._end = 0
        self._lines = 0

    @contextlib.contextmanager
    def locked(self, *, write: bool) -> Generator[None]:
        """Hold the folder, alone or with other readers, and know what is in the log.

        Raises:
            OSError: it cannot be read or locked.
            StoreError: the log is damaged.
        """
        lock = self._folder / FOLDER / LOCK
        if write:
            lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(lock, shared=not write, make=write))
            except FileNotFoundError:  # nothing was ever written here
                self._forget()
            else:
                self._read()
                if write:
                    self._finish()
            yield

    def place(self, name: str) -> Path:
        """Where the content of a file is that the log has: a change may not have come to its end."""
        draft = self._draft(self._last, name)
        return draft if name in self._last.files and draft.exists() else self._folder / name

    def strangers(self) -> list[str]:
        """The batch files in the folder that the log does not have."""
        known = self.files.keys() | set(self._last.gone)
        return sorted(path.name for path in self._folder.glob(NAME) if path.name not in known)

    def draft(self, change: Change, name: str, content: bytes, known: Known) -> None:
        """Write what a file is to become, to the disk, and add it to the change."""
        change.files[name] = known
        with self._draft(change, name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def discard(self, change: Change) -> None:
        """Remove the drafts of a change that did not happen."""
        if change is not self._last:
            for name in change.files:
                with contextlib.suppress(OSError):
                    self._draft(change, name).unlink()

    def commit(self, change: Change) -> None:
        """Make a change: for good when this returns, and where it is killed all of it or nothing.

        Raises:
            OSError: nothing was changed; or all was, and the files get their names later.
        """
        _sync(self._folder)
        head = self._head or json.dumps({"log": os.urandom(8).hex()}).encode() + b"\n"
        line = _line(change)
        content = line if self._head else head + line
        descriptor = os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b", buffering=0) as log:
            log.truncate(self._end)  # half a line that somebody left
            try:
                log.seek(self._end)
                rest = memoryview(content)
                while rest:
                    rest = rest[log.write(rest) :]
                os.fsync(descriptor)
            except BaseException:
                log.truncate(self._end)
                raise
        if not self._head:
            _sync(self._log.parent)
        self._head = head
        self._end += len(content)
        self._add(change)
        self._finish()

    def shorten(self) -> None:
        """Write a long log anew, as one line."""
        if self._lines < MANY_LINES:
            return
        whole = Change(files=self.files, positions=self.positions, own=self.own, deleted=self.deleted)
        head = json.dumps({"log": os.urandom(8).hex()}).encode() + b"\n"
        replace_file(self._log, (head + _line(whole)).decode())
        self._forget()
        self._read()

    def clear_drafts(self) -> None:
        """Remove what a writer left that came to no end."""
        for path in self._folder.glob(DRAFT + "*"):
            path.unlink(missing_ok=True)

    def _read(self) -> None:
        """What was appended since the last time."""
        try:
            log = self._log.open("rb")
        except FileNotFoundError:
            self._forget()
            return
        with log:
            head = log.readline()
            if head != self._head:  # another log: the folder was made anew, or the log was shortened
                self._forget()
                if not head.endswith(b"\n"):
                    return  # whoever began it died
                self._head, self._end = head, len(head)
            log.seek(self._end)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # a writer died, or is about to say that the disk is full
                try:
                    change = _change(line)
                except (ValueError, TypeError, KeyError) as error:
                    raise StoreError(f"{self._log} is damaged at byte {self._end}: {error}") from error
                self._add(change)
                self._end += len(line)

    def _add(self, change: Change) -> None:
        self.files.update(change.files)
        for name in change.gone:
            self.files.pop(name, None)
        self.positions.update(change.positions)
        self.own += change.own
        self.deleted += change.deleted
        self._last = change
        self._lines += 1

    def _finish(self) -> None:
        """Do what is left of the last change."""
        last = self._last
        left = [name for name in last.files if self._draft(last, name).exists()]
        for name in left:
            os.replace(self._draft(last, name), self._folder / name)
        for name in last.gone:
            (self._folder / name).unlink(missing_ok=True)
        if left or last.gone:
            _sync(self._folder)
        self._last = Change()

    def _draft(self, change: Change, name: str) -> Path:
        return self._folder / f"{DRAFT}{change.token}-{name}"


def _line(change: Change) -> bytes:
    return json.dumps(vars(change), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _change(line: bytes) -> Change:
    change = Change(**json.loads(line))
    change.files = {name: Known(*known) for name, known in change.files.items()}
    return change


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
