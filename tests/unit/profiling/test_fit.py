"""Fits recover the constants that made the data, and refuse data that nothing made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hexgen_sglang.core.accelerator import attended_tokens
from hexgen_sglang.core.accelerator_toml import profile_from_toml, profile_to_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.profiling.fit import fit_decode, fit_prefill, profile_from_measurements
from hexgen_sglang.profiling.least_squares import mape, nonnegative_least_squares
from hexgen_sglang.profiling.samples import DecodeSample, PrefillSample, WorkerFacts

FACTS = WorkerFacts("a model", "0.5.23", 50_000, 1_024, 32, 8_192, 1, 1.0)


def prefill_samples(base: float, token: float, attention: float) -> list[PrefillSample]:
    cells = [(64, 0), (256, 0), (1_024, 0), (3_000, 0), (5_000, 0), (128, 4_000), (512, 2_000)]
    return [
        PrefillSample(
            uncached,
            cached,
            base * -(-uncached // FACTS.chunk_tokens)
            + token * uncached
            + attention * attended_tokens(uncached, cached) / 1_000,
        )
        for uncached, cached in cells
    ]


def decode_samples(base: float, request: float, context: float) -> list[DecodeSample]:
    return [
        DecodeSample(batch, batch * length, base + request * batch + context * batch * length / 1e3)
        for batch, length in itertools.product((1, 4, 16), (100, 2_000))
    ]


def test_exact_data_gives_the_constants_back() -> None:
    prefill = fit_prefill(prefill_samples(0.045, 2.7e-4, 5e-6), FACTS.chunk_tokens)
    decode = fit_decode(decode_samples(0.02, 5e-4, 1.5e-4))
    assert prefill.base_s == pytest.approx(0.045)
    assert prefill.per_token_s == pytest.approx(2.7e-4)
    assert prefill.per_token_per_1k_context_s == pytest.approx(5e-6)
    assert decode.base_s == pytest.approx(0.02)
    assert decode.per_request_s == pytest.approx(5e-4)
    assert decode.per_1k_context_tokens_s == pytest.approx(1.5e-4)
    assert max(prefill.mape, decode.mape) < 1e-9


def test_noise_is_reported_as_error_and_moves_the_constants_little() -> None:
    noise = np.random.default_rng(3)
    noisy = [
        PrefillSample(s.num_uncached, s.num_cached, s.seconds * noise.uniform(0.97, 1.03))
        for s in prefill_samples(0.045, 2.7e-4, 5e-6) * 4
    ]
    fit = fit_prefill(noisy, FACTS.chunk_tokens)
    assert 0.005 < fit.mape < 0.03
    assert fit.per_token_s == pytest.approx(2.7e-4, rel=0.05)


def test_a_cost_that_is_not_there_becomes_zero_and_never_negative() -> None:
    fit = fit_decode(decode_samples(0.02, 0.0, 1.5e-4))
    assert fit.per_request_s == pytest.approx(0.0, abs=1e-9)
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    falling = nonnegative_least_squares(rows, [3.0, 2.0, 1.0])
    assert (falling >= 0).all()
    assert falling[1] == 0.0


def test_least_squares_is_at_least_as_good_as_every_neighbour() -> None:
    noise = np.random.default_rng(5)
    rows = noise.uniform(0.1, 1.0, (12, 3))
    seconds = noise.uniform(0.1, 1.0, 12)

    def loss(x: np.ndarray) -> float:
        return float((((rows @ x) / seconds - 1) ** 2).sum())

    found = nonnegative_least_squares(rows, seconds)
    for step in itertools.product((-0.01, 0.0, 0.01), repeat=3):
        assert loss(np.maximum(found + np.array(step), 0)) >= loss(found) - 1e-12


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([[1.0], [2.0]], [1.0]),
        ([], []),
        ([[1.0]], [0.0]),
        ([[float("nan")]], [1.0]),
        ([[1.0] * 9], [1.0]),
    ],
)
def test_what_cannot_be_fitted_is_refused(rows: list[list[float]], seconds: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must be|at most"):
        nonnegative_least_squares(rows, seconds)


def test_mape_is_the_mean_of_absolute_relative_errors() -> None:
    assert mape([1.1, 1.6], [1.0, 2.0]) == pytest.approx(0.15)


def test_a_measured_profile_survives_its_file_and_carries_its_errors() -> None:
    prefill = fit_prefill(prefill_samples(0.045, 2.7e-4, 5e-6), FACTS.chunk_tokens)
    decode = fit_decode(decode_samples(0.02, 5e-4, 1.5e-4))
    profile = profile_from_measurements("mine", "a device", FACTS, prefill, decode, 2.5)
    again = profile_from_toml(profile_to_toml(profile), "again")
    assert again == profile
    assert again.price.usd_per_hour.value == 2.5
    assert again.capacity.kv_tokens.value == FACTS.kv_tokens
    assert again.fit.prefill_mape == pytest.approx(0.0, abs=1e-6)


def test_times_that_follow_no_law_are_refused() -> None:
    noise = np.random.default_rng(1)
    random = [
        PrefillSample(int(n), 0, float(noise.uniform(0.01, 3.0))) for n in range(100, 2_000, 100)
    ]
    prefill = fit_prefill(random, FACTS.chunk_tokens)
    decode = fit_decode(decode_samples(0.02, 5e-4, 1.5e-4))
    with pytest.raises(ConfigError, match="prefill fit: mean error"):
        profile_from_measurements("mine", "a device", FACTS, prefill, decode, None)


def test_tokens_that_cost_nothing_are_refused() -> None:
    prefill = fit_prefill(prefill_samples(0.045, 0.0, 0.0), FACTS.chunk_tokens)
    decode = fit_decode(decode_samples(0.02, 5e-4, 1.5e-4))
    with pytest.raises(ConfigError, match=r"prefill\.per_token_s"):
        profile_from_measurements("mine", "a device", FACTS, prefill, decode, None)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="prefill samples: 3"):
        fit_prefill(prefill_samples(0.045, 2.7e-4, 5e-6)[:3], 1_024)
    with pytest.raises(ConfigError, match="decode samples: 2"):
        fit_decode(decode_samples(0.02, 5e-4, 1.5e-4)[:2])
