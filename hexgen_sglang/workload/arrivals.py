"""Arrival instants of workflows: Poisson, Gamma gaps with a given variation, or fixed gaps.

Gaps are drawn for a rate of one and divided by the rate, so that two loads with one seed see
the same pattern of arrivals, stretched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.errors import ConfigError


class ArrivalProcess(StrEnum):
    """Distribution of the gaps between workflows."""

    POISSON = "poisson"
    GAMMA = "gamma"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An arrival process without its rate.

    Attributes:
        process: which distribution the gaps have.
        cv: coefficient of variation of the gaps; used by GAMMA only (1 is Poisson, larger is
            burstier), greater than 0, at most 100.
    """

    process: ArrivalProcess = ArrivalProcess.POISSON
    cv: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cv) and 0 < self.cv <= 100):
            raise ConfigError(f"cv={self.cv}: must be greater than 0, at most 100")

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """From "poisson", "fixed" or "gamma:<cv>".

        Raises:
            ConfigError: names the value and what is allowed.
        """
        name, colon, cv = text.partition(":")
        if name == ArrivalProcess.GAMMA and colon:
            try:
                return cls(ArrivalProcess.GAMMA, float(cv))
            except ValueError as error:
                raise ConfigError(f"arrivals={text!r}: cv={cv!r} is not a number") from error
        if not colon and name in (ArrivalProcess.POISSON, ArrivalProcess.FIXED):
            return cls(ArrivalProcess(name))
        raise ConfigError(f"arrivals={text!r}: must be poisson, fixed or gamma:<cv>")

    def __str__(self) -> str:
        return f"gamma:{self.cv:g}" if self.process is ArrivalProcess.GAMMA else self.process.value

    def instants_s(
        self, rate_per_s: float, num: int, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """`num` instants in seconds, ascending, the first one gap after 0.

        Args:
            rate_per_s: mean workflows per second, finite, greater than 0.
            num: at least 1.
            generator: the stream of the arrivals; advanced by `num` draws.

        Raises:
            ConfigError: rate or number out of range.
        """
        if not (math.isfinite(rate_per_s) and rate_per_s > 0):
            raise ConfigError(f"rate={rate_per_s}: must be finite and greater than 0")
        if num < 1:
            raise ConfigError(f"workflows={num}: must be at least 1")
        gaps = self._unit_gaps(num, generator) / rate_per_s
        return np.cumsum(gaps)

    def _unit_gaps(self, num: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Gaps with mean 1 and the process's coefficient of variation."""
        if self.process is ArrivalProcess.FIXED:
            return np.ones(num)
        if self.process is ArrivalProcess.GAMMA:
            shape = 1.0 / self.cv**2
            return generator.gamma(shape, 1.0 / shape, size=num)
        return generator.exponential(1.0, size=num)
