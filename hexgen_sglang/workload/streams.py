"""One independent random stream for each subsystem, all from one seed.

A change in one subsystem (another arrival process, a longer trace) leaves the draws of the
others as they were, so that compared runs differ only in what was meant to differ.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Subsystem(IntEnum):
    """Who draws. The numbers are part of every published result: never renumber them."""

    ARRIVALS = 1
    RESAMPLING = 2
    SYNTHETIC = 3
    TOKENS = 4
    BOOTSTRAP = 5
    DISPATCH = 6
    ACCELERATOR = 7


def stream(seed: int, subsystem: Subsystem, *indices: int) -> np.random.Generator:
    """The generator of one subsystem (and of one part of it, by `indices`).

    Args:
        seed: at least 0; the seed of the whole run.
        subsystem: who draws.
        indices: which of several, e.g. the number of a worker; each at least 0.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(int(subsystem), *indices))
    return np.random.Generator(np.random.PCG64(sequence))
