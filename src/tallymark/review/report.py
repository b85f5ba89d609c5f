"""Reports on sessions and corrections: questions to the store, and what their answers say together.

Everything is asked as aggregates, so a report takes as long as the store takes to answer, whatever was recorded, and
holds what is still in the journals.
"""

import math
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tallymark.model import check_number
from tallymark.review.alerts import performance_alerts
from tallymark.review.corrections import CORRECTION, LABEL
from tallymark.review.service import CORRECTION_RATE_PERCENT, SLOW_STAGE_MS, SYSTEM_METRIC
from tallymark.review.sessions import PROCESSING, SESSION, ProcessingStage
from tallymark.review.trend import trend
from tallymark.stores.retention import DAY_NS, HOUR_NS

if TYPE_CHECKING:
    from tallymark.reader import Reader

MAX_HOURS: Final = 24 * 3_660
MAX_DAYS: Final = 366
MAX_SINGLE_DAYS: Final = 60
"""For more days than these, trends are over weeks."""

Row = dict[str, Any]

_ADMIN: Final = "metadata.admin"
_RATING: Final = "metadata.admin_satisfaction"
_MEASURES: Final = ("voice_transcription_time_ms", "ai_correction_time_ms", "similarity", "retry_count")
_ORDER: Final = {stage.value: place for place, stage in enumerate(ProcessingStage)}


def dashboard(
    reader: "Reader",
    hours: float = 24,
    *,
    now: int | None = None,
    slow_stage_ms: float = SLOW_STAGE_MS,
    correction_rate_percent: float = CORRECTION_RATE_PERCENT,
) -> dict[str, Any]:
    """The last hours in numbers; what cannot be known, such as the mean of nothing, is None. Rates are in percent.

    ==========================  ===================================================================================
    ``overview``                total_requests (timings of ``query_received``; where nobody times that stage, sessions
                                created), avg_total_processing_time_ms (of all stages together, for each request),
                                overall_success_rate (of all timings), total_corrections, total_sessions
    ``processing_by_stage``     for each stage, in the order of the workflow: avg_duration_ms, success_rate,
                                total_count, p95_duration_ms, max_duration_ms
    ``corrections``             by_type: total_count, avg_processing_time_ms, and the means of what was measured;
                                by_admin: total_corrections, avg_satisfaction, avg_processing_time_ms, label
    ``alerts``                  :func:`tallymark.review.alerts.performance_alerts`
    ``bottleneck``              the stage that takes the most time of all, and its share in percent; None without one
    ``system_metrics``          for each name: last, avg, max, count
    ``period``                  hours, since, until
    ==========================  ===================================================================================

    Args:
        now: where the hours end, ns since 1970 UTC; the time of the call when left out.

    Raises:
        ValueError: hours is not positive, or longer than ten years.
        StoreError: the store cannot be read.
    """
    hours = check_number("hours", hours)
    if not 0 < hours <= MAX_HOURS:
        raise ValueError(f"hours must be more than 0 and at most {MAX_HOURS}")
    until = time.time_ns() if now is None else now
    period = {"since": max(0, until - int(hours * HOUR_NS)), "until": until}

    timed = reader.query(
        **period, metric_type=PROCESSING, group_by=("name", "success"), agg=("count", "sum", "max")
    ).rows()
    stages = _stages(timed, _p95(reader, period) if timed else {})
    sessions = _count(reader, period, SESSION)
    corrections = _corrections(reader, period)
    requests = stages.get(ProcessingStage.QUERY_RECEIVED, {}).get("total_count") or sessions
    found: dict[str, Any] = {
        "overview": {
            "total_requests": requests,
            "avg_total_processing_time_ms": _quotient(_sum(row["sum"] for row in timed), requests),
            "overall_success_rate": _success_rate(timed),
            "total_corrections": sum(row["total_count"] for row in corrections["by_type"].values()),
            "total_sessions": sessions,
        },
        "processing_by_stage": stages,
        "corrections": corrections,
    }
    found["alerts"] = performance_alerts(found, slow_stage_ms, correction_rate_percent)
    found["bottleneck"] = _bottleneck(stages)
    found["system_metrics"] = _system_metrics(reader, period)
    found["period"] = {"hours": hours, **{end: _iso(moment) for end, moment in period.items()}}
    return found


def admin_performance(reader: "Reader", days: int = 28, *, now: int | None = None) -> dict[str, Any]:
    """What each admin did in the last days, today included, and where it is heading.

    Returns ``period`` (days, since, until, and the window of the trends: ``day``, or ``week`` beyond 60 days), ``team``
    (everybody's corrections together) and ``admins``: for each, total_corrections, corrections_per_day,
    avg_processing_time_ms, avg_satisfaction, rated_corrections, label, and two trends, ``speed`` and ``satisfaction``
    (:func:`tallymark.review.trend.trend`). Days are those of UTC.

    Raises:
        ValueError: days is not between 1 and 366.
        StoreError: the store cannot be read.
    """
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= MAX_DAYS:
        raise ValueError(f"days must be a whole number from 1 to {MAX_DAYS}")
    until = time.time_ns() if now is None else now
    since = max(0, (until // DAY_NS - days + 1) * DAY_NS)  # whole days
    by_week = days > MAX_SINGLE_DAYS
    window = 7 * DAY_NS if by_week else DAY_NS
    rows = reader.query(
        since=since,
        until=until,
        metric_type=CORRECTION,
        window=window,
        group_by=(_ADMIN, _RATING),
        agg=("count", "sum"),
    ).rows()
    by_admin = _grouped(rows, _ADMIN)
    labels = _labels(reader) if by_admin else {}
    return {
        "period": {"days": days, "since": _iso(since), "until": _iso(until), "window": "week" if by_week else "day"},
        "team": _performance(rows, days),
        "admins": {
            admin: {**_performance(own, days), "label": labels.get(admin)} for admin, own in sorted(by_admin.items())
        },
    }


def review(
    reader: "Reader",
    hours: float = 24,
    days: int = 28,
    *,
    now: int | None = None,
    slow_stage_ms: float = SLOW_STAGE_MS,
    correction_rate_percent: float = CORRECTION_RATE_PERCENT,
) -> dict[str, Any]:
    """The dashboard, and under ``admin_performance`` the other report: what is exported."""
    now = time.time_ns() if now is None else now
    found = dashboard(
        reader, hours, now=now, slow_stage_ms=slow_stage_ms, correction_rate_percent=correction_rate_percent
    )
    return {**found, "admin_performance": admin_performance(reader, days, now=now)}


def _count(reader: "Reader", period: Row, metric_type: str) -> int:
    rows = reader.query(**period, metric_type=metric_type, agg="count").rows()
    return int(rows[0]["count"]) if rows else 0


def _p95(reader: "Reader", period: Row) -> dict[str, float]:
    rows = reader.query(**period, metric_type=PROCESSING, group_by="name", agg="p95").rows()
    return {row["name"]: row["p95"] for row in rows}


def _stages(timed: list[Row], p95: Mapping[str, float]) -> dict[str, Row]:
    by_stage = _grouped(timed, "name")
    stages = {}
    for stage in sorted(by_stage, key=lambda name: (_ORDER.get(name, len(_ORDER)), name)):
        own = by_stage[stage]
        count = sum(row["count"] for row in own)
        stages[stage] = {
            "avg_duration_ms": _quotient(_sum(row["sum"] for row in own), count),
            "success_rate": _success_rate(own),
            "total_count": count,
            "p95_duration_ms": p95.get(stage),
            "max_duration_ms": max(row["max"] for row in own),
        }
    return stages


def _success_rate(rows: Iterable[Row]) -> float | None:
    outcomes: dict[bool | None, int] = {}
    for row in rows:
        outcomes[row["success"]] = outcomes.get(row["success"], 0) + row["count"]
    succeeded = outcomes.get(True, 0)
    return _quotient(100.0 * succeeded, succeeded + outcomes.get(False, 0))


def _corrections(reader: "Reader", period: Row) -> dict[str, dict[str, Row]]:
    rows = reader.query(
        **period, metric_type=CORRECTION, group_by=("name", _ADMIN, _RATING), agg=("count", "sum")
    ).rows()
    by_type, by_admin = _grouped(rows, "name"), _grouped(rows, _ADMIN)
    measures = {measure: _means(reader, period, measure) for measure in _MEASURES} if rows else {}
    labels = _labels(reader) if by_admin else {}
    types = {}
    for name, own in by_type.items():
        total, mean, satisfaction, _ = _summary(own)
        means = {f"avg_{measure}": measures[measure].get(name) for measure in _MEASURES}
        types[name] = {
            "total_count": total,
            "avg_processing_time_ms": mean,
            "avg_satisfaction": satisfaction,
            **means,
        }
    admins = {}
    for admin, own in sorted(by_admin.items()):
        total, mean, satisfaction, _ = _summary(own)
        admins[admin] = {
            "total_corrections": total,
            "avg_satisfaction": satisfaction,
            "avg_processing_time_ms": mean,
            "label": labels.get(admin),
        }
    return {"by_type": types, "by_admin": admins}


def _means(reader: "Reader", period: Row, measure: str) -> dict[str, float]:
    """The mean of a number in the metadata of corrections, by type.

    Grouped by the number: there are few different ones (whole milliseconds, thousandths).
    """
    field = f"metadata.{measure}"
    rows = reader.query(
        **period, metric_type=CORRECTION, where=f"{field}!=null", group_by=("name", field), agg="count"
    ).rows()
    means = {}
    for name, own in _grouped(rows, "name").items():
        numbers = [(number, row["count"]) for row in own if (number := _number(row[field])) is not None]
        mean = _quotient(_sum(number * count for number, count in numbers), sum(count for _, count in numbers))
        if mean is not None:
            means[name] = mean
    return means


def _summary(rows: list[Row]) -> tuple[int, float | None, float | None, int]:
    """Of rows with count, sum and a rating: how many, their mean, the mean rating, and how many are rated."""
    total = sum(row["count"] for row in rows)
    ratings = [(number, row["count"]) for row in rows if (number := _number(row[_RATING])) is not None]
    rated = sum(count for _, count in ratings)
    mean = _quotient(_sum(row["sum"] for row in rows), total)
    return total, mean, _quotient(_sum(number * count for number, count in ratings), rated), rated


def _performance(rows: list[Row], days: int) -> Row:
    total, mean, satisfaction, rated = _summary(rows)
    speed, ratings = [], []
    for start, own in sorted(_grouped(rows, "window_start").items()):
        _, window_mean, window_rating, _ = _summary(own)
        day = start.timestamp() / 86_400
        if window_mean is not None:
            speed.append((day, window_mean))
        if window_rating is not None:
            ratings.append((day, window_rating))
    return {
        "total_corrections": total,
        "corrections_per_day": total / days,
        "avg_processing_time_ms": mean,
        "avg_satisfaction": satisfaction,
        "rated_corrections": rated,
        "speed": trend(speed, better="lower"),
        "satisfaction": trend(ratings, better="higher"),
    }


def _labels(reader: "Reader") -> dict[str, str]:
    """The newest label of each admin, however long ago it was given."""
    rows = reader.query(metric_type=LABEL, group_by=(_ADMIN, "metadata.label"), agg="last_timestamp").rows()
    rows.sort(key=lambda row: row["last_timestamp"])
    return {row[_ADMIN]: row["metadata.label"] for row in rows if row[_ADMIN] is not None}


def _bottleneck(stages: Mapping[str, Row]) -> Row | None:
    times = {stage: (row["avg_duration_ms"] or 0.0) * row["total_count"] for stage, row in stages.items()}
    if not times:
        return None
    stage = max(times, key=times.__getitem__)
    share = _quotient(100 * times[stage], _sum(times.values()) or 0.0)
    mean = stages[stage]["avg_duration_ms"]
    return None if share is None else {"stage": stage, "avg_duration_ms": mean, "share_of_time": share}


def _system_metrics(reader: "Reader", period: Row) -> dict[str, Row]:
    rows = reader.query(
        **period, metric_type=SYSTEM_METRIC, group_by="name", agg=("last", "avg", "max", "count")
    ).rows()
    return {row["name"]: {measure: row[measure] for measure in ("last", "avg", "max", "count")} for row in rows}


def _grouped(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """The rows by the value that they have there, without those that have none."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if row[key] is not None:
            groups.setdefault(row[key], []).append(row)
    return groups


# Other programs may have recorded anything under these names: what leaves the range of numbers is not known.


def _sum(numbers: Iterable[float | None]) -> float | None:
    total = 0.0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def _quotient(total: float | None, count: float) -> float | None:
    quotient = total / count if count and total is not None else math.nan
    return quotient if math.isfinite(quotient) else None


def _number(text: str | None) -> float | None:
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        number = math.nan
    return number if math.isfinite(number) else None


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment // 1_000_000_000, UTC).isoformat()
