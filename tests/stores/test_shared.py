"""What is computed serves those who asked before it began, and nobody else."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from traceback import walk_stack

import pytest
from recording import eventually

from tallymark.stores.shared import Shared


class Slow:
    """Counts how often it is asked, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Semaphore(0)

    def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        assert self.go_on.acquire(timeout=60)
        if number == 2:
            raise ValueError("the second time")
        return number


def waiting_for_another() -> int:
    """How many threads wait for what another one computes."""
    stacks = [[frame.f_code.co_name for frame, _ in walk_stack(top)] for top in sys._current_frames().values()]
    return sum(("result", "get") in pairwise(stack) for stack in stacks)


def test_who_comes_while_it_is_computed_waits_for_the_next_turn() -> None:
    slow = Slow()
    shared = Shared(slow)
    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(shared.get)
        eventually(lambda: slow.begun == 1)
        later = [threads.submit(shared.get) for _ in range(10)]
        eventually(lambda: waiting_for_another() == 9)  # and one for its turn
        slow.go_on.release()
        assert first.result(60) == 1
        eventually(lambda: slow.begun == 2)
        slow.go_on.release()
        for each in later:
            with pytest.raises(ValueError, match="second"):
                each.result(60)
        slow.go_on.release()
        assert threads.submit(shared.get).result(60) == 3


def test_each_call_alone_computes_anew() -> None:
    numbers = iter(range(3))
    shared = Shared(lambda: next(numbers))
    assert [shared.get(), shared.get(), shared.get()] == [0, 1, 2]


def test_nobody_gets_what_is_older_than_the_question() -> None:
    state = 0
    shared = Shared(lambda: state)
    wrong = []

    def ask() -> None:
        for _ in range(2_000):
            before = state
            if shared.get() < before:
                wrong.append(before)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        state += 1
    assert wrong == []
