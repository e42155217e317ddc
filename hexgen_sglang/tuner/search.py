"""A race of settings: the same seeds for all, losers stop early, the gain has an interval.

Pure but for the `Evaluate` that it is given. Every candidate sees the same seeds (common
random numbers), so that comparisons are of pairs and the luck of a seed cancels.

After 3, 5, 8, 12, ... seeds a candidate is dropped when the interval of its effect against
the present leader lies below zero. The chance that the truly best one is ever dropped is at
most `error`: it is split evenly over looks and opponents (Bonferroni). The default always
runs to the end, since gains are against it. Their intervals hold for all candidates at once,
so that the winner's is not too narrow for having been chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.statistics import Interval
from hexgen_sglang.tuner.objective import Objective
from hexgen_sglang.tuner.space import Settings
from hexgen_sglang.tuner.student import mean_interval

FIRST_LOOK = 3
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a candidate's settings under one seed."""

    settings: Settings
    seed: int


# The objective's figure of every job, in the order of the jobs; they may run in parallel.
Evaluate = Callable[[Sequence[Job]], Sequence[float]]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Standing:
    """How one candidate did.

    Attributes:
        settings: of the candidate.
        values: the objective's figure under each seed it ran with, in the order of the seeds.
        gain: over the default, as `Objective.gain`; the default's own is exactly no gain.
        dropped_after: seeds after which it was dropped; None when it ran to the end.
    """

    settings: Settings
    values: tuple[float, ...]
    gain: Interval
    dropped_after: int | None

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return math.fsum(self.values) / len(self.values)


@dataclass(frozen=True, slots=True)
class Race:
    """The outcome of a search.

    Attributes:
        default: the standing of the first candidate.
        ranking: all candidates, the best first: those that ran to the end by mean effect,
            then the dropped ones, the last dropped first.
        num_runs: jobs evaluated.
        num_seeds: that a candidate could have at most.
    """

    default: Standing
    ranking: tuple[Standing, ...]
    num_runs: int
    num_seeds: int

    @property
    def best(self) -> Standing:
        """The winner; it may be the default."""
        return self.ranking[0]


@dataclass(slots=True)
class _Entry:
    index: int
    settings: Settings
    values: list[float] = field(default_factory=list)
    dropped_after: int | None = None


def race(
    points: Sequence[Settings],
    seeds: Sequence[int],
    evaluate: Evaluate,
    objective: Objective,
    *,
    error: float = 0.05,
    say: Say = lambda _: None,
) -> Race:
    """Find the best of some settings.

    Args:
        points: at least 2 different ones, the default first.
        seeds: at least 2 different ones, used in this order.
        evaluate: runs jobs.
        objective: gives direction and scale of its figures.
        error: chance of dropping the truly best one, and of any gain's interval missing,
            between 0 and 1.
        say: gets a line about every look.

    Raises:
        ConfigError: too few points or seeds, two alike, or the error out of range.
    """
    _check(points, seeds, error)
    entries = [_Entry(index, dict(settings)) for index, settings in enumerate(points)]
    looks = look_counts(len(seeds))
    level = error / (len(looks) * (len(points) - 1))
    num_runs = done = 0
    for look in looks:
        running = [entry for entry in entries if entry.dropped_after is None or not entry.index]
        jobs = [(entry, seed) for seed in seeds[done:look] for entry in running]
        values = evaluate([Job(entry.settings, seed) for entry, seed in jobs])
        for (entry, _), value in zip(jobs, values, strict=True):
            entry.values.append(value)
        num_runs += len(jobs)
        done = look
        if look < len(seeds):
            _drop(entries, look, level, objective)
        left = sum(entry.dropped_after is None for entry in entries[1:])
        say(f"{look} of {len(seeds)} seeds, {num_runs} runs: {left} of {len(entries) - 1} left")
        if not left:
            break
    return _ranked(entries, objective, error, num_runs, len(seeds))


def _check(points: Sequence[Settings], seeds: Sequence[int], error: float) -> None:
    if len(points) < 2 or any(point in points[:index] for index, point in enumerate(points)):
        raise ConfigError(f"candidates={len(points)}: must be at least 2 different ones")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: must be at least 2 different ones")
    if not 0 < error < 1:
        raise ConfigError(f"error={error}: must be between 0 and 1")


def look_counts(num_seeds: int) -> list[int]:
    """After how many seeds a race looks: 3, 5, 8, 12, ... up to all of them."""
    looks = [min(FIRST_LOOK, num_seeds)]
    while looks[-1] < num_seeds:
        looks.append(min(math.ceil(looks[-1] * _GROWTH), num_seeds))
    return looks


def _effects(entry: _Entry, reference: _Entry, objective: Objective) -> list[float]:
    """Effect of an entry against another under each seed that both have."""
    pairs = zip(entry.values, reference.values, strict=False)
    return [objective.effect(value, other) for value, other in pairs]


def _drop(entries: list[_Entry], look: int, level: float, objective: Objective) -> None:
    """Mark the candidates that are surely worse than the leader."""
    default = entries[0]
    running = [entry for entry in entries if entry.dropped_after is None]
    leader = max(running, key=lambda entry: (_mean_effect(entry, default, objective), -entry.index))
    for entry in running:
        if entry is leader or entry is default:
            continue
        interval = mean_interval(_effects(entry, leader, objective), 1 - 2 * level)
        if interval.high < 0:
            entry.dropped_after = look


def _mean_effect(entry: _Entry, reference: _Entry, objective: Objective) -> float:
    effects = _effects(entry, reference, objective)
    return math.fsum(effects) / len(effects)


def _ranked(
    entries: list[_Entry], objective: Objective, error: float, num_runs: int, num_seeds: int
) -> Race:
    default = entries[0]
    confidence = 1 - error / (len(entries) - 1)
    standings = [_standing(entry, default, objective, confidence, error) for entry in entries]
    order = sorted(
        entries,
        key=lambda entry: (
            -(num_seeds + 1 if entry.dropped_after is None else entry.dropped_after),
            -_mean_effect(entry, default, objective),
            entry.index,
        ),
    )
    ranking = tuple(standings[entry.index] for entry in order)
    return Race(standings[0], ranking, num_runs, num_seeds)


def _standing(
    entry: _Entry, default: _Entry, objective: Objective, confidence: float, error: float
) -> Standing:
    if entry is default:
        gain = Interval(objective.no_gain, objective.no_gain, objective.no_gain, 1 - error)
    else:
        effect = mean_interval(_effects(entry, default, objective), confidence)
        gain = Interval(
            objective.gain(effect.value),
            _safe(objective, effect.low),
            _safe(objective, effect.high),
            1 - error,
        )
    return Standing(entry.settings, tuple(entry.values), gain, entry.dropped_after)


def _safe(objective: Objective, effect: float) -> float:
    """The gain of an end of an interval; few seeds give ends beyond what floats hold."""
    try:
        return objective.gain(effect)
    except OverflowError:
        return math.inf
