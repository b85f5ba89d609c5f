"""ClickHouse, by its engine in this process."""

import itertools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from recording import eventually
from services import free_port

import tallymark
from stores.clickhouse_http import PASSWORD, Server
from stores.clickhouse_stores import Databases, Failing, days, name_of, seqs
from tallymark import Metrics
from tallymark.batch import CLOSED
from tallymark.errors import ConfigError, StoreError
from tallymark.query import Query
from tallymark.stores.clickhouse.address import Address
from tallymark.stores.clickhouse.store import ClickHouse
from tallymark.stores.clickhouse.tables import INCOMING, RECORDS, VERSION, Tables
from tallymark.testing.conformance import NewStore, StoreConformance
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

SECRET = "p@ss/w:rd"


class TestContract(StoreConformance):
    """What every store does."""

    @pytest.fixture
    def new_store(self, databases: Databases) -> NewStore:
        return databases.store


# -- the schema ----------------------------------------------------------------------------------------------

_SHAPE = (
    "SELECT table, name, type, default_kind, default_expression, compression_codec FROM system.columns"
    " WHERE database = currentDatabase() ORDER BY table, name"
)


def test_an_upgraded_schema_is_that_of_a_new_one(databases: Databases) -> None:
    fresh, old = databases.store(), databases.store()
    fresh.write(batch([row(0)]))
    steps = Tables().steps()
    assert len(steps) == VERSION
    for statement in [Tables().versions(), *steps[0]]:
        old._command(statement)
    old._insert("tallymark_schema", pa.table({"version": [1]}), {})
    with databases.store(name_of(old)) as reader:
        assert reader.info().stored == 0  # reading takes an old schema as it is
        assert reader.aggregate(Query.build()).num_rows == 0
    old.write(batch([row(0)]))
    assert old._query(_SHAPE).to_pylist() == fresh._query(_SHAPE).to_pylist()
    assert old._reached() == VERSION


def test_an_older_application_writes_into_a_newer_schema(databases: Databases) -> None:
    store = databases.store()
    store.write(batch([row(0)]))
    store._command(f"ALTER TABLE {RECORDS} ADD COLUMN later Nullable(String)")
    store._insert("tallymark_schema", pa.table({"version": [VERSION + 1]}), {})
    with databases.store(name_of(store)) as again:
        again.write(batch([row(1)]))
        assert (seqs(again), again._reached()) == ([0, 1], VERSION + 1)


def test_people_see_the_time_as_a_time(databases: Databases) -> None:
    store = databases.store()
    store.write(batch([row(7)]))
    (found,) = store._query(f"SELECT toString(time) AS time FROM {RECORDS}").to_pylist()
    assert found == {"time": "2025-01-31 12:00:00.000000007"}


def test_a_limit_that_the_server_keeps_may_be_set_and_lifted(databases: Databases) -> None:
    database = databases.new()
    own = row(9, service="tallymark", metric_type="tallymark", name="dropped", value=2.0, unit="1")
    own["metadata"] = json.dumps({"reason": "full"})

    def shape(options: str) -> str:
        client = databases.client(database)
        with ClickHouse(f"clickhouse://host/{database}{options}", client=client) as store:
            store.write(batch([row(time.time_ns() % 2**30)]))
            sql = f"SELECT engine_full FROM system.tables WHERE name = '{RECORDS}' AND database = currentDatabase()"
            return str(store._query(sql).to_pylist()[0]["engine_full"])

    assert "TTL" not in shape("")
    assert "toIntervalDay(10000)" in shape("?ttl_days=10000")
    assert "toIntervalDay(10000)" in shape("")
    assert "toIntervalDay(100)" in shape("?ttl_days=100")
    store = databases.store(database)
    store.write(batch([own | {"journal": JOURNALS[1]}, row(1, journal=JOURNALS[1], timestamp=time.time_ns())]))
    store._command(f"OPTIMIZE TABLE {RECORDS} FINAL")
    assert (count(store), store.info().dropped) == (1, {"full": 2})  # what is about the store itself stays
    assert "TTL" not in shape("?ttl_days=0")


CLUSTER = Tables("it's a `cluster`")


def test_statements_for_a_cluster_are_understood(databases: Databases) -> None:
    """By the parser; a cluster needs servers and Keeper, which are not here."""
    statements = [CLUSTER.versions(), *itertools.chain(*CLUSTER.steps()), CLUSTER.ttl(7), CLUSTER.ttl(0)]
    client = databases.client(databases.new())
    for statement in statements:
        assert client.query("SELECT formatQuery({sql:String})", parameters={"sql": statement}).result_rows
        assert " ON CLUSTER `it's a \\`cluster\\``" in statement
    text = "\n".join(statements)
    assert "ReplicatedMergeTree('/clickhouse/tallymark/{database}/{table}/{shard}', '{replica}')" in text
    assert "ReplicatedReplacingMergeTree('/clickhouse/tallymark/{database}/{table}', '{shard}-{replica}', po" in text
    assert (
        "ENGINE = Distributed('it\\'s a `cluster`', currentDatabase(), 'tallymark_records_local',"
        " cityHash64(service, metric_type, name))"
    ) in text
    assert "TO tallymark_records AS" in text


def test_what_a_store_says_to_a_cluster_is_understood(databases: Databases) -> None:
    """Everything but the clauses that need one is run by the engine."""
    database = databases.new()
    client = databases.client(database)
    for statement in [Tables().versions(), *itertools.chain(*Tables().steps())]:
        client.command(statement)
    client.command(f"CREATE VIEW {RECORDS}_local AS SELECT * FROM {RECORDS}")
    client.command(f"INSERT INTO tallymark_schema (version) VALUES ({VERSION})")
    said: list[str] = []

    def alone(_number: int, about: str, send: Callable[[], Any]) -> Any:
        assert client.query("SELECT formatQuery({sql:String})", parameters={"sql": about}).result_rows or True
        if "CLUSTER `many`" in about or "SYSTEM SYNC" in about or "clusterAllReplicas" in about:
            said.append(about)
            return None if not about.startswith("SELECT") else pa.table({"n": [0]})
        return send()

    class Parsed(Failing):
        def insert_arrow(self, table: str, rows: Any, **options: Any) -> Any:
            given = {name: value for name, value in options["settings"].items() if "quorum" not in name}
            return client.insert_arrow(table, rows, settings=given)

    store = ClickHouse(f"clickhouse://host/{database}?cluster=many", client=Parsed(client, alone))  # type: ignore[arg-type]
    store.write(batch(days(0, 9)))
    assert seqs(store) == list(range(9))
    store.delete(Query.build(agg=(), session_id="s"))
    store.delete(Query.build(agg=(), until=NOON + DAY))
    store.purge(NOON)
    for part in ("SYSTEM SYNC REPLICA tallymark_positions", "DELETE FROM tallymark_records_local ON CLUSTER `many`"):
        assert any(part in one for one in said), part


def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    place = f"clickhouse://somebody:hunter2@127.0.0.1:{free_port()}"
    with pytest.raises(StoreError) as raised, ClickHouse(place) as store:
        store.info()
    assert str(raised.value).endswith(": Connection refused")
    assert "hunter2" not in caplog.text


# -- deletion ------------------------------------------------------------------------------------------------


def test_what_was_purged_is_on_no_disk(databases: Databases) -> None:
    store = databases.store()
    secret = "Zk7-very-unusual-subject-Qx"
    store.write(batch([row(seq, session_id=f"{secret}-{seq}" if seq == 3 else None) for seq in range(6)]))
    assert store.delete(Query.build(agg=(), session_id=f"{secret}-3")) == 1
    assert store.purge(NOON) == []
    (found,) = store._query(
        "SELECT count() AS n, sum(rows) AS rows, countIf(active) AS active FROM system.parts"
        f" WHERE database = currentDatabase() AND table = '{RECORDS}'"
    ).to_pylist()
    assert found == {"n": 1, "rows": 5, "active": 1}
    files = [path for path in Path(databases.path).rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    mutations = store._query("SELECT command FROM system.mutations WHERE database = currentDatabase()")
    assert secret not in str(mutations.to_pylist())


def test_many_positions_are_tidied_up(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallymark.stores.clickhouse.store.MANY_POSITIONS", 10)
    store = databases.store()
    for seq in range(8):
        store.write(batch([row(seq), row(seq, journal=JOURNALS[1])], **{JOURNALS[1]: seq + 1 if seq < 7 else CLOSED}))
    store._note([(JOURNALS[0], "announced", 0, 9)])
    store.maintain(NOON, None)
    assert store._query("SELECT count() AS n FROM tallymark_positions FINAL").to_pylist() == [{"n": 3}]
    assert store.positions(JOURNALS) == {JOURNALS[0]: 8, JOURNALS[1]: CLOSED}
    assert store._ledger(JOURNALS)[1] == [(JOURNALS[0], "announced", 9)]
    store.write(batch([row(8)]))
    assert seqs(store) == sorted([*range(9), *range(8)])


# -- metadata ------------------------------------------------------------------------------------------------

METADATA = [
    ('{"a":1.0}', "a", "1.0"),
    ('{"a":1e3}', "a", "1e3"),
    ('{"a":1.50,"b":{"a":2}}', "a", "1.50"),
    ('{"b":{"a":2.50},"a":1.0}', "a", "1.0"),
    ('{"b":{"a":2.50},"a":1.0}', "b.a", "2.50"),
    ('{"a":{"#":"#1","1#":-0.0}}', "a", '{"#":"#1","1#":-0.0}'),
    ('{"a":["a/b","\\\\\\"#2\\"","~t~s"]}', "a", '["a/b","\\\\\\"#2\\"","~t~s"]'),
    ('{"a":["#1.0","#"]}', "a.0", "#1.0"),
    ('{"a":["x",{"0":2.0}]}', "a.1.0", "2.0"),
    ('{"a":{"0":"named"}}', "a.0", "named"),
    ('{"a":[null]}', "a.0", None),
    ('{"a":[1]}', "a.1", None),
    ('{"a":18446744073709551615}', "a", "18446744073709551615"),
    ('{"a":12345678901234567890123}', "a", "12345678901234567890123"),
    ('{"a":"\\ud83e\\uddfe\\u0007"}', "a", "🧾\x07"),
    ('{"a":"\u2028/"}', "a", "\u2028/"),
    ('{"a":{"b":"\u2028/"}}', "a", '{"b":"\u2028/"}'),
    ('{"a":{}}', "a", "{}"),
    ('{"a":null}', "a", None),
    ('{"a":false}', "a", "false"),
    ('{"a.b":7.0}', '"a.b"', "7.0"),
    ('{"":7.0}', '""', "7.0"),
    ('{"\\"":7.0}', '"\\""', "7.0"),
    ('{"a~":7.0}', "a~", "7.0"),
    ('{"x":"\\"a\\":5","a":7.0}', "a", "7.0"),
    ("{}", "a", None),
]


def test_metadata_values_keep_their_spelling(databases: Databases) -> None:
    """ClickHouse's own functions would write 1.0 as 1, 1e3 as 1000, and / as \\/."""
    store = databases.store()
    rows = [row(seq, name=f"n{seq}") | {"metadata": text} for seq, (text, _, _) in enumerate(METADATA)]
    store.write(batch(rows))
    for seq, (text, path, expected) in enumerate(METADATA):
        query = Query.build(group_by=f"metadata.{path}", name=f"n{seq}")
        (found,) = store.aggregate(query).to_pylist()
        assert found[f"metadata.{path}"] == expected, text


# -- addresses, and servers that do not answer ---------------------------------------------------------------


def test_a_url_is_understood() -> None:
    url = "clickhouse://me:p%40ss@db.example:9999/shop?secure=1&cluster=main&ttl_days=400&timeout=5"
    expected = Address("db.example", 9999, "shop", "me", "p@ss", True, "main", 400, 5)
    assert Address.parse(url) == expected
    plain = Address.parse("clickhouse://db.example")
    assert plain == Address("db.example", 8123, "default", "default", "", False, None, None, 30)
    assert Address.parse("clickhouse://db.example?secure=true").port == 8443


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("secure=yes", "secure"),
        ("ttl_days=-1", "ttl_days"),
        ("ttl_days=²", "ttl_days"),
        ("timeout=0", "timeout"),
        ("timeout=1e3", "timeout"),
        ("pasword=secret", "no option 'pasword'"),
        ("secure", "not a URL of ClickHouse"),
    ],
)
def test_a_url_that_is_wrong_says_so(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ClickHouse(f"clickhouse://me:{SECRET[:4]}word@db.example/shop?{options}")
    assert SECRET[:4] not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away_is_an_error_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    store = ClickHouse(f"clickhouse://me:verysecret@127.0.0.1:{port}/shop")
    for ask in (lambda: store.write(batch([row(0)])), store.info, lambda: store.scan(Query())):
        with pytest.raises(StoreError, match=rf"clickhouse://me:\*\*\*@127.0.0.1:{port}/shop") as caught:
            ask()
        assert "verysecret" not in str(caught.value)


def test_a_server_that_hangs_is_an_error_in_time() -> None:
    """It takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ClickHouse(f"clickhouse://127.0.0.1:{silent.getsockname()[1]}/shop?timeout=1")
        started = time.monotonic()
        with pytest.raises(StoreError, match="cannot write to"):
            store.write(batch([row(0)]))
        assert time.monotonic() - started < 30  # ten times what it may take
    store.close()
    store.close()


# -- over HTTP -----------------------------------------------------------------------------------------------


def test_the_client_of_a_server_speaks_http(databases: Databases) -> None:
    server = Server(databases.path)
    try:
        with databases.over(server) as store:
            assert store.info().stored == 0
            hostile = "'; \\ \n\t{p0:String} 🧾 %s &=+"
            store.write(batch([row(seq, session_id=hostile if seq % 2 else None, success=True) for seq in range(50)]))
            assert seqs(store) == list(range(50))
            assert count(store, session_id=hostile) == 25
            assert count(store, where={"name": ["checkout", "x" * 16_000, *map(str, range(900))]}) == 50
            found = store.aggregate(Query.build(window="1h", group_by="success", agg=["p50", "last"])).to_pylist()
            assert [(one["success"], one["p50"], one["last"]) for one in found] == [(True, 1.0, 1.0)]
            assert store.delete(Query.build(agg=(), session_id=hostile)) == 25
            assert (store.info().stored, store.info().deleted) == (25, 25)
        assert not any(PASSWORD in statement for statement in server.statements)
    finally:
        server.close()


def test_an_answer_that_is_lost_on_its_way_doubles_nothing(databases: Databases) -> None:
    """The server has done it, and the connection ends before it says so. The driver itself sends an insert again then:
    the server knows it by its token.
    """
    rows, positions = INCOMING, "tallymark_positions"
    losing = [rows, positions, *[rows] * 4, *[positions] * 5]

    def lose(statement: str) -> bool:
        found = next((one for one in losing if statement.startswith("INSERT") and one in statement), None)
        if found is not None:
            losing.remove(found)
        return found is not None

    server, failures = Server(databases.path, lose), []
    try:
        with databases.over(server) as store:
            for end in range(10, 22):
                try:
                    store.write(batch(days(0, end)))
                    assert seqs(store) == list(range(end))
                except StoreError as error:
                    failures.append(str(error))
            assert losing == []
            assert failures
            assert PASSWORD not in str(failures)
            store.write(batch(days(0, 25)))
            assert seqs(store) == list(range(25))
            assert store.positions(JOURNALS) == {JOURNALS[0]: 25}
    finally:
        server.close()


def test_an_application_records_into_clickhouse(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the URL is different: its journals are shipped by a process of their own, and by who asks."""
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path))
    server = Server(databases.path)
    try:
        with databases.over(server) as store:
            url = f"{server.url}/{name_of(store)}"
        metrics = Metrics(url, service="shop")
        metrics.start()
        for number in range(100):
            metrics.record_operation("api_request", "GET /", float(number), metadata={"ratio": 1.0})
        with tallymark.open(url) as reader:
            found = reader.query(group_by="metadata.ratio", agg=["count", "p50"]).rows()
            assert found == [{"metadata.ratio": "1.0", "count": 100, "p50": 49.5}]
            metrics.record_operation("api_request", "GET /", 1.0)
            metrics.stop()
            eventually(lambda: reader.info().stored == 101)
            assert PASSWORD not in reader.info().url
    finally:
        server.close()
