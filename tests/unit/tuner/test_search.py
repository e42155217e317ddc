"""The race against objectives with known answers: statistics, not single cases."""

from __future__ import annotations

import math

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.tuner.objective import parse_objective
from hexgen_sglang.tuner.search import Evaluate, Job, Race, look_counts, race

from .arms import Arms

P95 = parse_objective("p95")
ATTAINMENT = parse_objective("attainment")
POINTS = [{"x": x} for x in (0.4, 0.1, 0.2, 0.3, 0.5, 0.6)]
SEEDS = range(8)
WORLDS = 200


def bowl(x: float) -> float:
    """Best at 0.2; the default 0.4 is 1.16 times as slow there."""
    return math.exp(((x - 0.2) / 0.52) ** 2)


def run(arms: Evaluate, points: list[dict[str, float]] = POINTS) -> Race:
    return race(points, SEEDS, arms, P95)


def test_best_arm_is_found_though_seeds_differ_more_than_arms() -> None:
    found = [run(Arms(bowl, world)).best.settings["x"] for world in range(WORLDS)]
    assert found.count(0.2) / WORLDS > 0.8
    assert sum(x in (0.1, 0.2, 0.3) for x in found) / WORLDS > 0.99


def test_truly_best_arm_is_dropped_no_more_often_than_stated() -> None:
    dropped = 0
    for world in range(WORLDS):
        outcome = run(Arms(bowl, world, noise_sigma=0.2))
        best = next(one for one in outcome.ranking if one.settings["x"] == 0.2)
        dropped += best.dropped_after is not None
    assert dropped / WORLDS <= 0.05


def test_interval_of_the_winners_gain_covers_the_truth() -> None:
    covered = 0
    for world in range(WORLDS):
        best = run(Arms(bowl, world, noise_sigma=0.1)).best
        covered += best.gain.low <= bowl(0.4) / bowl(best.settings["x"]) <= best.gain.high
    assert covered / WORLDS >= 0.93


def test_gain_is_not_claimed_where_no_setting_matters() -> None:
    claimed = sum(
        run(Arms(lambda _: 1.0, world, noise_sigma=0.1)).best.gain.low > 1
        for world in range(WORLDS)
    )
    assert claimed / WORLDS <= 0.05


def test_losers_stop_early_and_the_default_runs_to_the_end() -> None:
    arms = Arms(lambda x: 1.0 if x in (0.4, 0.2) else 5.0, noise_sigma=0.02)
    outcome = run(arms)
    assert {x: arms.runs[x] for x in (0.1, 0.3, 0.5, 0.6)} == dict.fromkeys((0.1, 0.3, 0.5, 0.6), 3)
    assert arms.runs[0.4] == arms.runs[0.2] == len(SEEDS)
    assert outcome.num_runs == sum(arms.runs.values()) == 4 * 3 + 2 * 8
    assert [one.dropped_after for one in outcome.ranking] == [None, None, 3, 3, 3, 3]


def test_race_ends_when_the_default_alone_is_left() -> None:
    arms = Arms(lambda x: 1.0 if x == 0.4 else 4.0, noise_sigma=0.02)
    outcome = run(arms)
    assert outcome.best is outcome.default
    assert (outcome.best.gain.low, outcome.best.gain.high) == (1.0, 1.0)
    assert set(arms.runs.values()) == {3}


def test_beaten_default_stays_as_reference() -> None:
    arms = Arms(lambda x: x, noise_sigma=0.01)
    outcome = run(arms)
    assert outcome.best.settings == {"x": 0.1}
    assert arms.runs[0.4] == len(SEEDS)
    assert outcome.best.gain.low < 4.0 < outcome.best.gain.high
    assert outcome.best.gain.low > 3.5


def test_more_is_better_where_the_objective_says_so() -> None:
    def shares(jobs: list[Job]) -> list[float]:
        return [job.settings["x"] + 0.01 * (job.seed % 3) for job in jobs]

    outcome = race(POINTS, SEEDS, shares, ATTAINMENT)
    assert outcome.best.settings == {"x": 0.6}
    assert outcome.best.gain.value == pytest.approx(0.2)
    assert outcome.ranking[-1].settings == {"x": 0.1}


def test_outcome_depends_on_nothing_but_its_arguments() -> None:
    assert run(Arms(bowl)) == run(Arms(bowl))
    again = run(Arms(bowl), [POINTS[0], *reversed(POINTS[1:])])
    assert again.best.settings == run(Arms(bowl)).best.settings


def test_two_seeds_claim_nothing_that_is_not_overwhelming() -> None:
    outcome = race(POINTS[:2], range(2), Arms(bowl, noise_sigma=0.3), P95)
    assert outcome.best.gain.high == math.inf or outcome.best.gain.high > 2


def test_looks_grow_to_all_seeds() -> None:
    assert look_counts(8) == [3, 5, 8]
    assert look_counts(3) == [3]
    assert look_counts(2) == [2]
    assert look_counts(13) == [3, 5, 8, 12, 13]


@pytest.mark.parametrize(
    ("points", "seeds", "error", "message"),
    [
        (POINTS[:1], range(3), 0.05, "at least 2 different"),
        ([POINTS[0], POINTS[0]], range(3), 0.05, "at least 2 different"),
        (POINTS, [1], 0.05, "seeds"),
        (POINTS, [1, 1], 0.05, "seeds"),
        (POINTS, range(3), 0.0, "between 0 and 1"),
    ],
)
def test_unusable_races_are_refused(
    points: list[dict[str, float]], seeds: range, error: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        race(points, seeds, Arms(bowl), P95, error=error)
