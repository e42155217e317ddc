"""Decode steps of a simulated engine that reads shared prefixes once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.accelerator import AcceleratorProfile, Sourced
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.prefix_cache import PrefixCache, repeated_tokens
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.workload.plan import Workload

Make = Callable[..., AcceleratorProfile]


def sharing(profile: AcceleratorProfile, frac: float) -> AcceleratorProfile:
    decode = msgspec.structs.replace(profile.decode, repeated_read_frac=Sourced(frac, "made up"))
    return msgspec.structs.replace(profile, decode=decode)


def run(system: str, workload: Workload, profile: AcceleratorProfile) -> RunFacts:
    facts = simulate(parse_system(system), workload, [profile])
    assert facts.broken == ()
    return facts


def test_tokens_on_paths_that_meet_are_repeated() -> None:
    cache = PrefixCache()
    first, _ = cache.insert((("t", 1_000), ("a", 300)), 1_300)
    second, _ = cache.insert((("t", 1_000), ("b", 200)), 1_200)
    assert repeated_tokens([first]) == 0
    assert repeated_tokens([first, second]) == 1_000
    assert repeated_tokens([first, second, second, None]) == 2_200


@pytest.mark.parametrize("system", ["fcfs+round_robin", "hexgen"])
def test_without_sharing_or_at_full_price_nothing_changes(
    system: str, workload: Workload, linear_profile: Make
) -> None:
    profile = linear_profile(kv_tokens=200_000, context_1k_s=0.002)
    plain, priced = (run(system, workload, one) for one in (profile, sharing(profile, 1.0)))
    assert plain.run.requests == priced.run.requests


@pytest.mark.parametrize("system", ["fcfs+round_robin", "hexgen"])
def test_shared_reads_make_decode_faster_and_less_so_the_more_they_cost(
    system: str, workload: Workload, linear_profile: Make
) -> None:
    profile = linear_profile(kv_tokens=200_000, context_1k_s=0.002)
    means = []
    for frac in (0.0, 0.5, 1.0):
        facts = run(system, workload, sharing(profile, frac))
        means.append(sum(one.e2e_s for one in facts.run.workflows))
    assert means[0] < means[1] < means[2]
