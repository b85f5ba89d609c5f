import mmap
from typing import Any

from tallymark.model import SeriesKey

class LaneState:
    at: int
    end: int
    heap: int
    size: int
    buffer: mmap.mmap
    series: dict[SeriesKey, int]

def record(
    free: list[Any],
    accepted: set[str],
    series: tuple[object, ...],
    value: object,
    success: object,
    metadata: object,
    error: object,
    trace_id: object,
    session_id: object,
    timestamp: int | None,
    /,
) -> bool: ...
def check(entries: bytes, heap: bytes, begins: bytes, ends: bytes, wanted: bytes, /) -> bytes: ...
