"""A lake whose table is in an object store: what every store does, several machines, and the faults of a network."""

import json
import logging
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.fs import FileSelector, S3FileSystem
from recording import recording
from services.s3 import Proxy, s3_server

from tallymark.errors import ConfigError, StoreError
from tallymark.location import local_folder, shown
from tallymark.maintenance import maintain
from tallymark.query import Query
from tallymark.shipper import ship_once
from tallymark.store import open_store
from tallymark.stores.lake.store import Lake
from tallymark.stores.retention import Retention
from tallymark.testing.conformance import NewStore, StoreConformance
from tallymark.testing.questions import aggregations, ranges, records, scans
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

BUCKET = "tallymark-tests"
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYcanary"

Objects = dict[str, bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        files_at(url).create_dir(BUCKET)
        yield url


def files_at(url: str) -> S3FileSystem:
    """What is in the server, whatever the environment says."""
    return S3FileSystem(
        access_key="AKIDEXAMPLE",
        secret_key=SECRET,
        region="us-east-1",
        endpoint_override=url,
        allow_bucket_creation=True,
    )


@pytest.fixture(autouse=True)
def environment(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody sets it who uses a store of this kind."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("TALLYMARK_STATE", str(tmp_path / "state"))


@pytest.fixture
def place() -> str:
    """Where nothing is yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/metrics"


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What is between this machine and the server."""
    proxy = Proxy(server)
    proxy.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.stop()


@pytest.fixture
def objects(server: str, place: str) -> Callable[[], Objects]:
    """Looks at every object of the lake, by name."""
    files, folder = files_at(server), place.removeprefix("s3://")

    def look() -> Objects:
        found = files.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
        contents = {}
        for one in found:
            if one.is_file:
                with files.open_input_file(one.path) as file:
                    contents[one.path.removeprefix(f"{folder}/")] = file.read()
        return contents

    return look


def lake_at(place: str) -> Lake:
    return Lake(place, live=lambda _: [])


# A lake is made in a tenth of a second here, not in a thousandth: fewer of them.
_few = settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))


class TestContract(StoreConformance):
    """What every store does."""

    test_every_answer_is_that_of_the_oracle = _few(
        given(rows=records(), share=st.integers(0, 25), questions=st.lists(aggregations() | scans(), min_size=12))(
            StoreConformance.test_every_answer_is_that_of_the_oracle.hypothesis.inner_test  # type: ignore[attr-defined]
        )
    )
    test_what_a_query_finds_is_deleted_and_nothing_else = _few(
        given(rows=records(), question=ranges(), share=st.integers(0, 25))(
            StoreConformance.test_what_a_query_finds_is_deleted_and_nothing_else.hypothesis.inner_test  # type: ignore[attr-defined]
        )
    )

    @pytest.fixture
    def new_store(self) -> NewStore:
        return lambda: lake_at(f"s3://{BUCKET}/{uuid.uuid4().hex}")


# -- places --------------------------------------------------------------------------------------------------


def test_the_table_is_in_the_bucket_and_the_journals_are_here(place: str, objects: Callable[[], Objects]) -> None:
    url = f"lake:{place}"
    with recording(local_folder(url), store=url) as metrics:
        metrics.record_operation("operation", "checkout", 12.0)
        with open_store(url) as store:
            assert store.info().pending == 1
            assert count(store) == 1  # out of the journal
        assert not objects()
    assert ship_once(url) is not None
    with open_store(url) as store:
        info = store.info()
        assert (info.url, info.stored, info.pending) == (url, 1, 0)
    assert "table/_delta_log/00000000000000000000.json" in objects()
    assert {path.name for path in local_folder(url).iterdir()} >= {"journals"}
    done = subprocess.run(
        [sys.executable, "-m", "tallymark", "query", url, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["checkout"]


def test_a_slash_at_the_end_is_the_same_place() -> None:
    assert local_folder("lake:s3://bucket/a/") == local_folder("lake:s3://bucket/a")


@pytest.mark.parametrize(
    "url",
    [
        f"lake:s3://AKIDEXAMPLE:{SECRET}@bucket/metrics",
        f"lake:s3://bucket/metrics?secret={SECRET}",
        f"lake:s3://bucket/metrics#{SECRET}",
        f"lake:s3://bucket/{SECRET}@metrics",
        f"lake:gs://AKIDEXAMPLE:{SECRET}@bucket/metrics",
        f"lake:https://AKIDEXAMPLE:{SECRET}@s3.example.com/metrics",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    for use in (open_store, local_folder, lambda url: lake_at(url.removeprefix("lake:"))):
        with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as refused:
            use(url)
        assert SECRET not in str(refused.value)
    assert SECRET not in shown(url)


@pytest.mark.parametrize(
    "place",
    [
        "",
        "b",
        "Bucket/a",
        "bucket//a",
        "bucket/a b",
        "bucket/../a",
        "bucket/.",
        "bucket/%2e",
        "bucket/ü",
        "bucket/\n",
    ],
)
def test_names_that_would_go_wrong_are_refused(place: str) -> None:
    with pytest.raises(ConfigError, match="lake:s3://bucket/path"):
        open_store(f"lake:s3://{place}")


# -- several machines ----------------------------------------------------------------------------------------


def test_two_writers_at_once_store_every_record_once(place: str) -> None:
    """They have no lock in common, and bring the same journals, as after a take-over."""
    batches = [batch([row(10 * number + seq) for seq in range(10)]) for number in range(6)]
    batches += [batch([row(seq, journal=journal) for seq in range(7)]) for journal in JOURNALS[1:]]
    together = threading.Barrier(3)
    failures: list[Exception] = []

    def write() -> None:
        with lake_at(place) as lake:
            together.wait()
            try:
                for one in batches:
                    lake.write(one)
            except Exception as error:
                failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    with lake_at(place) as lake:
        found = [(one["journal"], one["seq"]) for one in lake.scan(Query.build(agg=(), limit=1_000)).to_pylist()]
        assert len(found) == len(set(found)) == 60 + 14
        assert lake.positions(JOURNALS) == dict(zip(JOURNALS, (60, 7, 7), strict=True))


def test_an_unsafe_setting_of_the_environment_changes_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    test_two_writers_at_once_store_every_record_once(place)


def test_who_reads_sees_the_newest_version_while_files_are_joined_and_removed(place: str) -> None:
    with lake_at(place) as reader, lake_at(place) as other:
        for number in range(4):
            other.write(batch([row(number)]))
            assert count(reader) == number + 1
        assert other.purge(NOON + 2 * DAY) == []
        assert count(reader) == 4
        assert other.delete(Query.build(agg=(), where=["value=1"])) == 4
        other.purge(NOON + 2 * DAY)
        assert count(reader) == 0


# -- faults --------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_and_comes_back_gets_everything_once(place: str, proxy: Proxy) -> None:
    url = f"lake:{place}"
    with recording(local_folder(url), store=url) as metrics:
        metrics.record_operation("operation", "before", 1.0)
        ship_once(url)
        proxy.stop()
        for number in range(100):
            metrics.record_operation("operation", "during", float(number))
        with pytest.raises(StoreError, match=f"cannot .* {url}: .*Connection refused") as away:
            ship_once(url)
        assert SECRET not in str(away.value)
        assert "\n" not in str(away.value)
        assert "\x1b" not in str(away.value)
        with open_store(url) as store, pytest.raises(StoreError, match="Connection refused"):
            count(store)
        proxy.start()
        ship_once(url)
        with open_store(url) as store:
            assert (count(store, name="before"), count(store, name="during")) == (1, 100)


def test_a_query_goes_on_with_a_store_that_came_back(place: str, proxy: Proxy) -> None:
    with lake_at(place) as lake:
        lake.write(batch([row(0)]))
        assert count(lake) == 1
        proxy.stop()
        with pytest.raises(StoreError, match="Connection refused"):
            count(lake)
        proxy.start()
        assert count(lake) == 1
        lake.write(batch([row(1)]))
        assert count(lake) == 2


def test_a_reply_that_is_lost_after_the_commit_doubles_nothing(place: str, proxy: Proxy) -> None:
    lost: list[str] = []

    def the_next_commit(method: str, path: str) -> bool:
        if method != "PUT" or "/_delta_log/" not in path or lost:
            return False
        lost.append(path)
        return True

    with lake_at(place) as lake:
        lake.write(batch([row(0)]))
        proxy.drop = the_next_commit
        lake.write(batch([row(0), row(1)]))
        assert lost
        assert count(lake) == 2


# -- upkeep --------------------------------------------------------------------------------------------------


def test_upkeep_joins_files_deletes_what_is_old_and_leaves_nothing_behind(
    place: str, objects: Callable[[], Objects]
) -> None:
    with lake_at(place) as lake:
        for number in range(4):
            lake.write(batch([row(2 * number, timestamp=NOON), row(2 * number + 1, timestamp=NOON + 40 * DAY)]))
        done = lake.maintain(NOON + 41 * DAY, Retention())
        assert (done.compacted, done.deleted, done.vacuumed) == (8, 4, 0)
        assert lake.info().deleted == 4
        assert lake.purge(NOON + 41 * DAY) == []
        assert len([name for name in objects() if name.endswith(".parquet") and "/_delta_log/" not in name]) == 1
        assert count(lake) == 4


def test_a_stray_file_is_named(place: str, server: str) -> None:
    with lake_at(place) as lake:
        lake.write(batch([row(0)]))
        stray = f"{place}/table/date=2025-01-31/part-of-a-dead-writer.parquet"
        with files_at(server).open_output_stream(stray.removeprefix("s3://")) as file:
            file.write(b"PAR1")
        (said,) = lake.purge(NOON + DAY)
        assert said.startswith(f"{stray}: no file of the table")


def test_what_is_erased_is_in_no_object(place: str, objects: Callable[[], Objects]) -> None:
    with lake_at(place) as lake:
        lake.write(batch([row(seq, session_id=("canary-7c1f", "other")[seq % 2]) for seq in range(20)]))
        assert any(b"canary-7c1f" in content for content in objects().values())
        assert lake.delete(Query.build(agg=(), session_id="canary-7c1f")) == 10
        assert lake.purge(NOON + DAY) == []
        assert not any(b"canary-7c1f" in content for content in objects().values())
        assert count(lake) == 10


def test_upkeep_of_one_machine_at_a_time(place: str) -> None:
    url = f"lake:{place}"
    with open_store(url) as store:
        assert maintain(store, local_folder(url)).held == "there is no store yet"
        with recording(local_folder(url), store=url) as metrics:
            metrics.record_operation("operation", "checkout", 12.0)
        ship_once(url)
        assert maintain(store, local_folder(url), retention=None).deleted == 0


# -- secrets -------------------------------------------------------------------------------------------------


def test_no_secret_is_shown_whatever_goes_wrong(
    place: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"token-{SECRET}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("//", f"//user:{SECRET}@"))
    proxy.stop()
    url = f"lake:{place}"
    told = []
    with recording(local_folder(url), store=url) as metrics:
        metrics.record_operation("operation", "checkout", 12.0)
        for use in (lambda: ship_once(url), lambda: open_store(url).info(), lambda: open_store(url).scan(Query())):
            with pytest.raises(StoreError) as failed:
                use()
            told.append(str(failed.value))
    done = subprocess.run(
        [sys.executable, "-m", "tallymark.shipper", url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    told += [done.stdout, done.stderr, caplog.text]
    assert all(SECRET not in text for text in told), told
    for path in local_folder(url).rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
