"""What the dashboard asks for, over HTTP: snapshots, charts, and server-sent events.

A snapshot is computed once for everybody who looks at the same range, in a worker thread, and only while
somebody looks. Watchers have no queue: each takes the newest snapshot when it is ready for one, and a slow
one skips some.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Hashable
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from tallymark.clock import SystemClock
from tallymark.errors import TallymarkError
from tallymark.reader import Reader
from tallymark.server.overview import SECOND, SPARK_POINTS, Figures, Span, chart, overview, sparklines

logger = logging.getLogger("tallymark.server")

THREADS = 2
"""Computations at the same time. More would only slow each other, and recording, down."""

FASTEST_SECONDS = 1.0
SLOWEST_SECONDS = 15.0
"""Between two snapshots of one range: a quarter of its window, within these."""

PROBLEM_SECONDS = 5.0
"""Until what failed is tried again."""

REST = 4
"""A channel rests this many times as long as its snapshot took: looking is idle four fifths of the time."""

MAX_SPARKLINES = 64
"""Names in one request for sparklines: what a page shows at a time."""

Result = TypeVar("Result")

Since = Annotated[str, Query(description="Start of the range: `now-15m`, or a date and time in ISO 8601.")]
Until = Annotated[str | None, Query(description="End of the range, exclusive; now when left out.")]
Service = Annotated[str | None, Query(description="Only what this service recorded.")]

View = tuple[str, str | None, str | None]
"""What somebody looks at: since, until, service."""


class Channel:
    """The newest snapshot of one view, and the task that renews it while there are watchers."""

    def __init__(self, hub: "Hub", view: View) -> None:
        self.latest: ServerSentEvent | None = None
        self.watchers = 0
        self._hub = hub
        self._view = view
        self._changed = asyncio.Event()
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Channel":
        self.watchers += 1
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watchers -= 1
        if not self.watchers and self._renewal is not None:
            self._renewal.cancel()
            self._hub.channels.pop(self._view, None)

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Each snapshot that differs from the one before, but those that came while the caller was busy."""
        seen: ServerSentEvent | None = None
        while not self._hub.closing:
            changed = self._changed
            if self.latest is not None and self.latest is not seen:
                seen = self.latest
                yield seen
            else:
                await changed.wait()

    def wake(self) -> None:
        """Let every watcher look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _renew(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._hub.closing:
            started = clock()
            event, pause = await self._snapshot()
            if self.latest is None or event.raw_data != self.latest.raw_data:
                self.latest = event
                self.wake()
            await asyncio.sleep(max(pause, REST * (clock() - started)))

    async def _snapshot(self) -> tuple[ServerSentEvent, float]:
        try:
            body, window = await self._hub.snapshot(self._view)
        except TallymarkError as error:
            return _problem(str(error)), PROBLEM_SECONDS
        except Exception:
            # A stream that fell silent would look like a store in which nothing happens.
            logger.exception("the dashboard's figures could not be computed")
            return _problem("The server failed; its log says why."), PROBLEM_SECONDS
        return ServerSentEvent(event="snapshot", raw_data=body.decode()), pause_seconds(window)


def _problem(detail: str) -> ServerSentEvent:
    problem = {"title": "The figures could not be computed", "detail": detail}
    return ServerSentEvent(event="problem", raw_data=msgspec.json.encode(problem).decode())


def pause_seconds(window: float) -> float:
    """How long a snapshot of windows of this length (seconds) stays as it is."""
    return min(max(window / 4, FASTEST_SECONDS), SLOWEST_SECONDS)


class Hub:
    """Everything that is being computed or watched in one application."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.channels: dict[View, Channel] = {}
        self.closing = False
        self._limiter = CapacityLimiter(THREADS)
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    def channel(self, view: View) -> Channel:
        """The channel of a view, new where nobody watches it."""
        return self.channels.setdefault(view, Channel(self, view))

    async def snapshot(self, view: View) -> tuple[bytes, float]:
        """A snapshot as JSON, and the length of its windows in seconds."""
        return await self.once(view, partial(_snapshot, self.reader, view))

    async def once(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """What ``compute`` returns, computed in a thread, once for all who ask for ``key`` meanwhile."""
        task: asyncio.Task[Result] | None = self._running.get(key)
        if task is None:
            task = asyncio.create_task(to_thread.run_sync(compute, limiter=self._limiter, abandon_on_cancel=True))
            self._running[key] = task
            task.add_done_callback(partial(self._finished, key))
        # Who asked first may hang up; the others still wait.
        return await asyncio.shield(task)

    def _finished(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, even where everybody who asked has gone

    async def close_when(self, shutting_down: asyncio.Event) -> None:
        """End every stream once the event is set: a server that stops waits for its responses to end."""
        await shutting_down.wait()
        self.closing = True
        for channel in self.channels.values():
            channel.wake()


async def _hub(request: Request) -> Hub:
    state = request.app.state
    if not hasattr(state, "hub"):
        state.hub = Hub(state.reader)
        if hasattr(state, "shutting_down"):
            state.hub_closer = asyncio.create_task(state.hub.close_when(state.shutting_down))
    hub: Hub = state.hub
    return hub


InHub = Annotated[Hub, Depends(_hub)]


async def _watched(
    hub: InHub, since: Since = "now-15m", until: Until = None, service: Service = None
) -> AsyncIterator[Channel]:
    Span.build(since, until, _now())  # a range that makes no sense is refused before the stream begins
    async with hub.channel((since, until, service)) as channel:
        yield channel


router = APIRouter(prefix="/api/v1", tags=["dashboard"])


@router.get("/overview", summary="Everything on the dashboard but single metrics")
async def get_overview(
    request: Request, hub: InHub, since: Since = "now-15m", until: Until = None, service: Service = None
) -> Response:
    """Requests, operations, the machine, every series and the ingest books of one time range."""
    body, _ = await hub.snapshot((since, until, service))
    return _validated(request, body)


@router.get("/series/chart", summary="One series over time")
async def get_chart(
    request: Request,
    hub: InHub,
    service: str,
    metric_type: str,
    name: str,
    unit: str,
    since: Since = "now-15m",
    until: Until = None,
) -> Response:
    """Its count, rate, average, extremes, percentiles and error rate by window, and over the whole range."""
    series = {"service": service, "metric_type": metric_type, "name": name, "unit": unit}
    key = ("chart", since, until, *series.values())
    return _validated(request, await hub.once(key, partial(_chart, hub.reader, since, until, series)))


@router.get("/series/sparklines", summary="Averages over time of several series")
async def get_sparklines(
    request: Request,
    hub: InHub,
    name: Annotated[list[str], Query(max_length=MAX_SPARKLINES, description="Names of metrics.")],
    since: Since = "now-15m",
    until: Until = None,
    service: Service = None,
) -> Response:
    """About forty averages for every series that has one of the names."""
    key = ("sparklines", since, until, service, *name)
    return _validated(request, await hub.once(key, partial(_sparklines, hub.reader, since, until, service, name)))


@router.get("/stream", response_class=EventSourceResponse, summary="Live snapshots as server-sent events")
async def stream(channel: Annotated[Channel, Depends(_watched)]) -> AsyncIterator[ServerSentEvent]:
    """A `snapshot` event with the overview whenever it has changed; `problem` when there can be none."""
    async for event in channel.events():
        yield event


def _validated(request: Request, body: bytes) -> Response:
    """JSON that a browser may keep, and asks about each time."""
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _snapshot(reader: Reader, view: View) -> tuple[bytes, float]:
    since, until, service = view
    span = Span.build(since, until, _now())
    return _json(overview(reader, span, service)), span.window / SECOND


def _chart(reader: Reader, since: str, until: str | None, series: dict[str, str]) -> bytes:
    return _json(chart(reader, Span.build(since, until, _now()), **series))


def _sparklines(reader: Reader, since: str, until: str | None, service: str | None, names: list[str]) -> bytes:
    return _json(sparklines(reader, Span.build(since, until, _now(), SPARK_POINTS), names, service))


def _json(figures: Figures) -> bytes:
    return msgspec.json.encode(figures)


def _now() -> int:
    return SystemClock.time_ns()
