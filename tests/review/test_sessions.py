"""Sessions, and the timers of their stages."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Generator
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from recording import in_threads, live, recording

from tallymark import Metrics
from tallymark.errors import BufferFull
from tallymark.review import MetricsService, ProcessingStage, ProcessingTimer
from tallymark.testing import ManualClock
from tallymark.trace import current_session_id


def timings(folder: Path) -> list[dict[str, Any]]:
    return [row for row in live(folder) if row["metric_type"] == "processing"]


def test_the_stages_are_those_of_the_interface_documents_in_their_order() -> None:
    assert [stage.value for stage in ProcessingStage] == [
        "query_received",
        "ai_processing",
        "moderation_queue",
        "admin_review",
        "correction_processing",
        "correction_ai",
        "final_response",
        "user_delivery",
    ]


def test_a_stage(service: MetricsService, clock: ManualClock, folder: Path) -> None:
    session_id = service.create_session(12345, 67890)
    with service.timer(session_id, 12345, 67890, ProcessingStage.AI_PROCESSING) as timing:
        clock.advance(1.25)
        timing.metadata["tokens_used"] = 42
    created, timed = live(folder)
    assert (created["metric_type"], created["name"], created["session_id"]) == (
        "processing_session",
        "created",
        session_id,
    )
    assert (timed["metric_type"], timed["name"], timed["value"], timed["unit"]) == (
        "processing",
        "ai_processing",
        1250.0,
        "ms",
    )
    assert (timed["success"], timed["error"], timed["session_id"]) == (True, None, session_id)
    people = {"user": service.pseudonym("user", 12345), "chat": service.pseudonym("chat", 67890)}
    assert json.loads(timed["metadata"]) == {"tokens_used": 42, **people}
    assert json.loads(created["metadata"]) == people


def test_sessions_are_never_the_same(service: MetricsService) -> None:
    assert len({service.create_session(1, 1) for _ in range(1000)}) == 1000


def test_a_failure_is_recorded_and_goes_on(service: MetricsService, folder: Path) -> None:
    broken = ZeroDivisionError("by zero")
    with pytest.raises(ZeroDivisionError) as caught, service.timer("s", 1, 2, "work"):
        raise broken
    assert caught.value is broken
    (row,) = timings(folder)
    assert (row["success"], row["error"]) == (False, "ZeroDivisionError: by zero")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_interruption_is_a_failure_too(
    service: MetricsService, folder: Path, interrupt: type[BaseException]
) -> None:
    with pytest.raises(interrupt), service.timer("s", 1, 2, "work"):
        raise interrupt
    assert timings(folder)[0]["error"] == interrupt.__name__
    assert current_session_id.get() is None


def test_a_failure_that_raises_nothing(service: MetricsService, folder: Path) -> None:
    with service.timer("s", 1, 2, "work") as timing:
        timing.fail("the model refused")
    assert [(row["success"], row["error"]) for row in timings(folder)] == [(False, "the model refused")]


def test_start_and_stop(service: MetricsService, clock: ManualClock, folder: Path) -> None:
    timing = service.timer("s", 1, 2, ProcessingStage.ADMIN_REVIEW, {"queue": 3})
    assert isinstance(timing, ProcessingTimer)
    assert timing.stop() is None
    assert timing.start() is timing
    clock.advance(2)
    assert timing.stop() == 2000.0
    assert timing.stop() is None
    timing.start()
    clock.advance(1)
    assert timing.stop(error_message="gave up") == 1000.0
    timing.start()
    assert timing.stop(success=False) == 0.0
    assert [(row["value"], row["success"], row["error"]) for row in timings(folder)] == [
        (2000.0, True, None),
        (1000.0, False, "gave up"),
        (0.0, False, None),
    ]


def test_a_timer_that_several_threads_stop_is_recorded_once(service: MetricsService, folder: Path) -> None:
    stopped: list[float] = []
    timing = service.timer("s", 1, 2, "work").start()

    def stop() -> None:
        duration = timing.stop()
        if duration is not None:
            stopped.append(duration)

    in_threads(stop, 8)
    assert len(stopped) == len(timings(folder)) == 1


class Own(StrEnum):
    TRANSLATION = "translation"


class Older(str, Enum):  # noqa: UP042 - applications have such
    SPELLING = "spelling"


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Own.TRANSLATION, "translation"),
        (Older.SPELLING, "spelling"),
        ("any text", "any text"),
        ("=cmd|'/c calc'!A1\x00\x1b[2J\u202e🎉", "=cmd|'/c calc'!A1\ufffd\x1b[2J\u202e🎉"),
        ("half a pair \ud83d", "half a pair \ufffd"),
    ],
)
def test_an_application_has_stages_of_its_own(service: MetricsService, folder: Path, stage: str, name: str) -> None:
    with service.timer("s", 1, 2, stage):
        pass
    assert timings(folder)[0]["name"] == name


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", 1, 2, "work"), "session_id"),
        ((None, 1, 2, "work"), "session_id"),
        (("s" * 129, 1, 2, "work"), "session_id"),
        (("s", 1.5, 2, "work"), "the id of the user"),
        (("s", True, 2, "work"), "the id of the user"),
        (("s", 1, b"2", "work"), "the id of the chat"),
        (("s", 1, "", "work"), "the id of the chat"),
        (("s", 10**5000, 2, "work"), "the id of the user"),
        (("s", 1, 2, ""), "stage"),
        (("s", 1, 2, None), "stage"),
        (("s", 1, 2, "x" * 201), "stage"),
        (("s", 1, 2, "work", [1]), "metadata"),
    ],
)
def test_bad_arguments(service: MetricsService, folder: Path, arguments: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        service.timer(*arguments)
    assert timings(folder) == []


def test_nobody_need_be_known(service: MetricsService, folder: Path) -> None:
    with service.timer(service.create_session(), None, None, "work"):
        pass
    assert [row["metadata"] for row in live(folder)] == ["{}", "{}"]


@pytest.mark.parametrize("metadata", [{"email": "x"}, {"x": object()}, {"x": float("nan")}, 5, {1: 2}])
def test_what_the_block_puts_into_the_metadata_never_hurts_it(service: MetricsService, metadata: Any) -> None:
    with service.timer("s", 1, 2, "work") as timing:
        timing.metadata = metadata
    assert service.metrics.get_stats().dropped == {"invalid": 1}


def test_persons_cannot_be_overwritten(service: MetricsService, folder: Path) -> None:
    with service.timer("s", 1, 2, "work", {"user": "someone else"}):
        pass
    assert json.loads(timings(folder)[0]["metadata"])["user"] == service.pseudonym("user", 1)


def test_a_recorder_that_does_not_run_does_not_hurt_the_block(folder: Path) -> None:
    with MetricsService(Metrics(folder)).timer("s", 1, 2, "work"):
        pass


def test_switched_off_nothing_is_made(folder: Path) -> None:
    with Metrics(folder, enabled=False) as metrics:
        service = MetricsService(metrics)
        with service.timer(service.create_session(1, 2), 1, 2, "work") as timing:
            assert current_session_id.get()
            timing.metadata["tokens"] = 1
        service.record_correction("s", 1, 2, "rejection", "one", "two", -5)  # nothing is looked at
        service.label_admin(1, "night shift")
    assert not folder.exists()


def test_a_full_journal_hurts_only_who_asked_for_it(folder: Path) -> None:
    with recording(folder, max_queue_size=1, on_full="raise") as metrics:
        service = MetricsService(metrics)

        def fill() -> None:
            while True:
                with service.timer("s", 1, 2, "work"):
                    pass

        with pytest.raises(BufferFull):
            fill()
        with pytest.raises(ZeroDivisionError), service.timer("s", 1, 2, "work"):
            raise ZeroDivisionError


class TestCurrentSession:
    def test_for_the_block_and_for_what_is_in_it(self, service: MetricsService) -> None:
        assert current_session_id.get() is None
        with service.timer("outer", 1, 2, "work"):
            with service.timer("inner", 1, 2, "work"):
                assert current_session_id.get() == "inner"
            assert current_session_id.get() == "outer"
        assert current_session_id.get() is None

    def test_start_and_stop_leave_it_alone(self, service: MetricsService) -> None:
        timing = service.timer("s", 1, 2, "work").start()
        assert current_session_id.get() is None
        timing.stop()

    def test_coroutines_keep_their_own(self, service: MetricsService, folder: Path) -> None:
        async def conversation(number: int) -> None:
            session_id = service.create_session(number, number)
            async with service.timer(session_id, number, number, "first") as timing:
                await asyncio.sleep(0)
                assert current_session_id.get() == session_id
                await asyncio.gather(*(step(session_id, number, part) for part in range(3)))
                timing.metadata["number"] = number
            assert current_session_id.get() is None

        async def step(session_id: str, number: int, part: int) -> None:
            assert current_session_id.get() == session_id
            with service.timer(session_id, number, number, f"step {part}") as timing:
                await asyncio.sleep(0)
                timing.metadata["number"] = number

        async def everybody() -> None:
            await asyncio.gather(*(conversation(number) for number in range(50)))

        asyncio.run(everybody())
        self.check(service, folder, 50, 4)

    def test_threads_keep_their_own(self, service: MetricsService, folder: Path) -> None:
        numbers = iter(range(8))
        lock = threading.Lock()

        def conversation() -> None:
            with lock:
                number = next(numbers)
            session_id = service.create_session(number, number)
            for part in range(50):
                with service.timer(session_id, number, number, f"step {part}") as timing:
                    assert current_session_id.get() == session_id
                    timing.metadata["number"] = number

        in_threads(conversation, 8)
        self.check(service, folder, 8, 50)

    def check(self, service: MetricsService, folder: Path, sessions: int, stages: int) -> None:
        rows = live(folder)
        users = {
            row["session_id"]: json.loads(row["metadata"])["user"]
            for row in rows
            if row["metric_type"] == "processing_session"
        }
        found: dict[str, int] = {}
        for row in timings(folder):
            metadata = json.loads(row["metadata"])
            assert metadata["user"] == users[row["session_id"]] == service.pseudonym("user", metadata["number"])
            found[row["session_id"]] = found.get(row["session_id"], 0) + 1
        assert found == dict.fromkeys(users, stages)
        assert len(users) == sessions

    def test_a_generator_that_another_context_ends(self, service: MetricsService, folder: Path) -> None:
        async def answers() -> AsyncGenerator[int, None]:
            with service.timer("s", 1, 2, "work"):
                yield 1
                yield 2

        async def main() -> None:
            generator = answers()
            assert await asyncio.create_task(anext(generator)) == 1
            await asyncio.create_task(generator.aclose())

        asyncio.run(main())
        assert [(row["success"], row["session_id"]) for row in timings(folder)] == [(True, "s")]

    def test_a_generator_that_is_closed_early_has_not_failed(self, service: MetricsService, folder: Path) -> None:
        def answers() -> Generator[int, None, None]:
            with service.timer("s", 1, 2, "work"):
                yield 1

        generator = answers()
        next(generator)
        generator.close()
        assert timings(folder)[0]["success"] is True
