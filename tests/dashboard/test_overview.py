"""The figures of the dashboard, against figures counted by hand."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tallymark
from tallymark import Metrics
from tallymark.errors import QueryError
from tallymark.query import Query
from tallymark.reader import Reader
from tallymark.server.overview import (
    MAX_OPERATIONS,
    MAX_POINTS,
    NICE_WINDOWS,
    SECOND,
    Figures,
    Span,
    chart,
    nice_window,
    overview,
    sparklines,
)
from tallymark.store import open_store

Record = Callable[..., None]
SpanOf = Callable[..., Span]
Look = Callable[..., Figures]

# One recorder for all tests, and another year for each: to start and stop one takes longer than all the rest.
_years = itertools.count()


@pytest.fixture
def now() -> int:
    """What the time is in this test, ns."""
    return (1_000_000_000 + next(_years) * 10_000_000) * SECOND


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Metrics, Reader]]:
    store = str(tmp_path_factory.mktemp("overview") / "metrics")
    with Metrics(store, service="shop") as metrics, tallymark.open(store) as reader:
        yield metrics, reader


@pytest.fixture
def reader(shared: tuple[Metrics, Reader]) -> Reader:
    return shared[1]


@pytest.fixture
def span(now: int) -> SpanOf:
    """Ranges as they are typed."""

    def built(since: str = "now-15m", later: float = 0, points: int = MAX_POINTS) -> Span:
        return Span.build(since, None, now + int(later * SECOND), points)

    return built


@pytest.fixture
def look(reader: Reader, span: SpanOf) -> Look:
    """What the dashboard shows of a range."""

    def looked(since: str = "now-15m", service: str | None = None, later: float = 0) -> Figures:
        return overview(reader, span(since, later), service)

    return looked


@pytest.fixture
def record(shared: tuple[Metrics, Reader], now: int) -> Record:
    """Records something so many seconds ago."""
    metrics = shared[0]

    def recorded(
        seconds: float, name: str = "GET /", value: float = 10.0, *, kind: str = "api_request", **more: Any
    ) -> None:
        given: dict[str, Any] = {"unit": "ms", "success": True, **more}
        assert metrics.ingest(kind, name, value, timestamp=now - int(seconds * SECOND), **given) is not None

    return recorded


@pytest.mark.parametrize(
    ("since", "window"),
    [("5m", 2), ("15m", 5), ("1h", 20), ("6h", 120), ("24h", 600), ("7d", 3_600), ("30d", 14_400)],
)
def test_ranges_of_the_picker_have_nice_windows(span: SpanOf, since: str, window: int) -> None:
    assert span(f"now-{since}").window == window * SECOND


@pytest.mark.parametrize("seconds", [1, 59, 181, 3_601, 86_400, 10**7, 10**9])
def test_no_range_has_more_points_than_can_be_told_apart(seconds: int) -> None:
    window = nice_window(seconds * SECOND)
    assert seconds * SECOND / window <= MAX_POINTS
    assert window // SECOND in NICE_WINDOWS or window % (NICE_WINDOWS[-1] * SECOND) == 0


def test_a_range_that_follows_the_clock_moves_once_per_window(span: SpanOf) -> None:
    first = span()
    assert (first.end - first.start) // first.window == MAX_POINTS
    later = span(later=1)
    assert (later.start, later.end) == (first.start, first.end + first.window)
    assert span(later=4.9) == replace(later, now=later.now + int(3.9 * SECOND))
    assert span(later=5.1).start == first.start + first.window


def test_a_range_that_makes_no_sense_is_refused(span: SpanOf) -> None:
    with pytest.raises(QueryError, match="since"):
        span("yesterday-ish")


def test_an_empty_store_has_an_overview(span: SpanOf, tmp_path: Path) -> None:
    with tallymark.open(str(tmp_path / "none")) as reader:
        figures = overview(reader, span())
    assert figures["services"] == figures["applications"] == []
    assert figures["requests"]["total"] is figures["requests"]["now"] is None
    assert set(figures["requests"]["rate"]) == {None}
    assert figures["operations"]["name"] == figures["series"]["name"] == []
    assert figures["ingest"]["recorded"] == 0


def test_requests_now_and_over_the_range(record: Record, look: Look) -> None:
    for value in (10.0, 20.0, 30.0, 40.0):
        record(600, value=value)
    record(30, value=100.0, success=False)
    record(30, kind="stage", value=5_000.0)
    requests = look()["requests"]
    assert requests["total"]["count"] == 5
    assert requests["total"]["rate"] == pytest.approx(5 / 900)
    assert requests["total"]["error_rate"] == pytest.approx(20)
    assert requests["total"]["p50"] == pytest.approx(30)
    assert requests["now"]["rate"] == pytest.approx(1 / 60)
    assert requests["now"]["p99"] == pytest.approx(100)


def test_windows_without_requests_are_zero_after_the_first_and_gaps_for_latency(record: Record, look: Look) -> None:
    record(600)
    record(600, success=False)
    record(300)
    requests = look()["requests"]
    at, later = (900 - 600) // 5, (900 - 300) // 5
    assert set(requests["rate"][:at]) == {None}
    assert requests["rate"][at] == pytest.approx(2 / 5)
    assert requests["failing"][at] == pytest.approx(1 / 5)
    assert set(requests["rate"][at + 1 : later]) == {0.0}
    assert requests["p95"][at] == pytest.approx(10)
    assert set(requests["p95"][at + 1 : later]) == {None}


def test_a_window_that_has_just_begun_has_no_rate_yet(record: Record, look: Look) -> None:
    record(100)
    record(0)
    requests = look("now-1h", later=1)["requests"]
    assert requests["count"][-1] == 1
    assert requests["rate"][-1] is None
    assert look("now-1h", later=10)["requests"]["rate"][-1] == pytest.approx(1 / 10)


def test_operations_are_what_took_time_and_had_an_outcome(record: Record, look: Look) -> None:
    for value in (100.0, 300.0):
        record(60, "slow", value, kind="stage")
    for _ in range(3):
        record(60, "fast", 1.0, kind="stage", success=False)
    record(60, "no outcome", 9_999.0, kind="stage", success=None)
    record(60, "other unit", 9_999.0, kind="stage", unit="s")
    operations = look()["operations"]
    assert operations["name"] == ["slow", "fast"]
    assert operations["sum"] == [400.0, 3.0]
    assert operations["avg"] == [200.0, 1.0]
    assert operations["error_rate"] == [0.0, 100.0]
    assert operations["count"] == [2, 3]
    assert operations["rate"] == [pytest.approx(2 / 900), pytest.approx(3 / 900)]


def test_operations_are_bounded(record: Record, look: Look) -> None:
    for index in range(MAX_OPERATIONS + 5):
        record(60, f"operation {index}", float(index), kind="stage")
    figures = look()
    assert len(figures["operations"]["name"]) == MAX_OPERATIONS
    assert len(figures["series"]["name"]) == MAX_OPERATIONS + 5
    assert min(figures["operations"]["sum"]) == 5.0


def test_every_series_is_listed_with_its_last_value(record: Record, look: Look, now: int) -> None:
    record(60, "orders waiting", 3.0, kind="queue", unit="1", success=None)
    record(30, "orders waiting", 7.0, kind="queue", unit="1", success=None)
    series = look()["series"]
    assert series["name"] == ["orders waiting"]
    assert series["last"] == [7.0]
    assert series["count"] == [2]
    assert series["last_timestamp"] == [pytest.approx(now / SECOND - 30)]


def test_one_service_at_a_time(record: Record, look: Look) -> None:
    record(60, "GET /a")
    record(60, "GET /b", service="other")
    record(60, "cpu_percent", 50.0, kind="system", unit="%", success=None, service="tallymark")
    everything = look()
    assert everything["services"] == ["other", "shop", "tallymark"]
    assert everything["applications"] == ["other", "shop"]
    other = look(service="other")
    assert other["services"] == everything["services"]
    assert other["operations"]["name"] == other["series"]["name"] == ["GET /b"]
    assert other["requests"]["total"]["count"] == 1
    assert set(other["system"]["cpu_percent"]) == {None}


def test_the_server_itself_counts_only_where_nobody_else_does(record: Record, look: Look) -> None:
    record(60, "GET /api/v1/overview", service="tallymark")
    alone = look()
    assert alone["requests"]["total"]["count"] == 1
    assert alone["operations"]["name"] == ["GET /api/v1/overview"]
    record(60, "GET /")
    record(60, "GET /")
    together = look()
    assert together["requests"]["total"]["count"] == 2
    assert together["operations"]["name"] == ["GET /"]
    assert together["series"]["name"] == ["GET /", "GET /api/v1/overview"]
    assert look(service="tallymark")["requests"]["total"]["count"] == 1


def test_traffic_is_per_second_however_windows_and_samples_fall(record: Record, look: Look) -> None:
    for seconds in range(5, 900, 5):
        record(seconds, "network_sent_mb", 10.0, kind="system", unit="MiBy", success=None)
    for since in ("5m", "15m", "1h"):
        system = look(f"now-{since}")["system"]
        sent = [value for value in system["network_sent_mb"] if value is not None]
        assert sent == pytest.approx([2 * 2**20] * len(sent), rel=0.02), since


def test_a_pause_of_the_collector_does_not_stretch_its_rates(record: Record, look: Look) -> None:
    for seconds in [*range(5, 100, 5), *range(600, 800, 5)]:
        record(seconds, "disk_read_mb", 5.0, kind="system", unit="MiBy", success=None)
    read = [value for value in look()["system"]["disk_read_mb"] if value is not None]
    assert read == pytest.approx([2**20] * len(read), rel=0.02)


def test_two_watchers_of_one_machine_do_not_double_it(record: Record, look: Look) -> None:
    for seconds in range(5, 300, 5):
        for service in ("one", "two"):
            record(seconds, "network_sent_mb", 5.0, kind="system", unit="MiBy", success=None, service=service)
            record(seconds, "cpu_percent", 40.0, kind="system", unit="%", success=None, service=service)
    system = look()["system"]
    assert {value for value in system["cpu_percent"] if value is not None} == {40.0}
    sent = [value for value in system["network_sent_mb"] if value is not None]
    assert sent == pytest.approx([2**20] * len(sent), rel=0.02)


def test_the_chart_of_one_series(record: Record, reader: Reader, span: SpanOf) -> None:
    for seconds, value in ((100, 1.0), (99, 3.0), (40, 8.0)):
        record(seconds, "depth", value, kind="queue", unit="1", success=None)
    record(40, "depth", 99.0, kind="queue", unit="s", success=None)
    figures = chart(reader, span(), service="shop", metric_type="queue", name="depth", unit="1")
    assert figures["total"] | {"rate": 0, "p50": 0, "p95": 0, "p99": 0} == {
        "count": 3,
        "avg": 4.0,
        "min": 1.0,
        "max": 8.0,
        "sum": 12.0,
        "last": 8.0,
        "error_rate": None,
        "rate": 0,
        "p50": 0,
        "p95": 0,
        "p99": 0,
    }
    assert [value for value in figures["avg"] if value is not None] == [2.0, 8.0]
    assert len(figures["avg"]) == len(figures["rate"]) == len(span().times())


def test_the_chart_of_nothing(reader: Reader, span: SpanOf) -> None:
    figures = chart(reader, span(), service="shop", metric_type="queue", name="depth", unit="1")
    assert figures["total"] is None
    assert set(figures["rate"]) == {None}


def test_sparklines_of_several_series(record: Record, reader: Reader, span: SpanOf) -> None:
    record(60, "a", 1.0, kind="x", unit="1")
    record(60, "a", 5.0, kind="y", unit="1")
    record(60, "b", 2.0, kind="x", unit="1")
    figures = sparklines(reader, span(points=40), ["a", "absent"])
    found = [
        (each["metric_type"], each["name"], [value for value in each["values"] if value is not None])
        for each in figures["series"]
    ]
    assert sorted(found) == [("x", "a", [1.0]), ("y", "a", [5.0])]


def test_records_from_a_clock_that_runs_ahead_break_nothing(record: Record, look: Look) -> None:
    record(-3_600)
    record(-2)
    assert look(later=1)["requests"]["total"]["count"] == 1


def test_ingest_tells_the_books(record: Record, look: Look) -> None:
    before = look()["ingest"]
    record(1)
    after = look()["ingest"]
    assert after["recorded"] == before["recorded"] + 1
    assert after["recorded"] == after["stored"] + after["pending"] + sum(after["dropped"].values()) + after["deleted"]
    assert Path(after["store"]).is_absolute()


def test_what_was_forgotten_stays_in_the_books(shared: tuple[Metrics, Reader], record: Record, look: Look) -> None:
    metrics = shared[0]
    record(1, "to be forgotten")
    metrics.flush()
    before = look()["ingest"]
    with closing(open_store(metrics.store)) as lake:
        assert lake.delete(Query.build(agg=(), where='name="to be forgotten"')) == 1
    after = look()["ingest"]
    assert after["deleted"] == before["deleted"] + 1
    assert after["stored"] == before["stored"] - 1
    assert after["recorded"] == before["recorded"]
