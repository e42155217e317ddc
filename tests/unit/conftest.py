"""Shared by the unit tests: an accelerator profile whose seconds can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexgen_sglang.core.accelerator import (
    AcceleratorProfile,
    Capacity,
    DecodeCost,
    Fit,
    PrefillCost,
    Price,
    Sourced,
)


def linear(
    prefill_token_s: float = 0.001,
    step_s: float = 0.1,
    context_1k_s: float = 0.0,
    kv_tokens: int = 100_000,
    chunk_tokens: int = 50_000,
    usd_per_hour: float = 1.0,
    name: str = "linear",
) -> AcceleratorProfile:
    """No base, no attention term, one price for each uncached token and each step."""
    kv_tokens = max(kv_tokens, 1)
    return AcceleratorProfile(
        name=name,
        model="none",
        device="made up for tests",
        tensor_parallel=Sourced(1, "made up"),
        prefill=PrefillCost(
            Sourced(0.0, "made up"),
            Sourced(prefill_token_s, "made up"),
            Sourced(0.0, "made up"),
            Sourced(min(chunk_tokens, kv_tokens), "made up"),
        ),
        decode=DecodeCost(
            Sourced(step_s, "made up"), Sourced(0.0, "made up"), Sourced(context_1k_s, "made up")
        ),
        capacity=Capacity(Sourced(kv_tokens, "made up"), Sourced(64, "made up")),
        price=Price(Sourced(usd_per_hour, "made up")),
        fit=Fit("made up"),
    )


@pytest.fixture(scope="session")
def linear_profile() -> Callable[..., AcceleratorProfile]:
    """The factory above."""
    return linear
