import mmap
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from tallymark.model import SeriesKey

class LaneState:
    at: int
    end: int
    heap: int
    size: int
    buffer: mmap.mmap
    series: dict[SeriesKey, int]

class Pool:
    free: list[Any]
    service: str | None
    accepted: set[str]

def fast(
    function: Callable[..., Any], names: tuple[str, ...], defaults: tuple[object, ...], is_operation: bool, /
) -> Any: ...
def set_up(current_trace_id: ContextVar[str | None], done: object, /) -> None: ...
def check(entries: bytes, heap: bytes, begins: bytes, ends: bytes, wanted: bytes, /) -> bytes: ...
def looks_private(text: str, /) -> bool: ...
