"""What a correction changed: texts are measured here, and go no further."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from tallymark.model import check_duration, check_text

CORRECTION: Final = "correction"
"""The metric_type of a correction; its name is the type, its value the time that it took, in ms."""

LABEL: Final = "admin_label"
"""The metric_type of a label that an admin was given."""

MAX_COMPARED: Final = 4_096
"""Characters that are compared one by one, where both texts differ: all of a chat message, in 15 ms."""

MAX_LOOKED_AT: Final = 1_000_000
"""Characters of each text in which the first and the last difference are looked for."""


class CorrectionType(StrEnum):
    """What was corrected. Any other text is a type too, such as a member of your own StrEnum."""

    TEXT_CORRECTION = "text_correction"
    VOICE_CORRECTION = "voice_correction"
    CONTENT_MODIFICATION = "content_modification"
    STYLE_IMPROVEMENT = "style_improvement"
    FACTUAL_CORRECTION = "factual_correction"
    REJECTION = "rejection"


class Difference(NamedTuple):
    """How far two texts are apart.

    Attributes:
        distance: characters to insert, delete or replace (Levenshtein).
        similarity: 1 - distance / length of the longer text; 1.0 for equal texts.
        exact: where it is not, the distance is at most, and the similarity at least, what is said.
    """

    distance: int
    similarity: float
    exact: bool


def difference(original: str, corrected: str) -> Difference:
    """How far a correction is from its original, in bounded time.

    What both begin and end with is left out. Of what remains, the first :data:`MAX_COMPARED` characters of each text
    are compared, and the others count as replaced: for chat messages the distance is exact, for whole documents it is
    exact where the differences lie together.
    """
    longest = max(len(original), len(corrected))
    if original == corrected:
        return Difference(0, 1.0, True)
    start = _common(original[:MAX_LOOKED_AT], corrected[:MAX_LOOKED_AT])
    original, corrected = original[start:], corrected[start:]
    # Reversed, so that the end is looked at as the start is.
    end = _common(original[: -MAX_LOOKED_AT - 1 : -1], corrected[: -MAX_LOOKED_AT - 1 : -1])
    original, corrected = original[: len(original) - end], corrected[: len(corrected) - end]
    rest = max(len(original), len(corrected)) - MAX_COMPARED
    if not original or not corrected or rest <= 0:
        distance, exact = levenshtein(original, corrected), True
    else:
        head, tail = original[:MAX_COMPARED], corrected[:MAX_COMPARED]
        rest = max(len(original) - len(head), len(corrected) - len(tail))
        distance, exact = levenshtein(head, tail) + rest, False
    return Difference(distance, round(1 - distance / longest, 3), exact)


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def levenshtein(one: Sequence[str], other: Sequence[str]) -> int:
    """The least number of characters to insert, delete or replace.

    A column of the usual table at a time, as the bits of integers: Myers 1999, "A fast bit-vector algorithm for
    approximate string matching", in the form of Hyyrö 2003. Two texts of 1,000 characters take 2 ms; the usual table
    takes 200 times as long, difflib 15 times, without giving a distance.
    """
    if len(one) < len(other):
        one, other = other, one
    if not other:
        return len(one)
    places: dict[str, int] = {}
    for place, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << place
    last, mask = 1 << (len(one) - 1), (1 << len(one)) - 1
    higher, lower, distance = mask, 0, len(one)  # where the column grows by one, and where it shrinks
    for character in other:
        same = places.get(character, 0)
        stays = same | lower
        across = (((same & higher) + higher) ^ higher) | same
        up = lower | ~(across | higher) & mask
        down = higher & across
        distance += 1 if up & last else -1 if down & last else 0
        up, down = (up << 1 | 1) & mask, down << 1 & mask
        higher, lower = down | ~(stays | up) & mask, up & stays
    return distance


def measured(original: object, corrected: object) -> dict[str, Any]:
    """What is stored of two texts.

    Raises:
        ValueError: one of them is not text.
    """
    for field, text in (("original_text", original), ("corrected_text", corrected)):
        if not isinstance(text, str):
            raise ValueError(f"{field} must be text, not {type(text).__name__}")
    assert isinstance(original, str)
    assert isinstance(corrected, str)
    found = difference(original, corrected)
    lengths = {"original_length": len(original), "corrected_length": len(corrected)}
    estimated = {} if found.exact else {"edit_distance_at_most": True}
    return {**lengths, "edit_distance": found.distance, "similarity": found.similarity, **estimated}


def checked_details(
    voice_transcription_time_ms: float | None,
    ai_correction_time_ms: float | None,
    admin_satisfaction: int | None,
    retry_count: int,
    transcription_quality: str | None,
) -> dict[str, Any]:
    """The other fields of a correction as they are stored, without those that are not known.

    Raises:
        ValueError: naming the field and the rule.
    """
    details: dict[str, Any] = {}
    times = {
        "voice_transcription_time_ms": voice_transcription_time_ms,
        "ai_correction_time_ms": ai_correction_time_ms,
    }
    for field, duration in times.items():
        if duration is not None:
            # Whole ones: the report adds up the different values that there are.
            details[field] = round(check_duration(field, duration))
    if admin_satisfaction is not None:
        details["admin_satisfaction"] = _whole("admin_satisfaction", admin_satisfaction, 1, 5)
    details["retry_count"] = _whole("retry_count", retry_count, 0, 1_000_000)
    if transcription_quality is not None:
        details["transcription_quality"] = check_text("transcription_quality", transcription_quality)
    return details


def _whole(field: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field} must be a whole number from {least} to {most}")
    return int(value)
