"""The endpoints that store metrics."""

import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from email.message import Message
from typing import Annotated, Any, Final

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute

from tallymark.errors import BufferFull
from tallymark.metadata import encode_metadata
from tallymark.model import (
    MAX_ID_LENGTH,
    MAX_NAME_LENGTH,
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    check_error,
    check_series,
    check_text,
)
from tallymark.privacy import PiiPolicy
from tallymark.record import COLUMNS, Record
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
from tallymark.server.problems import ProblemError, documented, invalid
from tallymark.trace import current_trace_id

ServiceName = Annotated[
    str | None,
    Query(min_length=1, max_length=MAX_NAME_LENGTH, description="by default this server", examples=["backend"]),
]

Measured = tuple[str, str, float, str, Mapping[str, Any]]
"""What is recorded of one measurement: metric_type, name, value, unit, metadata."""

_NO_ID: Final = uuid.UUID(int=0)
"""Of records that were not stored yet."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


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
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


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
    [record] = await to_thread.run_sync(_store, context.metrics, [body], "body")
    location = f"{request.scope.get('root_path', '')}/api/v1/metrics/{record.id}"
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
    records = await to_thread.run_sync(_store, context.metrics, body.metrics, "body.metrics.{}")
    return json_response({"count": len(records), "ids": [record.id for record in records]}, 201)


def _store(metrics: Metrics, bodies: Sequence[MetricIn], place: str) -> list[Record]:
    """Check all, then ingest all. ``place`` is where a body is found in the request, for errors.

    Raises:
        ProblemError: one is not valid and none was stored; or as :func:`_ingest`.
    """
    records: list[Record] = []
    errors: list[tuple[str, str]] = []
    for number, body in enumerate(bodies):
        try:
            records.append(_record(body, metrics.service, metrics.pii))
        except ValueError as error:
            rule = str(error)
            errors.append((f"{place.format(number)}.{rule.split(' ', 1)[0]}", rule))
    if errors:
        raise invalid(errors)
    return _ingest(metrics, records)


def _record(body: MetricIn, service: str, pii: PiiPolicy) -> Record:
    """What will be stored, but for the id. ValueError names the field and the rule.

    The recorder has the same rules, but for one record; of a batch nothing may be stored when one is wrong.
    """
    series = check_series(
        (
            service if body.service is None else body.service,
            body.metric_type,
            body.name,
            body.unit,
            body.description,
        ),
        pii,
    )
    timestamp = time.time_ns() if body.timestamp is None else parse_timestamp(body.timestamp)
    if not MIN_TIMESTAMP <= timestamp < MAX_TIMESTAMP:
        raise ValueError("timestamp must lie between the years 1970 and 2100")
    return Record(
        id=_NO_ID,
        timestamp=timestamp,
        service=series[0],
        metric_type=series[1],
        name=series[2],
        value=body.value,
        unit=series[3],
        success=body.success,
        error=check_error(body.error, pii) if body.error else None,
        trace_id=_identifier("trace_id", body.trace_id, pii),
        session_id=_identifier("session_id", body.session_id, pii),
        metadata=_decode(encode_metadata(body.metadata, pii)),
        description=series[4],
    )


def _identifier(field: str, value: str | None, pii: PiiPolicy) -> str | None:
    return None if value is None else check_text(field, value, MAX_ID_LENGTH, pii)


def check_parameter(field: str, value: str, metrics: Metrics) -> str:
    """A text of the query as it may be recorded.

    Raises:
        ProblemError: it may not.
    """
    try:
        return check_text(field, value, pii=metrics.pii)
    except ValueError as error:
        raise invalid([(f"query.{field}", str(error))]) from None


def check_service(name: str | None, metrics: Metrics) -> str:
    """The service of :data:`ServiceName`, as :func:`check_parameter`; by default this server."""
    return metrics.service if name is None else check_parameter("service_name", name, metrics)


def store_measured(metrics: Metrics, service: str, measured: Iterable[Measured]) -> Response:
    """Store what was measured just now, all with one timestamp, and answer with the records.

    Raises:
        ProblemError: as :func:`_ingest`.
    """
    timestamp = time.time_ns()
    records = _ingest(
        metrics,
        [
            Record(
                id=_NO_ID,
                timestamp=timestamp,
                service=service,
                metric_type=metric_type,
                name=name,
                value=value,
                unit=unit,
                metadata=dict(metadata),
            )
            for metric_type, name, value, unit, metadata in measured
        ],
    )
    return json_response({"count": len(records), "metrics": [metric_json(record) for record in records]}, 201)


def _ingest(metrics: Metrics, records: Sequence[Record]) -> list[Record]:
    """Store valid records, and give them their ids.

    Raises:
        ProblemError: the journal is full, or its owner has stopped the recorder.
    """
    if not metrics.enabled:
        raise ProblemError(503, "Recording is switched off on this server.", kind="disabled")
    # The trace of this request is the server's own, not that of what is reported.
    current_trace_id.set(None)
    stored: list[Record] = []
    for record in records:
        fields = {name: getattr(record, name) for name in COLUMNS if name != "id"}
        try:
            identifier = metrics.ingest(**fields)
        except BufferFull:
            identifier = None
        except RuntimeError:
            raise ProblemError(503, "The recorder is not running.", kind="stopped") from None
        if identifier is None:
            raise ProblemError(
                503,
                "Records arrive faster than they can be stored. "
                f"The first {len(stored)} of {len(records)} were stored; send the others later.",
                kind="full",
                title="The journal is full",
                headers={"Retry-After": "1"},
            )
        stored.append(msgspec.structs.replace(record, id=identifier))
    return stored
