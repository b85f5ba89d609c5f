"""The structured log over HTTP: its newest lines, and a stream of what is added.

Every client reads the file for itself, at its own speed: what waits is the file, and a slow client costs others
nothing. Only where one is so slow that its view would not be live any more, lines are left out, and it is told how
many.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time_ns
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from tallymark.logs import LogFilter, LogFollower, LogLine
from tallymark.server.context import InContext
from tallymark.server.models import json_response
from tallymark.server.problems import ProblemError, documented
from tallymark.times import parse_time

MAX_CLIENTS: Final = 32
"""Streams that are open at the same time."""

MAX_QUEUE: Final = 5_000
"""Lines that wait for one client."""

MAX_QUEUE_CHARACTERS: Final = 4_000_000
"""Characters that wait for one client."""

MAX_REPLAY: Final = 10_000
MAX_LINES: Final = 1_000
"""Most lines in one answer."""

POLL_SECONDS: Final = 0.25

PROBLEM_SECONDS: Final = 5.0
"""Until a log that cannot be read is tried again."""

POSITION_SECONDS: Final = 10.0
"""After so long without an event the client is told the position, so that it need not begin again further back."""

THREADS: Final = 2
"""That read logs. Each round of reading is bounded, so that everybody gets a turn."""

STREAM_PATHS: Final = ("/api/v1/logs/stream", "/api/monitoring/advanced/logs/stream")

Level = Literal["debug", "info", "metric", "warning", "error", "critical"]
Text = Annotated[str | None, Query(max_length=200)]
Result = TypeVar("Result")


@dataclass
class Place:
    """What the streams of one application share."""

    limiter: CapacityLimiter
    clients: int = 0


async def _filter(
    level: Annotated[Level | None, Query(description="This level and those above it.")] = None,
    q: Annotated[
        str | None, Query(max_length=200, description="Text in the message or in any field, in upper or lower case.")
    ] = None,
    trace_id: Text = None,
    session_id: Text = None,
    since: Annotated[str | None, Query(description="Lines of this moment and later: `now-15m`, or ISO 8601.")] = None,
) -> LogFilter:
    moment = None
    if since is not None:
        moment = datetime.fromtimestamp(parse_time(since, "since", time_ns()) / 1e9, UTC)
    return LogFilter(level, q or None, trace_id, session_id, moment)


InFilter = Annotated[LogFilter, Depends(_filter)]


async def _place(request: Request) -> Place:
    state = request.app.state
    if not hasattr(state, "logs"):
        state.logs = Place(CapacityLimiter(THREADS))
    place: Place = state.logs
    return place


InPlace = Annotated[Place, Depends(_place)]


router = APIRouter(tags=["logs"])


@router.get("/api/v1/logs", responses=documented(422, 503), summary="The newest lines of the structured log")
async def get_logs(
    context: InContext,
    place: InPlace,
    wanted: InFilter,
    limit: Annotated[int, Query(ge=1, le=MAX_LINES)] = 100,
) -> Response:
    """Lines, oldest first, from the last 64 MB of the log; `skipped` counts those that are no JSON objects.

    `position` is where the newest line ends: as `Last-Event-ID` it has the stream go on from there.
    """

    def read() -> dict[str, Any]:
        with LogFollower(context.settings.log_path, wanted) as log:
            lines = [line.fields for line in log.last(limit)]
            return {"lines": lines, "skipped": log.skipped, "position": log.position}

    return json_response(await to_thread.run_sync(_readable(read), limiter=place.limiter))


class _Stream:
    """What one client is sent."""

    def __init__(self, path: Path, wanted: LogFilter, limiter: CapacityLimiter, closing: asyncio.Event) -> None:
        self._log = LogFollower(path, wanted)
        self._limiter = limiter
        self._closing = closing
        self._lines: deque[LogLine] = deque()
        self._live = False
        self._clock = asyncio.get_running_loop().time

    async def begin(self, replay: int, last_event_id: str | None) -> None:
        """Find the place to begin at. What is written from then on is sent.

        Raises:
            ProblemError: the log cannot be read.
        """

        def found() -> list[LogLine]:
            if last_event_id and self._log.resume(last_event_id):
                return []
            lines = self._log.last(replay)
            self._log.gap = bool(last_event_id)
            return lines

        self._lines.extend(await self._read(found))

    def close(self) -> None:
        self._log.close()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Until the server ends."""
        told = None
        told_at = self._clock()
        while not self._closing.is_set():
            dropped = 0
            try:
                if not self._lines:
                    dropped = await self._fill()
            except ProblemError as problem:
                yield _event("problem", {"detail": str(problem.detail)})
                await self._rest(PROBLEM_SECONDS)
                continue
            if self._log.gap:
                self._log.gap = False
                yield _event("gap", {"detail": "lines are missing here"})
            if dropped:
                yield _event("dropped", {"count": dropped})
            while self._lines and not self._closing.is_set():
                line = self._lines.popleft()
                yield ServerSentEvent(event="log", id=line.position, raw_data=line.text)
                told, told_at = line.position, self._clock()
            position = self._log.position
            if position != told and (told is None or self._clock() - told_at > POSITION_SECONDS):
                # Without data it is no event for the page; the browser keeps the id.
                yield ServerSentEvent(id=position)
                told, told_at = position, self._clock()
            if self._log.at_end:
                await self._rest(POLL_SECONDS)

    async def _fill(self) -> int:
        """Read what was added since, or some of it as long as the end was not reached; how much was left out.

        Until then the client catches up at its own speed. After that it should see what happens now: where more waits
        than a client that keeps up would ever have waiting, the oldest lines are left out.
        """
        characters = dropped = 0
        while True:
            for line in await self._read(self._log.new):
                self._lines.append(line)
                characters += len(line.text)
                while self._live and (
                    len(self._lines) > MAX_QUEUE or characters > MAX_QUEUE_CHARACTERS > len(line.text)
                ):
                    characters -= len(self._lines.popleft().text)
                    dropped += 1
            if self._log.at_end or not self._live or self._closing.is_set():
                self._live = self._live or self._log.at_end
                return dropped

    async def _read(self, read: Callable[[], Result]) -> Result:
        # Never left behind: the files are closed when the stream ends.
        return await to_thread.run_sync(_readable(read), limiter=self._limiter)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


async def _begun(
    request: Request,
    context: InContext,
    place: InPlace,
    wanted: InFilter,
    replay: Annotated[int, Query(ge=0, le=MAX_REPLAY, description="So many of the last lines come first.")] = 0,
    last_event_id: Annotated[str | None, Header(max_length=200, description="Go on behind this event.")] = None,
) -> AsyncIterator[_Stream]:
    if place.clients >= MAX_CLIENTS:
        raise ProblemError(503, "Too many clients follow the log.", kind="busy", headers={"Retry-After": "10"})
    place.clients += 1
    stream = _Stream(context.settings.log_path, wanted, place.limiter, request.app.state.shutting_down)
    try:
        # Before the response begins: whoever sees it begin will see every line from then on.
        await stream.begin(replay, last_event_id)
        yield stream
    finally:
        stream.close()
        place.clients -= 1


@router.get(
    STREAM_PATHS[1],
    response_class=EventSourceResponse,
    responses=documented(422, 503),
    summary="The structured log as server-sent events (second path)",
)
@router.get(
    STREAM_PATHS[0],
    response_class=EventSourceResponse,
    responses=documented(422, 503),
    summary="The structured log as server-sent events",
)
async def stream_logs(stream: Annotated[_Stream, Depends(_begun)]) -> AsyncIterator[ServerSentEvent]:
    """A `log` event for each line, as it is written. Others are rare:

    `gap`: lines are missing here, since `Last-Event-ID` names a line that is gone, or since the log was
    rotated away, replaced or emptied while this client was behind; `dropped`, with `count`: this client was too slow
    for so many lines; `problem`: the log cannot be read, and is tried again.
    """
    async for event in stream.events():
        yield event


def _readable(read: Callable[[], Result]) -> Callable[[], Result]:
    """Reading that fails with what may be told to a client."""

    def tried() -> Result:
        try:
            return read()
        except OSError as error:
            raise ProblemError(503, f"The log cannot be read: {error.strerror}.", kind="log") from error

    return tried


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(event=name, raw_data=msgspec.json.encode(data).decode())
