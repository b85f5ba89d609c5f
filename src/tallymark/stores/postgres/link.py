"""Transactions in PostgreSQL, over connections that are kept for the next one.

Nothing outlives a transaction and nothing is prepared, so that a pooler may hand out another session each time.
"""

import contextlib
import os
from collections.abc import Iterator
from threading import Lock
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tallymark.errors import ConfigError

CONNECT_SECONDS: Final = 10
KEPT: Final = 4
"""So many connections are kept at most."""

Cursor = psycopg.Cursor[tuple[Any, ...]]


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """One that does not wait for ever: a server that is frozen says nothing, and TCP does not notice."""

    patience: float = CONNECT_SECONDS

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As the driver's, but no longer than ``patience`` seconds; then OperationalError."""
        return super().wait(gen, interval, self.patience if timeout is None else timeout)


class Link:
    """The way to one database.

    Args:
        url: with user and password, and whatever else libpq knows.
        patience: seconds of silence, in a transaction that does not say otherwise, after which the server is given up.

    Raises:
        ConfigError: it is no URL.
    """

    def __init__(self, url: str, patience: float) -> None:
        try:
            settings = conninfo_to_dict(url)
        except psycopg.Error:
            raise ConfigError(
                "write postgresql://user:password@host:port/database, with special characters of the password "
                "percent-encoded"
            ) from None
        self._settings: dict[str, Any] = {
            "application_name": "tallymark",
            "connect_timeout": round(max(2, min(CONNECT_SECONDS, patience))),
            # A host that is gone says no goodbye.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": round(1000 * patience),
            **settings,
            "client_encoding": "utf8",
        }
        self._patience = patience
        self._idle: list[Connection] = []
        self._owner = os.getpid()
        self._closing = Lock()
        self._generation = 0

    def connect(self, *, autocommit: bool = True) -> Connection:
        """A new connection. Without ``autocommit`` it begins a transaction by itself."""
        connection: Connection = Connection.connect(**self._settings, autocommit=autocommit, prepare_threshold=None)
        connection.patience = self._patience
        return connection

    @contextlib.contextmanager
    def transaction(
        self, mode: str = "READ WRITE", *, seconds: float | None = None, silence: float | None = None
    ) -> Iterator[Cursor]:
        """A transaction: committed at the end of the block, rolled back by an exception.

        Args:
            mode: what follows BEGIN.
            seconds: the longest that one statement may take; by default a little less than the link's patience.
            silence: seconds until the server is given up; by default those, and a little more.

        Raises:
            psycopg.Error: whatever the driver says.
        """
        limit = self._patience * 0.9 if seconds is None else seconds
        generation = self._generation
        connection = self._begun(
            f"BEGIN {mode}; SET LOCAL search_path = pg_catalog; SET LOCAL statement_timeout = {round(1000 * limit)}; "
            # Who waits for a lock holds others, and up to all of them.
            f"SET LOCAL lock_timeout = {round(1000 * min(limit, self._patience) / 2)}; "
            # A client that is frozen must not hold its locks for ever.
            f"SET LOCAL idle_in_transaction_session_timeout = {round(1000 * self._patience)}"
        )
        connection.patience = limit + self._patience * 0.1 if silence is None else silence
        try:
            with connection.cursor() as cursor:
                yield cursor
                connection.execute("COMMIT")
        except BaseException as error:
            connection.patience = min(connection.patience, self._patience)
            self._give_up(connection, error)
            raise
        connection.patience = self._patience
        self._keep(connection, generation)

    def close(self) -> None:
        """Close the connections that nobody uses; the others are closed when they come back."""
        with self._closing:
            self._generation += 1
            while self._idle:
                self._idle.pop().close()

    def _begun(self, statement: str) -> Connection:
        if self._owner != os.getpid():  # a fork: those connections are the parent's
            self._owner, self._idle = os.getpid(), []
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            try:
                connection.execute(statement)
            except psycopg.OperationalError as error:
                broken = connection.closed
                connection.close()
                if not broken:  # it is silent, and would be again
                    raise error
                # The server was started anew, or a pooler has hung up.
            else:
                return connection
        connection = self.connect()
        try:
            connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_up(self, connection: Connection, error: BaseException) -> None:
        """End a transaction that failed, and the connection too where it may not be in order."""
        if isinstance(error, Exception) and not connection.closed and not isinstance(error, psycopg.OperationalError):
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
                self._keep(connection, self._generation)
                return
        connection.close()

    def _keep(self, connection: Connection, generation: int) -> None:
        connection.patience = self._patience
        with self._closing:
            if generation == self._generation and len(self._idle) < KEPT:
                self._idle.append(connection)
                return
        connection.close()
