"""Which stage of a run is slower than in another run, and how sure that is.

Compared are the means, because they add up to the time that a run takes. The ratio of two means has a 95 % confidence
interval from the delta method: the logarithm of a mean has about the variance ``var(mean) / mean²``, the logarithms of
two independent means differ by a Student t with Welch and Satterthwaite's degrees of freedom (Welch, Biometrika 34,
1947), and the ends of that interval are raised back. How often it holds the truth is simulated in the tests.

The variance of a mean comes from the durations themselves where a run has at most :data:`LOADED` of them. Beyond, it
comes from the sums over some hundred equal windows of time, of which any store gives the aggregates: with k windows
that hold n_w durations and the sum S_w, the mean is m = ΣS_w/Σn_w and its variance
``k/(k-1) · Σ(S_w - m·n_w)² / (Σn_w)²``, with k - 1 degrees of freedom (the ratio estimator of cluster sampling:
Cochran, Sampling Techniques, 3rd ed., 9A; in simulation known as batch means). Durations that follow each other are
alike more often than not; windows take that into account, so the interval is rather too wide than too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

from tallymark.pipeline.metrics import StageMetrics
from tallymark.pipeline.runs import Run, of_stages, stage_percentiles
from tallymark.query import MIN_WINDOW
from tallymark.reader import Reader

LOADED: Final = 200_000
"""Most durations of a run that are loaded; the stages with the fewest come first."""
WINDOWS: Final = 400

_CONFIDENCE = 0.95
_MOST_NAMES = 1_000


@dataclass(frozen=True)
class Mean:
    """A mean, and how well it is known.

    Attributes:
        value: the mean.
        variance: of the mean itself.
        freedom: the degrees of freedom of that variance.
    """

    value: float
    variance: float
    freedom: float


@dataclass(frozen=True)
class Interval:
    """Where the ratio of two means lies, with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class StageComparison:
    """One stage in two runs.

    Attributes:
        stage: its name.
        before, after: its figures; None in a run that has no such stage.
        p95_before, p95_after: seconds; None where they cannot be known.
        ratio: mean after / mean before; None where that makes no sense.
        interval: of the ratio; None where there is none.
        verdict: in words.
        is_regression: slower by more than the threshold, and surely slower.
    """

    stage: str
    before: StageMetrics | None
    after: StageMetrics | None
    p95_before: float | None
    p95_after: float | None
    ratio: float | None
    interval: Interval | None
    verdict: str
    is_regression: bool


def compare_runs(
    before: Run,
    after: Run,
    reader: Reader | None,
    *,
    threshold: float = 0.1,
    loaded: int = LOADED,
) -> list[StageComparison]:
    """Every stage of either run, the one that takes the most time first.

    Args:
        before, after: the runs.
        reader: the store of those that are stored.
        threshold: by how much a mean may grow: 0.1 is 10 %.
        loaded: most durations of a run to load.
    """
    means_before, means_after = (_means(reader, run, loaded) for run in (before, after))
    p95_before, p95_after = (
        {name: shares["p95"] for name, shares in (stage_percentiles(reader, run, ("p95",)) if reader else {}).items()}
        for run in (before, after)
    )
    return [
        _compare(
            name,
            (before.stages.get(name), after.stages.get(name)),
            (p95_before.get(name), p95_after.get(name)),
            (means_before.get(name), means_after.get(name)),
            threshold,
        )
        for name in sorted(before.stages.keys() | after.stages.keys(), key=lambda name: _weight(before, after, name))
    ]


def _weight(before: Run, after: Run, name: str) -> tuple[float, str]:
    stages = (run.stages.get(name, StageMetrics()) for run in (before, after))
    return -max(stage.total_duration_s for stage in stages), name


def _compare(
    name: str,
    stages: tuple[StageMetrics | None, StageMetrics | None],
    p95: tuple[float | None, float | None],
    means: tuple[Mean | None, Mean | None],
    threshold: float,
) -> StageComparison:
    before, after = stages
    ratio = interval = None
    if before and after and before.avg_duration_s > 0 and after.avg_duration_s > 0:
        ratio = after.avg_duration_s / before.avg_duration_s
        if means[0] and means[1]:
            interval = ratio_interval(means[0], means[1])
    slower = ratio is not None and interval is not None and interval.low > 1
    is_regression = slower and ratio is not None and ratio > 1 + threshold
    verdict = _verdict(stages, ratio, interval, slower, is_regression)
    return StageComparison(name, before, after, *p95, ratio, interval, verdict, is_regression)


def _verdict(
    stages: tuple[StageMetrics | None, StageMetrics | None],
    ratio: float | None,
    interval: Interval | None,
    slower: bool,
    is_regression: bool,
) -> str:
    if stages[0] is None:
        return "only in the second"
    if stages[1] is None:
        return "only in the first"
    if ratio is None:
        return "took no time"
    if interval is None:
        return "no interval"
    if is_regression:
        return "slower"
    if slower:
        return "slower, within the threshold"
    return "faster" if interval.high < 1 else "no difference seen"


def ratio_interval(before: Mean, after: Mean) -> Interval | None:
    """The 95 % confidence interval of ``after / before``; None where a mean is not positive."""
    if before.value <= 0 or after.value <= 0:
        return None
    ratio = after.value / before.value
    parts = [(mean.variance / mean.value / mean.value, mean.freedom) for mean in (before, after)]
    variance = sum(part for part, _ in parts)
    if not variance:
        return Interval(ratio, ratio)
    if not (math.isfinite(variance) and 0 < ratio < math.inf):
        return Interval(0.0, math.inf)
    # In shares of the whole, so that small numbers do not vanish when they are squared.
    freedom = 1 / sum((part / variance) ** 2 / freedom for part, freedom in parts)
    half = t_quantile(freedom) * math.sqrt(variance)
    if half > 300:  # nothing is known, and floats have an end
        return Interval(0.0, math.inf)
    return Interval(ratio * math.exp(-half), ratio * math.exp(half))


def t_quantile(freedom: float) -> float:
    """The t that a Student variable stays within, on either side, with 95 % probability.

    With t = √freedom · tan(x), the density of x is proportional to cos(x)^(freedom - 1): it is summed up on a grid.
    """
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    if freedom > 1_000:
        return z + (z**3 + z) / (4 * freedom)  # Abramowitz and Stegun 26.7.5
    import numpy as np

    grid = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(grid) ** (freedom - 1)
    mass = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(freedom) * math.tan(float(np.interp(_CONFIDENCE, mass / mass[-1], grid)))


def mean_of(durations: Sequence[float]) -> Mean | None:
    """The mean of independent durations; None of fewer than two, which say nothing about how they vary."""
    count = len(durations)
    if count < 2:
        return None
    try:
        value = math.fsum(durations) / count
        spread = math.fsum((duration - value) ** 2 for duration in durations)
    except OverflowError:  # no durations, whoever recorded them
        return None
    return Mean(value, spread / (count - 1) / count, count - 1)


def mean_of_windows(counts: Sequence[int], sums: Sequence[float]) -> Mean | None:
    """The mean of durations of which only counts and sums over windows are known; None of fewer than two windows."""
    windows, count = len(counts), sum(counts)
    if windows < 2:
        return None
    try:
        value = math.fsum(sums) / count
        spread = math.fsum((total - value * number) ** 2 for number, total in zip(counts, sums, strict=True))
    except OverflowError:
        return None
    return Mean(value, windows / (windows - 1) * spread / count**2, windows - 1)


def _means(reader: Reader | None, run: Run, loaded: int) -> dict[str, Mean]:
    """What is known about the mean of each stage."""
    if reader is None or not run.is_stored or not run.stages:
        return {}
    small: list[str] = []
    room = loaded
    for name in sorted(run.stages, key=lambda name: run.stages[name].count):
        room -= run.stages[name].count
        if room >= 0:
            small.append(name)
    means = _from_durations(reader, run, small, loaded) if small else {}
    if len(small) < len(run.stages):
        means = _from_windows(reader, run) | means
    return means


def _from_durations(reader: Reader, run: Run, names: Sequence[str], most: int) -> dict[str, Mean]:
    conditions: dict[str, Any] = of_stages(run)
    if len(names) < len(run.stages):
        conditions["name"] = tuple(names[:_MOST_NAMES])
    columns = reader.records(**conditions, limit=most).table.select(["name", "value"]).to_pydict()
    durations: dict[str, list[float]] = {}
    for name, value in zip(columns["name"], columns["value"], strict=True):
        durations.setdefault(name, []).append(value)
    return _known({name: mean_of(values) for name, values in durations.items()})


def _from_windows(reader: Reader, run: Run) -> dict[str, Mean]:
    conditions = of_stages(run)
    first = reader.records(**conditions, order_by="timestamp", limit=1).records
    last = reader.records(**conditions, limit=1).records
    if not first or not last:  # they were deleted a moment ago
        return {}
    window = max(MIN_WINDOW, (last[0].timestamp - first[0].timestamp) // WINDOWS)
    answer = reader.query(**conditions, window=window, group_by="name", agg=("count", "sum"))
    counts: dict[str, list[int]] = {}
    sums: dict[str, list[float]] = {}
    for row in answer.rows():
        counts.setdefault(row["name"], []).append(row["count"])
        sums.setdefault(row["name"], []).append(row["sum"] or 0.0)
    return _known({name: mean_of_windows(counts[name], sums[name]) for name in counts})


def _known(means: Mapping[str, Mean | None]) -> dict[str, Mean]:
    return {name: mean for name, mean in means.items() if mean is not None}
