"""The store in PostgreSQL: what every store does, and what is its own."""

import itertools
import operator
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallymark.errors import ConfigError, RefusedError, StoreError
from tallymark.query import Filter, Op, Query
from tallymark.store import Origin, origin_of
from tallymark.stores.postgres import parts as postgres_parts
from tallymark.stores.postgres import sql as postgres_sql
from tallymark.stores.postgres.store import Postgres
from tallymark.stores.retention import Retention
from tallymark.testing import oracle
from tallymark.testing.conformance import NewStore, StoreConformance
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, count, row

from .postgres_stores import Databases

Ask = Callable[..., list[Any]]

OPERATORS: dict[Op, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}


class TestPostgres(StoreConformance):
    @pytest.fixture
    def new_store(self, postgres: Databases) -> NewStore:
        return lambda: Postgres(postgres.prepared())


@pytest.fixture
def store(database: str) -> Iterator[Postgres]:
    with Postgres(database) as found:
        yield found


@pytest.fixture
def ask(database: str) -> Iterator[Ask]:
    """Ask the database itself; a list of rows."""
    with psycopg.connect(database, autocommit=True) as connection:

        def answer(sql: str, *given: Any) -> list[Any]:
            cursor = connection.execute(sql, given or None)
            return cursor.fetchall() if cursor.description else []

        yield answer


def partitions(ask: Ask) -> list[str]:
    """Those that there are; the books have the same."""
    found = ask("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'tallymark.records'::regclass")
    names = sorted(name.removeprefix("tallymark.") for (name,) in found)
    assert names == sorted(name for (name,) in ask("SELECT name FROM tallymark.parts"))
    return names


# -- partitions --------------------------------------------------------------------------------------------------


def test_partitions_are_made_for_a_batch_and_ahead(store: Postgres, ask: Ask) -> None:
    store.write(batch([row(0), row(1, timestamp=NOON - 2 * DAY), row(2, timestamp=NOON // DAY * DAY)]))
    assert partitions(ask) == ["records_20250129", "records_20250131"]
    store.maintain(NOON, None)
    store.maintain(NOON, None)
    ahead = ["records_20250201", "records_20250202", "records_20250203"]
    assert partitions(ask) == ["records_20250129", "records_20250131", *ahead]
    assert store.scan(Query()).num_rows == 3


def test_a_day_that_goes_as_a_whole_is_dropped(store: Postgres, ask: Ask) -> None:
    own = row(50, service="tallymark", metric_type="tallymark", name="dropped", timestamp=NOON - 3 * DAY)
    own["metadata"] = '{"reason":"invalid"}'
    kept = row(60, timestamp=NOON - 4 * DAY, metric_type="audit")
    store.write(batch([*(row(day, timestamp=NOON - day * DAY) for day in range(6)), own, kept]))
    assert store.maintain(NOON, Retention(2, {"audit": 0})).deleted == 3
    # One has a record of a type that is kept, another one of the store's own.
    today, older = (
        ["records_20250129", "records_20250130", "records_20250131"],
        ["records_20250127", "records_20250128"],
    )
    assert [name for name in partitions(ask) if name <= today[-1]] == [*older, *today]
    info = store.info()
    assert (info.stored, info.deleted, info.dropped) == (4, 3, {"invalid": 1})


def test_a_partition_that_is_being_read_is_emptied_and_dropped_later(
    store: Postgres, ask: Ask, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallymark.stores.postgres.store.LOCK_MILLISECONDS", 50)
    store.write(batch([row(0, timestamp=NOON - 9 * DAY), row(1)]))
    with psycopg.connect(database) as reader:
        assert reader.execute("SELECT count(*) FROM tallymark.records").fetchall() == [(2,)]
        assert store.maintain(NOON, Retention(2)).deleted == 1
        assert reader.execute("SELECT count(*) FROM tallymark.records").fetchall() == [(1,)]
        assert "records_20250122" in partitions(ask)
    store.maintain(NOON, None)
    assert "records_20250122" not in partitions(ask)
    store.write(batch([row(2, timestamp=NOON - 9 * DAY)]))
    assert (store.info().stored, store.info().deleted) == (2, 1)


def test_a_clock_gone_wild_does_not_make_a_table_for_each_of_its_days(
    store: Postgres, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_parts, "MOST", 20)
    ages = [seq * 37 * DAY for seq in range(600)]
    rows = [row(seq, timestamp=age + 5) for seq, age in enumerate(ages)]
    store.write(batch(rows))
    now = time.time_ns()
    store.write(batch([row(1000 + day, timestamp=now - day * DAY) for day in range(5)]))
    assert len(partitions(ask)) < 120
    assert store.info().stored == 605
    assert [one["seq"] for one in store.scan(Query(end=NOON, order_by=("timestamp",))).to_pylist()] == [
        one["seq"] for one in rows if one["timestamp"] < NOON
    ]
    assert store.delete(Query(end=300 * 37 * DAY)) == 300


@given(
    days=st.lists(st.integers(0, 47_000), max_size=40),
    more=st.lists(st.integers(0, 47_000), max_size=40),
    today=st.integers(0, 47_000),
)
def test_partitions_cover_every_day_once(days: list[int], more: list[int], today: int) -> None:
    made: list[postgres_parts.Part] = []
    for some in (days, more):
        made += postgres_parts.missing(made, [day * DAY for day in some], today * DAY, most=15)
        for day in some:
            assert sum(part.first <= day * DAY < part.until for part in made) == 1
    made.sort()
    assert all(one.until <= other.first for one, other in itertools.pairwise(made))
    assert len({part.name for part in made}) == len(made)
    assert len(made) <= 15 + 2 * postgres_parts.NEAR + 1 + 131 * 16


def test_books_stay_exact_while_some_write_and_others_delete(store: Postgres, database: str) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Postgres(database) as own:
                for seq in range(20):
                    own.write(batch([row(seq, journal=f"{number:032x}", timestamp=NOON + seq % 3 * DAY)]))
                    if number == 1:
                        own.delete(Query(end=NOON + 2 * DAY))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    info = store.info()
    assert (info.recorded, info.stored) == (80, count(store))


# -- deleted means gone ------------------------------------------------------------------------------------------


def test_a_purge_leaves_no_byte_of_what_was_erased(store: Postgres, ask: Ask) -> None:
    rows = [row(seq, session_id=f"subject-{seq % 2}", error="x" * 500) for seq in range(500)]
    store.write(batch(rows))
    assert store.delete(Query.build(agg=(), session_id="subject-1")) == 250
    assert store.purge(NOON) == []
    ask("CHECKPOINT")
    ((folder, path),) = ask(
        "SELECT current_setting('data_directory'), pg_relation_filepath('tallymark.records_20250131')"
    )
    stored = (Path(folder) / path).read_bytes()
    assert b"subject-0" in stored
    assert b"subject-1" not in stored
    assert ask("SELECT name FROM tallymark.parts WHERE has_gaps") == []
    assert count(store) == 250


def test_a_purge_says_what_is_in_use(store: Postgres, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallymark.stores.postgres.store.LOCK_MILLISECONDS", 50)
    store.write(batch([row(0), row(1, session_id="subject")]))
    store.delete(Query.build(agg=(), session_id="subject"))
    with psycopg.connect(database) as reader:
        reader.execute("SELECT FROM tallymark.records")
        (problem,) = store.purge(NOON)
        assert "records_20250131 is in use" in problem
    assert store.purge(NOON) == []


# -- answers -----------------------------------------------------------------------------------------------------


def test_keys_that_look_like_numbers_of_items(store: Postgres) -> None:
    """PostgreSQL counts from the end of a list, and takes some texts for numbers; a query does neither."""
    keys = ["0", "1", "-1", "+1", "01", " 1", "1 ", "99999999999"]
    store.write(
        batch(
            [
                row(0, metadata={"list": ["a", "b"], "map": {key: key for key in keys}}),
                row(1, metadata={"list": [["x", "y"], {"-1": "deep"}]}),
            ]
        )
    )
    rows = store.scan(Query()).to_pylist()
    for field in [*(f'metadata.{name}."{key}"' for name in ("list", "map") for key in keys), 'metadata.list."1"."-1"']:
        query = Query.build(group_by=field)
        assert store.aggregate(query).to_pylist() == oracle.aggregate(rows, query), field


def test_numbers_beyond_float64(store: Postgres) -> None:
    texts = [
        "1e400",
        "-1e400",
        "1e-400",
        "1e99999999999",
        "0e99999999999",
        "-0.0",
        "1.7976931348623159e308",
        "4.9e-324",
    ]
    texts += ["9" * 400, "0." + "0" * 400 + "1", "0.000001e300", "123456789012345678901e-5", "1e0000000000000000000005"]
    store.write(batch([row(seq) | {"metadata": f'{{"n":{text}}}'} for seq, text in enumerate(texts)]))
    for bound in (-1e300, -1.0, 0.0, 1.0, 1e300):
        for op, compare in OPERATORS.items():
            expected = [seq for seq, text in enumerate(texts) if compare(float(text), bound)]
            query = Query(filters=(Filter("metadata.n", op, bound),), order_by=("timestamp",))
            assert store.scan(query)["seq"].to_pylist() == expected, (op, bound)


def test_sums_and_averages_at_the_ends_of_the_range(store: Postgres) -> None:
    groups = {
        "cancels": [1.7e308, 1.7e308, -1.7e308, -1.7e308, 5.0],
        "huge": [1.5e308],
        "over": [-1.7e308, -1.7e308],
        "smallest": [5e-324, 5e-324],
        "less": [5e-324, 0.0, 0.0],
        "tiny": [1e-310, 3e-310],
        "mixed": [1e300, 1e-300],
    }
    rows = [row(seq, name=name, value=value) for name in groups for seq, value in enumerate(groups[name])]
    store.write(batch([one | {"seq": seq} for seq, one in enumerate(rows)]))
    query = Query.build(group_by="name", agg=["sum", "avg"])
    found = {one["name"]: (one["sum"], one["avg"]) for one in store.aggregate(query).to_pylist()}
    assert found == {
        "cancels": (5.0, 1.0),
        "huge": (1.5e308, 1.5e308),
        "over": (None, None),
        "smallest": (1e-323, 5e-324),
        "less": (5e-324, 0.0),
        "tiny": (4e-310, 2e-310),
        "mixed": (1e300, 5e299),
    }


def test_texts_with_anything_in_them_come_back(store: Postgres) -> None:
    texts = [
        "\ufeff",
        '"',
        '""',
        ",",
        "\n",
        "\r\n",
        "\\.",
        "\\N",
        "",
        " ",
        "%s",
        "%(p0)s",
        "{}",
        "\x01\x7f",
        "é\u0301",
        "x" * 5000,
    ]
    rows = [row(seq, name=text, error=text, session_id=text or None) for seq, text in enumerate(texts)]
    store.write(batch(rows))
    assert store.scan(Query(order_by=("timestamp",))).to_pylist() == rows
    for text in texts:
        assert count(store, where={"name": text, "error": text}) == 1
    found = store.aggregate(Query.build(group_by=["error"])).to_pylist()
    assert [one["error"] for one in found] == sorted(texts)


def test_names_are_compared_as_any_text_is(store: Postgres) -> None:
    rows = [row(seq, name=name) for seq, name in enumerate(["a", "b", "Ω", "null"])]
    store.write(batch(rows))
    values: list[Filter] = [
        *(Filter("name", "=", value) for value in ("a", "Ω", "null", "c", None)),
        *(Filter("name", "!=", value) for value in ("a", "Ω", "null", "c", None)),
        *(Filter("name", "in", some) for some in (("a", "b", None), (None,))),
        Filter("name", "<", "b"),
        Filter("name", ">=", "b"),
    ]
    for condition in values:
        query = Query(filters=(condition,))
        assert store.scan(query).to_pylist() == oracle.scan(rows, query), condition


def test_an_answer_says_what_was_looked_at(store: Postgres) -> None:
    store.write(batch([row(seq, timestamp=NOON + seq % 2 * DAY) for seq in range(10)]))
    query = Query.build(since=NOON + DAY, where=["metadata.a=1"])
    assert origin_of(store.aggregate(query)) == Origin("raw", 5)
    assert origin_of(store.aggregate(Query.build())) == Origin("raw", 10)


def test_an_answer_of_many_blocks(store: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(seq, error="\ufeff,\n" * 50 if seq % 3 else None) for seq in range(3000)]
    store.write(batch(rows))
    monkeypatch.setattr(postgres_sql, "BLOCK", 10_000)
    assert store.scan(Query(order_by=("timestamp",))).to_pylist() == rows


# -- rows and rights that are refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"metadata": "{"}, {"name": "a\0b"}, {"metadata": ""}], ids=str)
def test_a_row_that_cannot_be_kept_is_refused_as_such(store: Postgres, wrong: dict[str, str]) -> None:
    with pytest.raises(RefusedError, match="cannot write to"):
        store.write(batch([row(0), row(1) | wrong]))
    assert (store.info().stored, store.positions(JOURNALS)) == (0, {})
    store.write(batch([row(0)]))
    assert store.info().stored == 1


def test_who_may_only_read_reads(store: Postgres, ask: Ask, database: str) -> None:
    store.write(batch([row(0, metadata={"n": "1e400"}, value=2.0)]))
    role = f"reader_{uuid.uuid4().hex}"
    ask(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
    url = database.replace("tallymark@", f"{role}:hunter2@")
    with Postgres(url) as reader:
        with pytest.raises(StoreError, match=r"cannot read .*permission denied"):
            reader.info()
        ask(f"GRANT USAGE ON SCHEMA tallymark TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA tallymark TO {role}")
        store.write(batch([row(1, timestamp=NOON + DAY)]))  # of a partition that is newer than those rights
        assert reader.info().stored == 2
        assert count(reader, where=["metadata.n>5"]) == 1
        assert reader.aggregate(Query.build(agg=["last", "p50"])).to_pylist()[0]["last"] == 1.0
        with pytest.raises(StoreError, match=r"cannot write to .*permission denied"):
            reader.write(batch([row(2)]))
        with pytest.raises(StoreError, match=r"cannot delete from .*permission denied"):
            reader.delete(Query())


def test_members_of_one_role_write_to_the_partitions_of_each_other(store: Postgres, ask: Ask, database: str) -> None:
    one, other, role = (f"{name}_{uuid.uuid4().hex}" for name in ("one", "other", "role"))
    ask(f"CREATE ROLE {role}; GRANT {role} TO tallymark")
    ask(f"CREATE ROLE {one} LOGIN PASSWORD 'hunter2' IN ROLE {role}")
    ask(f"CREATE ROLE {other} LOGIN PASSWORD 'hunter2' IN ROLE {role}")
    store.write(batch([row(0)]))
    ask(f"ALTER SCHEMA tallymark OWNER TO {role}")
    for (table,) in ask("SELECT tablename FROM pg_tables WHERE schemaname = 'tallymark'"):
        ask(f"ALTER TABLE tallymark.{table} OWNER TO {role}")
    with (
        Postgres(database.replace("tallymark@", f"{one}:hunter2@")) as first,
        Postgres(database.replace("tallymark@", f"{other}:hunter2@")) as second,
    ):
        first.write(batch([row(1, timestamp=NOON + DAY)]))
        second.write(batch([row(2, timestamp=NOON + DAY)]))
        second.write(batch([row(3, timestamp=NOON + 2 * DAY)]))
        assert first.delete(Query(start=NOON + 2 * DAY - NOON % DAY)) == 1
        assert first.info().stored == 3


def test_a_partition_that_somebody_detached_takes_no_rows(store: Postgres, ask: Ask) -> None:
    store.write(batch([row(0)]))
    ((name,),) = ask("SELECT name FROM tallymark.parts WHERE rows > 0")
    ask(f"ALTER TABLE tallymark.records DETACH PARTITION tallymark.{name}")
    with pytest.raises(StoreError, match="somebody has detached one"):
        store.write(batch([row(1)]))
    assert ask(f"SELECT count(*) FROM tallymark.{name}") == [(1,)]


def test_who_may_not_make_schemas_uses_one_that_is_there(postgres: Databases) -> None:
    url = postgres.empty()
    role = f"writer_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
        with Postgres(url.replace("tallymark@", f"{role}:hunter2@")) as store:
            with pytest.raises(StoreError, match=r"cannot write to .*permission denied for database"):
                store.write(batch([row(0)]))
            connection.execute(f"CREATE SCHEMA tallymark AUTHORIZATION {role}")
            store.write(batch([row(0), row(1, session_id="s")]))
            store.delete(Query.build(agg=(), session_id="s"))
            assert store.purge(NOON) == []
            assert store.maintain(NOON + 40 * DAY, Retention(30)).deleted == 1
            assert store.info().recorded == 2


@pytest.mark.parametrize("end", ["@127.0.0.1:1/metrics", "@127.0.0.1:1/metrics?connect_timeout=x", "@/x?host=/nowhere"])
def test_no_error_shows_a_password(end: str) -> None:
    place = f"postgresql://somebody:hunter2{end}"
    with pytest.raises(StoreError) as raised, Postgres(place) as store:
        store.info()
    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter2" not in f"{error}{error!r}"
        error = error.__cause__


@pytest.mark.parametrize("command", ["query", "tail"])
def test_no_hint_shows_a_password(store: Postgres, database: str, command: str) -> None:
    store.write(batch([row(0)]))
    words = [sys.executable, "-m", "tallymark", command, database.replace("tallymark@", "tallymark:hunter2@")]
    done = subprocess.run([*words, "--name", "nope"], capture_output=True, text=True, timeout=120, check=True)
    assert "no record matches; hint: " in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "place", ["postgresql://u:hunter2@h/db?nonsense=hunter2", "postgresql://u:hunter2@h:hunter2/x%zz"]
)
def test_a_url_that_is_none_is_refused_without_showing_it(place: str) -> None:
    with pytest.raises(ConfigError, match="percent-encoded") as raised:
        Postgres(place)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
