"""Laws of the figures over generated values."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.results import statistics

VALUES = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=60)
SHARES = st.floats(0.01, 1.0)


@given(VALUES, SHARES)
def test_quantile_is_an_observed_value_with_enough_below(values: list[float], share: float) -> None:
    quantile = statistics.quantile(values, share)
    assert quantile in values
    assert np.mean(np.array(values) <= quantile) >= share - 1e-9


@given(VALUES, SHARES)
def test_smallest_scale_is_where_attainment_reaches_the_level(
    values: list[float], level: float
) -> None:
    scale = statistics.smallest_scale(values, level)
    assert scale is not None
    assert statistics.attainment(values, scale) >= level - 1e-9
    assert statistics.attainment(values, np.nextafter(scale, 0.0)) < level


@given(VALUES, st.floats(0.01, 100), st.floats(0.01, 100))
def test_attainment_never_falls_with_the_scale(
    values: list[float], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert 0 <= statistics.attainment(values, low) <= statistics.attainment(values, high) <= 1


@given(st.dictionaries(st.floats(0.01, 10), st.floats(0, 1), min_size=1), SHARES)
def test_goodput_lies_within_the_measured_rates(points: dict[float, float], level: float) -> None:
    goodput, bound = statistics.goodput_per_s(points, level)
    if goodput is None:
        assert points[min(points)] < level
    else:
        assert min(points) <= goodput <= max(points)
        assert bound == all(value >= level for value in points.values())


@given(VALUES, st.floats(0.1, 10), st.integers(0, 100))
def test_paired_ratio_of_a_scaled_copy_is_the_factor(
    values: list[float], factor: float, seed: int
) -> None:
    base = np.array(values)
    interval = statistics.paired_ratio(
        [base],
        [base * factor],
        lambda v: statistics.quantile(v, 0.5),
        np.random.default_rng(seed),
        draws=100,
    )
    for figure in (interval.value, interval.low, interval.high):
        assert math.isclose(figure, 1 / factor, rel_tol=1e-9)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(0, 100))
def test_block_draws_stay_within_their_series(lengths: list[int], seed: int) -> None:
    samples = statistics.block_draws(lengths, 5, np.random.default_rng(seed))
    for length, sample in zip(lengths, samples, strict=True):
        assert sample.shape == (5, length)
        assert sample.min() >= 0
        assert sample.max() < length
