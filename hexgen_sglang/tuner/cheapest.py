"""The cheapest mix of workers that holds a service level, with as few simulations as it takes.

Pure but for the `Attain` that it is given. A mix holds when attainment is surely at or above
the level, fails when it is surely below; in between it is unsure, and counts as not holding.
Sure means: the interval over seeds, looked at after 3, 5, 8, ... seeds, excludes the level
(the error is split over the looks).

Mixes that fall short of a bound are not simulated. Where more workers never hurt
(`is_monotone`), a mix that does not hold rules out every mix with no more of anything, so the
next mix to try is the one that rules out most whichever way it ends. Otherwise mixes are
tried one by one, the cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from hexgen_sglang.bench.systems import Place, System
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.statistics import Interval
from hexgen_sglang.tuner.mixes import Bounds, Counts
from hexgen_sglang.tuner.search import Say, look_counts
from hexgen_sglang.tuner.student import mean_interval

_BLIND_TO_SPEED = frozenset({"round_robin", "least_requests", "least_tokens"})

# Attainment of a mix under each of some seeds, in their order.
Attain = Callable[[Counts, list[int]], Sequence[float]]


class Verdict(StrEnum):
    """What is known of a mix."""

    HOLDS = "holds"
    FAILS = "fails"
    UNSURE = "unsure"
    TOO_SMALL = "too small"  # its capacity bound is below the rate that must be served
    TOO_SLOW = "too slow"  # too many workflows miss the deadline even alone


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What must hold.

    Attributes:
        slo_s: deadline of every workflow, from its arrival, above 0.
        attainment: share of workflows that must meet it, above 0, below 1.
        rate_per_s: workflows per second, above 0.
    """

    slo_s: float
    attainment: float
    rate_per_s: float

    def __post_init__(self) -> None:
        if not 0 < self.attainment < 1:
            raise ConfigError(f"attainment={self.attainment}: must be above 0 and below 1")
        for name, value in (("slo", self.slo_s), ("rate", self.rate_per_s)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}={value}: must be finite and above 0")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one mix.

    Attributes:
        counts: workers of each accelerator.
        usd_per_hour: its price.
        verdict: see there.
        capacity_per_s: the bound on workflows per second.
        attainment: over the seeds that were simulated; None when none was.
        num_seeds: simulated ones.
    """

    counts: Counts
    usd_per_hour: float
    verdict: Verdict
    capacity_per_s: float
    attainment: Interval | None = None
    num_seeds: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome.

    Attributes:
        level: what was asked.
        best: the cheapest mix that holds; None when none does.
        cheaper: the dearest mixes below it (or of all) that do not hold, dearest first.
        num_mixes: offered.
        num_simulated: of those.
        num_runs: simulations.
    """

    level: ServiceLevel
    best: Answer | None
    cheaper: tuple[Answer, ...]
    num_mixes: int
    num_simulated: int
    num_runs: int


@dataclass(slots=True)
class _Search:
    bounds: Bounds
    level: ServiceLevel
    attain: Attain
    seeds: Sequence[int]
    error: float
    say: Say
    answers: dict[Counts, Answer] = field(default_factory=dict)
    num_runs: int = 0

    def bound(self, counts: Counts) -> Answer:
        """What is known of a mix without simulating it."""
        level, offer = self.level, self.bounds.offer
        capacity = self.bounds.capacity_per_s(counts)
        verdict = Verdict.UNSURE
        if capacity < level.rate_per_s * level.attainment:
            verdict = Verdict.TOO_SMALL
        elif self.bounds.reachable_attainment(counts, level.slo_s) < level.attainment:
            verdict = Verdict.TOO_SLOW
        return Answer(counts, offer.usd_per_hour(counts), verdict, capacity)

    def simulate(self, known: Answer) -> Answer:
        """Simulate a mix until its interval excludes the level or the seeds are used up."""
        counts = known.counts
        if counts in self.answers:
            return self.answers[counts]
        looks = look_counts(len(self.seeds))
        values: list[float] = []
        verdict, interval = Verdict.UNSURE, None
        for look in looks:
            more = list(self.seeds[len(values) : look])
            values += self.attain(counts, more)
            self.num_runs += len(more)
            interval = mean_interval(values, 1 - self.error / len(looks))
            if interval.low >= self.level.attainment:
                verdict = Verdict.HOLDS
            elif interval.high < self.level.attainment:
                verdict = Verdict.FAILS
            if verdict is not Verdict.UNSURE:
                break
        answer = Answer(
            counts, known.usd_per_hour, verdict, known.capacity_per_s, interval, len(values)
        )
        self.answers[counts] = answer
        self.say(f"{self.bounds.offer.name(counts)}: {verdict}, attainment {_told(interval)}")
        return answer


def more_never_hurts(system: System) -> bool:
    """Whether a further worker of any speed can be trusted not to lower attainment.

    Only behind a coordinator whose dispatch policy sees speed: a policy that is blind to it
    gives a slow worker its full share, and every workflow then waits for that worker.
    """
    return system.place is Place.COORDINATOR and system.dispatch not in _BLIND_TO_SPEED


def cheapest(
    bounds: Bounds,
    level: ServiceLevel,
    attain: Attain,
    seeds: Sequence[int],
    *,
    is_monotone: bool,
    error: float = 0.05,
    num_cheaper: int = 3,
    say: Say = lambda _: None,
) -> Plan:
    """Find the cheapest mix of an offer that holds.

    Args:
        bounds: of the offer and the trace.
        level: what must hold.
        attain: simulates a mix.
        seeds: at least 2 different ones; a mix that is soon clear uses fewer.
        is_monotone: see `more_never_hurts`.
        error: chance that the verdict on one mix is wrong, between 0 and 1.
        num_cheaper: how many cheaper mixes to report; they are simulated unless a bound
            rules them out.
        say: gets a line about every mix simulated.

    Raises:
        ConfigError: too few seeds, or the error is out of range.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or not 0 < error < 1:
        raise ConfigError(f"seeds={list(seeds)}, error={error}: 2 different seeds, 0 < error < 1")
    search = _Search(bounds, level, attain, seeds, error, say)
    known = [search.bound(counts) for counts in bounds.offer.mixes()]
    open_mixes = [answer for answer in known if answer.verdict is Verdict.UNSURE]
    say(f"{len(known)} mixes, {len(known) - len(open_mixes)} ruled out by bounds")
    best: Answer | None = None
    while open_mixes:
        tried = open_mixes[0] if not is_monotone else _most_telling(open_mixes)
        answer = search.simulate(tried)
        if answer.verdict is Verdict.HOLDS:
            best = answer
            open_mixes = open_mixes[: open_mixes.index(tried)]
        elif is_monotone:
            open_mixes = [m for m in open_mixes if not _covers(answer.counts, m.counts)]
        else:
            open_mixes = open_mixes[1:]
    cheaper = known if best is None else known[: [a.counts for a in known].index(best.counts)]
    near = cheaper[::-1][:num_cheaper]
    shown = tuple(search.simulate(a) if a.verdict is Verdict.UNSURE else a for a in near)
    return Plan(level, best, shown, len(known), len(search.answers), search.num_runs)


def _most_telling(mixes: Sequence[Answer]) -> Answer:
    """The mix that rules out most mixes whichever way it ends; of equals the cheapest.

    When it holds, everything dearer is out; when not, everything it covers.
    """
    counts = np.array([mix.counts for mix in mixes])
    best, most = mixes[0], 0
    for index, mix in enumerate(mixes):
        covered = int((counts[: index + 1] <= counts[index]).all(axis=1).sum())
        least = min(covered, len(mixes) - index)
        if least > most:
            best, most = mix, least
    return best


def _covers(more: Counts, less: Counts) -> bool:
    """At least as many of everything."""
    return all(one >= other for one, other in zip(more, less, strict=True))


def _told(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    low, high = max(interval.low, 0.0), min(interval.high, 1.0)
    return f"{interval.value:.1%} [{low:.1%}, {high:.1%}]"
