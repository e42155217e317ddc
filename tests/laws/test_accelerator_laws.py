"""Laws of accelerator costs: more work never takes less time, and files lose nothing."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.core.accelerator import (
    AcceleratorProfile,
    Capacity,
    DecodeCost,
    Fit,
    Jitter,
    PrefillCost,
    Price,
    Sourced,
    at_time_scale,
    decode_s,
    mixed_s,
    prefill_s,
    request_s,
)
from hexgen_sglang.core.accelerator_toml import profile_from_toml, profile_to_toml

printable = st.text(st.characters(codec="utf-8"), min_size=3, max_size=40)


def sourced(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Sourced[float]]:
    return st.builds(Sourced, numbers, printable)


def seconds(largest: float, smallest: float = 0.0) -> st.SearchStrategy[Sourced[float]]:
    return sourced(st.floats(smallest, largest, allow_subnormal=False))


def counts(smallest: int, largest: int) -> st.SearchStrategy[Sourced[int]]:
    return st.builds(Sourced, st.integers(smallest, largest), printable)


profiles = st.builds(
    AcceleratorProfile,
    name=st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True),
    model=printable,
    device=printable,
    tensor_parallel=counts(1, 64),
    prefill=st.builds(
        PrefillCost,
        base_s=seconds(10),
        per_token_s=seconds(0.1, 1e-9),
        per_token_per_1k_context_s=seconds(0.01),
        chunk_tokens=counts(1, 8_192),
    ),
    decode=st.builds(
        DecodeCost,
        base_s=seconds(10, 1e-9),
        per_request_s=seconds(1),
        per_1k_context_tokens_s=seconds(0.1),
    ),
    capacity=st.builds(
        Capacity,
        kv_tokens=counts(8_192, 10**6),
        max_running_requests=counts(1, 1_024),
    ),
    price=st.builds(Price, usd_per_hour=seconds(100)),
    fit=st.builds(Fit, method=printable),
    jitter=st.none() | st.builds(Jitter, relative_sigma=seconds(1), seed=st.integers(0, 2**32 - 1)),
)
lengths = st.integers(0, 20_000)
chunks = st.lists(st.tuples(st.integers(1, 8_192), lengths), max_size=6)


@given(profiles, chunks, st.tuples(st.integers(1, 8_192), lengths))
def test_one_more_prompt_in_a_step_takes_longer(
    profile: AcceleratorProfile, before: list[tuple[int, int]], more: tuple[int, int]
) -> None:
    assert prefill_s(profile, [*before, more]) > prefill_s(profile, before)


@given(profiles, st.integers(1, 8_000), lengths, st.integers(1, 4_000))
def test_a_cached_token_never_makes_a_prompt_slower(
    profile: AcceleratorProfile, uncached: int, cached: int, moved: int
) -> None:
    whole = prefill_s(profile, [(uncached + moved, cached)])
    behind_a_prefix = prefill_s(profile, [(uncached, cached + moved)])
    assert behind_a_prefix <= whole * (1 + 1e-12)


@given(profiles, st.integers(0, 500), lengths, st.integers(0, 10), lengths)
def test_a_larger_batch_never_decodes_faster(
    profile: AcceleratorProfile, requests: int, context: int, more: int, more_context: int
) -> None:
    small = decode_s(profile, requests, context)
    assert decode_s(profile, requests + more, context + more_context) >= small


@given(profiles, chunks, st.integers(0, 500), lengths)
def test_mixing_costs_at_least_each_kind_and_at_most_both(
    profile: AcceleratorProfile, prompts: list[tuple[int, int]], requests: int, context: int
) -> None:
    mixed = mixed_s(profile, prompts, requests, context)
    prefill, decode = prefill_s(profile, prompts), decode_s(profile, requests, context)
    assert max(prefill, decode) * (1 - 1e-12) <= mixed <= (prefill + decode) * (1 + 1e-12)


@given(profiles, st.integers(1, 20_000), st.integers(1, 500), st.integers(0, 500))
def test_a_longer_answer_never_takes_less_time(
    profile: AcceleratorProfile, prompt: int, output: int, more: int
) -> None:
    alone = request_s(profile, prompt, output)
    assert alone > 0
    assert request_s(profile, prompt, output + more) >= alone * (1 - 1e-12)


@given(profiles)
def test_a_profile_survives_its_file(profile: AcceleratorProfile) -> None:
    assert profile_from_toml(profile_to_toml(profile), "again") == profile


@given(profiles, st.floats(0.01, 1_000), st.integers(1, 20_000), st.integers(1, 2_000))
def test_a_time_scale_divides_every_second(
    profile: AcceleratorProfile, time_scale: float, prompt: int, output: int
) -> None:
    fast = at_time_scale(profile, time_scale)
    usual_s = request_s(profile, prompt, output)
    assert math.isclose(request_s(fast, prompt, output) * time_scale, usual_s, rel_tol=1e-9)
    assert math.isclose(
        mixed_s(fast, [(300, 40)], 7, 9_000) * time_scale,
        mixed_s(profile, [(300, 40)], 7, 9_000),
        rel_tol=1e-9,
    )
    assert (fast.capacity, fast.price, fast.jitter) == (
        profile.capacity,
        profile.price,
        profile.jitter,
    )
