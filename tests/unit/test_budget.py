"""What stages are expected to take, and how the rule reads with plain numbers."""

from __future__ import annotations

import pytest

from hexgen_sglang.text2sql.budget import (
    EVALUATE,
    GENERATE_CANDIDATE,
    GENERATE_UNIT_TEST,
    LINK_SCHEMA,
    REVISE,
    Knob,
    Knobs,
    Phase,
    StageTimes,
    plan,
)
from hexgen_sglang.text2sql.question_budget import QuestionBudget
from hexgen_sglang.text2sql.settings import AgentSettings

ALL = Knobs(num_candidates=3, num_rounds=2, num_checks=2)


@pytest.fixture
def times() -> StageTimes:
    """Each stage takes 1 s at its usual width, and is always needed."""
    known = StageTimes()
    for stage, width in (
        (LINK_SCHEMA, 1),
        (GENERATE_CANDIDATE, 3),
        (REVISE, 1),
        (GENERATE_UNIT_TEST, 2),
        (EVALUATE, 4),
    ):
        known.note(stage, width, 1.0)
    return known


@pytest.mark.parametrize(
    ("remaining_s", "expected"),
    [
        (10.1, ALL),  # 6 s of work
        (9.5, Knobs(3, 2, 1)),  # 6 s leave less than 40 % slack, 5.5 s do not
        (7.0, Knobs(3, 2, 0)),
        (5.0, Knobs(3, 1, 0)),  # 4 s leave less than 30 %
        (3.0, Knobs(3, 0, 0)),
        (2.4, Knobs(2, 0, 0)),  # linking 1 s, two candidates 0.83 s
        (1.0, Knobs(1, 0, 0)),
    ],
)
def test_the_rule_takes_one_knob_after_the_other(
    times: StageTimes, remaining_s: float, expected: Knobs
) -> None:
    assert plan(ALL, Phase.LINK, remaining_s, times).knobs == expected


def test_later_phases_have_less_ahead(times: StageTimes) -> None:
    assert plan(ALL, Phase.CANDIDATES, 8.5, times).knobs == ALL
    assert plan(ALL, Phase.TEST, 3.5, times).knobs == ALL
    assert plan(ALL, Phase.EVALUATE, 1.7, times).knobs == ALL


def test_the_smaller_model_is_the_last_resort(times: StageTimes) -> None:
    times.note(GENERATE_CANDIDATE, 3, 0.1, "small")
    assert plan(ALL, Phase.CANDIDATES, 0.9, times, "small").knobs == Knobs(1, 0, 0)
    assert plan(ALL, Phase.CANDIDATES, 0.7, times, "small").knobs == Knobs(1, 0, 0, True)


def test_times_are_learned_and_recent_ones_count_more() -> None:
    times = StageTimes()
    assert times.expected_s(REVISE, 5) == 0.0
    times.note(LINK_SCHEMA, 1, 2.0)
    assert times.expected_s(REVISE, 5) == 2.0  # never seen: as the others
    times.note(REVISE, 2, 10.0)
    assert times.expected_s(REVISE, 2) == 10.0
    assert times.expected_s(REVISE, 1) == pytest.approx(7.5)
    times.note(REVISE, 2, 20.0)
    assert times.expected_s(REVISE, 2) == pytest.approx(13.0)
    for _ in range(40):
        times.note(REVISE, 2, 20.0)
    assert times.expected_s(REVISE, 2) == pytest.approx(20.0, rel=1e-3)


def test_a_stage_that_was_cut_only_raises_what_is_expected() -> None:
    times = StageTimes()
    times.note(REVISE, 2, 10.0)
    times.note(REVISE, 2, 1.0, is_cut=True)
    assert times.expected_s(REVISE, 2) == 10.0
    times.note(REVISE, 2, 20.0, is_cut=True)
    assert times.expected_s(REVISE, 2) == pytest.approx(13.0)


def test_stages_that_are_hardly_ever_needed_take_no_knob_down(times: StageTimes) -> None:
    for _ in range(20):
        times.note_need(REVISE, False)
        times.note_need(GENERATE_UNIT_TEST, False)
    assert plan(ALL, Phase.LINK, 3.5, times).knobs == ALL


def test_decisions_are_kept_with_their_reasons(times: StageTimes) -> None:
    left_s = iter([6.0, 2.0, 1.0, -1.0])
    budget = QuestionBudget(AgentSettings(fallback_model="small"), lambda: next(left_s), times)
    assert budget.allows_linking()
    assert budget.num_candidates() == 3
    assert (budget.model, budget.dropped) == (None, ())
    assert not budget.allows_round(1)
    assert budget.num_checks(GENERATE_UNIT_TEST) == 0
    assert budget.model == "small"
    assert budget.skipped == [REVISE, GENERATE_UNIT_TEST]
    assert [one.knob for one in budget.dropped] == [Knob.ROUNDS, Knob.MODEL, Knob.EVALUATIONS]
    assert str(budget.dropped[0]) == "rounds 2 -> 1: 1.0 s left for what takes about 3.0 s"
    assert str(budget.dropped[1]) == "model the usual one -> small: the deadline had passed"


def test_what_is_off_in_the_settings_is_not_dropped(times: StageTimes) -> None:
    budget = QuestionBudget(
        AgentSettings(num_candidates=1, max_rounds=0, num_checks=0), lambda: -1.0, times
    )
    assert budget.num_candidates() == 1
    assert not budget.allows_round(0)
    assert budget.num_checks(EVALUATE) == 0
    assert (budget.dropped, budget.skipped) == ((), [])
