"""When a prompt waits for decodes: laws of the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.patience import (
    LEAST_TIGHTNESS,
    MOST_TIGHTNESS,
    decode_left_s,
    should_wait,
    tightness,
)

SECONDS = st.floats(0.001, 100.0)
TIGHT = st.floats(LEAST_TIGHTNESS, MOST_TIGHTNESS)
DECODES = st.lists(st.tuples(SECONDS, TIGHT), max_size=6)


@given(SECONDS, TIGHT, SECONDS, DECODES, st.floats(0.0, 100.0))
def test_a_wait_spares_more_than_it_costs_and_is_bounded(
    own_s: float,
    own: float,
    waited_s: float,
    decodes: list[tuple[float, float]],
    patience: float,
) -> None:
    waits = should_wait(own_s, own, waited_s, decodes, patience)
    worth = [
        end_s
        for end_s, _ in decodes
        if waited_s + end_s <= patience * own_s
        and own_s * sum(w for left_s, w in decodes if left_s <= end_s) > own * end_s
    ]
    assert waits == bool(worth)


@given(SECONDS, TIGHT, DECODES, st.floats(0.0, 100.0))
def test_a_tighter_prompt_never_waits_where_a_relaxed_one_does_not(
    own_s: float, own: float, decodes: list[tuple[float, float]], patience: float
) -> None:
    if should_wait(own_s, 2 * own, 0.0, decodes, patience):
        assert should_wait(own_s, own, 0.0, decodes, patience)


def view(deadline_s: float | None, remaining_s: float = 30.0) -> RequestView:
    return RequestView("r", "w", 0.0, deadline_s=deadline_s, predicted_remaining_s=remaining_s)


@pytest.mark.parametrize(
    ("one", "found"),
    [
        (view(None), 0.5),
        (view(110.0), 0.3),
        (view(40.0), 1.0),
        (view(10.0), MOST_TIGHTNESS),
        (view(5.0), MOST_TIGHTNESS),
        (view(1e6), LEAST_TIGHTNESS),
    ],
)
def test_tightness_is_the_share_of_the_time_left_to_be_worked(
    one: RequestView, found: float
) -> None:
    assert tightness(one, 10.0) == pytest.approx(found)


def test_a_decode_has_a_token_left_whatever_was_expected() -> None:
    one = RequestView("r", "w", 0.0, expected_output_tokens=20)
    assert decode_left_s(one, 5, 0.1) == pytest.approx(1.5)
    assert decode_left_s(one, 90, 0.1) == pytest.approx(0.1)
    assert decode_left_s(RequestView("r", "w", 0.0), 8, 0.1) == pytest.approx(12.0)
