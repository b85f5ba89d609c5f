"""A structured log: JSON lines that several processes write into one file, and that rotate.

    from tallymark.integrations.logging import install, log_event

    install()
    log_event("correction_recorded", "Correction recorded: voice_correction", processing_time_ms=5000)

Every record of :mod:`logging` becomes one line of ASCII, whatever is in it; what looks like a secret or a person is
masked. A process that is killed tears at most the line that it was writing, and logging never raises into the
application: what cannot be written waits, and what had to be given up is counted.
"""

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from tallymark.integrations.log_lines import line_of
from tallymark.logs import LEVELS
from tallymark.privacy import mask_text

METRIC: Final = LEVELS["metric"]
"""The level of what was measured: above INFO, below WARNING."""

EVENTS: Final = "tallymark.events"
"""The logger of :func:`log_event`."""

MAX_BYTES: Final = 100_000_000
KEPT_FILES: Final = 10

MAX_WAITING: Final = 1_000
"""Lines that are kept in memory while the file cannot be written."""

LOCK_SECONDS: Final = 1.0
"""For another process to finish its line. It takes microseconds, unless that process was stopped in the middle."""

RETRY_SECONDS: Final = 1.0
"""After a failure, until the file is tried again: an application that logs must not wait for the lock each time."""

_MOST_NESTED: Final = 2

logging.addLevelName(METRIC, "METRIC")


def log_event(event_type: str, message: str, /, **fields: object) -> None:
    """Log something that was measured, at the level METRIC. Its fields stand at the top level of the line.

    It costs next to nothing where nobody listens: no handler, or a level above METRIC.
    """
    logger = logging.getLogger(EVENTS)
    if logger.isEnabledFor(METRIC):
        # Not as attributes of the record: logging refuses fields of the names that it uses itself.
        logger.log(METRIC, "%s", message, extra={"event_type": event_type, "fields": fields}, stacklevel=2)


def install(
    path: str | os.PathLike[str] | None = None,
    level: int | str = logging.INFO,
    logger: logging.Logger | str | None = None,
) -> logging.Handler:
    """Let a logger write to the structured log. Doing so twice changes nothing but the level.

    Args:
        path: the file; by default the one of the settings, in the folder of the store.
        level: what is written: this and above. The logger's own level is lowered to it where it is higher.
        logger: the logger, or its name; by default the root, which all others lead to.

    Returns:
        The handler, for ``logger.removeHandler``. Where metrics are disabled it does nothing, and there is no file.

    Raises:
        ValueError: there is no such level.
        ConfigError: a setting is not valid, or the package that reads them is missing.
    """
    from tallymark.default import load_settings

    current = load_settings()
    if not current.enabled:
        return logging.NullHandler()
    target = logger if isinstance(logger, logging.Logger) else logging.getLogger(logger)
    file = Path(current.log_path if path is None else path).absolute()
    for present in target.handlers:
        if isinstance(present, JsonLinesHandler) and present.path == file:
            handler = present
            break
    else:
        handler = JsonLinesHandler(file, service=current.service, raw_ids=current.raw_ids)
        target.addHandler(handler)
    handler.setLevel(level)
    if target.getEffectiveLevel() > handler.level:
        target.setLevel(handler.level)
    return handler


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, for any handler: for instance to stdout, in a container.

    Args:
        service: which application this is; by default the name of the program.
        raw_ids: let ids of users stand as they are.
    """

    def __init__(self, service: str | None = None, *, raw_ids: bool = False) -> None:
        super().__init__()
        self.raw_ids = raw_ids
        self.service = mask_text(service or Path(sys.argv[0] if sys.argv else "").stem or "python")

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return line_of(record, self.service, self.raw_ids)


class JsonLinesHandler(logging.Handler):
    """Appends lines to a file that other processes append to as well.

    Each line is written in one piece, under a lock on the file itself. Whoever finds the file full renames it while
    holding the lock: ``….1`` is the newest of the old ones. A process that is killed lets go of the lock; half a line
    that it leaves behind is ended by the next writer. Forked children need nothing.

    Args:
        path: the file; its folder is made when the first line is written.
        service, raw_ids: as for :class:`JsonFormatter`.
        max_bytes: a file does not grow above it, except by a single line.
        keep: how many old files are kept.

    Raises:
        ValueError: max_bytes or keep is not positive.

    Attributes:
        failures: how often something could not be written, or made into a line.
        lost: records that were given up; those that still wait are not among them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        service: str | None = None,
        raw_ids: bool = False,
        max_bytes: int = MAX_BYTES,
        keep: int = KEPT_FILES,
    ) -> None:
        if max_bytes < 1 or keep < 1:
            raise ValueError("max_bytes and keep must be at least 1")
        super().__init__()
        self.path = Path(path).absolute()
        self.setFormatter(JsonFormatter(service, raw_ids=raw_ids))
        self.max_bytes = max_bytes
        self.failures = 0
        self.lost = 0
        self._old = [f"{self.path}.{number}" for number in range(1, keep + 1)]
        self._told_lost = 0
        self._waiting: deque[bytes] = deque()
        self._retry_at = 0.0
        self._nested = 0
        self._writing = False
        self._descriptor = -1
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it until that is possible. Does not raise."""
        if self._pid != os.getpid():
            self._begin_as_child()
        # Making a line calls the application's __str__, which may log, which makes a line …
        if self._nested >= _MOST_NESTED:
            self.lost += 1
            return
        self._nested += 1
        try:
            line = self._encoded(record)
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(line)
            else:
                self.lost += 1
            if not self._retry_at or time.monotonic() >= self._retry_at:
                self._write_waiting()
        except Exception:
            self.handleError(record)
        finally:
            self._nested -= 1

    def flush(self) -> None:
        """Try again to write what waits."""
        with self.lock or contextlib.nullcontext():
            try:
                self._write_waiting()
            except Exception as error:
                self._count_failure(error)

    def close(self) -> None:
        """Write what waits, if that is possible now, and let go of the file."""
        if self._pid == os.getpid():
            self.flush()
            with self.lock or contextlib.nullcontext():
                self.lost += len(self._waiting)
                self._waiting.clear()
                self._release()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Count what happened; the first time say so on stderr, unless ``logging.raiseExceptions`` is off."""
        self._count_failure(sys.exception())

    def _count_failure(self, error: BaseException | None) -> None:
        self.failures += 1
        if self.failures == 1 and logging.raiseExceptions and sys.stderr is not None:
            # Not the record itself, which the usual handler would show: it was not masked.
            with contextlib.suppress(Exception):
                why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
                sys.stderr.write(f"tallymark: {self.path} cannot be written: {why}\n")

    def _begin_as_child(self) -> None:
        # The open file is shared with the parent, and so is the lock on it. What waits is the parent's to write.
        self._pid = os.getpid()
        self._release()
        self._waiting.clear()
        self._writing = False
        self._nested = 0
        self._retry_at = 0.0
        self.failures = self.lost = self._told_lost = 0

    def _encoded(self, record: logging.LogRecord) -> bytes:
        # What another formatter makes may have line breaks.
        return self.format(record).replace("\n", "\\n").encode("utf-8", "backslashreplace") + b"\n"

    def _write_waiting(self) -> None:
        # A signal handler that logs in the middle of this leaves its line to whom it interrupted.
        while self._waiting and not self._writing:
            self._writing = True
            line = self._waiting.popleft()
            try:
                self._append(line)
                self._retry_at = 0.0
            except OSError:
                self._waiting.appendleft(line)
                self._retry_at = time.monotonic() + RETRY_SECONDS
                raise
            finally:
                self._writing = False
            if self.lost > self._told_lost:
                self._tell_lost()

    def _tell_lost(self) -> None:
        count, self._told_lost = self.lost - self._told_lost, self.lost
        values: dict[str, Any] = {"name": "tallymark.log", "levelno": logging.WARNING, "levelname": "WARNING"}
        values |= {"msg": "%d log records could not be written", "args": (count,), "event_type": "log_lost"}
        self._waiting.appendleft(self._encoded(logging.makeLogRecord({**values, "lost": count})))

    def _append(self, line: bytes) -> None:
        while True:
            descriptor = self._locked()
            try:
                size = os.fstat(descriptor).st_size
                if size and size + len(line) > self.max_bytes and self._rotated():
                    continue
                _write(descriptor, size, line)
                return
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _locked(self) -> int:
        """The file that has the name now, locked."""
        while True:
            if self._descriptor < 0:
                self._descriptor = _open(self.path)
            _lock(self._descriptor)
            mine = os.fstat(self._descriptor)
            try:
                named = os.stat(self.path)
            except FileNotFoundError:
                named = None
            if named is not None and os.path.samestat(mine, named):
                return self._descriptor
            self._release()  # it was rotated, or removed

    def _rotated(self) -> bool:
        # From the oldest on, so that the order of the names is right at every moment, whoever dies in between. Only up
        # to the first number that is free: what is beyond it need not move.
        try:
            free = next((i for i, name in enumerate(self._old) if not os.path.exists(name)), len(self._old) - 1)
            for i in range(free, 0, -1):
                os.replace(self._old[i - 1], self._old[i])
            os.replace(self.path, self._old[0])
        except OSError as error:
            self._count_failure(error)  # too large a file is better than none
            return False
        return True

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def _lock(descriptor: int) -> None:
    deadline = 0.0
    pause = 0.0001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            deadline = deadline or now + LOCK_SECONDS
            if now >= deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 0.005)


def _write(descriptor: int, size: int, line: bytes) -> None:
    """The whole line or nothing of it."""
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line  # after what a killed process left
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        if len(rest) < len(line):
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
        raise
