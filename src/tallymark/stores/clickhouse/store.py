"""A database of ClickHouse, over HTTP.

ClickHouse has no transactions over several inserts, and a rejected one may have come in for some days and not for
others. So a write is a sequence that may end anywhere: first it is announced, then the rows are sent, then how far each
journal came. Who finds a write that was announced and did not come to its end gives it up: rows of it that arrive from
then on are refused by the server (the *fence*), those at work are stopped, and what came in by then is read back, row
by row, and not sent again. See docs/clickhouse.md.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import Error as DriverError

from tallymark.batch import CLOSED, SCHEMA, Batch
from tallymark.errors import QueryError, RefusedError, StoreError
from tallymark.location import shown
from tallymark.model import RESERVED_TYPE
from tallymark.query import Query
from tallymark.store import Maintenance, Origin, Store, StoreInfo, with_origin
from tallymark.stores.clickhouse.address import Address
from tallymark.stores.clickhouse.rollups import DAYS_AT_ONCE, DAYS_SQL, Day, cut, fits, pieces_sql
from tallymark.stores.clickhouse.sql import ClickHouseStatement
from tallymark.stores.clickhouse.tables import (
    BOOKS,
    DOOMED,
    FENCED,
    HOURS,
    HOURS_OF_RECORDS,
    INCOMING,
    POSITIONS,
    RECORDS,
    SCHEMA_TABLE,
    VERSION,
    Tables,
    quoted,
    statements,
)
from tallymark.stores.deletion import MAX_IDS, by_day, condition
from tallymark.stores.fresh import fresh
from tallymark.stores.retention import DAY_NS
from tallymark.stores.rolled import relative_error
from tallymark.stores.sql import aggregate_sql, check_rows, output_schema, scan_sql

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from tallymark.stores.retention import Retention

CONNECT_SECONDS: Final = 10

MANY_POSITIONS: Final = 1_000_000
"""From so many rows on, those of writes that others followed are removed."""

KEEP_CLOSED_DAYS: Final = 90
"""For how long it is known that a journal is closed, once there are that many."""

PURGE_SECONDS: Final = 60.0
"""How long :meth:`ClickHouse.purge` waits for the server to remove files."""

# What the driver logs before it raises an error would be printed where nobody has set up logging.
logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())

_UNKNOWN_TABLE: Final = 60
# What a server says of rows that it will never take: texts or numbers that it cannot read, a constraint.
_REFUSED: Final = frozenset({6, 26, 27, 33, 53, 69, 70, 72, 117, 131, 321, 349, 407, 469})

# Many small inserts, one table: the server may join those of several machines, and answers when they are kept.
_JOINED: Final = {"async_insert": 1, "wait_for_async_insert": 1}

_ROWS: Final = {"async_insert": 0, "max_partitions_per_insert_block": 0}


class _Begun(NamedTuple):
    """A write that was announced: how far it was to come in a journal."""

    journal: str
    write: str
    until: int


class ClickHouse(Store):
    """The store behind ``clickhouse://user:password@host:port/database``; see :class:`tallymark.store.Store`.

    The database has to exist; the first write makes the tables. Any number of processes may read and write at a time.
    Where two of them write from the same journals, one or both of them may fail; nothing is lost or doubled by it.

    Args:
        place: the URL. Options: ``secure=1`` for HTTPS, ``cluster=NAME`` for tables of all servers of that cluster,
            ``ttl_days=N`` for a limit that the server itself keeps, ``timeout=SECONDS``.
        url: what :meth:`info` calls it.
        client: talks to the server in place of one that is made for the URL. It is not closed with the store.

    Raises:
        ConfigError: the URL is not understood.
    """

    def __init__(self, place: str, *, url: str | None = None, client: "Client | None" = None) -> None:
        self._address = Address.parse(place)
        self._url = url or shown(place)
        self._tables = Tables(self._address.cluster)
        self._given = client
        self._client: Client | None = client
        self._connecting = threading.Lock()
        self._writing = threading.Lock()
        self._version = 0

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Keep a batch; it is on the disk of the server when this returns."""
        if not batch.positions:
            return
        with self._writing, self._errors("write to"):
            self._create()
            write, journals = uuid.uuid4().hex, list(batch.positions)
            self._note([(journal, write, 0, end) for journal, end in batch.positions.items()])
            stored, begun = self._ledger(journals, write)
            news = fresh(batch, stored)
            rows = self._missing(news.table, sorted({each.write for each in begun}))
            if rows.num_rows:
                self._send(rows, write)
            ends = {journal: news.positions.get(journal) or stored[journal] for journal in journals}
            own = [_Begun(journal, write, end) for journal, end in batch.positions.items()]
            # Of a write that was to come further there may be rows that were not looked for: it stays begun.
            over = [each for each in (*own, *begun) if each.until <= ends[each.journal]]
            self._note([(each.journal, each.write, ends[each.journal], each.until) for each in over])

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is stored."""
        with self._errors("read"):
            return self._ledger(journals)[0] if journals and self._exists() else {}

    def _note(self, rows: list[tuple[str, str, int, int]]) -> None:
        """Keep how far writes came, and were to come."""
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
        names = ["journal", "write", "position", "until"]
        self._insert(POSITIONS, pa.table(columns, names=names), _JOINED)

    def _ledger(self, journals: Sequence[str], write: str = "") -> tuple[dict[str, int], list[_Begun]]:
        """How far each journal is stored, and which other writes of it were announced and are not known to be over."""
        if self._tables.cluster and write:
            self._command(f"SYSTEM SYNC REPLICA {POSITIONS} LIGHTWEIGHT")
        sql = (
            "SELECT journal, max(position) AS stored, groupArrayIf((write, until), position = 0) AS begun FROM"
            f" (SELECT journal, write, max(position) AS position, max(until) AS until FROM {POSITIONS}"
            " WHERE journal IN {journals:Array(String)} AND write != {write:String} GROUP BY journal, write)"
            " GROUP BY journal"
        )
        found = self._query(sql, {"journals": list(journals), "write": write}).to_pylist()
        stored = {row["journal"]: row["stored"] for row in found if row["stored"]}
        return stored, [_Begun(row["journal"], *each.values()) for row in found for each in row["begun"]]

    def _missing(self, rows: pa.Table, given_up: Sequence[str]) -> pa.Table:
        """Those of the rows that no write that was given up has brought in."""
        if not given_up:
            return rows
        self._insert(FENCED, pa.table({"write": given_up}), _ROWS)
        # What has passed the fence by now is at work: a server lists a query before it looks at the fence.
        tokens = ", ".join(map(quoted, given_up))
        self._command(
            f"KILL QUERY{self._tables.on_cluster} WHERE Settings['insert_deduplication_token'] IN ({tokens}) SYNC"
        )
        if not rows.num_rows:
            return rows
        if self._tables.cluster:
            self._command(f"SYSTEM SYNC REPLICA{self._tables.on_cluster} {self._tables.records}")
        times = rows["timestamp"].to_numpy()
        found = self._query(
            f"SELECT journal, seq FROM {RECORDS} WHERE journal IN {{journals:Array(String)}}"
            # The store's own rows get a new time whenever they are sent.
            f" AND (metric_type = '{RESERVED_TYPE}' OR timestamp BETWEEN {{first:Int64}} AND {{last:Int64}})",
            {
                "journals": rows["journal"].unique().to_pylist(),
                "first": int(times.min()),
                "last": int(times.max()),
            },
        )
        present = set(_ids(found))
        return rows.filter(pa.array([each not in present for each in _ids(rows)], pa.bool_())) if present else rows

    def _send(self, rows: pa.Table, write: str) -> None:
        name = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), rows.num_rows), pa.array([write]))
        settings = {**_ROWS, "insert_deduplication_token": write}
        if self._tables.cluster:
            settings |= {"distributed_foreground_insert": 1, "insert_quorum": "auto"}
        try:
            self._insert(INCOMING, rows.append_column("write", name), settings)
        except DriverError as error:
            if getattr(error, "code", None) in _REFUSED:
                raise RefusedError(f"{self._url} refuses rows: {self._text(error)}") from error
            raise

    # -- reading ---------------------------------------------------------------------------------------------

    def scan(self, query: Query) -> pa.Table:
        """The records that match."""
        with self._errors("read"):
            if not self._exists():
                return SCHEMA.empty_table()
            statement = ClickHouseStatement()
            sql = scan_sql(statement, f"{RECORDS} AS records", query)
            return self._query(sql, statement.parameters).cast(SCHEMA)

    def aggregate(self, query: Query) -> pa.Table:
        """The groups of the records that match."""
        with self._errors("read"):
            types = output_schema(query)
            if not self._exists():
                return types.empty_table()
            statement = ClickHouseStatement()
            pieces = cut(query, self._days()) if not self._tables.cluster and fits(query) else []
            summed = any(piece.summed for piece in pieces)
            sql = (
                pieces_sql(statement, query, pieces)
                if summed
                else aggregate_sql(statement, f"{RECORDS} AS records", query)
            )
            found = self._query(sql, statement.parameters)
        check_rows(found.num_rows)
        origin = Origin("1h rollups and raw", relative_error=relative_error(query)) if summed else Origin()
        return with_origin(found.rename_columns(list(query.output)).cast(types), origin)

    def info(self) -> StoreInfo:
        """What is stored; bytes are those on the disks of the servers."""
        with self._errors("read"):
            if not self._exists():
                return StoreInfo(self._url, 0, 0, {}, 0)
            parts = f"clusterAllReplicas({quoted(self._address.cluster)}, system.parts)"
            (books,) = self._query(
                f"SELECT (SELECT count() FROM {RECORDS}) AS rows,"
                f" (SELECT groupArray((name, reason, n, total)) FROM"
                f" (SELECT name, JSONExtractString(metadata, 'reason') AS reason, count() AS n, sum(value) AS total"
                f" FROM {RECORDS} WHERE metric_type = '{RESERVED_TYPE}' GROUP BY name, reason)) AS own,"
                f" (SELECT sum(deleted) FROM {BOOKS} FINAL) AS deleted,"
                f" (SELECT sum(bytes_on_disk) FROM {parts if self._tables.cluster else 'system.parts'}"
                " WHERE active AND database = currentDatabase()"
                f" AND table IN ('{self._tables.records}', '{HOURS}')) AS bytes",
            ).to_pylist()
        stored, dropped = books["rows"], Counter[str]()
        for name, reason, count, total in (each.values() for each in books["own"]):
            stored -= count
            if name == "dropped":
                dropped[reason] += int(total)
        return StoreInfo(self._url, stored, 0, dict(dropped), books["bytes"], books["deleted"])

    # -- forgetting ------------------------------------------------------------------------------------------

    def delete(self, query: Query) -> int:
        """Forget what matches. Conditions that may name somebody become part of no statement that the server keeps."""
        days = by_day(query)
        with self._writing, self._errors("delete from"):
            if not self._exists():
                return 0
            sql = condition(days)
            if sql is None:
                return self._delete_by_id(query, days)
            (found,) = self._query(f"SELECT count() AS n FROM {RECORDS} WHERE {sql}").to_pylist()
            if found["n"]:
                self._delete_where(sql)
                self._insert(BOOKS, pa.table({"deletion": [uuid.uuid4().hex], "deleted": [found["n"]]}), _ROWS)
            return int(found["n"])

    def _delete_by_id(self, query: Query, conditions: Query) -> int:
        deleted = 0
        while True:
            deletion, statement = uuid.uuid4().hex, ClickHouseStatement()
            self._command(
                f"INSERT INTO {DOOMED} (deletion, journal, seq) SELECT '{deletion}', journal, seq"
                f" FROM {RECORDS} AS records WHERE {statement.where(conditions)} LIMIT {MAX_IDS}",
                statement.parameters,
            )
            ids = f"SELECT journal, seq FROM {DOOMED} WHERE deletion = '{deletion}'"
            (found,) = self._query(f"SELECT count() AS n FROM ({ids})").to_pylist()
            if not found["n"]:
                return deleted
            if self._tables.cluster:
                self._command(f"SYSTEM SYNC REPLICA{self._tables.on_cluster} {DOOMED}")
            range_only = condition(replace(query, filters=()))
            self._delete_where(f"{range_only} AND (journal, seq) IN ({ids})")
            self._insert(BOOKS, pa.table({"deletion": [deletion], "deleted": [found["n"]]}), _ROWS)
            deleted += found["n"]

    def _delete_where(self, sql: str) -> None:
        self._command(
            f"DELETE FROM {self._tables.records}{self._tables.on_cluster} WHERE {sql}",
            settings={"lightweight_deletes_sync": 2, "allow_nondeterministic_mutations": 1},
        )

    def maintain(self, now: int, retention: "Retention | None", *, strays: bool = False) -> Maintenance:
        """Delete what is too old. The server joins parts by itself."""
        done = super().maintain(now, retention, strays=strays)
        with self._errors("tidy"):
            if self._exists():
                self._prune_positions()
                if retention is not None and not self._tables.cluster:  # one server does so, not every machine
                    self._sum_up()
        return done

    def _days(self) -> list[Day]:
        if self._version < VERSION and self._reached() < VERSION:
            return []
        return [Day(*row.values()) for row in self._query(DAYS_SQL).to_pylist()]

    def _sum_up(self) -> None:
        """Sum up days anew whose hours are not right."""
        days = self._days()
        if any(day.masked for day in days):
            self._command(f"ALTER TABLE {RECORDS} APPLY DELETED MASK", settings={"mutations_sync": 2})
            days = self._days()
        for day in [day for day in days if not day.right][:DAYS_AT_ONCE]:
            first = day.day * DAY_NS
            where = f"WHERE timestamp >= {first} AND timestamp < {first + DAY_NS}"
            self._command(f"ALTER TABLE {HOURS} DROP PARTITION '{date(1970, 1, 1) + timedelta(day.day)}'")
            self._command(f"INSERT INTO {HOURS} {HOURS_OF_RECORDS.format(where=where)}")

    def _prune_positions(self) -> None:
        (found,) = self._query(f"SELECT count() AS n FROM {POSITIONS}").to_pylist()
        if found["n"] < MANY_POSITIONS:
            return
        # What stays: the furthest of each journal, and every write that is not known to be over.
        self._command(
            f"DELETE FROM {POSITIONS}{self._tables.on_cluster} WHERE (journal, write) IN"
            f" (SELECT journal, write FROM {POSITIONS} GROUP BY journal, write HAVING max(position) > 0)"
            f" AND (journal, write) NOT IN (SELECT journal, argMax(write, position) FROM {POSITIONS}"
            f" GROUP BY journal HAVING max(position) < {CLOSED} OR max(at) > now() - INTERVAL {KEEP_CLOSED_DAYS} DAY)",
            settings={"lightweight_deletes_sync": 2, "allow_nondeterministic_mutations": 1},
        )

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """Have the server write anew what deleted records were in, and remove the old files."""
        with self._errors("purge"):
            if not self._exists():
                return []
            table = f"{self._tables.records}{self._tables.on_cluster}"
            self._command(f"ALTER TABLE {table} APPLY DELETED MASK", settings={"mutations_sync": 2})
            self._command(f"ALTER TABLE {table} MODIFY SETTING old_parts_lifetime = 1")
            try:
                left = self._wait_for_old_parts(table)
            finally:
                self._command(f"ALTER TABLE {table} RESET SETTING old_parts_lifetime")
        return [f"{left} old parts are still on the disk of {self._url}; it removes them in some minutes"] * bool(left)

    def _wait_for_old_parts(self, table: str) -> int:
        parts = f"clusterAllReplicas({quoted(self._address.cluster)}, system.parts)"
        sql = (
            f"SELECT count() AS n FROM {parts if self._tables.cluster else 'system.parts'}"
            f" WHERE NOT active AND database = currentDatabase() AND table = {quoted(self._tables.records)}"
        )
        deadline = time.monotonic() + PURGE_SECONDS
        while True:
            left = int(self._query(sql).to_pylist()[0]["n"])
            if not left or time.monotonic() > deadline:
                return left
            # Of a day that no record can be of. A server that does so looks for old parts at once.
            self._command(f"ALTER TABLE {table} DROP PARTITION '2149-06-06'")
            time.sleep(0.2)

    # -- the server ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give connections back."""
        with self._connecting:
            if self._client is not None and self._client is not self._given:
                self._client.close()
            self._client = self._given

    def _connected(self) -> "Client":
        with self._connecting:
            if self._client is None:
                address = self._address
                self._client = clickhouse_connect.get_client(
                    host=address.host,
                    port=address.port,
                    database=address.database,
                    username=address.user,
                    password=address.password,
                    secure=address.secure,
                    connect_timeout=CONNECT_SECONDS,
                    send_receive_timeout=address.timeout,
                    query_retries=0,  # what is asked again, and when, is for the callers to say
                    autogenerate_session_id=False,  # queries of a session cannot run side by side
                    form_encode_query_params=True,  # a URL would be too short for some of them
                )
            return self._client

    def _exists(self) -> bool:
        """Whether there are tables."""
        if not self._version:
            self._version = self._reached()
        return self._version > 0

    def _reached(self) -> int:
        try:
            (found,) = self._query(f"SELECT max(version) AS version FROM {SCHEMA_TABLE}").to_pylist()
        except DriverError as error:
            if getattr(error, "code", None) == _UNKNOWN_TABLE:
                return 0
            raise
        return int(found["version"])

    def _create(self) -> None:
        """Bring the schema to the version of this code; one that is further stays as it is."""
        if self._version >= VERSION:
            return
        reached = self._reached()
        if reached < VERSION:
            for statement in [self._tables.versions(), *statements(self._tables.steps(), reached)]:
                self._command(statement)
            self._insert(SCHEMA_TABLE, pa.table({"version": [VERSION]}), _ROWS)
        if self._address.ttl_days is not None:
            self._keep_ttl(self._address.ttl_days)
        self._version = max(reached, VERSION)

    def _keep_ttl(self, days: int) -> None:
        sql = (
            "SELECT engine_full FROM system.tables WHERE database = currentDatabase()"
            f" AND name = {quoted(self._tables.records)}"
        )
        (found,) = self._query(sql).to_pylist()
        if f"toIntervalDay({days})" in found["engine_full"] or (not days and "TTL" not in found["engine_full"]):
            return
        self._command(self._tables.ttl(days))

    def _query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        found: pa.Table = self._connected().query_arrow(sql, parameters=dict(parameters or {}), use_strings=True)
        return found

    def _command(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._connected().command(sql, parameters=dict(parameters or {}), settings=dict(settings or {}))

    def _insert(self, table: str, rows: pa.Table, settings: Mapping[str, Any]) -> None:
        self._connected().insert_arrow(table, rows, settings=dict(settings))

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, QueryError):
            raise
        except (DriverError, OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot {doing} {self._url}: {self._text(error)}") from error

    def _text(self, error: Exception) -> str:
        """What went wrong, in a line; the driver may name the whole URL."""
        text = " ".join(str(_cause(error)).split()) or type(error).__name__
        if self._address.password:
            text = text.replace(self._address.password, "***")
        return text[:500]


def _cause(error: BaseException) -> object:
    """What the operating system said where that is behind an error: the driver wraps it several times."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        # urllib3 keeps its own in an attribute.
        inner = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        inner = inner if isinstance(inner, BaseException) else None
    return error


def _ids(table: pa.Table) -> Iterator[tuple[Any, Any]]:
    return zip(table["journal"].to_pylist(), table["seq"].to_pylist(), strict=True)
