"""What the dashboard shows, as values that go straight into JSON. The sole owner of what its figures mean.

Everything comes from :class:`~tallymark.reader.Reader`. Times are seconds since the epoch (what browsers and
charts count in), rates are per second, percentages run from 0 to 100, durations are milliseconds. A window in
which nothing was recorded is ``None``, except where a count of nothing is a figure: no requests are zero per
second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from tallymark.location import absolute
from tallymark.query import Filter, Query
from tallymark.reader import Answer, Reader

SECOND = 1_000_000_000

MAX_POINTS = 180
"""A chart has at most this many windows, and the one in progress: about as many as can be told apart."""

NICE_WINDOWS = (
    *(1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600),
    *(1_800, 3_600, 7_200, 14_400, 43_200, 86_400, 604_800),
)
"""Seconds. Each divides the next larger unit of a clock, so that ticks and windows fall together."""

NOW_SECONDS = 60
"""What "now" means on a tile: the last minute."""

SETTLED_SECONDS = 10
"""The window in progress has a rate once it is this old: one request in 10 ms is not 100 per second."""

MAX_OPERATIONS = 1_000
"""Operations listed, those with most time in total first."""

SPARK_POINTS = 40
"""Windows of the small chart beside a metric."""

SERVER = "tallymark"
"""The service under which the server records itself: not one of the applications."""

REQUESTS = "api_request"
"""The metric type of records that count as requests."""

LATENCY = ("p50", "p95", "p99")

Figures = dict[str, Any]
Filters = tuple[Filter, ...]


@dataclass(frozen=True)
class Span:
    """A time range and the windows it is drawn in, nanoseconds.

    ``start`` and ``end`` lie on borders of windows: a range that follows the clock changes once per window.
    """

    start: int
    end: int
    window: int
    now: int

    @classmethod
    def build(cls, since: str, until: str | None, now: int, points: int = MAX_POINTS) -> "Span":
        """From what a person typed (``now-15m``, a date); QueryError where :meth:`Query.build` raises it."""
        query = Query.build(since=since, until=until, now=now)
        start = query.start if query.start is not None else 0
        end = query.end if query.end is not None else now
        window = nice_window(end - start, points)
        return cls(start=start // window * window, end=-(-end // window) * window, window=window, now=now)

    @property
    def seconds(self) -> float:
        """Seconds of the range that have passed."""
        return max(min(self.end, self.now) - self.start, SECOND) / SECOND

    @property
    def live(self) -> bool:
        """Whether the range reaches the present."""
        return self.end >= self.now

    def times(self) -> list[float]:
        """The start of each window that has begun."""
        return [start / SECOND for start in range(self.start, min(self.end, self.now + 1), self.window)]

    def window_seconds(self, index: int) -> float | None:
        """Seconds of a window that have passed; ``None`` while they are too few for a rate."""
        passed = (self.now - self.start - index * self.window) / SECOND
        full = self.window / SECOND
        if passed >= full:
            return full
        return passed if passed >= SETTLED_SECONDS else None

    def figures(self) -> Figures:
        return {
            "start": self.start / SECOND,
            "end": self.end / SECOND,
            "window": self.window / SECOND,
            "live": self.live,
        }


def nice_window(duration: int, points: int = MAX_POINTS) -> int:
    """The smallest window (ns) of a nice size that cuts ``duration`` (ns) into at most ``points``."""
    for seconds in NICE_WINDOWS:
        if duration <= seconds * SECOND * points:
            return seconds * SECOND
    weeks = NICE_WINDOWS[-1] * SECOND
    return -(-duration // (points * weeks)) * weeks


class Asked:
    """A reader that remembers how far percentiles in its answers may be off.

    Attributes:
        percentile_error: the most of all answers so far, as a share; None while all are exact.
    """

    def __init__(self, reader: Reader) -> None:
        self.percentile_error: float | None = None
        self._reader = reader

    def query(self, **question: Any) -> Answer:
        """As :meth:`tallymark.reader.Reader.query`."""
        answer = self._reader.query(**question)
        if answer.relative_error is not None:
            self.percentile_error = max(answer.relative_error, self.percentile_error or 0.0)
        return answer


def overview(reader: Reader, span: Span, service: str | None = None) -> Figures:
    """Everything on the page but single metrics, of one service or of all of them.

    Requests and operations of all are those of the applications. The server's own are left out as long as
    there are others: looking should not change what is seen.

    Raises:
        QueryError, StoreError: as the reader does.
    """
    info = reader.info()
    asked = Asked(reader)
    series = reader.series(since=span.start, until=span.end).rows()
    services = sorted({row["service"] for row in series})
    applications = [each for each in services if each != SERVER]
    chosen = _chosen(service)
    theirs = chosen or ((Filter("service", "!=", SERVER),) if applications else ())
    return {
        "range": span.figures(),
        "t": span.times(),
        "services": services,
        "applications": applications,
        "requests": _requests(asked, span, theirs),
        "system": _system(asked, span, chosen),
        "operations": _operations(asked, span, theirs),
        "series": _columns(
            (
                row | {"last_timestamp": row["last_timestamp"].timestamp()}
                for row in series
                if service in (None, row["service"])
            ),
            ("service", "metric_type", "name", "unit", "count", "last", "last_timestamp"),
        ),
        "ingest": {
            "store": _place(info.url),
            "recorded": info.recorded,
            "stored": info.stored,
            "pending": info.pending,
            "dropped": info.dropped,
            "deleted": info.deleted,
            "bytes": info.bytes,
        },
        "percentile_error": asked.percentile_error,
    }


def _place(url: str) -> str:
    """A store as any program on this machine can name it."""
    return absolute(url).removeprefix("lake:")


def chart(reader: Reader, span: Span, *, service: str, metric_type: str, name: str, unit: str) -> Figures:
    """One series over time, and over the whole range under ``total``."""
    series = {"service": service, "metric_type": metric_type, "name": name, "unit": unit}
    filters = tuple(Filter(field, "=", value) for field, value in series.items())
    aggregates = ("count", "avg", "min", "max", "sum", "last", "error_rate", *LATENCY)
    asked = Asked(reader)
    windows = _windows(asked, span, aggregates, filters)
    return {
        "range": span.figures(),
        "total": _total(asked, span, aggregates, filters),
        "t": span.times(),
        "rate": _rates(span, windows.get("count", [])),
        **windows,
        "percentile_error": asked.percentile_error,
    }


def sparklines(reader: Reader, span: Span, names: Sequence[str], service: str | None = None) -> Figures:
    """The averages of every series that has one of these names."""
    group = ("service", "metric_type", "name", "unit")
    answer = reader.query(
        since=span.start,
        until=span.end,
        window=_duration(span),
        where=_chosen(service),
        name=list(names),
        group_by=group,
        agg=("avg",),
    )
    found: dict[tuple[str, ...], list[float | None]] = {}
    length = len(span.times())
    for row in answer.rows():
        values = found.setdefault(tuple(row[field] for field in group), [None] * length)
        _put(values, _index(span, row), row["avg"])
    return {
        "range": span.figures(),
        "series": [dict(zip(group, key, strict=True), values=values) for key, values in found.items()],
    }


def _requests(reader: Asked, span: Span, filters: Filters) -> Figures:
    filters = (*filters, Filter("metric_type", "=", REQUESTS))
    aggregates = ("count", "error_rate", *LATENCY)
    windows = _windows(reader, span, aggregates, filters)
    rate = _rates(span, windows["count"])
    failing = [
        None if each is None else each * (percent or 0.0) / 100
        for each, percent in zip(rate, windows["error_rate"], strict=True)
    ]
    recent = None
    if span.live:
        start = span.now - NOW_SECONDS * SECOND
        recent = _total(reader, Span(start, span.end, span.window, span.now), aggregates, filters)
    return {
        "rate": rate,
        "failing": failing,
        **windows,
        "total": _total(reader, span, aggregates, filters),
        "now": recent,
    }


def _operations(reader: Asked, span: Span, filters: Filters) -> Figures:
    fields = ("service", "metric_type", "name")
    aggregates = ("count", "sum", "avg", "error_rate", *LATENCY)
    answer = reader.query(
        since=span.start,
        until=span.end,
        where=(*filters, Filter("success", "!=", None)),
        unit="ms",
        group_by=fields,
        agg=aggregates,
        order_by=("-sum",),
        limit=MAX_OPERATIONS,
    )
    rows = (row | {"rate": row["count"] / span.seconds} for row in answer.rows())
    return _columns(rows, (*fields, *aggregates, "rate"))


_GAUGES = ("cpu_percent", "memory_percent", "disk_percent")
_LAST = ("memory_used_mb", "memory_total_mb", "disk_used_gb", "disk_total_gb", "cpu_count")
_DELTAS = ("disk_read_mb", "disk_write_mb", "network_sent_mb", "network_received_mb")
_MEBIBYTE = 1 << 20


def _system(reader: Asked, span: Span, filters: Filters) -> Figures:
    """The machine: gauges in percent, traffic in bytes per second.

    Where several services watch a machine, their average is shown: they all see the same machine.
    """
    answer = reader.query(
        since=span.start,
        until=span.end,
        window=_duration(span),
        group_by=("service", "name"),
        agg=("count", "avg", "last"),
        where=filters,
        metric_type="system",
        name=[*_GAUGES, *_LAST, *_DELTAS],
    )
    length = len(span.times())
    counts: dict[tuple[str, str], list[int | None]] = {}
    averages: dict[tuple[str, str], list[float | None]] = {}
    last: Figures = {}
    for row in answer.rows():
        key = (row["name"], row["service"])
        index = _index(span, row)
        _put(counts.setdefault(key, [None] * length), index, row["count"])
        _put(averages.setdefault(key, [None] * length), index, row["avg"])
        if row["name"] in _LAST:
            last[row["name"]] = row["last"]
    for key, values in averages.items():
        if key[0] in _DELTAS:
            averages[key] = _per_second(values, counts[key], span.window / SECOND, _MEBIBYTE)
    names = (*_GAUGES, *_DELTAS)
    means = {name: _mean([values for key, values in averages.items() if key[0] == name], length) for name in names}
    return {**means, "last": last}


def _per_second(
    deltas: Sequence[float | None], counts: Sequence[int | None], window: float, scale: float
) -> list[float | None]:
    """Rates from the average delta of each window, given how many samples each holds.

    A delta covers the time since the sample before it, which may have been in another window: what divides it
    is the time between samples, measured over every stretch without a gap.
    """
    steps = list(pairwise(index for index, count in enumerate(counts) if count))
    usual = median(later - index for index, later in steps) if steps else 0
    covered, samples = 0.0, 0
    for index, later in steps:
        if later - index <= 2 * usual:
            covered += (later - index) * window
            samples += counts[later] or 0
    interval = covered / samples if samples else None
    return [None if delta is None or interval is None else delta * scale / interval for delta in deltas]


def _mean(columns: Sequence[Sequence[float | None]], length: int) -> list[float | None]:
    if not columns:
        return [None] * length
    if len(columns) == 1:
        return list(columns[0])
    present = ([value for value in values if value is not None] for values in zip(*columns, strict=True))
    return [sum(values) / len(values) if values else None for values in present]


def _windows(reader: Asked, span: Span, aggregates: Sequence[str], filters: Filters) -> dict[str, list[Any]]:
    answer = reader.query(since=span.start, until=span.end, window=_duration(span), where=filters, agg=aggregates)
    length = len(span.times())
    columns: dict[str, list[Any]] = {name: [None] * length for name in aggregates}
    for row in answer.rows():
        index = _index(span, row)
        for name, values in columns.items():
            _put(values, index, row[name])
    return columns


def _total(reader: Asked, span: Span, aggregates: Sequence[str], filters: Filters) -> Figures | None:
    """The aggregates over the whole span and the rate; ``None`` where nothing was recorded."""
    rows = reader.query(since=span.start, until=span.end, where=filters, agg=aggregates).rows()
    if not rows or not rows[0]["count"]:
        return None
    figures = {name: rows[0][name] for name in aggregates}
    return figures | {"rate": figures["count"] / span.seconds}


def _rates(span: Span, counts: Sequence[int | None]) -> list[float | None]:
    """Per second. Before the first record nothing is known; after it, no record is a rate of zero."""
    rates: list[float | None] = []
    begun = False
    for index, count in enumerate(counts):
        begun = begun or bool(count)
        seconds = span.window_seconds(index)
        rates.append((count or 0) / seconds if begun and seconds else None)
    return rates


def _chosen(service: str | None) -> Filters:
    return () if service is None else (Filter("service", "=", service),)


def _duration(span: Span) -> str:
    return f"{span.window // SECOND}s"


def _index(span: Span, row: Figures) -> int:
    begins: datetime = row["window_start"]
    return round((begins.timestamp() - span.start / SECOND) / (span.window / SECOND))


def _put(values: list[Any], index: int, value: Any) -> None:
    # A record from a clock that runs ahead may lie in a window that has not begun here.
    if 0 <= index < len(values):
        values[index] = value


def _columns(rows: Iterable[Figures], fields: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {field: [] for field in fields}
    for row in rows:
        for field, values in columns.items():
            values.append(row[field])
    return columns
