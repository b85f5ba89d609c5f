"""The endpoint about Celery's queues, and the collector that follows those of the settings."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Response

from tallymark.collectors.queues import QueueCollector, configured_broker, measurements, queue_depth
from tallymark.config import Settings
from tallymark.errors import ConfigError
from tallymark.model import MAX_NAME_LENGTH
from tallymark.server.context import Context, InContext
from tallymark.server.models import Collected
from tallymark.server.problems import ProblemError, documented
from tallymark.server.writes import ServiceName, check_parameter, check_service, store_measured

logger = logging.getLogger("tallymark.server")


@asynccontextmanager
async def _follow(app: FastAPI) -> AsyncIterator[None]:
    """Follow the queues of the settings while the server runs."""
    context: Context = app.state.context
    settings = context.settings
    if not settings.queues:
        yield
        return
    try:
        collector = QueueCollector(context.metrics, _broker(settings), settings.queues, settings.collect_seconds)
    except ConfigError as error:
        logger.warning("the queues are not followed: %s", error)
        yield
        return
    collector.start()
    try:
        yield
    finally:
        await to_thread.run_sync(collector.stop)


router = APIRouter(prefix="/api/v1/metrics/queues", tags=["queues"], lifespan=_follow)


@router.post(
    "/track",
    status_code=201,
    response_model=Collected,
    responses=documented(422, 503),
    summary="Look at a queue of Celery and store what is seen",
)
async def track(
    context: InContext,
    queue_name: Annotated[str, Query(min_length=1, max_length=MAX_NAME_LENGTH, examples=["celery"])] = "celery",
    service_name: ServiceName = None,
) -> Response:
    """The depth of the queue, and the age of its oldest message where that is known. The messages stay as they are."""
    shown = check_parameter("queue_name", queue_name, context.metrics)
    service = check_service(service_name, context.metrics)
    try:
        broker = _broker(context.settings)
        return await to_thread.run_sync(_track, context, broker, queue_name, shown, service)
    except ConfigError as error:
        raise ProblemError(503, f"{error}.", kind="broker", title="The broker is not configured") from None


def _track(context: Context, broker: Any, queue: str, shown: str, service: str) -> Response:
    state = queue_depth(queue, broker)
    if not state["connected"]:
        detail = f"The broker at {state['target']} could not be asked: {state['reason']}."
        raise ProblemError(503, detail, kind="broker", title="The broker is not available")
    measured = [("queue_metrics", *figures) for figures in measurements(state["target"], shown, state)]
    return store_measured(context.metrics, service, measured)


def _broker(settings: Settings) -> Any:
    return configured_broker() if settings.broker is None else settings.broker.get_secret_value()
