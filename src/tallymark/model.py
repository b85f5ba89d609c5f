"""What a valid record looks like: the limits are here and nowhere else. What one is: :mod:`tallymark.record`."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallymark.privacy import PiiPolicy

MAX_NAME_LENGTH = 200
"""Longest service, metric type, metric name or unit, in characters."""

MAX_DESCRIPTION_LENGTH = 1_000
"""Longest description of a series, in characters."""

MAX_ERROR_LENGTH = 1_000
"""Error texts are cut to this many characters."""

_ERROR_WINDOW = 8 * MAX_ERROR_LENGTH

MASK_MARGIN = 512
"""Where a long text was cut before it was masked, so many characters of it may be half of a secret."""

MAX_ID_LENGTH = 128
"""Longest trace or session id, in characters."""

MAX_METADATA_DEPTH = 8
"""Deepest nesting of metadata; the outermost object counts as one."""

MAX_METADATA_KEYS = 64
"""Most keys in metadata, counted over every level."""

MAX_METADATA_BYTES = 16_384
"""Largest metadata, as JSON in UTF-8."""

MAX_DURATION_MS = 10 * 366 * 86_400_000.0
"""Longest believable duration: ten years. A longer one is a wall-clock subtraction gone wrong."""

MAX_COUNT = 2**53
"""Largest number of things: beyond it they are no longer exact as the numbers that a rate is made of."""

MIN_TIMESTAMP = 0
MAX_TIMESTAMP = 4_102_444_800_000_000_000
"""Timestamps of records lie in [1970-01-01, 2100-01-01), in nanoseconds."""


SeriesKey = tuple[str, str, str, str, str | None]
"""What makes a series: (service, metric_type, name, unit, description)."""

RESERVED_TYPE = "tallymark"
"""The metric_type of the rows that a store keeps about itself."""


def check_series(key: SeriesKey, pii: "PiiPolicy") -> SeriesKey:
    """The key with its texts as they may be stored, or ValueError naming the field and the rule."""
    service, metric_type, name, unit, description = key
    if metric_type == RESERVED_TYPE:
        raise ValueError(f"metric_type {RESERVED_TYPE!r} is reserved for the store's own records")
    return (
        check_text("service", service, pii=pii),
        check_text("metric_type (operation_type)", metric_type, pii=pii),
        check_text("name (operation_name)", name, pii=pii),
        check_text("unit", unit, pii=pii),
        None if description is None else check_text("description", description, MAX_DESCRIPTION_LENGTH, pii),
    )


def check_text(field: str, value: object, longest: int = MAX_NAME_LENGTH, pii: "PiiPolicy | None" = None) -> str:
    """The value as text that can be stored, and may be by ``pii``, or ValueError naming the field and the rule."""
    if not isinstance(value, str):
        raise ValueError(f"{field} must be text, not {type(value).__name__}")
    if not value or value.isspace():
        raise ValueError(f"{field} must not be empty")
    if len(value) > longest:
        raise ValueError(f"{field} has {len(value)} characters; at most {longest} are allowed")
    text = clean_text(str.__str__(value))
    return text if pii is None else pii.clean(field, text)[:longest]  # a mask may be longer than what it hides


def check_error(value: object, pii: "PiiPolicy") -> str:
    """The beginning of an error text, as it may be stored, or ValueError naming the field and the rule."""
    if not isinstance(value, str):
        raise ValueError(f"error (error_message) must be text, not {type(value).__name__}")
    start = masked_start(str.__str__(value), _ERROR_WINDOW, lambda text: pii.clean("error (error_message)", text))
    return start[:MAX_ERROR_LENGTH]


def masked_start(text: str, longest: int, mask: Callable[[str], str]) -> str:
    """The beginning of a text as it may be stored: of no more than ``longest`` characters, without half a secret.

    To be cut again by the caller, to less: what has to be masked must be seen as a whole.
    """
    # Cut before, because a text may be very long. Half of what that cut went through may stand at the end, and masks
    # may have brought it into sight; not before a bracket, which ends a mask and is in no secret.
    masked = mask(clean_text(text[:longest]))
    if len(text) > longest:
        masked = masked[: max(len(masked) - MASK_MARGIN, masked.rfind("]") + 1)]
    return masked


def check_number(field: str, value: object) -> float:
    """The value as a finite float, or ValueError naming the field and the rule."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{field} must be finite")
    return number


def check_count(field: str, value: object) -> int:
    """The value as a number of things, or ValueError naming the field and the rule."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} must be an int, not {type(value).__name__}")
    if not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{field} must be between 0 and {MAX_COUNT}")
    return int(value)


def check_duration(field: str, value: object) -> float:
    """The value as a duration in milliseconds, or ValueError naming the field and the rule."""
    number = check_number(field, value)
    if number < 0:
        raise ValueError(f"{field} must not be negative")
    if number > MAX_DURATION_MS:
        raise ValueError(f"{field} must be at most ten years; was it computed from two wall-clock readings?")
    return number


def clean_text(text: str) -> str:
    """The text as every store can hold it: surrogate pairs joined, lone surrogates and NUL replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
