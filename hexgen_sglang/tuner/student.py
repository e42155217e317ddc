"""Student's t: how far the mean of a few independent runs may be off.

Pure arithmetic. Runs with different seeds are independent; workflows within a run are not,
since they share queues. So every interval of the tuner is over seeds, with few of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.statistics import Interval

_STEPS = 300
_TINY = 1e-300


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """The mean of independent values with the two-sided interval of its expectation.

    Args:
        values: finite. With a single one the interval is the whole line.
        confidence: between 0 and 1.

    Raises:
        ConfigError: no values, one that is not finite, or the confidence is out of range.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"values={list(values)}: needs at least one, all finite")
    middle = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(middle, -math.inf, math.inf, confidence)
    squares = math.fsum((value - middle) ** 2 for value in values)
    spread = math.sqrt(squares / (len(values) - 1) / len(values))
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * spread
    return Interval(middle, middle - half, middle + half, confidence)


@lru_cache(maxsize=1_024)
def t_quantile(share: float, degrees: int) -> float:
    """The value that a t variable with `degrees` degrees of freedom stays below with `share`.

    Args:
        share: 0.5 to below 1.
        degrees: at least 1.

    Raises:
        ConfigError: out of range.
    """
    if not 0.5 <= share < 1 or degrees < 1:
        raise ConfigError(f"t quantile {share} with {degrees} degrees: needs 0.5 <= q < 1, n >= 1")
    low, high = 0.0, 1.0
    while t_below(high, degrees) < share:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if t_below(middle, degrees) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_below(value: float, degrees: int) -> float:
    """P(T < value) for value >= 0."""
    rest = degrees / (degrees + value * value)
    return 1 - _beta_share(rest, degrees / 2, 0.5) / 2


def _beta_share(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x)) / a
    return front / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) by Lentz's method.

    d(2m) = m (b - m) x / ((a + 2m - 1)(a + 2m)),
    d(2m+1) = -(a + m)(a + b + m) x / ((a + 2m)(a + 2m + 1)).
    """
    value = numerator = 1.0
    denominator = 0.0
    for step in range(1, _STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1.0 / (1.0 + term * denominator or _TINY)
        numerator = 1.0 + term / numerator or _TINY
        change = numerator * denominator
        value *= change
        if abs(change - 1) < 1e-15:
            break
    return value
