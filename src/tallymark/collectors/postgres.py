"""Records how a PostgreSQL server and one of its databases do, from the views of its statistics."""

import contextlib
import math
import re
import socket
from typing import TYPE_CHECKING, Any

from tallymark.collectors.target import TIMEOUT_SECONDS, Reading, TargetCollector, reason_for
from tallymark.errors import ConfigError

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

UNITS = {
    "connected": "1",
    "connections_active": "1",
    "connections_idle": "1",
    "connections_total": "1",
    "connections_max": "1",
    "cache_hit_ratio": "%",
    "db_size_mb": "MiBy",
    "slow_queries_count": "1",
    "locks_waiting": "1",
    "is_standby": "1",
    "replication_lag_seconds": "s",
}
"""The unit of each name, for the metric type ``postgres``."""

SLOW_QUERY_MS = 100.0
"""A statement that takes longer than this on average is slow, unless told otherwise."""

STATEMENTS = 4
"""Each of our statements has its share of the time-out, so that one that is late takes no other with it."""

_MIB = 2**20

# Nothing outlives the transaction and nothing is prepared, so a pooler may hand out another connection each time.
# The search path keeps names and operators that somebody else made from standing in for those of the server.
_TRANSACTION = """
BEGIN READ ONLY;
SET LOCAL search_path = pg_catalog;
SET LOCAL statement_timeout = {milliseconds};
{statement};
COMMIT
"""

# Our own connection is idle but for this moment. Without pg_monitor what sessions of other roles do is not shown,
# only that they are there; then workers cannot be told from clients.
_FIGURES = """
SELECT
    sessions.total,
    sessions.hidden,
    CASE WHEN NOT sessions.hidden THEN sessions.active END AS active,
    CASE WHEN NOT sessions.hidden THEN sessions.idle END AS idle,
    current_setting('max_connections')::int AS most,
    (SELECT coalesce(100.0 * blks_hit / nullif(blks_hit + blks_read, 0), 0)::float8
     FROM pg_stat_database WHERE datname = current_database()) AS cache_hit_ratio,
    (SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted) AS locks_waiting,
    pg_is_in_recovery() AS is_standby,
    CASE
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
        ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END::float8 AS standby_lag,
    (SELECT coalesce(json_agg(json_build_object(
        'name', application_name, 'address', host(client_addr), 'state', state, 'lag_seconds',
        CASE WHEN replay_lsn >= written THEN 0 ELSE extract(epoch FROM replay_lag)::float8 END
     ) ORDER BY application_name, client_addr, pid), '[]')
     FROM pg_stat_replication,
          (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END) AS here
              (written)
    ) AS replicas
FROM (
    SELECT
        count(*) AS total,
        coalesce(bool_or(backend_type IS NULL), false) AS hidden,
        count(*) FILTER (WHERE state = 'active' AND pid <> pg_backend_pid()) AS active,
        count(*) FILTER (WHERE state = 'idle' OR pid = pg_backend_pid()) AS idle
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL)
) AS sessions
"""

_SIZE = "SELECT pg_database_size(current_database())"

_SLOW_PLACE = """
SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
WHERE extname = 'pg_stat_statements'
"""

# The function instead of the view: without the texts of the queries, which lie in a file of their own.
_SLOW = """
SELECT count(*) FROM {schema}.pg_stat_statements(false)
WHERE mean_exec_time > {milliseconds} AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_NEEDS_MONITOR = "needs the rights of pg_monitor"
_NOT_INSTALLED = "the extension pg_stat_statements is not installed in this database"


class PostgresCollector(TargetCollector):
    """Asks a PostgreSQL server (14 or newer) at an interval, in transactions that only read.

    Args:
        metrics: where to record. None: only :meth:`status` works.
        dsn: ``postgresql://user:password@host:port/database``, or ``host=… dbname=…``.
        interval_seconds: the time between two samples; the first is taken at once.
        timeout_seconds: the most that an answer may take.
        slow_query_ms: a statement that takes longer on average is slow.

    Raises:
        ValueError: a number is not a positive one.
        ConfigError: the DSN is none, or the package psycopg is not installed.

    The metric type is ``postgres``, names and units are those of :data:`UNITS`, and ``metadata`` has ``target``
    (``host:port/database``). Connections, locks and replication are those of the server; size, cache and slow queries
    those of the database. ``slow_queries_count`` is the number of slow statements in ``pg_stat_statements``. A
    primary's ``replication_lag_seconds`` is recorded for each replica (``replica`` and ``address`` in ``metadata``);
    what :meth:`status` says is the largest. It works for a role with the rights of ``pg_monitor``; with fewer rights
    some values are None, and ``missing`` says why. Poolers are fine, also those that pool transactions.
    """

    units = UNITS

    def __init__(
        self,
        metrics: "Metrics | None",
        dsn: str,
        interval_seconds: float = 5.0,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        slow_query_ms: float = SLOW_QUERY_MS,
    ) -> None:
        if not (math.isfinite(slow_query_ms) and slow_query_ms > 0):
            raise ValueError("slow_query_ms: must be a positive number")
        self._connection: Any = None
        self._wire: socket.socket | None = None
        self._psycopg = _load_psycopg()
        settings = _settings(self._psycopg, dsn)
        super().__init__(metrics, interval_seconds, timeout_seconds, "postgres", _target_of(self._psycopg, settings))
        self._settings = {
            "application_name": "tallymark",
            **settings,
            "connect_timeout": max(2, math.ceil(timeout_seconds)),  # libpq takes no less
            "tcp_user_timeout": math.ceil(timeout_seconds * 1000),  # a host that is gone says no goodbye
        }
        self._slow_query_ms = slow_query_ms

    def _read(self) -> Reading:
        reused = self._connection is not None
        if not reused:
            self._connect()
        try:
            return self._figures()
        except self._psycopg.OperationalError:
            if not (reused and self._connection.closed):
                raise
        # The server was restarted since, or somebody between has hung up.
        self._disconnect()
        self._connect()
        return self._figures()

    def _figures(self) -> Reading:
        missing: dict[str, str] = {}
        row = self._try(_FIGURES, "connections_total", missing)
        size = self._try(_SIZE, "db_size_mb", missing)
        slow = self._slow_queries(missing)
        reading: Reading = {"missing": missing, "slow_queries_count": slow, "replicas": []}
        if size is not None:
            reading["db_size_mb"] = round(size[0] / _MIB, 3)
        if row is None:
            missing |= {name: missing["connections_total"] for name in UNITS if name not in (*reading, "connected")}
            return reading
        total, hidden, active, idle, most, hit_ratio, locks, is_standby, standby_lag, replicas = row
        if hidden:
            missing |= dict.fromkeys(("connections_active", "connections_idle"), _NEEDS_MONITOR)
        lags = [replica["lag_seconds"] for replica in replicas if replica["lag_seconds"] is not None]
        lag = standby_lag if is_standby else max(lags, default=None)
        if lag is None:
            missing["replication_lag_seconds"] = _why_no_lag(is_standby, replicas)
        return reading | {
            "connections_active": active,
            "connections_idle": idle,
            "connections_total": total,
            "connections_max": most,
            "cache_hit_ratio": round(hit_ratio, 3),
            "locks_waiting": locks,
            "is_standby": is_standby,
            "replication_lag_seconds": lag,
            "replicas": replicas,
        }

    def _slow_queries(self, missing: dict[str, str]) -> int | None:
        name = "slow_queries_count"
        place = self._try(_SLOW_PLACE, name, missing)
        if place is None:
            missing.setdefault(name, _NOT_INSTALLED)
            return None
        found = self._try(_SLOW.format(schema=place[0], milliseconds=self._slow_query_ms), name, missing)
        return None if found is None else int(found[0])

    def _try(self, statement: str, name: str, missing: dict[str, str]) -> tuple[Any, ...] | None:
        """The row that a statement gives; None, and the reason under the name, where the server refuses it."""
        errors = self._psycopg.errors
        try:
            return self._row(statement)
        except errors.QueryCanceled:
            missing[name] = f"took longer than {self._statement_seconds:g} s"
        except errors.InsufficientPrivilege:
            missing[name] = _NEEDS_MONITOR
        except errors.ObjectNotInPrerequisiteState:
            missing[name] = "pg_stat_statements is not in shared_preload_libraries"
        except self._psycopg.Error as error:
            if self._connection.closed:
                raise
            missing[name] = reason_for(error)
        self._connection.execute("ROLLBACK")
        return None

    def _row(self, statement: str) -> tuple[Any, ...] | None:
        milliseconds = math.ceil(self._statement_seconds * 1000)
        cursor = self._connection.execute(_TRANSACTION.format(milliseconds=milliseconds, statement=statement))
        while cursor.description is None and cursor.nextset():
            pass
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row

    @property
    def _statement_seconds(self) -> float:
        return self._timeout / (STATEMENTS + 1)

    def _record(self, metrics: "Metrics", reading: Reading) -> None:
        replicas = reading.get("replicas")
        super()._record(metrics, {**reading, "replication_lag_seconds": None} if replicas else reading)
        for replica in replicas or ():
            if replica["lag_seconds"] is not None:
                metadata = {"target": self.target, "replica": replica["name"], "address": replica["address"]}
                metrics.record(self._kind, "replication_lag_seconds", replica["lag_seconds"], "s", metadata=metadata)

    def _connect(self) -> None:
        self._connection = self._psycopg.connect(**self._settings, autocommit=True, prepare_threshold=None)
        # A second handle, to hang up from another thread without touching what the driver is at.
        self._wire = socket.fromfd(self._connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)

    def _interrupt(self) -> None:
        wire = self._wire
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def _disconnect(self) -> None:
        connection, wire = self._forget_connection()
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()
        if wire is not None:
            wire.close()

    def _forget_connection(self) -> tuple[Any, socket.socket | None]:
        held = self._connection, self._wire
        self._connection = self._wire = None
        return held


def _why_no_lag(is_standby: bool, replicas: list[Reading]) -> str:
    if is_standby:
        return "nothing was replayed yet"
    if not replicas:
        return "there is no replica"
    return "nothing was measured yet" if any(replica["state"] for replica in replicas) else _NEEDS_MONITOR


def _settings(psycopg: Any, dsn: str) -> dict[str, Any]:
    try:
        # A password with a slash in it: what stands in front would be taken for the host and shown.
        if "@" in dsn.partition("://")[2].partition("/")[2].partition("?")[0]:
            raise ValueError
        # SQLAlchemy's way to name a driver is no part of a URL that libpq knows.
        settings: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(re.sub(r"^(postgres\w*)\+\w+://", r"\1://", dsn))
    except (psycopg.Error, ValueError, TypeError, AttributeError):
        raise ConfigError(
            "postgres: write postgresql://user:password@host:port/database, with special characters of the password "
            "percent-encoded"
        ) from None
    return settings


def _target_of(psycopg: Any, settings: dict[str, Any]) -> str:
    """``host:port/database``; the database is left out where it is that of the user's name."""
    defaults = {
        option.keyword.decode(): option.val.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.val
    }
    named = {**defaults, **settings}
    host = str(named.get("host") or named.get("hostaddr") or "localhost")
    if ":" in host and "," not in host:
        host = f"[{host}]"
    database = settings.get("dbname") or defaults.get("dbname")
    return f"{host}:{named.get('port') or 5432}" + (f"/{database}" if database else "")


def _load_psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ConfigError('The PostgreSQL collector needs psycopg: pip install "tallymark[postgres]"') from error
    return psycopg
