"""Connections to a SQLite file: one that writes, others that only read.

In SQLite 3.7.0 to 3.51.2 two connections that write and checkpoint at the same time can damage a file in WAL mode
("WAL-reset bug"). So there is one writing connection in a process, and a lock file keeps those of other processes away
for as long as it writes, checkpoints or closes; readers open the file read-only, and never checkpoint.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from threading import Lock, RLock
from typing import Final
from urllib.parse import quote

from tallymark import log
from tallymark.files import locked
from tallymark.location import local_folder

REVISION: Final = "0001"
"""The newest revision of the schema that this code knows."""

VERSION_TABLE: Final = "tallymark_version"
REVISIONS: Final = Path(__file__).parent / "migrations"

LOCK: Final = "writing.lock"

WAIT_SECONDS: Final = 30.0
"""How long others may hold the file: programs that know nothing of the lock file."""

KEPT: Final = 4
"""So many reading connections are kept at most."""

_FAULTY: Final = ((3, 7, 0), (3, 51, 2))


def wal_fault() -> str | None:
    """What has to be known of the SQLite library that this Python is linked with; None where there is nothing."""
    if not _FAULTY[0] <= sqlite3.sqlite_version_info <= _FAULTY[1]:
        return None
    return (
        f"SQLite {sqlite3.sqlite_version} can damage a file that two programs write to at once (the WAL-reset bug,"
        " mended in 3.51.3): tallymark never does, but let nothing else write to the file of a store"
    )


class Link:
    """The way to one file. Any method may be called from any thread.

    Args:
        path: the file.
        url: what messages call it.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = url
        self._writing = RLock()
        self._writer: sqlite3.Connection | None = None
        self._written: tuple[int, ...] = ()
        self._keeping = Lock()
        self._idle: list[tuple[tuple[int, ...], sqlite3.Connection]] = []
        self._closed = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: committed at the end of the block, rolled back by an exception.

        The file and its tables are made where they are missing.

        Raises:
            sqlite3.Error, OSError: whatever stands in the way.
        """
        with self.alone() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The writing connection, outside of a transaction, while no other process has one at work."""
        with self._writing, self._locked():
            yield self._open_writer()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """A transaction that reads one state of the file; None where there is no store yet."""
        file = self._file()
        if not file:
            yield None
            return
        closed = self._closed
        connection = self._reader(file)
        try:
            connection.execute("BEGIN")
            yield connection if _has_tables(connection) else None
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            with self._keeping:
                keep = len(self._idle) < KEPT and closed == self._closed
                if keep:
                    self._idle.append((file, connection))
            if not keep:
                connection.close()

    def exists(self) -> bool:
        """Whether there is a file with something in it."""
        return bool(self._file())

    def close(self) -> None:
        """Close the connections that nobody uses; the others are closed when they come back."""
        with self._keeping:
            self._closed += 1
            idle, self._idle = self._idle, []
        for file, connection in idle:
            if file[0] == os.getpid():
                connection.close()
        with self._writing:
            if self._writer is not None and self._written[0] == os.getpid():
                with contextlib.suppress(OSError), self._locked():  # the last one checkpoints
                    self._writer.close()
            self._writer = None

    def _file(self) -> tuple[int, ...]:
        """Which file it is, and whose connections to it may be used: another after a fork, or where it was replaced."""
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            if status.st_size:
                return (os.getpid(), status.st_dev, status.st_ino)
        return ()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = local_folder(f"sqlite:{self._path}")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK):
            yield

    def _open_writer(self) -> sqlite3.Connection:
        if self._writer is not None:
            if self._written == self._file():
                return self._writer
            if self._written[0] == os.getpid():
                self._writer.close()
            self._writer = None
        fresh = not self._file()
        connection = _connect(self._path)
        try:
            if fresh:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA cache_size = -32768")  # what a batch changes stays in memory until the commit
            connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
            if _revision(connection) < REVISION:
                _upgrade(self._path)
        except BaseException:
            connection.close()
            raise
        fault = wal_fault()
        if fault is not None:
            log.info("%s: %s", self._url, fault)
        self._writer, self._written = connection, self._file()
        return connection

    def _reader(self, file: tuple[int, ...]) -> sqlite3.Connection:
        with self._keeping:
            while self._idle:
                kept, connection = self._idle.pop()
                if kept == file:
                    return connection
                if kept[0] == file[0]:
                    connection.close()
        return _connect(self._path, "?mode=ro")


def _connect(path: Path, how: str = "") -> sqlite3.Connection:
    """A connection that begins and ends no transaction by itself."""
    return sqlite3.connect(
        f"file:{quote(str(path))}{how}",
        uri=True,
        timeout=WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _has_tables(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tallymark_books'")
    return found.fetchone() is not None


def _revision(connection: sqlite3.Connection) -> str:
    """The revision of the schema; empty where there is none. A newer one than is known here is fine: they only add."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [VERSION_TABLE])
    if found.fetchone() is None:
        return ""
    row = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
    return str(row[0]) if row else ""


def _upgrade(path: Path) -> None:
    """Bring the schema to the newest revision, in one transaction."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    from tallymark.stores import schema

    engine = create_engine("sqlite://", creator=lambda: _connect(path), poolclass=NullPool)
    # SQLAlchemy leaves BEGIN to the driver, and that would not begin one for DDL.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            schema.upgrade(connection, REVISIONS)
    finally:
        engine.dispose()
