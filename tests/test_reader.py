"""What ``tallymark.open`` gives."""

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from lakes import lake_with

import tallymark
from tallymark.batch import record_id
from tallymark.errors import QueryError
from tallymark.reader import Answer, Reader
from tallymark.record import COLUMNS
from tallymark.testing.rows import DAY, JOURNALS, NOON, batch, row


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Ten records of two names, a second apart."""
    lake = lake_with(tmp_path)
    lake.write(batch([row(seq, **_varied(seq)) for seq in range(10)]))
    with Reader(lake) as reader:
        yield reader


def _varied(seq: int) -> dict[str, object]:
    return {
        "timestamp": NOON + seq * 1_000_000_000 + 123_456_789,
        "name": f"n{seq % 2}",
        "value": float(seq),
        "metadata": {"n": seq, "deep": {"list": [1, None, "ü\x00"]}},
    }


def test_rows_are_dictionaries_with_aware_times(reader: Reader) -> None:
    answer = reader.query(window="1d", group_by="name", agg=["count", "max", "last_timestamp"])
    day = datetime(2025, 1, 31, tzinfo=UTC)
    last = datetime(2025, 1, 31, 12, 0, 8, 123456, tzinfo=UTC)
    expected = {"window_start": day, "name": "n0", "count": 5, "max": 8.0, "last_timestamp": last}
    assert answer.rows()[0] == expected
    assert {name: values[0] for name, values in answer.columns().items()} == expected
    assert (len(answer), answer.samples, answer.exact, answer.source) == (2, 10, True, "raw")


@pytest.mark.parametrize("empty", [False, True])
def test_an_answer_comes_in_every_form(reader: Reader, empty: bool) -> None:
    until = NOON if empty else NOON + DAY
    answer = reader.query(window="1d", group_by="name", agg=["count", "p50"], until=until)
    names = ["window_start", "name", "count", "p50"]
    arrow = answer.to_arrow()
    assert arrow.column_names == names
    assert arrow.schema.field("window_start").type == pa.timestamp("ns", "UTC")
    for frame in (answer.to_pandas(), answer.to_polars()):
        assert list(frame.columns) == names
        assert len(frame) == len(answer) == (0 if empty else 2)
    if not empty:
        assert list(answer.to_pandas()["p50"]) == answer.to_polars()["p50"].to_list() == [4.0, 5.0]
        assert answer.to_pandas()["window_start"][0].year == 2025


def test_records_are_the_newest_first(reader: Reader) -> None:
    page = reader.records(limit=3, name="n1")
    assert [record.value for record in page.records] == [9.0, 7.0, 5.0]
    record = page.records[0]
    assert record.id == record_id(JOURNALS[0], 9)
    assert record.timestamp == NOON + 9_123_456_789
    assert record.metadata == {"n": 9, "deep": {"list": [1, None, "ü\x00"]}}
    assert record.success is None


def test_pages_follow_each_other(reader: Reader) -> None:
    page = reader.records(limit=4)
    values = [record.value for record in page.records]
    while page.cursor is not None:
        page = reader.records(limit=4, cursor=page.cursor)
        values += [record.value for record in page.records]
    assert values == [float(value) for value in range(9, -1, -1)]


def test_pages_stay_right_while_records_arrive(tmp_path: Path) -> None:
    lake = lake_with(tmp_path)
    lake.write(batch([row(seq, timestamp=NOON) for seq in range(6)]))
    reader = Reader(lake)
    newest, oldest = reader.records(limit=3), reader.records(limit=3, order_by="timestamp")
    lake.write(batch([row(seq, timestamp=NOON) for seq in range(6, 9)]))
    lake.compact(NOON + DAY)
    older = reader.records(cursor=newest.cursor)
    later = reader.records(cursor=oldest.cursor, order_by="timestamp")
    assert [record.id.int & 0xFF for record in older.records] == [2, 1, 0]
    assert [record.id.int & 0xFF for record in later.records] == [3, 4, 5, 6, 7, 8]
    # Whoever follows the end keeps its place where nothing is new.
    assert reader.records(cursor=later.cursor, order_by="timestamp").cursor == later.cursor


def test_all_pages_one_after_the_other(reader: Reader) -> None:
    for limit in (3, 5, 10, 11):
        pages = list(reader.pages(limit=limit, order_by="timestamp"))
        assert [record.value for page in pages for record in page.records] == list(map(float, range(10)))


def test_a_page_comes_in_every_form(reader: Reader) -> None:
    page = reader.records(limit=2)
    arrow = page.to_arrow()
    assert arrow.column_names == list(COLUMNS)
    assert arrow["id"].to_pylist() == [str(record.id) for record in page.records]
    assert arrow.schema.field("timestamp").type == pa.timestamp("ns", "UTC")
    assert list(page.to_pandas()["value"]) == page.to_polars()["value"].to_list() == [9.0, 8.0]
    assert len(page) == 2


def test_a_record_is_found_by_its_id(reader: Reader) -> None:
    for record in reader.records().records:
        assert reader.get(record.id) == reader.get(str(record.id)) == record
    assert reader.get(uuid.UUID(int=7)) is None
    with pytest.raises(QueryError, match="no UUID"):
        reader.get("7")


def test_series_say_what_there_is(reader: Reader) -> None:
    found = reader.series(since=NOON, name="n1").rows()
    assert found == [
        {
            "service": "shop",
            "metric_type": "operation",
            "name": "n1",
            "unit": "ms",
            "count": 5,
            "last": 9.0,
            "last_timestamp": datetime(2025, 1, 31, 12, 0, 9, 123456, tzinfo=UTC),
        }
    ]


def test_a_query_without_aggregates_points_to_records(reader: Reader) -> None:
    with pytest.raises(QueryError, match=r"records\(\)"):
        reader.query(agg=())


def test_many_threads_ask_one_reader(reader: Reader) -> None:
    answers: list[Answer] = []

    def ask(name: str) -> None:
        answers.extend(reader.query(name=name, agg=["count", "p50", "min"]) for _ in range(5))

    threads = [threading.Thread(target=ask, args=(f"n{number % 2}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [answer.rows()[0] for answer in answers]
    even = {"count": 5, "p50": 4.0, "min": 0.0}
    odd = {"count": 5, "p50": 5.0, "min": 1.0}
    assert (found.count(even), found.count(odd)) == (20, 20)


def test_closing_twice_is_allowed(reader: Reader) -> None:
    reader.query()
    reader.close()
    reader.close()


def test_open_shows_what_was_just_recorded_without_a_flush(tmp_path: Path) -> None:
    with tallymark.open(str(tmp_path / "metrics")) as reader:
        assert reader.info().recorded == 0
        with tallymark.Metrics(tmp_path / "metrics", service="shop") as metrics:
            metrics.record_operation("job", "it's 🧾", 12.5, metadata={"region": "eu"})
            (record,) = reader.records(name="it's 🧾", where=["metadata.region=eu"]).records
            assert (record.value, record.service, record.metadata) == (12.5, "shop", {"region": "eu"})
            assert reader.info().recorded == 1
        assert [row["count"] for row in reader.series().rows()] == [1]
