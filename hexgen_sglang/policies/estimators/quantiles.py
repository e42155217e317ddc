"""Quantiles of a stream of positive numbers, in bounded memory and with a bounded error."""

from __future__ import annotations

import math

_GROWTH = 1.1
_LOG_GROWTH = math.log(_GROWTH)
_MAX_BIN = 400  # 1.1 ** 400 is about 3.6e16
_HEAVY = 1e100


class Quantiles:
    """A histogram in equal factors that forgets slowly.

    A quantile is wrong by a factor of at most sqrt(1.1), about 4.9 %, within 1 to 3e16; smaller
    samples count as 1, larger ones as the largest.

    Args:
        keep: share of the old weight kept at each sample, in (0, 1].

    Attributes:
        count: samples seen.
    """

    __slots__ = ("_bins", "_keep", "_total", "_weight", "count")

    def __init__(self, keep: float = 0.98) -> None:
        self._keep = keep
        self._bins: dict[int, float] = {}
        self._weight = 1.0
        self._total = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        """Take one finite sample in."""
        place = min(_MAX_BIN, max(0, round(math.log(max(1.0, sample)) / _LOG_GROWTH)))
        self.count += 1
        self._bins[place] = self._bins.get(place, 0.0) + self._weight
        self._total += self._weight
        # The new weigh more, instead of the old less: one number to change, not all.
        self._weight /= self._keep
        if self._weight > _HEAVY:
            self._bins = {at: kept / _HEAVY for at, kept in self._bins.items() if kept > 1.0}
            self._weight /= _HEAVY
            self._total = sum(self._bins.values())

    def at(self, share: float) -> float | None:
        """The value that `share` (0 to 1) of the weight does not exceed; None before a sample."""
        if not self.count:
            return None
        wanted = share * self._total
        passed = 0.0
        places = sorted(self._bins)
        for place in places:
            passed += self._bins[place]
            if passed >= wanted:
                return _GROWTH**place
        return _GROWTH ** places[-1]
