"""ClickHouse's engine in this process, clients of it that fail, and what is in its stores."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error as DriverError

from stores.clickhouse_http import Server
from tallymark.query import Query
from tallymark.store import Store
from tallymark.stores.clickhouse.store import ClickHouse
from tallymark.testing.rows import DAY, JOURNALS, NOON, row


class Databases:
    """New databases of one engine; a process may have one folder open at a time.

    Args:
        path: where the engine keeps everything.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._admin = self._connect("default")
        self._clients: list[Any] = []

    def new(self) -> str:
        """The name of an empty database."""
        name = f"t{uuid.uuid4().hex}"
        self._admin.command(f"CREATE DATABASE {name}")
        return name

    def client(self, database: str) -> Any:
        """A client of its own."""
        client = self._connect(database)
        self._clients.append(client)
        return client

    def store(self, database: str | None = None, client: Any = None) -> ClickHouse:
        """A store with a client of its own."""
        database = database or self.new()
        return ClickHouse(f"clickhouse://host/{database}", client=client or self.client(database))

    def over(self, server: Server) -> ClickHouse:
        """A store that talks to a server, in a new database."""
        return ClickHouse(f"{server.url}/{self.client(self.new()).database}")

    def sweep(self) -> None:
        """Close the clients that were given, and drop their databases."""
        for database in {client.database for client in self._clients}:
            self._admin.command(f"DROP DATABASE {database} SYNC")
        while self._clients:
            self._clients.pop().close()

    def close(self) -> None:
        """End the engine."""
        self.sweep()
        self._admin.close()

    def _connect(self, database: str) -> Any:
        return clickhouse_connect.get_client(interface="chdb", path=self.path, database=database)


class Failing:
    """A client whose requests are counted, and may be kept from the server, or their answers from the caller.

    Args:
        client: the real one.
        fault: is called around every request, with its number, what it is about, and what sends it.
    """

    def __init__(self, client: Any, fault: Callable[[int, str, Callable[[], Any]], Any]) -> None:
        self._client = client
        self._fault = fault
        self.requests: list[str] = []

    def _send(self, about: str, send: Callable[[], Any]) -> Any:
        self.requests.append(about)
        return self._fault(len(self.requests) - 1, about, send)

    def command(self, sql: str, **options: Any) -> Any:
        """A statement."""
        return self._send(sql, lambda: self._client.command(sql, **options))

    def query_arrow(self, sql: str, **options: Any) -> Any:
        """A question."""
        return self._send(sql, lambda: self._client.query_arrow(sql, **options))

    def insert_arrow(self, table: str, rows: Any, **options: Any) -> Any:
        """Rows."""
        return self._send(f"INSERT {table}", lambda: self._client.insert_arrow(table, rows, **options))


def broken(number: int, *, after: bool) -> Callable[[int, str, Callable[[], Any]], Any]:
    """The connection breaks at one request: before it was sent, or after it was done, so that the answer is lost."""

    def fault(request: int, _about: str, send: Callable[[], Any]) -> Any:
        if request != number:
            return send()
        if after:
            with contextlib.suppress(DriverError):
                send()
        raise ConnectionResetError("broken")

    return fault


@contextlib.contextmanager
def engine(path: str) -> Iterator[Databases]:
    """The engine, for as long as it is needed."""
    databases = Databases(path)
    try:
        yield databases
    finally:
        databases.close()


def seqs(store: Store) -> list[int]:
    """What is stored, of every journal in turn."""
    rows = store.scan(Query(order_by=("timestamp",))).to_pylist()
    return sorted(one["seq"] for one in rows)


def name_of(store: ClickHouse) -> str:
    """Its database."""
    return store._address.database


def days(first: int, last: int, journal: str = JOURNALS[0]) -> list[dict[str, Any]]:
    """Records that lie in three partitions."""
    return [row(seq, journal=journal, timestamp=NOON + seq % 3 * DAY + seq) for seq in range(first, last)]
