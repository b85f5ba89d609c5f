"""PostgreSQL: records in partitions by day, written with binary COPY, together with the positions of the journals; and
rollups of days that are over.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import psycopg
import pyarrow as pa
from psycopg import errors, sql

from tallymark import log
from tallymark.batch import SCHEMA, Batch
from tallymark.errors import RefusedError, StoreError
from tallymark.location import local_folder, shown
from tallymark.model import RESERVED_TYPE
from tallymark.query import MAX_ROWS, Query
from tallymark.store import Maintenance, Origin, Store, StoreInfo, with_origin
from tallymark.stores.days import Day, NotNow, RolledDays, new_version
from tallymark.stores.deletion import by_day
from tallymark.stores.duck import Engine
from tallymark.stores.postgres import by_time, parts, rollups
from tallymark.stores.postgres.link import Cursor, Link
from tallymark.stores.postgres.parts import Part
from tallymark.stores.postgres.sql import RECORDS, PostgresStatement, answer
from tallymark.stores.postgres.writing import NoPartition, days_of, write
from tallymark.stores.retention import DAY_NS, Retention
from tallymark.stores.rollups import FORMAT
from tallymark.stores.sql import aggregate_sql, check_rows, output_schema, scan_sql

PATIENCE_SECONDS: Final = 60.0
"""A server that is silent for so long is given up; but for what may take long."""

QUERY_SECONDS: Final = 300.0
"""The longest that one statement of a query may take; a scan has one for each stretch of time."""

LONG_SECONDS: Final = 1800.0
"""The longest that it may take to write a batch, or to delete a day."""

ATTEMPTS: Final = 5
"""How often a batch is tried whose partitions are dropped just then."""

LOCK_MILLISECONDS: Final = 2_000
"""How long to wait for a lock that keeps others out."""

MADE_AT_ONCE: Final = 50
"""Partitions that are made in one transaction: it locks all of them."""

_NO_STORE: Final = (errors.UndefinedTable, errors.InvalidSchemaName)

_BOOKS: Final = """
SELECT
    (SELECT coalesce(sum(rows), 0)::bigint FROM tallymark.parts),
    (SELECT count FROM tallymark.books WHERE name = 'deleted'),
    (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint
     FROM pg_inherits WHERE inhparent = 'tallymark.records'::regclass)
    + pg_total_relation_size('tallymark.positions') + pg_total_relation_size('tallymark.parts')
    + pg_total_relation_size('tallymark.rollups')
"""
_OWN_ROWS: Final = f"""
SELECT name, metadata #>> '{{reason}}', count(*), sum(value)
FROM {RECORDS} WHERE hashtext(metric_type) = hashtext('{RESERVED_TYPE}') AND metric_type = '{RESERVED_TYPE}'
GROUP BY 1, 2
"""


class _HasOthers(Exception):
    """A partition does not go as a whole."""


class Postgres(Store):
    """The store behind ``postgresql://…``; see :class:`tallymark.store.Store`.

    It has the schema ``tallymark`` of the database for itself. Any number of processes may read, write and maintain it,
    also through a pooler that pools transactions.

    Args:
        place: its URL, password and all.
        url: what is shown.
        patience_seconds: a server that is silent for so long is given up, but for a query, which may take longer.

    Raises:
        ConfigError: the URL is none.
    """

    revision: ClassVar = "0001"
    """The newest schema that this program knows. Newer ones only add, so it writes to those too."""
    revisions: ClassVar = Path(__file__).parent / "migrations"

    def __init__(self, place: str, *, url: str | None = None, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._url = url or shown(place)
        self._link = Link(place, patience_seconds)
        self._patience = patience_seconds
        self._is_current = False
        self._engine = Engine()
        self._rolled = RolledDays(local_folder(place), self._engine)
        self._complained = False

    def write(self, batch: Batch) -> None:
        """Keep a batch in one transaction."""
        with _driver_errors("write to", self._url, refused=True):
            self._see_to_schema()
            for attempt in range(ATTEMPTS):
                try:
                    with self._link.transaction(seconds=LONG_SECONDS, silence=self._patience) as cursor:
                        write(cursor, batch)
                except NoPartition:
                    if attempt == ATTEMPTS - 1:
                        raise StoreError(
                            f"cannot write to {self._url}: partitions are dropped again, or somebody has detached one"
                        ) from None
                    self._make_parts(days_of(batch.table))
                else:
                    return

    def positions(self, journals: list[str]) -> dict[str, int]:
        """How far each of these journals is stored."""
        with self._reading() as cursor:
            cursor.execute("SELECT journal, position FROM tallymark.positions WHERE journal = ANY(%s)", [journals])
            return dict(cursor.fetchall())
        return {}

    def scan(self, query: Query) -> pa.Table:
        """The records that match."""
        found, limit = [SCHEMA.empty_table()], query.limit or MAX_ROWS
        with self._reading(QUERY_SECONDS) as cursor:
            for stretch, types in by_time.stretches(cursor, query):
                statement = PostgresStatement(types)
                rows = scan_sql(statement, RECORDS, replace(stretch, limit=limit))
                found.append(answer(cursor, statement, rows, SCHEMA))
                limit -= found[-1].num_rows
                if not limit:
                    break
        return pa.concat_tables(found)

    def aggregate(self, query: Query) -> pa.Table:
        """The groups of the records that match."""
        schema = output_schema(query)
        with self._reading(QUERY_SECONDS) as cursor:
            days = rollups.days(cursor, query.start, query.end)
            try:
                rolled = rollups.aggregate(cursor, query, days, self._rolled)
            except OSError as error:
                if not self._complained:
                    log.warning("%s: without rollups, of which there can be no copies here: %s", self._url, error)
                self._complained = True
            else:
                if rolled is not None:
                    return rolled
            statement = PostgresStatement(by_time.types(cursor, query, list(days)))
            table = answer(cursor, statement, aggregate_sql(statement, RECORDS, query), schema)
            check_rows(table.num_rows)
            return with_origin(table, Origin(scanned=sum(day.rows for day in days)))
        return schema.empty_table()

    def delete(self, query: Query) -> int:
        """Forget what matches, a partition at a time; one that goes as a whole is dropped."""
        condition = by_day(query)
        deleted = 0
        with _driver_errors("delete from", self._url), contextlib.suppress(*_NO_STORE):
            with self._link.transaction("READ ONLY") as cursor:
                found = parts.find(cursor, query.start, query.end, has_rows=True)
            for part in found:
                deleted += self._delete_from(part, condition)
        return deleted

    def info(self) -> StoreInfo:
        """What is stored, dropped and deleted. Bytes are those of the tables with their indexes."""
        with self._reading() as cursor:
            cursor.execute(_BOOKS)
            ((rows, deleted, size),) = cursor.fetchall()
            cursor.execute(_OWN_ROWS)
            dropped = Counter[str]()
            for name, reason, count, total in cursor.fetchall():
                rows -= count
                if name == "dropped":
                    dropped[reason] += int(total)
            return StoreInfo(self._url, rows, 0, dict(dropped), size, deleted)
        return StoreInfo(self._url, 0, 0, {}, 0, 0)

    def close(self) -> None:
        """Close the connections, and give everything back."""
        self._rolled.close()
        self._link.close()
        self._engine.close()

    def maintain(self, now: int, retention: Retention | None, *, strays: bool = False) -> Maintenance:
        """Make the partitions of the next days, delete what is too old, drop old partitions that are empty."""
        today = now // DAY_NS * DAY_NS
        with _driver_errors("maintain", self._url), contextlib.suppress(*_NO_STORE):
            with self._link.transaction("READ ONLY") as cursor:
                ahead = [today + number * DAY_NS for number in range(parts.AHEAD + 1)]
                some_missing = bool(parts.missing(parts.find(cursor, today), ahead, today))
                empty = parts.find(cursor, None, today - DAY_NS, has_rows=False)
            if some_missing:
                self._make_parts(ahead, today)
            for part in empty:
                self._drop(part)
        return super().maintain(now, retention, strays=strays)

    def roll_up(self, now: int) -> int:
        """Make the rollups that are missing, and remove copies on this machine of what is not any more; how many were
        made.
        """
        made = 0
        days: dict[Day, int] = {}
        with _driver_errors("make rollups of", self._url):
            with self._reading() as cursor:
                days = rollups.days(cursor)
            self._rolled.tidy(days)
            for day, found in days.items():
                if day.is_due(now) and found < FORMAT:
                    with contextlib.suppress(NotNow), self._rolled.made(day, self._records_of(day)) as sidecar:
                        if sidecar is not None:
                            with self._link.transaction() as cursor:
                                rollups.keep(cursor, day, sidecar.read_bytes())
                            made += 1
        return made

    def _records_of(self, day: Day) -> Generator[pa.Table]:
        with self._reading(LONG_SECONDS) as cursor:
            yield from rollups.records(cursor, day)

    def purge(self, now: int, *, strays: bool = False) -> list[str]:
        """Write the partitions anew from which single rows were deleted."""
        problems = []
        with _driver_errors("purge", self._url), contextlib.suppress(*_NO_STORE):
            with self._link.transaction("READ ONLY") as cursor:
                self._rolled.tidy(rollups.days(cursor))
                cursor.execute("SELECT name FROM tallymark.parts WHERE has_gaps ORDER BY name")
                names = [name for (name,) in cursor.fetchall()]
            for name in names:
                try:
                    self._write_anew(name)
                except _NO_STORE:
                    continue  # it was dropped meanwhile
                except errors.LockNotAvailable:
                    problems.append(f"{self._url}: the partition {name} is in use; try again")
            try:
                with self._link.transaction(seconds=LONG_SECONDS) as cursor:
                    _wait_briefly(cursor)
                    rollups.write_anew(cursor)
            except errors.LockNotAvailable:
                problems.append(f"{self._url}: the table rollups is in use; try again")
        return problems

    # -- the schema ------------------------------------------------------------------------------------------

    def _see_to_schema(self) -> None:
        """Make the schema, or upgrade it, where it is behind this program."""
        if self._is_current:
            return
        found = None
        with contextlib.suppress(*_NO_STORE), self._link.transaction("READ ONLY") as cursor:
            cursor.execute("SELECT version_num FROM tallymark.alembic_version")
            found = cursor.fetchone()
        if found is None or found[0] < self.revision:
            self._upgrade()
        self._is_current = True

    def _upgrade(self) -> None:
        # Loaded here only; see schema.py.
        from sqlalchemy import Connection, NullPool, create_engine, text
        from sqlalchemy.exc import DBAPIError

        from tallymark.stores.schema import upgrade

        connect = partial(self._link.connect, autocommit=False)
        engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)

        def ask(connection: Connection, sql: str, **parameters: Any) -> Any:
            return connection.execute(text(sql), parameters).scalar()

        settings = {
            "search_path": "pg_catalog",
            "lock_timeout": f"{self._patience / 2:.3f}s",
            "statement_timeout": f"{self._patience * 0.9:.3f}s",
        }
        try:
            with engine.begin() as connection:
                for name, value in settings.items():
                    ask(connection, "SELECT set_config(:name, :value, true)", name=name, value=value)
                ask(connection, "SELECT pg_advisory_xact_lock(:lock)", lock=parts.LOCK)
                # Whoever reads or writes would have to wait with it for a table that is in use.
                ask(connection, f"SELECT set_config('lock_timeout', '{LOCK_MILLISECONDS}', true)")
                # A role that may not make schemas can use one that somebody else has made for it.
                if ask(connection, "SELECT to_regnamespace('tallymark') IS NULL"):
                    connection.execute(text("CREATE SCHEMA tallymark"))
                upgrade(connection, self.revisions, "tallymark")
        except DBAPIError as error:
            raise error.orig or error from error
        finally:
            engine.dispose()

    # -- partitions ------------------------------------------------------------------------------------------

    def _make_parts(self, days: Sequence[int], today: int | None = None) -> None:
        today = time.time_ns() // DAY_NS * DAY_NS if today is None else today
        for first in range(0, len(days), MADE_AT_ONCE):
            with self._link.transaction() as cursor:
                parts.make(cursor, days[first : first + MADE_AT_ONCE], today)

    def _delete_from(self, part: Part, query: Query) -> int:
        """Delete what matches in one partition: all that it has at once, where all of it does."""
        covered = (query.start or 0) <= part.first and (query.end is None or part.until <= query.end)
        if covered and not self._has_others(part, query):
            # Unless a long query holds it, or somebody has written to it or dropped it meanwhile.
            with contextlib.suppress(errors.LockNotAvailable, _HasOthers, *_NO_STORE):
                deleted = self._empty(part, query)
                self._drop(part)
                return deleted
        statement = PostgresStatement()
        with self._link.transaction(seconds=LONG_SECONDS) as cursor:
            where = f"{statement.inside(part.first, part.until)} AND {statement.where(query)}"
            cursor.execute(f"DELETE FROM {RECORDS} WHERE {where}", statement.parameters)
            deleted = cursor.rowcount
            if deleted:
                cursor.execute(
                    "UPDATE tallymark.parts SET rows = rows - %s, has_gaps = true, version = %s, changed = %s "
                    "WHERE first = %s",
                    [deleted, new_version(), time.time_ns(), part.first],
                )
                rollups.forget(cursor, part.first)
                _count_deleted(cursor, deleted)
        return deleted

    def _has_others(self, part: Part, query: Query) -> bool:
        """Whether a partition has records that do not match."""
        with self._link.transaction("READ ONLY", seconds=LONG_SECONDS) as cursor:
            return _has_others(cursor, part, query)

    def _empty(self, part: Part, query: Query) -> int:
        """Empty a partition in which everything matches. It stops nobody but those who need this very partition."""
        table = sql.Identifier("tallymark", part.name)
        with self._link.transaction(seconds=LONG_SECONDS) as cursor:
            _wait_briefly(cursor)
            cursor.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(table))
            if _has_others(cursor, part, query):
                raise _HasOthers
            cursor.execute("SELECT rows FROM tallymark.parts WHERE first = %s FOR UPDATE", [part.first])
            ((rows,),) = cursor.fetchall()
            cursor.execute(sql.SQL("TRUNCATE ONLY {}").format(table))
            cursor.execute(
                "UPDATE tallymark.parts SET rows = 0, has_gaps = false, version = %s, changed = %s WHERE first = %s",
                [new_version(), time.time_ns(), part.first],
            )
            rollups.forget(cursor, part.first)
            _count_deleted(cursor, rows)
        return int(rows)

    def _drop(self, part: Part) -> None:
        """Drop a partition, if it is empty. That stops everybody for a moment; where it would have to wait for others,
        it is left for the next time.
        """
        table = sql.Identifier("tallymark", part.name)
        with contextlib.suppress(errors.LockNotAvailable, *_NO_STORE), self._link.transaction() as cursor:
            _wait_briefly(cursor)
            cursor.execute(f"LOCK TABLE ONLY {RECORDS} IN ACCESS EXCLUSIVE MODE")
            cursor.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(table))
            cursor.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table))
            if not cursor.fetchall():
                cursor.execute("DELETE FROM tallymark.parts WHERE first = %s", [part.first])
                cursor.execute(sql.SQL("DROP TABLE {}").format(table))

    def _write_anew(self, name: str) -> None:
        """Give back what was deleted from a partition. VACUUM FULL would do the same, but not in a transaction, so that
        nothing could keep it from waiting for its lock, and others for it.
        """
        with self._link.transaction(seconds=LONG_SECONDS) as cursor:
            _wait_briefly(cursor)
            names = {
                "table": sql.Identifier("tallymark", name),
                "index": sql.Identifier(f"{name}_tallymark_purge"),
                "dropped": sql.Identifier("tallymark", f"{name}_tallymark_purge"),
            }
            for statement in (
                "LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE",
                "CREATE INDEX {index} ON {table} (timestamp)",
                "CLUSTER {table} USING {index}",
                "DROP INDEX {dropped}",
            ):
                cursor.execute(sql.SQL(statement).format(**names))
            cursor.execute("UPDATE tallymark.parts SET has_gaps = false WHERE name = %s", [name])

    # -- reading ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self, seconds: float | None = None) -> Iterator[Cursor]:
        """A look at one instant. Where there is no store yet, the rest of the block is left out."""
        mode = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with (
            _driver_errors("read", self._url),
            contextlib.suppress(*_NO_STORE),
            self._link.transaction(mode, seconds=seconds) as cursor,
        ):
            yield cursor


def _has_others(cursor: Cursor, part: Part, query: Query) -> bool:
    """Whether a partition has records that do not match."""
    statement = PostgresStatement()
    where = f"{statement.inside(part.first, part.until)} AND NOT ({statement.where(query)})"
    cursor.execute(f"SELECT EXISTS (SELECT FROM {RECORDS} WHERE {where})", statement.parameters)
    ((found,),) = cursor.fetchall()
    return bool(found)


def _count_deleted(cursor: Cursor, rows: int) -> None:
    cursor.execute("UPDATE tallymark.books SET count = count + %s WHERE name = 'deleted'", [rows])


def _wait_briefly(cursor: Cursor) -> None:
    """For locks that keep everybody out; while one is waited for, others wait too."""
    cursor.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")


@contextlib.contextmanager
def _driver_errors(doing: str, url: str, *, refused: bool = False) -> Iterator[None]:
    """What the driver raises, or this machine, as StoreError; or as RefusedError, where it is about the rows."""
    try:
        yield
    except psycopg.Error as error:
        # Without what follows the first line: it may show a row.
        reason = error.diag.message_primary or (str(error).splitlines() or [type(error).__name__])[0]
        about_rows = refused and isinstance(error, psycopg.DataError | psycopg.IntegrityError)
        kind = RefusedError if about_rows else StoreError
        raise kind(f"cannot {doing} {url}: {reason}") from error
    except OSError as error:
        raise StoreError(f"cannot {doing} {url}: {error}") from error
