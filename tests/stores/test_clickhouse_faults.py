"""ClickHouse: whatever breaks, every record is there once."""

import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from recording import output, python

from stores.clickhouse_stores import Databases, Failing, broken, days, name_of, seqs
from tallymark.batch import CLOSED, Batch
from tallymark.errors import RefusedError, StoreError
from tallymark.query import Query
from tallymark.stores.clickhouse.tables import FENCED, INCOMING, RECORDS
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row


@pytest.mark.parametrize("made", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_whatever_request_breaks_nothing_is_lost_or_doubled(databases: Databases, made: bool, after: bool) -> None:
    """The batch is sent again with more rows, as a shipper does, by a store that remembers nothing."""
    begin = 5 if made else 0
    for number in itertools.count(0, 1 if made else 3):  # most of the first ones make tables
        store = databases.store()
        if made:
            store.write(batch(days(0, begin)))
        database = name_of(store)
        failing = Failing(databases.client(database), broken(number, after=after))
        with databases.store(database, failing) as first, contextlib.suppress(StoreError):
            first.write(batch(days(begin, 20)))
            assert len(failing.requests) <= number, failing.requests  # so many there are, and none broke
        with databases.store(database) as second:
            second.write(batch(days(begin, 27)))
            assert seqs(second) == list(range(27)), failing.requests
            assert (second.positions(JOURNALS), second.info().stored) == ({JOURNALS[0]: 27}, 27)
            second.write(batch(days(begin, 30)))
            assert seqs(second) == list(range(30))
            assert second._ledger(JOURNALS)[1] == []  # nothing is left open
        if len(failing.requests) <= number:
            break
        databases.sweep()
    assert number >= 5


def test_a_smaller_batch_after_one_that_broke_leaves_the_rest_to_the_next(databases: Databases) -> None:
    """As a shipper does that looks for a row which is refused."""
    store = databases.store()
    database = name_of(store)
    store.write(batch([row(0, journal=JOURNALS[1])]))
    lost = Failing(databases.client(database), broken(3, after=True))
    with pytest.raises(StoreError):
        databases.store(database, lost).write(batch(days(0, 20)))
    assert lost.requests[-1] == f"INSERT {INCOMING}"
    for end in (8, 14, 17, 25, 30):
        store.write(batch(days(0, end)))
        assert seqs(store) == [0, *range(max(20, end))]
        assert (store._ledger(JOURNALS)[1] == []) == (end >= 20)


def test_what_came_in_for_some_days_only_is_completed(databases: Databases) -> None:
    """A server that dies may have kept some partitions of an insert."""
    store = databases.store()
    database = name_of(store)
    store.write(batch(days(0, 1, JOURNALS[2])))
    client = databases.client(database)

    class Partial(Failing):
        def insert_arrow(self, table: str, rows: Any, **options: Any) -> Any:
            if table == INCOMING:
                client.insert_arrow(table, rows.filter(pa.array(rows["timestamp"].to_numpy() < NOON + DAY)), **options)
                raise ConnectionResetError("died")
            return super().insert_arrow(table, rows, **options)

    both = [*days(0, 10), *days(0, 10, JOURNALS[1])]
    with pytest.raises(StoreError, match="died"):
        databases.store(database, Partial(client, lambda _number, _about, send: send())).write(batch(both))
    assert 0 < count(store) < 21
    # One journal at first; the other is completed by a later batch, in which it has more.
    store.write(batch(days(0, 12)))
    assert count(store) == 1 + 12 + 4
    store.write(batch([*days(0, 11, JOURNALS[1]), *days(12, 14)]))
    assert seqs(store) == sorted([0, *range(14), *range(11)])
    assert store.positions(JOURNALS) == dict(zip(JOURNALS, (14, 11, 1), strict=True))


def test_rows_of_a_write_that_was_given_up_are_refused(databases: Databases) -> None:
    """They were on their way when the connection was given up, and arrive after they were sent again."""
    store = databases.store()
    database = name_of(store)
    store.write(batch([row(0, journal=JOURNALS[1])]))
    late: list[Callable[[], Any]] = []

    def slow(_number: int, about: str, send: Callable[[], Any]) -> Any:
        if about == f"INSERT {INCOMING}":
            late.append(send)
            raise TimeoutError("no answer in time")
        return send()

    with pytest.raises(StoreError, match="no answer in time"):
        databases.store(database, Failing(databases.client(database), slow)).write(batch(days(0, 9)))
    store.write(batch(days(0, 12)))
    assert count(store) == 13
    with pytest.raises(Exception, match="this write was given up"):
        late[0]()
    assert count(store) == 13
    # One that was in already is no different.
    fenced = store._query(f"SELECT count() AS n FROM {FENCED}").to_pylist()
    assert fenced == [{"n": 1}]


def test_two_writers_of_one_journal_double_nothing(databases: Databases) -> None:
    """They cannot be where a machine ships its own journals: one lock is for all of them. One may fail, or both."""
    first = databases.store()
    first.write(batch([row(0, journal=JOURNALS[1])]))
    database = name_of(first)
    for turn in range(6):
        together = threading.Barrier(3)
        wrong: list[BaseException] = []

        def write(rows: list[dict[str, Any]], together: threading.Barrier = together, wrong: Any = wrong) -> None:
            with databases.store(database) as store:
                together.wait()
                try:
                    store.write(batch(rows))
                except StoreError:
                    pass
                except BaseException as error:
                    wrong.append(error)

        new = [days(20 * turn, 20 * turn + last) for last in (14, 20, 17)]
        threads = [threading.Thread(target=write, args=(rows,)) for rows in new]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        with databases.store(database) as store:
            found = Counter((one["journal"], one["seq"]) for one in store.scan(Query()).to_pylist())
            assert set(found.values()) == {1}
            store.write(batch(days(20 * turn, 20 * turn + 20)))
            assert seqs(store) == sorted([0, *range(20 * turn + 20)])


def test_a_write_that_died_with_its_server_is_completed(tmp_path: Path) -> None:
    """Program and engine are killed at once, after the rows came in; the next program sends more."""
    for step, kill in enumerate([f"INSERT {INCOMING}", ""]):
        process = python("-m", "stores.clickhouse_writer", str(tmp_path), str(10 + 5 * step), kill)
        if kill:
            process.communicate(timeout=120)
            assert process.returncode == -9
        else:
            assert output(process, 120).split() == ["15", "15", "15"]


def test_rows_that_the_server_will_never_take_are_told_apart(databases: Databases) -> None:
    store = databases.store()
    store.write(batch([row(0)]))
    store._command(f"ALTER TABLE {RECORDS} ADD CONSTRAINT positive CHECK value > 0")
    with pytest.raises(RefusedError, match="positive"):
        store.write(batch([row(1), row(2, value=-1.0), row(3)]))
    assert store.positions(JOURNALS) == {JOURNALS[0]: 1}
    own = row(99, service="tallymark", metric_type="tallymark", name="dropped", value=1.0, unit="1")
    own["metadata"] = json.dumps({"reason": "refused"})
    store.write(batch([row(1), row(3), own], **{JOURNALS[0]: 4}))
    assert seqs(store) == [0, 1, 3]
    assert store.info().dropped == {"refused": 1}


def test_the_stores_own_rows_are_found_again_whatever_their_time(databases: Databases) -> None:
    """A row about what was dropped gets the time at which it is sent."""

    def closing(at: int) -> Batch:
        own = row(99, service="tallymark", metric_type="tallymark", name="dropped", value=3.0, unit="1", timestamp=at)
        own["metadata"] = json.dumps({"reason": "full"})
        return batch([*days(0, 4), own], **{JOURNALS[0]: CLOSED})

    store = databases.store()
    database = name_of(store)
    store.write(batch([row(0, journal=JOURNALS[1])]))

    def lost(_number: int, about: str, send: Callable[[], Any]) -> Any:
        send()
        if about == f"INSERT {INCOMING}":
            raise ConnectionResetError("after")
        return send()

    with pytest.raises(StoreError):
        databases.store(database, Failing(databases.client(database), lost)).write(closing(NOON))
    store.write(closing(NOON + 50 * DAY))
    assert (store.info().stored, store.info().dropped) == (5, {"full": 3})
