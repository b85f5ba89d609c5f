"""What the requests of one server share, and the bounded way from the event loop to the store."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request

from tallymark.collectors.system import SystemCollector
from tallymark.config import Settings
from tallymark.reader import Reader
from tallymark.recorder import Metrics
from tallymark.server.problems import ProblemError

QUERIES_AT_ONCE: Final = 4
"""Each uses every core it can get; more of them only wait for each other."""

QUERIES_WAITING: Final = 128
"""Further ones are turned away (503) rather than kept in memory."""

Result = TypeVar("Result")


@dataclass
class Context:
    """What a started server works with."""

    settings: Settings
    metrics: Metrics
    reader: Reader
    system: SystemCollector
    queries: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(QUERIES_AT_ONCE))
    checks: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    asked: int = 0  # queries that are at work or wait
    waiting: dict[Hashable, "asyncio.Task[Any]"] = field(default_factory=dict)

    async def read(self, query: Callable[[], Result]) -> Result:
        """What the query returns, run in a thread.

        Raises:
            ProblemError: too many are waiting already.
        """
        if self.asked >= QUERIES_AT_ONCE + QUERIES_WAITING:
            raise ProblemError(503, "Too many queries are waiting.", kind="busy", headers={"Retry-After": "1"})
        self.asked += 1
        try:
            # Left behind when the request is cancelled: a slow query must not hold up the end of the server.
            return await to_thread.run_sync(query, limiter=self.queries, abandon_on_cancel=True)
        finally:
            self.asked -= 1

    async def read_once(self, key: Hashable, query: Callable[[], Result]) -> Result:
        """Like :meth:`read`, once for all who ask for ``key`` before its turn comes: none of them misses anything that
        was recorded before it asked.
        """
        task: asyncio.Task[Result] | None = self.waiting.get(key)
        if task is None:

            def begin() -> Result:
                self.waiting.pop(key, None)
                return query()

            task = asyncio.create_task(self.read(begin))
            self.waiting[key] = task
            task.add_done_callback(partial(self._done, key))
        # Who asked first may hang up; the others still wait.
        return await asyncio.shield(task)

    def _done(self, key: Hashable, task: "asyncio.Task[Any]") -> None:
        if self.waiting.get(key) is task:  # it was turned away
            del self.waiting[key]
        if not task.cancelled():
            task.exception()  # seen, even where everybody who asked has gone


async def _context(request: Request) -> Context:
    context = getattr(request.app.state, "context", None)
    if not isinstance(context, Context):
        raise ProblemError(
            503,
            "The server was not started. Inside another application, tallymark.server.mount starts it too.",
        )
    return context


InContext = Annotated[Context, Depends(_context)]
