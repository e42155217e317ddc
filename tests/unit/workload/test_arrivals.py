"""Arrival processes: rate, variation, and independence of streams."""

from __future__ import annotations

import numpy as np
import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.arrivals import ArrivalProcess, Arrivals
from hexgen_sglang.workload.streams import Subsystem, stream


@pytest.mark.parametrize(("text", "cv"), [("poisson", 1.0), ("gamma:3", 3.0), ("gamma:0.5", 0.5)])
def test_gaps_have_the_rate_and_the_variation(text: str, cv: float) -> None:
    instants = Arrivals.parse(text).instants_s(2.0, 200_000, stream(5, Subsystem.ARRIVALS))
    gaps = np.diff(instants, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_fixed_gaps_are_equal() -> None:
    instants = Arrivals(ArrivalProcess.FIXED).instants_s(4.0, 4, stream(0, Subsystem.ARRIVALS))
    assert instants.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_another_rate_stretches_the_same_pattern() -> None:
    slow = Arrivals().instants_s(0.5, 50, stream(1, Subsystem.ARRIVALS))
    fast = Arrivals().instants_s(2.0, 50, stream(1, Subsystem.ARRIVALS))
    assert slow == pytest.approx(fast * 4)


def test_more_arrivals_begin_with_the_fewer() -> None:
    few = Arrivals().instants_s(1.0, 10, stream(1, Subsystem.ARRIVALS))
    many = Arrivals().instants_s(1.0, 100, stream(1, Subsystem.ARRIVALS))
    assert many[:10] == pytest.approx(few)


def test_streams_of_subsystems_and_seeds_differ() -> None:
    draws = {
        float(stream(seed, subsystem, part).random())
        for seed in (0, 1)
        for subsystem in Subsystem
        for part in (0, 1)
    }
    assert len(draws) == 2 * len(Subsystem) * 2


@pytest.mark.parametrize("text", ["", "gauss", "gamma", "gamma:x", "gamma:0", "poisson:2"])
def test_bad_process_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Arrivals.parse(text)


@pytest.mark.parametrize("text", ["poisson", "fixed", "gamma:2.5"])
def test_text_round_trips(text: str) -> None:
    assert str(Arrivals.parse(text)) == text


@pytest.mark.parametrize(("rate", "num"), [(0.0, 1), (float("inf"), 1), (1.0, 0)])
def test_bad_rate_or_number_is_refused(rate: float, num: int) -> None:
    with pytest.raises(ConfigError):
        Arrivals().instants_s(rate, num, stream(0, Subsystem.ARRIVALS))
