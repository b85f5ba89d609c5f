"""The endpoints that store metrics."""

import uuid
from collections.abc import Callable, Coroutine, Sequence
from email.message import Message
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from tallymark.metadata import encode_metadata
from tallymark.model import MAX_ID_LENGTH, MAX_TIMESTAMP, MIN_TIMESTAMP, check_series, check_text
from tallymark.recorder import Metrics
from tallymark.server.context import InContext
from tallymark.server.models import (
    BatchIn,
    BatchStored,
    Metric,
    MetricIn,
    json_response,
    metric_json,
    parse_timestamp,
)
from tallymark.server.problems import ProblemError, documented, full, invalid
from tallymark.trace import current_trace_id


class JsonRoute(APIRoute):
    """A route whose body, where there is one, is JSON and says so.

    A form in a page of another site can send any bytes without asking, but not under this content type.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind the check."""
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            headers = request.headers
            has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
            if has_body and not _is_json(headers.get("content-type", "")):
                raise ProblemError(415, "Content-Type must be application/json.", kind="content-type")
            return await handler(request)

        return checked


def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (
        subtype == "json" or subtype.endswith("+json")
    )


router = APIRouter(prefix="/api/v1/metrics", tags=["metrics"], route_class=JsonRoute)


@router.post("", include_in_schema=False, status_code=201)
@router.post(
    "/",
    status_code=201,
    response_model=Metric,
    responses=documented(400, 413, 415, 422, 503),
    summary="Store one metric",
)
async def create_metric(request: Request, body: MetricIn, context: InContext) -> Response:
    """From the answer on, every query sees it."""
    [identifier] = await to_thread.run_sync(_store, context.metrics, [body], "body")
    record = await context.read(lambda: context.reader.get(identifier))
    assert record is not None
    location = f"{request.scope.get('root_path', '')}/api/v1/metrics/{identifier}"
    return json_response(metric_json(record), 201, {"Location": location})


@router.post(
    "/batch",
    status_code=201,
    response_model=BatchStored,
    responses=documented(400, 413, 415, 422, 503),
    summary="Store several metrics",
)
async def create_batch(body: BatchIn, context: InContext) -> Response:
    """All of them are valid, or none is stored."""
    ids = await to_thread.run_sync(_store, context.metrics, body.metrics, "body.metrics.{}")
    return json_response({"count": len(ids), "ids": ids}, 201)


def _store(metrics: Metrics, bodies: Sequence[MetricIn], place: str) -> list[uuid.UUID]:
    """Check all, then ingest all.

    Raises:
        ProblemError: one is not valid and none was stored, or the journal is full.
    """
    # The trace of this request is the server's own, not that of what is reported.
    current_trace_id.set(None)
    timestamps: list[int | None] = []
    errors: list[tuple[str, str]] = []
    for number, body in enumerate(bodies):
        try:
            timestamps.append(_check(metrics, body))
        except ValueError as error:
            rule = str(error)
            errors.append((f"{place.format(number)}.{rule.split(' ', 1)[0]}", rule))
    if errors:
        raise invalid(errors)
    ids: list[uuid.UUID] = []
    for body, timestamp in zip(bodies, timestamps, strict=True):
        identifier = _ingest(metrics, body, timestamp)
        if identifier is None:
            raise full(f"The first {len(ids)} of {len(bodies)} were stored.")
        ids.append(identifier)
    return ids


def _check(metrics: Metrics, body: MetricIn) -> int | None:
    """The timestamp, after every rule of the recorder; ValueError names the field and the rule.

    The recorder checks again. It cannot check a batch, of which nothing may be stored when one is wrong.
    """
    check_series((body.service or metrics.service, body.metric_type, body.name, body.unit, body.description))
    for field in ("trace_id", "session_id"):
        if getattr(body, field) is not None:
            check_text(field, getattr(body, field), MAX_ID_LENGTH)
    encode_metadata(body.metadata)
    if body.timestamp is None:
        return None
    timestamp = parse_timestamp(body.timestamp)
    if not MIN_TIMESTAMP <= timestamp < MAX_TIMESTAMP:
        raise ValueError("timestamp must lie between the years 1970 and 2100")
    return timestamp


def _ingest(metrics: Metrics, body: MetricIn, timestamp: int | None) -> uuid.UUID | None:
    return metrics.ingest(
        body.metric_type,
        body.name,
        body.value,
        body.unit,
        service=body.service,
        timestamp=timestamp,
        description=body.description,
        success=body.success,
        error=body.error,
        metadata=body.metadata,
        trace_id=body.trace_id,
        session_id=body.session_id,
    )
