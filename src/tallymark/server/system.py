"""The endpoints about the machine that the server runs on."""

import time
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Response

from tallymark.collectors.system import UNITS
from tallymark.server.context import Context, InContext
from tallymark.server.models import Collected, SystemStatus, format_timestamp, json_response
from tallymark.server.problems import documented
from tallymark.server.writes import Measured, ServiceName, check_service, store_measured

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
    service_name: ServiceName = None,
) -> Response:
    """The same values as the system's status, one metric each, all with one timestamp."""
    service = check_service(service_name, context.metrics)
    return await to_thread.run_sync(_collect, context, service)


def _collect(context: Context, service: str) -> Response:
    sample: dict[str, Any] = context.system.status()
    process: dict[str, float] = sample.pop("process")
    measured: list[Measured] = [
        (metric_type, name, value, UNITS[name], {})
        for metric_type, values in (("system", sample), ("process", process))
        for name, value in values.items()
    ]
    return store_measured(context.metrics, service, measured)
