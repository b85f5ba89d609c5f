"""The endpoints about the machine that the server runs on."""

import time
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Response

from tallymark.collectors.system import UNITS
from tallymark.model import MAX_NAME_LENGTH, check_text
from tallymark.record import Record
from tallymark.server.context import Context, InContext
from tallymark.server.models import Collected, SystemStatus, format_timestamp, json_response, metric_json
from tallymark.server.problems import documented, invalid
from tallymark.server.writes import NO_ID, ingest

router = APIRouter(prefix="/api/v1/metrics", tags=["system"])


@router.get("/system/status", response_model=SystemStatus, summary="This machine now")
async def system_status(context: InContext) -> Response:
    """CPU, memory, disk, network and the server's process. Nothing is stored."""
    sample = await to_thread.run_sync(context.system.status)
    return json_response({"timestamp": format_timestamp(time.time_ns()), **sample})


@router.post(
    "/collect",
    status_code=201,
    response_model=Collected,
    responses=documented(422, 503),
    summary="Measure this machine and store it",
)
async def collect(
    context: InContext,
    service_name: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=MAX_NAME_LENGTH,
            description="by default this server",
            examples=["backend"],
        ),
    ] = None,
) -> Response:
    """The same values as the system's status, one metric each, all with one timestamp."""
    service = context.metrics.service
    try:
        if service_name is not None:
            service = check_text("service_name", service_name, pii=context.metrics.pii)
    except ValueError as error:
        raise invalid([("query.service_name", str(error))]) from None
    records = await to_thread.run_sync(_collect, context, service)
    return json_response({"count": len(records), "metrics": [metric_json(record) for record in records]}, 201)


def _collect(context: Context, service: str) -> list[Record]:
    sample: dict[str, Any] = context.system.status()
    process: dict[str, float] = sample.pop("process")
    timestamp = time.time_ns()
    return ingest(
        context.metrics,
        [
            Record(
                id=NO_ID,
                timestamp=timestamp,
                service=service,
                metric_type=metric_type,
                name=name,
                value=value,
                unit=UNITS[name],
            )
            for metric_type, values in (("system", sample), ("process", process))
            for name, value in values.items()
        ],
    )
