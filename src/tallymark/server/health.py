"""Whether the server lives, and whether it can work."""

from typing import Final

from anyio import move_on_after, to_thread
from fastapi import APIRouter

from tallymark.errors import StoreError
from tallymark.server.context import InContext
from tallymark.server.models import Health
from tallymark.server.problems import ProblemError, documented

READY_SECONDS: Final = 5.0
"""A store that takes longer to say what it holds is not ready."""

router = APIRouter(tags=["health"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Alive")
async def livez() -> Health:
    """Answers while the event loop runs, whatever the store does."""
    return Health(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Ready", responses=documented(503))
async def readyz(context: InContext) -> Health:
    """Answers `ok` when the store can be read."""
    # Its own place: queries that are at work must not make the server look dead.
    with move_on_after(READY_SECONDS):
        try:
            await to_thread.run_sync(context.reader.info, limiter=context.checks, abandon_on_cancel=True)
        except StoreError:
            raise ProblemError(503, "The store cannot be read.", kind="store") from None
        return Health(status="ok")
    raise ProblemError(503, f"The store did not answer within {READY_SECONDS:g} s.", kind="store")
