"""The Redis collector against real servers: its values are theirs, and nothing that they do breaks it."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from recording import eventually
from services import find_program
from services.redis import redis_server

from tallymark import Metrics
from tallymark.collectors.redis import UNITS, RedisCollector, figures
from tallymark.errors import ConfigError

from .conftest import PATIENT, Recorded

PASSWORD = "s3cr3t-and-never-shown"

Client = Any


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.config_resetstat()
        yield client
        client.config_set("maxmemory", 0)


def place(url: str) -> str:
    return url.removeprefix("redis://")


def test_the_values_are_those_of_the_server(redis_url: str, client: Client) -> None:
    client.config_set("maxmemory", 64 * 2**20)
    client.mset({f"key-{number}": number for number in range(30)})
    with redis.Redis.from_url(redis_url, db=3) as other:
        other.set("elsewhere", 1)
    for number in range(40):
        client.get(f"key-{number}")
    collector = RedisCollector(None, redis_url, timeout_seconds=PATIENT)
    reading = collector.status()
    collector.stop()
    info = client.info()
    assert reading["connected"] is True
    assert reading["memory_used_mb"] == pytest.approx(info["used_memory"] / 2**20, rel=0.2)
    assert reading["memory_max_mb"] == 64
    assert reading["memory_unlimited"] is False
    assert reading["memory_percent"] == pytest.approx(100 * reading["memory_used_mb"] / 64, abs=0.01)
    assert reading["keys_total"] == 31
    assert reading["hit_rate"] == 75
    assert reading["evicted_keys"] == 0
    assert reading["connected_clients"] >= 2
    assert reading["target"] == place(redis_url)
    assert reading["reason"] is None
    assert reading["missing"] == {}


def test_without_a_limit_the_memory_of_the_machine_is_it(redis_url: str, client: Client) -> None:
    collector = RedisCollector(None, redis_url, timeout_seconds=PATIENT)
    reading = collector.status()
    collector.stop()
    assert reading["memory_unlimited"] is True
    assert reading["memory_max_mb"] == pytest.approx(client.info()["total_system_memory"] / 2**20, rel=1e-3)
    assert 0 < reading["memory_percent"] < 100
    assert reading["hit_rate"] == 0.0  # nothing was looked up
    assert reading["keys_total"] == 0


def test_evictions_are_counted(client: Client, redis_url: str) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info()["used_memory"] + 2**20)
    for number in range(300):
        client.set(f"big-{number}", b"x" * 10_000)
    collector = RedisCollector(None, redis_url, timeout_seconds=PATIENT)
    reading = collector.status()
    collector.stop()
    assert reading["evicted_keys"] == client.info()["evicted_keys"] > 0
    assert reading["keys_total"] == client.dbsize() < 300


def test_a_sample_is_recorded(shop: Metrics, recorded: Recorded, redis_url: str) -> None:
    collector = RedisCollector(shop, redis_url, timeout_seconds=PATIENT)
    reading = collector.collect_once()
    collector.stop()
    records = recorded("redis")
    assert {record.name: record.value for record in records} == {name: float(reading[name]) for name in UNITS}
    assert {record.name: record.unit for record in records} == UNITS
    assert all(record.metadata == {"target": place(redis_url)} for record in records)
    assert {record.service for record in records} == {"shop"}


def test_status_records_nothing_and_needs_no_recorder(shop: Metrics, recorded: Recorded, redis_url: str) -> None:
    collector = RedisCollector(shop, redis_url, timeout_seconds=PATIENT)
    collector.status()
    collector.stop()
    assert recorded("redis") == []
    alone = RedisCollector(None, redis_url)
    with pytest.raises(RuntimeError, match="no recorder"):
        alone.collect_once()


def test_only_whether_it_is_there_is_recorded_of_a_server_that_is_away(
    shop: Metrics, recorded: Recorded, unreachable_port: int
) -> None:
    collector = RedisCollector(shop, f"redis://127.0.0.1:{unreachable_port}/2", timeout_seconds=PATIENT)
    reading = collector.collect_once()
    assert reading["connected"] is False
    assert reading["reason"] == "connection refused"
    assert {reading[name] for name in UNITS if name != "connected"} == {None}
    assert [(record.name, record.value) for record in recorded("redis")] == [("connected", 0.0)]


@pytest.mark.parametrize("database", [0, 5])
def test_a_server_that_never_answers_costs_the_time_out(silent_port: int, database: int) -> None:
    collector = RedisCollector(None, f"redis://127.0.0.1:{silent_port}/{database}", timeout_seconds=0.3)
    reading = collector.status()
    assert reading["connected"] is False
    assert reading["reason"] in ("no answer in time", "no answer within 0.3 s")
    collector.stop()
    eventually(lambda: not asking())


def test_a_server_that_answers_a_byte_at_a_time_costs_the_time_out() -> None:
    # Each byte is in time by itself.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def drip() -> None:
            peer = listener.accept()[0]
            with peer:
                while not over.wait(0.05):
                    try:
                        peer.sendall(b"$")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            collector = RedisCollector(None, f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout_seconds=0.3)
            assert collector.status()["reason"] == "no answer within 0.3 s"
            collector.stop()
            eventually(lambda: not asking())
        finally:
            over.set()
            thread.join()


def asking() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tallymark-redis-ask"]


def test_a_name_that_nobody_knows() -> None:
    collector = RedisCollector(None, "redis://nowhere.invalid:6379")
    reading = collector.status()
    assert reading["connected"] is False
    assert reading["target"] == "nowhere.invalid:6379/0"
    collector.stop()


def test_a_server_that_freezes_and_goes_on(redis_url: str) -> None:
    with redis_server() as url:
        collector = RedisCollector(None, url, timeout_seconds=0.5)
        eventually(lambda: collector.status()["connected"] is True)  # half a second may be little for a busy machine
        with redis.Redis.from_url(url) as client:
            process = client.info()["process_id"]
        os.kill(process, signal.SIGSTOP)
        try:
            eventually(lambda: collector.status()["connected"] is False)
        finally:
            os.kill(process, signal.SIGCONT)
        eventually(lambda: collector.status()["connected"] is True)
        collector.stop()


def test_a_server_that_is_killed_and_comes_back(
    shop: Metrics, recorded: Recorded, tmp_path: Path, unreachable_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    port = str(unreachable_port)  # until the server is there
    command = [
        find_program("redis-server"),
        "--port",
        port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    caplog.set_level(logging.INFO, logger="tallymark.collectors")

    def states() -> list[float]:
        return [record.value for record in recorded("redis") if record.name == "connected"]

    with RedisCollector(shop, f"redis://127.0.0.1:{port}/0", interval_seconds=0.05, timeout_seconds=10):
        for _ in range(2):
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                eventually(lambda: states()[-1:] == [1.0])
            finally:
                server.kill()
                server.wait()
            eventually(lambda: states()[-1:] == [0.0])
    messages = [record.getMessage() for record in caplog.records]
    target = f"127.0.0.1:{port}/0"
    # Said when it changes, not at each sample.
    assert messages.count(f"The redis collector has reached {target} again") >= 1
    assert len(messages) <= 5


def test_a_hundred_who_look_at_once_are_one_question(redis_url: str, client: Client) -> None:
    def asked() -> int:
        return int(client.info("commandstats")["cmdstat_info"]["calls"])

    client.info()
    collector = RedisCollector(None, redis_url, timeout_seconds=PATIENT)
    before = asked()
    began = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        readings = list(threads.map(lambda _: collector.status(), range(100)))
    took = time.monotonic() - began
    # The last one is our own. An answer is as good as new for one second; a slow machine may take more for all.
    assert asked() - before - 1 <= took + 1
    assert all(reading["connected"] for reading in readings)
    # One connection, which is kept.
    assert len([each for each in client.client_list() if each["cmd"] == "info"]) <= 2
    collector.stop()


def test_stop_closes_the_connection_and_a_new_question_opens_one(redis_url: str, client: Client) -> None:
    def clients() -> set[str]:
        return {each["id"] for each in client.client_list()}

    before = clients()  # some of them may be of tests that are over, and about to go
    collector = RedisCollector(None, redis_url, timeout_seconds=PATIENT)
    collector.status()
    assert len(clients() - before) == 1
    collector.stop()
    eventually(lambda: clients() <= before)
    assert collector.ask(0.0).result(PATIENT)["connected"] is True
    assert len(clients() - before) == 1
    collector.stop()
    eventually(lambda: clients() <= before)


def test_a_wrong_password_is_named_and_not_shown(shop: Metrics, recorded: Recorded, caplog: Any, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server("--requirepass", PASSWORD) as url:
        bare = place(url)
        seen = []
        for user, connected in ((f":{PASSWORD}@", True), (f":{PASSWORD}-not@", False), ("", False)):
            collector = RedisCollector(shop, f"redis://{user}{bare}", timeout_seconds=PATIENT)
            reading = collector.collect_once()
            assert reading["connected"] is connected
            assert reading["reason"] == (None if connected else "authentication failed")
            assert reading["target"] == bare
            seen += [reading, collector.target, repr(collector)]
            collector.stop()
    assert PASSWORD not in f"{seen}{recorded('redis')}{caplog.text}{capfd.readouterr()}"


def test_a_user_who_may_not_ask(redis_url: str, client: Client) -> None:
    client.execute_command("ACL", "SETUSER", "mute", "on", ">" + PASSWORD, "+@all", "-info")
    collector = RedisCollector(None, redis_url.replace("//", f"//mute:{PASSWORD}@"), timeout_seconds=PATIENT)
    reading = collector.status()
    collector.stop()
    assert reading["connected"] is True
    assert reading["memory_used_mb"] is None
    assert reading["missing"]["memory_used_mb"] == "the user may not ask INFO"


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@host",
        f"redis://:{PASSWORD}/x@host:6379/0",
        f"redis://user:6379/{PASSWORD}@host/0",
        f"redis://user:6379#{PASSWORD}@host/0",
        f"redis://host:{PASSWORD}",
        f"redis://[{PASSWORD}",
        PASSWORD,
        "",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="redis: write redis://") as refused:
        RedisCollector(None, url)
    assert PASSWORD not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (f"redis://user:{PASSWORD}@cache.internal:6380/4", "cache.internal:6380/4"),
        ("redis://[::1]:6380", "[::1]:6380/0"),
        ("rediss://cache.internal", "cache.internal:6379/0"),
        (f"unix://user:{PASSWORD}@/run/redis.sock?db=2", "/run/redis.sock/2"),
    ],
)
def test_the_target_is_named_without_user_and_password(url: str, target: str) -> None:
    assert RedisCollector(None, url).target == target


def test_a_client_of_the_application_is_used_and_left_open(redis_url: str, client: Client) -> None:
    collector = RedisCollector(None, client, timeout_seconds=PATIENT)
    assert collector.target == place(redis_url)
    assert collector.status()["connected"] is True
    collector.stop()
    assert client.ping()


def test_a_client_of_an_event_loop_is_refused(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="event loop"):
        RedisCollector(None, redis.asyncio.Redis.from_url(redis_url))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf")])
def test_numbers_that_are_none(redis_url: str, number: float) -> None:
    with pytest.raises(ValueError, match="interval_seconds"):
        RedisCollector(None, redis_url, number)
    with pytest.raises(ValueError, match="timeout_seconds"):
        RedisCollector(None, redis_url, timeout_seconds=number)


def test_what_a_server_does_not_say_is_named() -> None:
    reading = figures({"used_memory": 2**20, "db0": {"keys": 3}, "db_odd": 1})
    assert reading["memory_used_mb"] == 1
    assert reading["keys_total"] == 3
    assert reading["memory_max_mb"] is reading["hit_rate"] is reading["connected_clients"] is None
    assert set(reading["missing"]) == {name for name in UNITS if reading[name] is None}


HOSTILE = (
    b"used_memory:nan\r\nmaxmemory:-1\r\nkeyspace_hits:abc\r\nkeyspace_misses:1\r\nevicted_keys:1.0e999\r\n"
    b"connected_clients:"
    + b"9" * 400
    + b"\r\ndb0:keys=x,expires=\r\ndb1:keys=7\r\ndb\xb2:keys=1\r\n\xff\x00:\xf0\x9f\r\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        b"$%d\r\n%s\r\n" % (len(HOSTILE), HOSTILE),
        b"$-1\r\n",
        b":1\r\n",
        b"*0\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff\x00\r\n",
    ],
)
def test_what_speaks_like_a_redis_may_say_anything(shop: Metrics, recorded: Recorded, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as peer:
                while said := peer.recv(4096):
                    for command in said.split(b"*")[1:]:
                        peer.sendall(answer if b"INFO\r\n" in command and b"SETINFO" not in command else b"+OK\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        collector = RedisCollector(shop, f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout_seconds=PATIENT)
        reading = collector.collect_once()
        collector.stop()
        thread.join()
    assert json.dumps(reading, allow_nan=False)
    assert [record.value for record in recorded("redis") if record.name == "connected"] == [reading["connected"]]
    if b"nan" in answer:
        assert reading["connected"] is True
        assert {name for name in UNITS if reading[name] is not None} == {"connected", "keys_total"}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_asks_over_a_connection_of_its_own(redis_url: str, client: Client) -> None:
    collector = RedisCollector(None, redis_url, timeout_seconds=PATIENT)
    assert collector.status()["connected"]
    with collector._lock:  # as if the fork had come while a thread was asking
        child = os.fork()
        if child == 0:
            good = collector.status()["connected"] is True and threading.active_count() <= 2
            collector.stop()
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert collector.ask(0.0).result(PATIENT)["connected"] is True
    collector.stop()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r'pip install "tallymark\[redis\]"'):
        RedisCollector(None, "redis://localhost")
