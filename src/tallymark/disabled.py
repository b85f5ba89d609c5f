"""What takes the place of a recorder's methods where it is switched off: they check nothing and do nothing.

They have the signatures of the methods that they stand in for, and become attributes of the one recorder, so that such
a call costs what calling an empty function does.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from tallymark.recorder import DONE, Done, MetricsStats
from tallymark.sealer import Waiting
from tallymark.timing import AsyncToo

F = TypeVar("F", bound=Callable[..., Any])

_NOTHING: Final = MetricsStats(0, 0, 0, 0, None, 0.0, False, {})


class NoTiming(AsyncToo):
    """What ``track_operation`` returns: a block may still add to ``metadata``; a function stays what it is."""

    def __init__(self, metadata: object) -> None:
        self.metadata: dict[str, Any] = dict(metadata) if isinstance(metadata, Mapping) else {}

    def __call__(self, function: F) -> F:
        return function


def _record_operation(
    operation_type: object,
    operation_name: object,
    duration_ms: object,
    success: object = True,
    error_message: object = None,
    metadata: object = None,
) -> Done:
    return DONE


def _record(
    metric_type: object,
    name: object,
    value: object,
    unit: object = "1",
    success: object = None,
    error: object = None,
    metadata: object = None,
    trace_id: object = None,
    session_id: object = None,
) -> Done:
    return DONE


def _track_operation(name: object, metadata: object = None, operation_type: object = "operation") -> NoTiming:
    return NoTiming(metadata)


METHODS: Final[dict[str, Callable[..., object]]] = {
    "start": lambda: DONE,
    "stop": lambda timeout=0.0: Waiting(None),
    "flush": lambda timeout=0.0: Waiting(None),
    "record_operation": _record_operation,
    "record": _record,
    "ingest": lambda *arguments, **keywords: None,
    "track_operation": _track_operation,
    "get_stats": lambda: _NOTHING._replace(dropped={}),
    "drop_invalid": lambda name, reason: None,
    "_append": lambda *arguments, **keywords: None,  # for what a subclass calls of its base
}
