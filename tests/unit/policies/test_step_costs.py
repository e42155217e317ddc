"""Step costs fitted to timed steps."""

from __future__ import annotations

import random

import pytest

from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import StepCostFit, WorkerCosts

TRUE = StepCosts(0.045, 2.7e-4, 5e-9, 0.02, 5e-4, 1.6e-7)


def feed(fit: StepCostFit, costs: StepCosts, steps: int, noise: float = 0.0) -> None:
    """Steps of many sizes, timed with a relative error."""
    draw = random.Random(7)
    for _ in range(steps):
        uncached, cached = draw.randint(10, 8_000), draw.randint(0, 9_000)
        seconds = costs.prefill_s(uncached, cached) * draw.uniform(1 - noise, 1 + noise)
        fit.add_prefill(uncached, uncached * (cached + uncached / 2), seconds)
        requests = draw.randint(1, 40)
        context = sum(draw.randint(300, 9_000) for _ in range(requests))
        seconds = costs.decode_s(requests, context) * draw.uniform(1 - noise, 1 + noise)
        fit.add_decode(requests, context, seconds, steps=draw.randint(1, 5))


def test_exact_timings_give_the_exact_terms_back() -> None:
    fit = StepCostFit()
    feed(fit, TRUE, 60)
    found = fit.costs()
    assert found is not None
    for name in StepCosts.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)


def test_noisy_timings_predict_steps_well() -> None:
    fit = StepCostFit()
    feed(fit, TRUE, 400, noise=0.2)
    found = fit.costs()
    assert found is not None
    assert found.prefill_s(3_000, 4_000) == pytest.approx(TRUE.prefill_s(3_000, 4_000), rel=0.05)
    assert found.decode_s(12, 50_000) == pytest.approx(TRUE.decode_s(12, 50_000), rel=0.05)


def test_terms_are_never_negative_and_nothing_is_told_too_early() -> None:
    fit = StepCostFit()
    assert fit.costs() is None
    for size in range(1, 20):  # shorter the larger: no such model fits
        fit.add_prefill(size * 100, size * 1e5, 1 / size)
        fit.add_decode(size, size * 1e3, 1 / size)
    found = fit.costs()
    assert found is not None
    assert all(getattr(found, name) >= 0 for name in StepCosts.__dataclass_fields__)
    assert found.prefill_base_s > 0


def test_it_follows_a_worker_that_slows_down() -> None:
    fit = StepCostFit()
    feed(fit, TRUE, 300)
    slow = StepCosts(*(2 * getattr(TRUE, name) for name in StepCosts.__dataclass_fields__))
    feed(fit, slow, 3_000)
    found = fit.costs()
    assert found is not None
    assert found.decode_s(10, 40_000) == pytest.approx(slow.decode_s(10, 40_000), rel=0.1)


def test_what_a_worker_measured_goes_before_what_its_hardware_states() -> None:
    known = WorkerCosts()
    assert known.of("w", "a100") is None
    known.state("a100", TRUE)
    assert known.of("w", "a100") is TRUE
    measured = StepCosts(1, 2, 3, 4, 5, 6)
    known.note("w", measured)
    assert known.of("w", "a100") == measured
    known.rename("w", "v")
    assert known.of("v") == measured
    known.forget("v")
    assert known.of("v", "a100") is TRUE


def test_repeated_context_counts_at_its_share_in_fit_and_prediction() -> None:
    costs = StepCosts(0.045, 2.7e-4, 0.0, 0.02, 5e-4, 1.6e-7, decode_repeated_frac=0.2)
    assert costs.decode_s(2, 10_000, 5_000) == pytest.approx(costs.decode_s(2, 6_000))
    fit = StepCostFit(repeated_frac=0.2)
    draw = random.Random(3)
    for _ in range(60):
        uncached = draw.randint(10, 8_000)
        fit.add_prefill(uncached, uncached**2 / 2, costs.prefill_s(uncached, 0))
        requests, context = draw.randint(1, 40), draw.randint(2_000, 90_000)
        repeated = draw.randint(0, context // 2)
        seconds = costs.decode_s(requests, context, repeated)
        fit.add_decode(requests, context, seconds, num_repeated_tokens=repeated)
    found = fit.costs()
    assert found is not None
    assert found.decode_context_s == pytest.approx(1.6e-7, rel=1e-3)
    assert found.decode_repeated_frac == 0.2
