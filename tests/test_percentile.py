"""Percentiles from buckets are within their bound of those that are counted out."""

import math

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallymark import percentile
from tallymark.percentile import OFFSET, RELATIVE_ERROR, SCALE, Buckets, bucket_sql, estimates, merged, percentiles

SHARES = [0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999]
SMALLEST = 2.2250738585072014e-308
LARGEST = 1.7976931348623157e308

sizes = st.floats(SMALLEST, LARGEST) | st.sampled_from([2.0**n for n in range(-40, 40)]) | st.floats(0.1, 100.0)
values = st.just(0.0) | sizes | sizes.map(lambda size: -size)


def keys_of(numbers: list[float]) -> list[int]:
    """By the SQL that stores use."""
    rows = duckdb.execute(
        f"SELECT {bucket_sql('v')} FROM (SELECT unnest($v::DOUBLE[]) AS v)", {"v": numbers}
    ).fetchall()
    return [row[0] for row in rows]


def of_groups(groups: list[list[float]], shares: list[float]) -> list[list[float]]:
    """The percentiles of each group, from its buckets."""
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    keys = np.array(keys_of([value for group in groups for value in group]))
    smallest, largest = (np.array([pick(group) for group in groups]) for pick in (min, max))
    found = percentiles(merged(numbers, keys, np.ones(len(keys), int)), smallest, largest, shares)
    return np.array(found).T.tolist()  # type: ignore[no-any-return]


def bounds(group: list[float], share: float) -> tuple[float, float]:
    """The percentile as PERCENTILE_CONT of SQL, and by how much an estimate may miss it."""
    ordered = sorted(group)
    rank = share * (len(ordered) - 1)
    low = math.floor(rank)
    part = rank - low
    lower, upper = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    size = abs(lower) * (1 - part) + abs(upper) * part
    return lower * (1 - part) + upper * part, RELATIVE_ERROR * size


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(values, min_size=1, max_size=40), min_size=1, max_size=4))
def test_every_percentile_is_within_the_bound(groups: list[list[float]]) -> None:
    for group, found in zip(groups, of_groups(groups, SHARES), strict=True):
        for share, estimate in zip(SHARES, found, strict=True):
            exact, bound = bounds(group, share)
            assert abs(estimate - exact) <= bound, (share, group)


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: random.lognormal(3, 0.8, 20_000),
        lambda random: random.exponential(1e-9, 20_000),
        lambda random: random.normal(0, 5, 20_000),
        lambda random: random.pareto(0.5, 20_000),
        lambda random: random.integers(0, 3, 20_000).astype(float),
        lambda random: np.concatenate([random.normal(10, 0.1, 10_000), random.normal(1e6, 1, 10_000)]),
        lambda random: np.full(20_000, 42.0),
    ],
    ids=["log-normal", "exponential", "normal", "heavy tail", "few values", "two peaks", "one value"],
)
def test_distributions(draw) -> None:  # type: ignore[no-untyped-def]
    group = draw(np.random.default_rng(1)).tolist()
    for share, estimate in zip(SHARES, of_groups([group], SHARES)[0], strict=True):
        exact, bound = bounds(group, share)
        assert abs(estimate - exact) <= bound, share


def test_the_bound_is_below_a_percent_and_nearly_reached() -> None:
    assert 0.005 < RELATIVE_ERROR < 0.0055
    growth = 2 ** (2**-SCALE)
    # Just above the lower border of the bucket (1, growth]. The extremes are others, so nothing is cut off.
    (found,) = of_groups([[0.1, 1 + 1e-12, 50.0]], [0.5])
    assert found[0] - 1 == pytest.approx(RELATIVE_ERROR, rel=1e-6)
    assert growth - 1 > RELATIVE_ERROR


def test_buckets_are_those_of_opentelemetry() -> None:
    growth = 2 ** (2**-SCALE)
    # The upper border belongs to a bucket, the lower one to the one before.
    assert keys_of([1.0, 1.0001, 2.0, 2.0001, 4.0]) == [
        OFFSET - 1,
        OFFSET,
        OFFSET + 2**SCALE - 1,
        OFFSET + 2**SCALE,
        OFFSET + 2 * 2**SCALE - 1,
    ]
    assert keys_of([0.0, -0.0]) == [0, 0]
    assert keys_of([-1.0001]) == [-OFFSET]
    assert estimates(np.array([OFFSET])) == pytest.approx([2 * growth / (1 + growth)])


def test_keys_grow_with_the_values() -> None:
    ends = [-LARGEST, -1.0, -SMALLEST, -5e-324, 0.0, 5e-324, SMALLEST, 1.0, LARGEST]
    keys = keys_of(ends)
    assert keys == sorted(keys)
    assert len(set(keys)) == len(ends)
    assert all(abs(key) < 2**31 for key in keys)


def test_histograms_add_up_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    groups = np.sort(random.integers(0, 50, 5_000))
    keys, counts = random.integers(-300, 300, 5_000), random.integers(1, 9, 5_000)
    expected: dict[tuple[int, int], int] = {}
    for group, key, number in zip(groups.tolist(), keys.tolist(), counts.tolist(), strict=True):
        expected[group, key] = expected.get((group, key), 0) + number
    for cells in (1, 1_000, percentile._CELLS):  # a group at a time, some, all
        monkeypatch.setattr(percentile, "_CELLS", cells)
        found = merged(groups, keys, counts)
        assert (
            dict(zip(zip(found.groups.tolist(), found.keys.tolist(), strict=True), found.counts.tolist(), strict=True))
            == expected
        )
        assert list(zip(found.groups, found.keys, strict=True)) == sorted(expected)


def test_no_values_have_no_percentiles() -> None:
    nothing, extremes = np.zeros(0, np.int64), np.zeros(0)
    assert merged(nothing, nothing, nothing) == Buckets(nothing, nothing, nothing)
    (found,) = percentiles(merged(nothing, nothing, nothing), extremes, extremes, [0.5])
    assert found.tolist() == []
