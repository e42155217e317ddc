"""Student's t against printed tables, and intervals that cover as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.tuner.student import mean_interval, t_quantile


@pytest.mark.parametrize(
    ("share", "degrees", "known"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 7, 2.3646),
        (0.95, 4, 2.1318),
        (0.995, 3, 5.8409),
        (0.999, 2, 22.3271),
        (0.975, 1000, 1.9623),
        (0.5, 5, 0.0),
    ],
)
def test_quantiles_are_those_of_printed_tables(share: float, degrees: int, known: float) -> None:
    assert t_quantile(share, degrees) == pytest.approx(known, abs=6e-5)


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(2_000):
        interval = mean_interval(list(generator.normal(3.0, 2.0, size=4)), 0.9)
        covered += interval.low <= 3.0 <= interval.high
    assert 0.88 <= covered / 2_000 <= 0.92


def test_one_value_says_nothing_about_its_spread() -> None:
    interval = mean_interval([2.0], 0.95)
    assert (interval.value, interval.low, interval.high) == (2.0, -math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [math.inf, 1.0], [math.nan]])
def test_no_interval_without_finite_values(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite"):
        mean_interval(values, 0.95)
