"""The compiled core where there is one; ``core`` is None where there is not, or ``TALLYMARK_PURE_PYTHON`` is set."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["LaneState", "Pool", "core", "fast"]

if TYPE_CHECKING:
    from tallymark import _core as core
    from tallymark._core import LaneState, Pool
else:
    core: ModuleType | None = None
    if not os.environ.get("TALLYMARK_PURE_PYTHON"):
        try:
            from tallymark import _core as core
        except ImportError:
            core = None
    if core is not None:
        LaneState = core.LaneState
        Pool = core.Pool
    else:

        class LaneState:
            """What the writer of a lane has to know."""

            __slots__ = ("at", "buffer", "end", "heap", "series", "size")

        class Pool:
            """The lanes that nobody holds, and what else the fast way has to know.

            ``service`` is None where the fast way must not be taken; ``accepted`` are metadata keys that passed.
            """

            __slots__ = ("accepted", "free", "service")


F = TypeVar("F", bound=Callable[..., Any])


def fast(*, is_operation: bool) -> Callable[[F], F]:
    """Let the compiled core handle the usual calls of a recording method; the method itself handles the others."""

    def decorate(function: F) -> F:
        if core is None:
            return function
        code = function.__code__
        names = code.co_varnames[1 : code.co_argcount]
        decorated: F = core.fast(function, names, function.__defaults__ or (), is_operation)
        return decorated

    return decorate
