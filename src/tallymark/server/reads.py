"""The endpoints that answer from the store."""

import re
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response

from tallymark.reader import Answer
from tallymark.server.context import InContext
from tallymark.server.models import (
    Columns,
    Info,
    Metric,
    MetricPage,
    WindowPage,
    json_response,
    metric_json,
)
from tallymark.server.problems import ProblemError, documented, invalid

MAX_ROWS: Final = 10_000
"""Most rows in the answer to one query."""

WINDOW_AGGREGATES: Final = ("count", "avg", "min", "max", "p50", "p95", "p99")

_LOST_PLUS: Final = re.compile(r" (\d\d:?\d\d)$")

Time = Annotated[str | None, Query(description="a date and time in ISO 8601, or relative: `now-1h`")]

metrics = APIRouter(prefix="/api/v1/metrics", tags=["metrics"])
queries = APIRouter(prefix="/api/v1", tags=["queries"])


@metrics.get("", include_in_schema=False)
@metrics.get(
    "/",
    response_model=MetricPage | WindowPage,
    responses=documented(422, 503),
    summary="List or aggregate metrics",
)
async def list_metrics(
    context: InContext,
    metric_type: Annotated[str | None, Query(examples=["processing_time"])] = None,
    name: Annotated[str | None, Query(examples=["download_time"])] = None,
    service: Annotated[str | None, Query(examples=["backend"])] = None,
    start_time: Time = None,
    end_time: Time = None,
    time_window: Annotated[
        str | None, Query(description="aggregate by windows of this length: `5m`, `1h`", examples=["5m"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(description="of the page before, with the same filters")] = None,
) -> Response:
    """Metrics, newest first; with `time_window` one row for each window and series instead."""
    equal = {"metric_type": metric_type, "name": name, "service": service}
    columns: dict[str, Any] = {column: value for column, value in equal.items() if value is not None}
    span: dict[str, Any] = {"since": _time(start_time), "until": _time(end_time)}
    reader = context.reader

    def page() -> Response:
        found = reader.records(**span, **columns, limit=limit, cursor=cursor)
        return json_response({"metrics": [metric_json(r) for r in found.records], "cursor": found.cursor})

    def windows() -> Response:
        answer = reader.query(
            **span,
            **columns,
            window=time_window,
            group_by=("service", "metric_type", "name", "unit"),
            agg=WINDOW_AGGREGATES,
            order_by=("-window_start", "service", "metric_type", "name", "unit"),
            limit=limit + 1,
        )
        rows = answer.rows()
        return json_response(
            {
                "windows": rows[:limit],
                **_origin(answer),
                "truncated": len(rows) > limit,
            }
        )

    if time_window is not None and cursor is not None:
        raise invalid([("query.cursor", "must be left out with time_window")])
    return await context.read(page if time_window is None else windows)


@metrics.get("/{metric_id:uuid}", response_model=Metric, responses=documented(404, 503), summary="One metric by its id")
async def get_metric(metric_id: UUID, context: InContext) -> Response:
    """One metric."""
    record = await context.read(lambda: context.reader.get(metric_id))
    if record is None:
        raise ProblemError(404, "There is no metric with this id; it may have been forgotten.", kind="no-metric")
    return json_response(metric_json(record))


@queries.get("/query", response_model=Columns, responses=documented(422, 503), summary="Aggregate by window and group")
async def query(
    context: InContext,
    since: Time = "now-1h",
    until: Time = None,
    where: Annotated[
        list[str] | None,
        Query(
            description="a filter; repeat it for more",
            examples=[["metric_type=api_request", "metadata.region=eu"]],
        ),
    ] = None,
    window: Annotated[str | None, Query(description="`5m`, `1h`; none: the whole range", examples=["5m"])] = None,
    group_by: Annotated[
        list[str] | None, Query(description="columns, or `metadata.key`", examples=[["service", "name"]])
    ] = None,
    agg: Annotated[
        list[str] | None,
        Query(
            description="count, sum, avg, min, max, last, rate, success_rate, error_rate, p50, p99.9 …",
            examples=[["count", "p95"]],
        ),
    ] = None,
    order_by: Annotated[list[str] | None, Query(description="columns; `-count` is descending")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 1000,
) -> Response:
    """The answer by columns: it says whether percentiles are exact, and from how many records."""

    def answer() -> Response:
        found = context.reader.query(
            since=_time(since),
            until=_time(until),
            where=where,
            window=window,
            group_by=tuple(group_by or ()),
            agg=tuple(agg or ("count",)),
            order_by=tuple(order_by or ()),
            limit=limit + 1,
        )
        return json_response(_columns(found, limit))

    key = (since, until, *(tuple(part or ()) for part in (where, group_by, agg, order_by)), window, limit)
    return await context.read_once(key, answer)


@queries.get("/series", response_model=Columns, responses=documented(422, 503), summary="Every series there is")
async def series(
    context: InContext,
    since: Time = None,
    until: Time = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 1000,
) -> Response:
    """Each with its number of records, its last value and when that was."""

    def answer() -> Response:
        found = context.reader.series(since=_time(since), until=_time(until), limit=limit + 1)
        return json_response(_columns(found, limit))

    return await context.read(answer)


@queries.get("/info", response_model=Info, responses=documented(503), summary="What the store holds")
async def info(context: InContext) -> Response:
    """The books: recorded = stored + pending + dropped + deleted."""
    held = await context.read(context.reader.info)
    return json_response(
        {
            "url": held.url,
            "recorded": held.recorded,
            "stored": held.stored,
            "pending": held.pending,
            "dropped": held.dropped,
            "deleted": held.deleted,
            "bytes": held.bytes,
        }
    )


def _columns(answer: Answer, limit: int) -> dict[str, Any]:
    """An answer as :class:`Columns` describes it, cut to the limit."""
    return {
        "columns": {name: values[:limit] for name, values in answer.columns().items()},
        "rows": min(len(answer), limit),
        **_origin(answer),
        "truncated": len(answer) > limit,
    }


def _origin(answer: Answer) -> dict[str, Any]:
    """What an answer was computed from."""
    return {
        "samples": answer.samples,
        "exact": answer.exact,
        "relative_error": answer.relative_error,
        "source": answer.source,
        "scanned": answer.scanned,
    }


def _time(text: str | None) -> str | None:
    """In a URL a plus sign is a space: ``…T12:00:00+02:00`` that was not escaped is meant all the same."""
    return _LOST_PLUS.sub(r"+\1", text) if text else None
