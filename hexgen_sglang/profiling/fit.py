"""From measured steps to an accelerator profile, or an error when they do not make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from hexgen_sglang.core.accelerator import (
    AcceleratorProfile,
    Capacity,
    DecodeCost,
    Fit,
    PrefillCost,
    Price,
    Sourced,
    attended_tokens,
)
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.profiling.least_squares import mape, nonnegative_least_squares
from hexgen_sglang.profiling.samples import DecodeSample, PrefillSample, WorkerFacts

MIN_SAMPLES = 4
DEFAULT_MAX_ERROR = 0.25


@dataclass(frozen=True, slots=True)
class PrefillFit:
    """Seconds of a prefill step."""

    base_s: float
    per_token_s: float
    per_token_per_1k_context_s: float
    mape: float


@dataclass(frozen=True, slots=True)
class DecodeFit:
    """Seconds of a decode step."""

    base_s: float
    per_request_s: float
    per_1k_context_tokens_s: float
    mape: float


def fit_prefill(samples: Sequence[PrefillSample], chunk_tokens: int) -> PrefillFit:
    """Non-negative relative least squares over the samples.

    Raises:
        ConfigError: fewer than 4 samples.
    """
    _need_samples("prefill", len(samples))
    rows = [
        (
            float(ceil(sample.num_uncached / chunk_tokens)),
            float(sample.num_uncached),
            attended_tokens(sample.num_uncached, sample.num_cached) / 1_000,
        )
        for sample in samples
    ]
    known = [sample.seconds for sample in samples]
    found = nonnegative_least_squares(rows, known)
    error = mape(np.asarray(rows) @ found, known)
    base_s, per_token_s, attention_s = (float(value) for value in found)
    return PrefillFit(base_s, per_token_s, attention_s, error)


def fit_decode(samples: Sequence[DecodeSample]) -> DecodeFit:
    """Non-negative relative least squares over the samples.

    Raises:
        ConfigError: fewer than 4 samples.
    """
    _need_samples("decode", len(samples))
    rows = [
        (1.0, float(sample.num_requests), sample.num_context_tokens / 1_000) for sample in samples
    ]
    known = [sample.seconds for sample in samples]
    found = nonnegative_least_squares(rows, known)
    error = mape(np.asarray(rows) @ found, known)
    base_s, per_request_s, context_s = (float(value) for value in found)
    return DecodeFit(base_s, per_request_s, context_s, error)


def profile_from_measurements(
    name: str,
    device: str,
    facts: WorkerFacts,
    prefill: PrefillFit,
    decode: DecodeFit,
    usd_per_hour: float | None,
    max_error: float = DEFAULT_MAX_ERROR,
) -> AcceleratorProfile:
    """The profile, every number with its source.

    Args:
        name: of the profile.
        device: what it is, in words.
        facts: what the worker says of itself.
        prefill: fitted to its prefill steps.
        decode: fitted to its decode steps.
        usd_per_hour: None: unknown, written as 0.
        max_error: largest mean absolute relative error of either fit that is accepted.

    Raises:
        ConfigError: a fit that is too bad, or that gives no seconds to tokens or to steps.
    """
    for kind, error in (("prefill", prefill.mape), ("decode", decode.mape)):
        if not error <= max_error:
            raise ConfigError(
                f"{kind} fit: mean error {error:.1%}: must be at most {max_error:.0%}; the "
                "worker was busy or its times follow another law, so nothing is written"
            )
    for field, value in (
        ("prefill.per_token_s", prefill.per_token_s),
        ("decode.base_s", decode.base_s),
    ):
        if value <= 0:
            raise ConfigError(
                f"{field}={value}: must be above 0; the measured times do not grow as a worker's "
                "do, so nothing is written"
            )
    measured = f"measured through HTTP on SGLang {facts.sglang_version}, relative least squares"
    reported = f"reported by SGLang {facts.sglang_version}"
    price_source = "assumption, yours to edit: not stated when this was measured"
    if usd_per_hour is not None:
        price_source = "stated by whoever measured"
    return AcceleratorProfile(
        name=name,
        model=facts.model,
        device=device,
        tensor_parallel=Sourced(facts.tensor_parallel, reported),
        prefill=PrefillCost(
            base_s=Sourced(_rounded(prefill.base_s), measured),
            per_token_s=Sourced(_rounded(prefill.per_token_s), measured),
            per_token_per_1k_context_s=Sourced(
                _rounded(prefill.per_token_per_1k_context_s), measured
            ),
            chunk_tokens=Sourced(facts.chunk_tokens, reported),
        ),
        decode=DecodeCost(
            base_s=Sourced(_rounded(decode.base_s), measured),
            per_request_s=Sourced(_rounded(decode.per_request_s), measured),
            per_1k_context_tokens_s=Sourced(_rounded(decode.per_1k_context_tokens_s), measured),
        ),
        capacity=Capacity(
            kv_tokens=Sourced(facts.kv_tokens, reported),
            max_running_requests=Sourced(facts.max_running_requests, reported),
        ),
        price=Price(usd_per_hour=Sourced(usd_per_hour or 0.0, price_source)),
        fit=Fit(
            method=(
                "Over a grid: prefill as the time between the first tokens of two prompts that "
                "run one after the other, decode as the steps of a steady batch."
            ),
            prefill_mape=_rounded(prefill.mape),
            decode_mape=_rounded(decode.mape),
        ),
    )


def _need_samples(kind: str, number: int) -> None:
    if number < MIN_SAMPLES:
        raise ConfigError(f"{kind} samples: {number}; at least {MIN_SAMPLES} are needed")


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
