"""How long to wait before trying again: exponential, bounded, and different for everybody.

Pure arithmetic for the coordinator's event loop; the caller brings the dice.
"""

from __future__ import annotations

from collections.abc import Callable

from hexgen_sglang.core.errors import ConfigError


def backoff_s(number: int, first_s: float, most_s: float, dice: Callable[[], float]) -> float:
    """Seconds before try `number` + 1, when `number` tries have failed.

    Between half and all of `first_s * 2 ** (number - 1)`, never above `most_s`, so that those
    who failed together do not come back together.

    Args:
        number: failed tries, at least 1.
        first_s: the longest first wait, above 0.
        most_s: the longest wait at all, at least `first_s`.
        dice: yields numbers from 0 to 1.

    Raises:
        ConfigError: a number is out of its range.
    """
    if number < 1:
        raise ConfigError(f"number={number}: must be at least 1")
    if not 0 < first_s <= most_s:
        raise ConfigError(f"first_s={first_s:g}: must be above 0 and at most most_s={most_s:g}")
    # 2 ** 1024 is no float; long before that the bound holds.
    longest_s = min(most_s, first_s * 2.0 ** min(number - 1, 64))
    return longest_s * (0.5 + 0.5 * dice())
