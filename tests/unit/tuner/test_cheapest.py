"""The search of mixes in worlds whose answer is known by looking at every mix."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.tuner.cheapest import (
    Answer,
    Plan,
    ServiceLevel,
    Verdict,
    cheapest,
    more_never_hurts,
)
from hexgen_sglang.tuner.mixes import Bounds, Counts, Offer, load_offer, parse_counts
from hexgen_sglang.workload.formats import load_trace

from .test_mixes import ACCELERATORS, profile_from_toml

SEEDS = range(8)


@pytest.fixture(scope="module")
def bounds() -> Bounds:
    profiles = {
        name: profile_from_toml((ACCELERATORS / f"{name}.toml").read_text("utf-8"), name)
        for name in ("h100", "a100", "a6000")
    }
    offer = load_offer(parse_counts("h100:0-2,a100:0-4,a6000:0-4"), profiles, {})
    return Bounds(offer, load_trace("synthetic:10"))


@dataclass
class World:
    """Attainment of a mix under a seed: the truth and the luck of the seed."""

    truth: Callable[[Counts], float]
    sigma: float = 0.002
    tried: dict[Counts, int] = field(default_factory=dict)

    def __call__(self, counts: Counts, seeds: Sequence[int]) -> list[float]:
        self.tried[counts] = self.tried.get(counts, 0) + len(seeds)
        return [
            min(self.truth(counts) + random.Random(f"{counts}/{seed}").gauss(0, self.sigma), 1.0)
            for seed in seeds
        ]


def by_load(bounds: Bounds, rate_per_s: float) -> Callable[[Counts], float]:
    """Half of the workflows are in time at 80 % of capacity, nearly all at 40 %."""

    def truth(counts: Counts) -> float:
        load = rate_per_s / bounds.capacity_per_s(counts)
        return 1 / (1 + math.exp((load - 0.8) / 0.08))

    return truth


def exhaustive(offer: Offer, truth: Callable[[Counts], float], level: float) -> Counts:
    return next(counts for counts in offer.mixes() if truth(counts) >= level)


def only_mix(bounds: Bounds) -> Bounds:
    return Bounds(Offer(bounds.offer.profiles, (1, 0, 0), (1, 0, 0)), bounds.trace)


@pytest.mark.parametrize("rate", [0.3, 0.7])
@pytest.mark.parametrize("is_monotone", [True, False])
def test_cheapest_mix_that_holds_is_found(bounds: Bounds, rate: float, is_monotone: bool) -> None:
    world = World(by_load(bounds, rate))
    level = ServiceLevel(1_000.0, 0.9, rate)
    plan = cheapest(bounds, level, world, SEEDS, is_monotone=is_monotone)
    assert plan.best is not None
    assert plan.best.verdict is Verdict.HOLDS
    assert plan.best.counts == exhaustive(bounds.offer, world.truth, 0.9)
    assert plan.num_runs == sum(world.tried.values())
    assert plan.num_simulated == len(world.tried)
    assert len(plan.cheaper) == 3
    for answer in plan.cheaper:
        assert answer.usd_per_hour <= plan.best.usd_per_hour
        assert answer.verdict in (Verdict.FAILS, Verdict.UNSURE, Verdict.TOO_SMALL)


def test_monotonicity_saves_most_simulations(bounds: Bounds) -> None:
    level = ServiceLevel(1_000.0, 0.9, 0.8)
    truth = by_load(bounds, 0.8)
    plans = [
        cheapest(bounds, level, World(truth), SEEDS, is_monotone=monotone, num_cheaper=0)
        for monotone in (True, False)
    ]
    assert plans[0].best == plans[1].best
    assert plans[0].num_simulated < plans[1].num_simulated / 2


def test_slow_workers_that_hurt_are_no_trap_when_tried_one_by_one(bounds: Bounds) -> None:
    good = by_load(bounds, 0.4)

    def truth(counts: Counts) -> float:
        return 0.1 if counts[2] and (counts[0] or counts[1]) else good(counts)

    level = ServiceLevel(1_000.0, 0.9, 0.4)
    plan = cheapest(bounds, level, World(truth), SEEDS, is_monotone=False)
    assert plan.best is not None
    assert plan.best.counts == exhaustive(bounds.offer, truth, 0.9)


def test_mixes_that_a_bound_rules_out_are_not_simulated(bounds: Bounds) -> None:
    world = World(lambda _: 1.0)
    level = ServiceLevel(1_000.0, 0.9, 0.7)
    cheapest(bounds, level, world, SEEDS, is_monotone=True)
    assert world.tried
    assert all(bounds.capacity_per_s(counts) >= 0.63 for counts in world.tried)
    asked_too_much = ServiceLevel(0.5, 0.9, 0.01)
    plan = cheapest(bounds, asked_too_much, World(lambda _: 1.0), SEEDS, is_monotone=True)
    assert (plan.best, plan.num_runs) == (None, 0)
    assert {answer.verdict for answer in plan.cheaper} == {Verdict.TOO_SLOW}


def test_clear_mixes_use_few_seeds_and_close_ones_all(bounds: Bounds) -> None:
    level = ServiceLevel(1_000.0, 0.9, 0.01)
    one = only_mix(bounds)

    def answer(attainment: float, sigma: float) -> tuple[Verdict, int]:
        world = World(lambda _: attainment, sigma)
        plan = cheapest(one, level, world, SEEDS, is_monotone=False)
        found: Answer = plan.best or plan.cheaper[0]
        assert world.tried == {(1, 0, 0): found.num_seeds}
        return found.verdict, found.num_seeds

    assert answer(0.99, 0.001) == (Verdict.HOLDS, 3)
    assert answer(0.2, 0.001) == (Verdict.FAILS, 3)
    assert answer(0.9, 0.05) == (Verdict.UNSURE, len(SEEDS))


def test_mix_at_the_level_is_called_good_no_more_often_than_stated(bounds: Bounds) -> None:
    level = ServiceLevel(1_000.0, 0.9, 0.01)
    one = only_mix(bounds)

    def plan(world: int) -> Plan:
        def attain(_: Counts, seeds: Sequence[int]) -> list[float]:
            return [0.8999 + random.Random(f"{world}/{seed}").gauss(0, 0.02) for seed in seeds]

        return cheapest(one, level, attain, SEEDS, is_monotone=True)

    assert sum(plan(world).best is not None for world in range(300)) / 300 <= 0.05


def test_unusable_levels_and_seeds_are_refused(bounds: Bounds) -> None:
    with pytest.raises(ConfigError, match="attainment"):
        ServiceLevel(20.0, 1.0, 2.0)
    with pytest.raises(ConfigError, match="slo"):
        ServiceLevel(0.0, 0.9, 2.0)
    with pytest.raises(ConfigError, match="seeds"):
        cheapest(bounds, ServiceLevel(20.0, 0.9, 2.0), World(lambda _: 1.0), [1], is_monotone=True)


@pytest.mark.parametrize(
    ("system", "trusted"),
    [
        ("paper", True),
        ("hexgen", True),
        ("coordinator:least_load+lpm", True),
        ("coordinator:least_tokens+fcfs", False),
        ("fcfs+round_robin", False),
        ("sglang-router:cache_aware+lpm", False),
    ],
)
def test_more_workers_are_trusted_only_where_speed_is_seen(system: str, trusted: bool) -> None:
    assert more_never_hurts(parse_system(system)) is trusted
