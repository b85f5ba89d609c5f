"""Work whose result serves everybody who asked before it began."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Something that takes its time and is asked for by many threads. It is computed once at a time.

    Who comes while it is computed waits for the next turn, together with all others who came meanwhile: nobody gets
    what was computed from an older state than that in which he asked.

    Args:
        compute: what it is. What it raises, everybody of its turn gets.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._turn = Lock()
        self._changing = Lock()
        self._next: Future[T] | None = None

    def get(self) -> T:
        """What is computed by a turn that begins after this call."""
        with self._changing:
            result = self._next
            first = result is None
            if result is None:
                result = self._next = Future()
        if first:
            with self._turn:
                with self._changing:
                    self._next = None
                try:
                    result.set_result(self._compute())
                except BaseException as error:
                    result.set_exception(error)
        return result.result()
