"""Timing a block or a function, whatever kind of function it is."""

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tallymark.errors import BufferFull

if TYPE_CHECKING:
    from tallymark.recorder import Metrics

F = TypeVar("F", bound=Callable[..., Any])


class AsyncToo:
    """Lets ``async with`` do what ``with`` does, for blocks whose ends wait for nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class RecordedBlock(AsyncToo):
    """A block whose end is recorded: :meth:`_end` is told what it failed of."""

    __slots__ = ()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # A generator that is closed early has not failed.
            self._end(None if error is None or isinstance(error, GeneratorExit) else error)
        except BufferFull:
            if error is None:  # otherwise what went wrong in the block matters more
                raise

    def _end(self, failure: BaseException | None) -> None:
        raise NotImplementedError


class Timing(RecordedBlock):
    """One timed operation; made by :meth:`tallymark.Metrics.track_operation`.

    Attributes:
        metadata: stored with the record; the block may add to it.
    """

    def __init__(self, metrics: "Metrics", operation_type: str, name: str, metadata: Mapping[str, Any] | None) -> None:
        self.metadata: dict[str, Any] = dict(metadata or {})
        self._metrics = metrics
        self._operation_type = operation_type
        self._name = name
        self._started = 0

    def __enter__(self) -> Self:
        self._started = self._metrics.monotonic_ns()
        return self

    def _end(self, failure: BaseException | None) -> None:
        duration_ms = (self._metrics.monotonic_ns() - self._started) / 1e6
        try:
            self._metrics.record_operation(
                self._operation_type,
                self._name,
                duration_ms,
                failure is None,
                None if failure is None else describe(failure),
                self.metadata or None,
            )
        except (ValueError, RuntimeError) as refused:
            # The block has done its work: what it put into the metadata must not make it fail now.
            self._metrics.drop_invalid(self._name, refused)

    def __call__(self, function: F) -> F:
        """Decorate a function: every call is timed, a generator from its first step to its last."""

        def timing() -> Timing:
            return Timing(self._metrics, self._operation_type, self._name, self.metadata)

        import inspect  # half of what importing this package would take

        wrapper: Callable[..., Any]
        if inspect.iscoroutinefunction(function):

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with timing():
                    return await function(*args, **kwargs)

        elif inspect.isasyncgenfunction(function):

            async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                with timing():
                    async with contextlib.aclosing(function(*args, **kwargs)) as inner:
                        step = inner.asend(None)
                        while True:
                            try:
                                item = await step
                            except StopAsyncIteration:
                                return
                            try:
                                step = inner.asend((yield item))
                            except GeneratorExit:
                                raise
                            except BaseException as error:
                                step = inner.athrow(error)

        elif inspect.isgeneratorfunction(function):

            def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                with timing():
                    return (yield from function(*args, **kwargs))

        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with timing():
                    return function(*args, **kwargs)

        return functools.wraps(function)(wrapper)  # type: ignore[return-value]


def describe(error: BaseException) -> str:
    """An exception in one line: its type and its own words."""
    name = type(error).__name__
    try:
        words = str(error)
    except Exception:
        return name
    return f"{name}: {words}" if words else name
