"""The PostgreSQL collector against real servers: its values are theirs, whatever its role may see."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from recording import eventually
from services.postgres import postgres_replica, postgres_server

from tallymark import Metrics
from tallymark.collectors.postgres import UNITS, PostgresCollector
from tallymark.collectors.target import Reading
from tallymark.errors import ConfigError

from .conftest import PATIENT, Recorded

PASSWORD = "s3cr3t-and-never-shown"

STATES = "SELECT state, count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY state"


@pytest.fixture
def admin(postgres_url: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # A session of a test that is over may take a moment to end, and would be counted.
        eventually(lambda: sum(dict(connection.execute(STATES).fetchall()).values()) == 1)
        yield connection


def read(url: str, **settings: Any) -> Reading:
    """What a collector of its own says."""
    collector = PostgresCollector(None, url, **{"timeout_seconds": PATIENT, **settings})
    try:
        return collector.status()
    finally:
        collector.stop()


def place(url: str) -> str:
    return url.partition("@")[2]


@contextmanager
def role(admin: "psycopg.Connection[Any]", url: str, name: str, *rights: str) -> Iterator[str]:
    """A role with a password and nothing but the given rights; its URL."""
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    for right in rights:
        admin.execute(f"GRANT {right} TO {name}")
    try:
        yield url.replace("tallymark@", f"{name}:{PASSWORD}@")
    finally:
        admin.execute(f"DROP ROLE {name}")


def test_connections_are_those_of_the_server(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    with ExitStack() as stack:
        for _ in range(3):  # idle
            stack.enter_context(psycopg.connect(postgres_url, autocommit=True))
        for _ in range(2):  # idle in a transaction
            stack.enter_context(psycopg.connect(postgres_url)).execute("SELECT 1")
        sleeper = stack.enter_context(psycopg.connect(postgres_url, autocommit=True))
        thread = threading.Thread(target=sleep_on, args=(sleeper,))
        thread.start()
        try:
            eventually(lambda: dict(admin.execute(STATES).fetchall()).get("active") == 2)  # this question, too
            reading = read(postgres_url)
        finally:
            sleeper.cancel()
            thread.join()
    # With this test's own connection, and with that of the collector, which is idle but for the question.
    assert reading["connections_active"] == 1
    assert reading["connections_idle"] == 3 + 1 + 1
    assert reading["connections_total"] == 3 + 2 + 1 + 1 + 1
    assert reading["connections_max"] == 40


def sleep_on(connection: "psycopg.Connection[Any]") -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(600)")


def test_size_cache_and_state_are_those_of_the_database(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    reading = read(postgres_url)
    size = admin.execute("SELECT pg_database_size(current_database())").fetchone()
    hits = admin.execute(
        "SELECT 100.0 * blks_hit / (blks_hit + blks_read) FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    assert size is not None
    assert hits is not None
    assert reading["db_size_mb"] == pytest.approx(size[0] / 2**20, rel=0.05)
    assert reading["cache_hit_ratio"] == pytest.approx(float(hits[0]), abs=2)
    assert reading["is_standby"] is False
    assert reading["connected"] is True
    assert reading["reason"] is None
    assert reading["target"] == place(postgres_url)
    assert reading["replication_lag_seconds"] is None
    assert reading["missing"]["replication_lag_seconds"] == "there is no replica"


def test_slow_statements_are_counted(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    reading = read(postgres_url)
    assert reading["slow_queries_count"] is None
    assert "is not installed" in reading["missing"]["slow_queries_count"]
    # As some hosters do, in a schema of its own, with a name that needs quotes.
    admin.execute('CREATE SCHEMA "odd ""schema"')
    admin.execute('CREATE EXTENSION pg_stat_statements SCHEMA "odd ""schema"')
    try:
        admin.execute('SELECT "odd ""schema".pg_stat_statements_reset()')
        admin.execute("SELECT pg_sleep(0.02)")
        assert read(postgres_url, slow_query_ms=60_000)["slow_queries_count"] == 0
        # One hundred milliseconds is meant, so a slow machine has to sleep little longer than that.
        admin.execute("SELECT pg_sleep(0.11), 'slow'")
        assert read(postgres_url)["slow_queries_count"] >= 1
        with psycopg.connect(postgres_url.replace("/postgres", "/template1")) as other:
            other.execute("SELECT pg_sleep(0.11), 'slow', 'of another database'")

        def counted() -> int:
            count = admin.execute(
                'SELECT count(*) FROM "odd ""schema".pg_stat_statements WHERE mean_exec_time > 100 AND dbid = '
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            ).fetchone()
            assert count is not None
            return int(count[0])

        # On a busy machine any other statement, this one too, may take a tenth of a second between the two.
        eventually(lambda: read(postgres_url)["slow_queries_count"] == counted())
    finally:
        admin.execute("DROP EXTENSION pg_stat_statements")


def test_statements_that_are_not_counted() -> None:
    with postgres_server() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        reading = read(url)
    assert reading["slow_queries_count"] is None
    assert "shared_preload_libraries" in reading["missing"]["slow_queries_count"]
    assert reading["connections_total"] >= 1


def test_waiting_locks_are_counted(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS locked (id int)")
    assert read(postgres_url)["locks_waiting"] == 0
    with psycopg.connect(postgres_url) as holder, psycopg.connect(postgres_url) as waiter:
        holder.execute("LOCK TABLE locked")
        thread = threading.Thread(target=waiter.execute, args=("LOCK TABLE locked",))
        thread.start()
        try:
            eventually(lambda: read(postgres_url)["locks_waiting"] == 1)
        finally:
            holder.rollback()
            thread.join()
    assert read(postgres_url)["locks_waiting"] == 0


def test_a_role_with_pg_monitor_sees_everything(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    admin.execute("CREATE EXTENSION pg_stat_statements")
    try:
        with role(admin, postgres_url, "watcher", "pg_monitor") as url:
            reading = read(url)
    finally:
        admin.execute("DROP EXTENSION pg_stat_statements")
    assert reading["missing"] == {"replication_lag_seconds": "there is no replica"}
    assert reading["connections_active"] == 0
    assert reading["connections_idle"] == 2
    assert reading["slow_queries_count"] is not None


def test_a_role_with_nothing_sees_what_everybody_may(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    admin.execute("CREATE SCHEMA IF NOT EXISTS closed")
    admin.execute("CREATE EXTENSION pg_stat_statements SCHEMA closed")
    try:
        with role(admin, postgres_url, "nobody_special") as url:
            reading = read(url)
    finally:
        admin.execute("DROP EXTENSION pg_stat_statements")
    assert reading["connected"] is True
    for name in ("connections_active", "connections_idle", "slow_queries_count"):
        assert reading[name] is None
        assert reading["missing"][name] == "needs the rights of pg_monitor"
    assert reading["connections_total"] >= 2
    assert reading["connections_max"] == 40
    assert reading["db_size_mb"] > 1
    assert reading["locks_waiting"] == 0
    assert reading["is_standby"] is False


def test_a_sample_is_recorded(shop: Metrics, recorded: Recorded, postgres_url: str) -> None:
    collector = PostgresCollector(shop, postgres_url, timeout_seconds=PATIENT)
    reading = collector.collect_once()
    collector.stop()
    records = recorded("postgres")
    given = {name: float(reading[name]) for name in UNITS if reading[name] is not None}
    assert {record.name: record.value for record in records} == given
    assert given.keys() == UNITS.keys() - {"slow_queries_count", "replication_lag_seconds"}
    assert all(record.unit == UNITS[record.name] for record in records)
    assert all(record.metadata == {"target": place(postgres_url)} for record in records)


def test_the_lag_of_a_replica(shop: Metrics, recorded: Recorded) -> None:
    with postgres_server() as primary, postgres_replica(primary) as standby:
        with psycopg.connect(primary, autocommit=True) as writer, psycopg.connect(standby, autocommit=True) as replay:
            writer.execute("CREATE TABLE copied (id int)")
            eventually(lambda: replay.execute("SELECT to_regclass('copied')").fetchone() != (None,))
            # In step: nothing is late, however long ago the last transaction was.
            eventually(lambda: read(primary)["replication_lag_seconds"] == 0)
            eventually(lambda: read(standby)["replication_lag_seconds"] == 0)
            replay.execute("SELECT pg_wal_replay_pause()")

            def behind(url: str) -> float:
                writer.execute("INSERT INTO copied VALUES (1)")
                return read(url)["replication_lag_seconds"] or 0.0

            eventually(lambda: behind(standby) > 0.2)
            eventually(lambda: behind(primary) > 0.2)
            collector = PostgresCollector(shop, primary, timeout_seconds=PATIENT)
            (replica,) = collector.collect_once()["replicas"]
            collector.stop()
            replay.execute("SELECT pg_wal_replay_resume()")
            eventually(lambda: read(standby)["replication_lag_seconds"] == 0)
            eventually(lambda: read(primary)["replication_lag_seconds"] == 0)
            with role(writer, primary, "nobody_special") as url:
                blind = read(url)
        assert read(standby)["is_standby"] is True
    assert replica.pop("lag_seconds") > 0.2
    assert replica == {"name": "walreceiver", "address": "127.0.0.1", "state": "streaming"}
    (record,) = [record for record in recorded("postgres") if record.name == "replication_lag_seconds"]
    assert record.value > 0.2
    assert record.unit == "s"
    assert record.metadata == {"target": place(primary), "replica": "walreceiver", "address": "127.0.0.1"}
    assert blind["replication_lag_seconds"] is None
    assert blind["missing"]["replication_lag_seconds"] == "needs the rights of pg_monitor"


def test_a_statement_that_takes_too_long_takes_no_other_with_it(
    postgres_url: str, admin: "psycopg.Connection[Any]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallymark.collectors.postgres._SIZE", "SELECT 1 FROM pg_sleep(60)")
    reading = read(postgres_url, timeout_seconds=5)
    assert reading["db_size_mb"] is None
    assert reading["missing"]["db_size_mb"] == "took longer than 1 s"
    assert reading["connections_max"] == 40


def test_names_in_the_way_are_not_used(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    # Whoever may create in a schema that is searched first could otherwise say what the figures are.
    admin.execute("CREATE SCHEMA trap")
    admin.execute("CREATE VIEW trap.pg_locks AS SELECT 666 AS pid, false AS granted")
    admin.execute("CREATE FUNCTION trap.pg_database_size(name) RETURNS bigint LANGUAGE sql AS 'SELECT 666'")
    with role(admin, postgres_url, "trapped", "pg_monitor") as url:
        admin.execute("ALTER ROLE trapped SET search_path = trap, pg_catalog")
        admin.execute("GRANT USAGE ON SCHEMA trap TO trapped")
        try:
            reading = read(url)
        finally:
            admin.execute("DROP SCHEMA trap CASCADE")
    assert reading["locks_waiting"] == 0
    assert reading["db_size_mb"] > 1


def test_nothing_outlives_a_transaction(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    """What a pooler needs that hands out another connection each time."""
    collector = PostgresCollector(None, postgres_url, timeout_seconds=PATIENT)
    for _ in range(10):
        collector.ask(0.0).result(30)
    connection = collector._connection
    assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)
    collector.stop()


def test_what_it_does_is_read_only(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallymark.collectors.postgres._SIZE", "CREATE TABLE written (id int)")
    reading = read(postgres_url)
    assert reading["db_size_mb"] is None
    assert "ReadOnlySqlTransaction" in reading["missing"]["db_size_mb"]


def test_a_server_that_crashes_comes_back_and_ends(shop: Metrics, recorded: Recorded) -> None:
    def states() -> list[float]:
        return [record.value for record in recorded("postgres") if record.name == "connected"]

    with postgres_server() as url, PostgresCollector(shop, url, 0.05, timeout_seconds=10):
        eventually(lambda: states()[-1:] == [1.0])
        with psycopg.connect(url) as connection:
            # It takes every session with it, ours too, and the server starts again.
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            connection.close()
        count = len(states())
        eventually(lambda: len(states()) > count + 3 and states()[-1:] == [1.0])
    collector = PostgresCollector(None, url, timeout_seconds=PATIENT)
    assert collector.status()["reason"] == "connection refused"
    collector.stop()


def test_a_session_that_was_ended_is_made_again_at_once(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    collector = PostgresCollector(None, postgres_url, timeout_seconds=PATIENT)
    assert collector.status()["connected"]
    ended = admin.execute(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'tallymark'"
    ).fetchone()
    assert ended == (1,)
    # It is not the server that is away.
    assert collector.ask(0.0).result(30)["connected"] is True
    collector.stop()


def test_a_server_that_freezes_and_goes_on() -> None:
    with postgres_server() as url:
        collector = PostgresCollector(None, url, timeout_seconds=0.5)
        eventually(lambda: collector.status()["connected"] is True)
        process = collector._connection.info.backend_pid
        os.kill(process, signal.SIGSTOP)
        try:
            eventually(lambda: collector.status()["reason"] == "no answer within 0.5 s")
            # The frozen session is left behind, and another one made.
            eventually(lambda: collector.status()["connected"] is True)
        finally:
            os.kill(process, signal.SIGCONT)
        collector.stop()


def test_a_server_that_never_answers_costs_the_time_out(silent_port: int) -> None:
    collector = PostgresCollector(None, f"postgresql://u:{PASSWORD}@127.0.0.1:{silent_port}/d", timeout_seconds=0.3)
    reading = collector.status()
    assert reading["connected"] is False
    assert reading["reason"] == "no answer within 0.3 s"  # libpq itself would take two seconds
    assert collector.status() == reading  # at once: it is still the same question
    collector.stop()
    eventually(lambda: not [each for each in threading.enumerate() if each.name == "tallymark-postgres-ask"])


def test_stop_closes_the_connection(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    def ours() -> int:
        row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallymark'").fetchone()
        assert row is not None
        return int(row[0])

    with PostgresCollector(None, postgres_url, timeout_seconds=PATIENT) as collector:
        eventually(lambda: collector.status()["connected"] is True)
        for _ in range(3):
            collector.ask(0.0).result(30)
        assert ours() == 1
    eventually(lambda: ours() == 0)


def test_one_that_is_forgotten_closes_its_connection(postgres_url: str, admin: "psycopg.Connection[Any]") -> None:
    collector = PostgresCollector(None, postgres_url, timeout_seconds=PATIENT)
    assert collector.status()["connected"] is True
    del collector
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tallymark'"
    eventually(lambda: admin.execute(sessions).fetchone() == (0,))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (("tallymark@", f"watcher:{PASSWORD}-not@"), "authentication failed"),
        (("/postgres", "/nowhere"), "no such database or role"),
    ],
)
def test_what_is_wrong_is_named(
    postgres_url: str, admin: "psycopg.Connection[Any]", caplog: Any, capfd: Any, wrong: tuple[str, str], reason: str
) -> None:
    caplog.set_level("DEBUG")
    with role(admin, postgres_url, "watcher"):
        collector = PostgresCollector(None, postgres_url.replace(*wrong), timeout_seconds=PATIENT)
        reading = collector.status()
    collector.stop()
    assert reading["connected"] is False
    assert reading["reason"] == reason
    assert {reading[name] for name in UNITS if name != "connected"} == {None}
    shown = f"{json.dumps(reading)}{collector!r}{collector.target}{caplog.text}{capfd.readouterr()}"
    assert PASSWORD not in shown
    assert "watcher" not in shown


@pytest.mark.parametrize(
    "dsn",
    [f"postgresql://u:{PASSWORD}@host:port?x=%zz", f"password={PASSWORD} nonsense", f"mysql://u:{PASSWORD}@host/d"],
)
def test_a_dsn_that_is_none(dsn: str) -> None:
    with pytest.raises(ConfigError, match="postgres: write postgresql://") as refused:
        PostgresCollector(None, dsn)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("dsn", "target"),
    [
        (f"postgresql://user:{PASSWORD}@db.internal:6543/shop", "db.internal:6543/shop"),
        (f"postgresql+asyncpg://user:{PASSWORD}@db.internal/shop", "db.internal:5432/shop"),
        (f"host=db.internal user=user password={PASSWORD} dbname=shop", "db.internal:5432/shop"),
        (f"postgres://user:{PASSWORD}@[::1]/shop?sslmode=disable", "[::1]:5432/shop"),
        (f"postgresql://user:{PASSWORD}@/shop?host=/run/postgresql", "/run/postgresql:5432/shop"),
        (f"postgresql://user:{PASSWORD}@db.internal", "db.internal:5432"),
    ],
)
def test_the_target_is_named_without_user_and_password(monkeypatch: pytest.MonkeyPatch, dsn: str, target: str) -> None:
    for variable in ("PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(variable, raising=False)
    assert PostgresCollector(None, dsn).target == target


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf")])
def test_numbers_that_are_none(number: float) -> None:
    for field in ("interval_seconds", "timeout_seconds", "slow_query_ms"):
        with pytest.raises(ValueError, match=field):
            PostgresCollector(None, "postgresql://localhost", **{field: number})


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_asks_over_a_connection_of_its_own(postgres_url: str) -> None:
    collector = PostgresCollector(None, postgres_url, timeout_seconds=PATIENT)
    assert collector.status()["connected"]
    session = collector._connection.info.backend_pid
    with collector._lock:  # as if the fork had come while a thread was asking
        child = os.fork()
        if child == 0:
            good = collector.status()["connected"] and collector._connection.info.backend_pid != session
            collector.stop()
            os._exit(0 if good else 1)
        stopping = os.fork()
        if stopping == 0:
            collector.stop()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(stopping, 0)[1]) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert collector.ask(0.0).result(30)["connected"] is True
    assert collector._connection.info.backend_pid == session
    collector.stop()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r'pip install "tallymark\[postgres\]"'):
        PostgresCollector(None, "postgresql://localhost")
