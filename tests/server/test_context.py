"""What several clients ask at the same time is computed once, but never before one of them asked."""

import asyncio
import threading
from typing import Any, cast

import pytest
from anyio import CapacityLimiter

from tallymark.server.context import Context


def test_questions_that_wait_share_an_answer_and_one_that_has_begun_does_not() -> None:
    nothing = cast(Any, None)
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    asked: list[str] = []

    def question(name: str) -> str:
        asked.append(name)
        begun.release()
        assert go_on.acquire(timeout=60)
        return name

    async def ask() -> list[str]:
        context = Context(nothing, nothing, nothing, nothing, queries=CapacityLimiter(1))

        def one(key: str, name: str) -> "asyncio.Task[str]":
            return asyncio.create_task(context.read_once(key, lambda: question(name)))

        running = one("a", "running")
        await asyncio.to_thread(begun.acquire)
        # The same question as the one at work, five times, and another one.
        later = [one("a", f"later {number}") for number in range(5)] + [one("b", "other")]
        await asyncio.sleep(0)
        later[0].cancel()  # who asked first hangs up
        for _ in range(3):
            go_on.release()
        answers = [await running, *await asyncio.gather(*later[1:])]
        assert (context.asked, context.waiting) == (0, {})
        return answers

    assert asyncio.run(ask()) == ["running", *["later 0"] * 4, "other"]
    assert sorted(asked) == ["later 0", "other", "running"]


def test_who_is_turned_away_leaves_nothing_behind() -> None:
    nothing = cast(Any, None)

    async def ask() -> None:
        context = Context(nothing, nothing, nothing, nothing, asked=10**6)
        for _ in range(2):
            with pytest.raises(Exception, match="Too many queries"):
                await context.read_once("a", lambda: None)
            await asyncio.sleep(0)
            assert context.waiting == {}

    asyncio.run(ask())
