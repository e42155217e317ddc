"""Laws of the deadline's rule: never more than configured, less time never does more."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.text2sql.budget import (
    EVALUATE,
    GENERATE_CANDIDATE,
    GENERATE_UNIT_TEST,
    LINK_SCHEMA,
    REVISE,
    RULE,
    Knobs,
    Phase,
    StageTimes,
    expected_s,
    plan,
)

STAGES = (LINK_SCHEMA, GENERATE_CANDIDATE, REVISE, GENERATE_UNIT_TEST, EVALUATE)
seconds = st.floats(1e-6, 1e5)
knobs = st.builds(Knobs, st.integers(1, 32), st.integers(0, 10), st.integers(0, 8), st.just(False))
fallbacks = st.sampled_from([None, "small"])


@st.composite
def stage_times(draw: st.DrawFn) -> StageTimes:
    """Times after any history of stages, cut ones among them."""
    times = StageTimes()
    history = st.tuples(
        st.sampled_from(STAGES),
        st.integers(1, 32),
        seconds,
        st.sampled_from([None, "small"]),
        st.booleans(),
    )
    for stage, width, elapsed_s, model, is_cut in draw(st.lists(history, max_size=12)):
        times.note(stage, width, elapsed_s, model, is_cut=is_cut)
    for stage in draw(st.lists(st.sampled_from(STAGES), max_size=6)):
        times.note_need(stage, draw(st.booleans()))
    return times


def amounts(what: Knobs) -> tuple[int, ...]:
    """The knobs as numbers, of which more is more work."""
    model = 0 if what.uses_fallback else 1
    return what.num_candidates, what.num_rounds, what.num_checks, model


def at_most(less: Knobs, more: Knobs) -> bool:
    return all(a <= b for a, b in zip(amounts(less), amounts(more), strict=True))


given_all: Any = given(
    wanted=knobs,
    phase=st.sampled_from(Phase),
    remaining_s=st.one_of(st.floats(-1e5, 1e5), seconds),
    times=stage_times(),
    fallback=fallbacks,
)


@settings(max_examples=150, deadline=None)
@given_all
def test_never_more_than_configured_and_always_a_candidate(
    wanted: Knobs, phase: Phase, remaining_s: float, times: StageTimes, fallback: str | None
) -> None:
    made = plan(wanted, phase, remaining_s, times, fallback).knobs
    assert at_most(made, wanted)
    assert made.num_candidates >= 1
    assert min(made.num_rounds, made.num_checks) >= 0
    assert fallback is not None or not made.uses_fallback


@settings(max_examples=150, deadline=None)
@given_all
def test_less_time_never_does_more(
    wanted: Knobs, phase: Phase, remaining_s: float, times: StageTimes, fallback: str | None
) -> None:
    plans = [
        plan(wanted, phase, left_s, times, fallback).knobs
        for left_s in sorted([remaining_s, remaining_s / 2, remaining_s - 1, remaining_s + 3, 0.0])
    ]
    assert all(at_most(less, more) for less, more in itertools.pairwise(plans))


@settings(max_examples=60, deadline=None)
@given(wanted=knobs, phase=st.sampled_from(Phase), times=stage_times(), fallback=fallbacks)
def test_no_deadline_drops_nothing_and_a_passed_one_all_it_can(
    wanted: Knobs, phase: Phase, times: StageTimes, fallback: str | None
) -> None:
    assert plan(wanted, phase, None, times, fallback).knobs == wanted
    least = Knobs(1, 0, 0, uses_fallback=fallback is not None)
    for remaining_s in (0.0, -1.0):
        assert plan(wanted, phase, remaining_s, times, fallback).knobs == least


@settings(max_examples=150, deadline=None)
@given_all
def test_what_is_left_fits_or_nothing_more_could_be_dropped(
    wanted: Knobs, phase: Phase, remaining_s: float, times: StageTimes, fallback: str | None
) -> None:
    made = plan(wanted, phase, remaining_s, times, fallback)
    least = Knobs(1, 0, 0, uses_fallback=fallback is not None)
    if made.knobs not in (wanted, least):
        assert expected_s(made.knobs, phase, times, fallback) <= remaining_s
    if made.knobs != wanted:
        # Something was dropped only where the whole was too long for the first rule's slack.
        assert made.expected_s is not None
        assert remaining_s <= 0 or made.expected_s > (1 - max(share for _, share in RULE)) * (
            remaining_s - 1e-9
        )


@settings(max_examples=100, deadline=None)
@given(wanted=knobs, phase=st.sampled_from(Phase), times=stage_times())
def test_what_is_expected_grows_with_the_knobs(
    wanted: Knobs, phase: Phase, times: StageTimes
) -> None:
    more = Knobs(wanted.num_candidates + 1, wanted.num_rounds + 1, wanted.num_checks + 1)
    assert 0 <= expected_s(wanted, phase, times) <= expected_s(more, phase, times) + 1e-9
