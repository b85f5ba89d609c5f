"""track_operation: blocks and functions of every kind."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from recording import live, recording

from tallymark import Metrics
from tallymark.testing import ManualClock
from tallymark.timing import describe

pytestmark = pytest.mark.usefixtures("core")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics(folder: Path, clock: ManualClock) -> Iterator[Metrics]:
    with recording(folder, clock=clock) as metrics:
        yield metrics


def outcomes(folder: Path) -> list[tuple[str, float, bool, str | None]]:
    return [(row["name"], row["value"], row["success"], row["error"]) for row in live(folder)]


def test_a_block(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    for _ in range(2):
        with metrics.track_operation("work", {"region": "eu"}, "job") as timing:
            clock.advance(0.25)
            timing.metadata["rows"] = 3
    row = live(folder)[1]
    assert (row["metric_type"], row["name"], row["value"], row["unit"]) == ("job", "work", 250.0, "ms")
    assert (row["success"], row["error"], row["metadata"]) == (True, None, '{"region":"eu","rows":3}')


def test_a_block_that_fails(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    broken = ZeroDivisionError("by zero")
    with pytest.raises(ZeroDivisionError) as caught, metrics.track_operation("work"):  # noqa: PT012
        clock.advance(1)
        raise broken
    assert caught.value is broken
    assert outcomes(folder) == [("work", 1000.0, False, "ZeroDivisionError: by zero")]
    assert live(folder)[0]["metric_type"] == "operation"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_a_block_that_is_interrupted(metrics: Metrics, folder: Path, interrupt: type[BaseException]) -> None:
    with pytest.raises(interrupt), metrics.track_operation("work"):
        raise interrupt
    assert outcomes(folder) == [("work", 0.0, False, interrupt.__name__)]


def test_an_async_block(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    async def main() -> None:
        async with metrics.track_operation("work") as timing:
            await asyncio.sleep(0)
            clock.advance(0.001)
            timing.metadata["step"] = "two"
        with pytest.raises(ValueError, match="no"):
            async with metrics.track_operation("work"):
                raise ValueError("no")

    asyncio.run(main())
    assert outcomes(folder) == [("work", 1.0, True, None), ("work", 0.0, False, "ValueError: no")]
    assert live(folder)[0]["metadata"] == '{"step":"two"}'


def test_a_function(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    class Shop:
        @metrics.track_operation("sell", {"kind": "shop"})
        def sell(self, count: int, *, price: int = 2) -> int:
            """Sell."""
            clock.advance(0.5)
            return count * price // (count != 13)

    assert Shop().sell(3) == 6
    assert Shop().sell(3, price=1) == 3
    with pytest.raises(ZeroDivisionError):
        Shop().sell(13)
    assert Shop.sell.__name__ == "sell"
    assert Shop.sell.__doc__ == "Sell."
    assert list(inspect.signature(Shop.sell).parameters) == ["self", "count", "price"]
    assert [outcome[1:3] for outcome in outcomes(folder)] == [(500.0, True), (500.0, True), (500.0, False)]
    assert {row["metadata"] for row in live(folder)} == {'{"kind":"shop"}'}


def test_a_function_that_calls_itself(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    @metrics.track_operation("down")
    def down(level: int) -> None:
        clock.advance(1)
        if level:
            down(level - 1)

    down(2)
    assert [value for _, value, _, _ in outcomes(folder)] == [1000.0, 2000.0, 3000.0]


def test_a_coroutine(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    @metrics.track_operation("fetch")
    async def fetch(number: int) -> int:
        await asyncio.sleep(0)
        clock.advance(0.001)
        return 10 // number

    async def main() -> None:
        assert inspect.iscoroutinefunction(fetch)
        assert list(await asyncio.gather(fetch(1), fetch(2))) == [10, 5]
        with pytest.raises(ZeroDivisionError):
            await fetch(0)
        task = asyncio.create_task(fetch(1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [(success, error) for _, _, success, error in outcomes(folder)] == [
        (True, None),
        (True, None),
        (False, "ZeroDivisionError: integer division or modulo by zero"),
        (False, "CancelledError"),
    ]


def test_a_generator(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    @metrics.track_operation("steps")
    def steps(end: int) -> Generator[int, str, str]:
        got = []
        for number in range(end):
            clock.advance(1)
            try:
                got.append((yield number))
            except KeyError as error:
                got.append(f"caught {error}")
        return ",".join(map(str, got))

    assert inspect.isgeneratorfunction(steps)
    whole = steps(3)
    assert outcomes(folder) == []
    assert (next(whole), whole.send("a"), whole.throw(KeyError("b"))) == (0, 1, 2)
    clock.advance(10)
    with pytest.raises(StopIteration) as stop:
        whole.send("c")
    assert stop.value.value == "a,caught 'b',c"

    closed = steps(3)
    next(closed)
    closed.close()

    broken = steps(3)
    next(broken)
    with pytest.raises(OSError, match="gone"):
        broken.throw(OSError("gone"))

    steps(3)  # never began
    assert outcomes(folder) == [
        ("steps", 13_000.0, True, None),
        ("steps", 1000.0, True, None),
        ("steps", 1000.0, False, "OSError: gone"),
    ]


def test_an_async_generator(metrics: Metrics, clock: ManualClock, folder: Path) -> None:
    ended: list[str] = []

    @metrics.track_operation("stream")
    async def stream(end: int) -> AsyncGenerator[Any, str]:
        try:
            for number in range(end):
                clock.advance(1)
                try:
                    got = yield number
                    if got:
                        yield f"got {got}"
                except KeyError as error:
                    yield f"caught {error}"
            if not end:
                raise LookupError("nothing")
        finally:
            await asyncio.sleep(0)
            ended.append("ended")

    async def main() -> None:
        assert inspect.isasyncgenfunction(stream)
        assert [item async for item in stream(2)] == [0, 1]

        sent = stream(2)
        assert await sent.__anext__() == 0
        assert await sent.asend("a") == "got a"
        assert await sent.__anext__() == 1
        assert await sent.athrow(KeyError("b")) == "caught 'b'"
        with pytest.raises(StopAsyncIteration):
            await sent.__anext__()

        closed = stream(2)
        await closed.__anext__()
        await closed.aclose()
        with pytest.raises(StopAsyncIteration):
            await closed.__anext__()

        broken = stream(2)
        await broken.__anext__()
        with pytest.raises(OSError, match="gone"):
            await broken.athrow(OSError("gone"))

        with pytest.raises(LookupError):
            await stream(0).__anext__()

        async with contextlib.aclosing(stream(2)) as early:
            async for _ in early:
                break

    asyncio.run(main())
    assert ended == ["ended"] * 6
    assert outcomes(folder) == [
        ("stream", 2000.0, True, None),
        ("stream", 2000.0, True, None),
        ("stream", 1000.0, True, None),
        ("stream", 1000.0, False, "OSError: gone"),
        ("stream", 0.0, False, "LookupError: nothing"),
        ("stream", 1000.0, True, None),
    ]


def test_the_arguments_are_checked_at_once(metrics: Metrics) -> None:
    for arguments, rule in (
        (("",), "name must not be empty"),
        ((5,), "name must be text"),
        (("a", {"email": "x"}), "forbidden key 'email'"),
        (("a", None, ""), "operation_type must not be empty"),
        (("a", [1]), "metadata must be a dict"),
    ):
        with pytest.raises(ValueError, match=rule):
            metrics.track_operation(*arguments)


@pytest.mark.parametrize("bad", [{"email": "x"}, {"a": object()}, {1: 2}, {"a": float("nan")}, 5, "text"])
def test_invalid_metadata_added_inside_never_breaks_the_block(
    metrics: Metrics, folder: Path, bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with metrics.track_operation("work") as timing:
        timing.metadata = bad
    with pytest.raises(ZeroDivisionError), metrics.track_operation("work") as timing:  # noqa: PT012
        timing.metadata = bad
        raise ZeroDivisionError
    stats = metrics.get_stats()
    assert (stats.dropped, stats.total_recorded, live(folder)) == ({"invalid": 2}, 2, [])
    assert "'work' was not recorded: metadata" in caplog.text


def test_a_block_that_outlives_the_recorder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recording(folder) as metrics:
        timing = metrics.track_operation("work")
        timing.__enter__()
    timing.__exit__(None, None, None)
    assert "'work' was not recorded: the recorder is not running" in caplog.text
    assert live(folder) == []


def test_the_caller_keeps_its_metadata(metrics: Metrics) -> None:
    mine = {"region": "eu"}
    with metrics.track_operation("work", mine) as timing:
        timing.metadata["more"] = 1
    assert mine == {"region": "eu"}


def test_describing_an_exception() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(ValueError("a\nb")) == "ValueError: a\nb"
    assert describe(ValueError()) == "ValueError"
    assert describe(Mute("a")) == "Mute"
