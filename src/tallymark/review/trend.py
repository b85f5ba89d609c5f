"""Whether a series of means is going somewhere, or only up and down."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Any, Final, Literal

MIN_POINTS: Final = 5
"""With fewer, nothing is significant."""

SIGNIFICANT: Final = 0.05


def trend(points: Sequence[tuple[float, float]], better: Literal["lower", "higher"]) -> dict[str, Any]:
    """The direction of (day, mean) pairs, in the order of the days.

    The test is that of Mann and Kendall, with the correction for ties and for continuity; the slope is Sen's, the
    median of the slopes between all pairs. Neither is impressed by one day that is out of line, and both take all
    days as equal, however much was done on each. Sources: Mann 1945, Kendall 1975, Sen 1968.

    Returns:
        direction: ``improving`` or ``declining`` where a trend this strong would come from chance alone in less than
            5 % of the cases (both ways counted), ``steady`` where not, None with fewer than 5 points.
        slope_per_day: the change of the mean in a day; None with fewer than 2 points.
        p_value: that chance; None where there is no direction.
        points: how many there were.
    """
    found: dict[str, Any] = {"direction": None, "slope_per_day": None, "p_value": None, "points": len(points)}
    if len(points) < 2:
        return found
    pairs = list(combinations(points, 2))
    slope = median((later - earlier) / (day - before) for (before, earlier), (day, later) in pairs)
    found["slope_per_day"] = slope if math.isfinite(slope) else None
    if len(points) < MIN_POINTS:
        return found
    score = sum((later > earlier) - (later < earlier) for (_, earlier), (_, later) in pairs)
    p_value = _chance(score, [value for _, value in points])
    rising = score > 0
    direction = "steady"
    if p_value < SIGNIFICANT:
        direction = "improving" if rising == (better == "higher") else "declining"
    return {**found, "direction": direction, "p_value": p_value}


def _chance(score: int, values: Sequence[float]) -> float:
    """How likely a score this far from zero is where there is no trend, by the normal approximation."""
    count = len(values)
    ties = sum(tied * (tied - 1) * (2 * tied + 5) for tied in Counter(values).values())
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    if variance == 0:
        return 1.0
    return math.erfc(max(0, abs(score) - 1) / math.sqrt(2 * variance))
