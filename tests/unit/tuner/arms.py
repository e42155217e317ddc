"""Synthetic objectives with known answers: what a race of settings is judged by.

The figure of a setting x under a seed is luck(seed) x quality(x) x noise(seed, x): luck is
common to all settings of a seed, noise is not; both are log-normal, as latencies are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hexgen_sglang.tuner.search import Job


@dataclass
class Arms:
    """Evaluates jobs whose settings are {"x": arm}; counts the runs of each arm."""

    quality: Callable[[float], float]
    world: int = 0
    luck_sigma: float = 0.5
    noise_sigma: float = 0.05
    runs: dict[float, int] = field(default_factory=dict)

    def __call__(self, jobs: Sequence[Job]) -> list[float]:
        return [self.value(job.settings["x"], job.seed) for job in jobs]

    def value(self, x: float, seed: int) -> float:
        self.runs[x] = self.runs.get(x, 0) + 1
        luck = self.luck_sigma * _normal(f"{self.world}/{seed}")
        noise = self.noise_sigma * _normal(f"{self.world}/{seed}/{x}")
        return math.exp(luck + noise) * self.quality(x)


def _normal(key: str) -> float:
    """A standard normal value that depends on the key only; a text seeds every Python alike."""
    return random.Random(key).gauss(0.0, 1.0)
