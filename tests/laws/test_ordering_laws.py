"""What must hold for every ordering policy of the registry, whatever it ranks by."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.ordering import ORDERING, total_order_key

# Eighths of a second add up exactly, so that a shifted clock is shifted and nothing else.
INSTANTS = st.integers(0, 8 * 10**9).map(lambda eighths: eighths / 8)
DURATIONS = st.integers(0, 8 * 86_400).map(lambda eighths: eighths / 8)
COUNTS = st.integers(0, 2**20)
NAMES = st.sampled_from(["", "draft", "repair", "vote"])


@st.composite
def views(draw: st.DrawFn) -> RequestView:
    siblings = draw(st.integers(1, 1024))
    num_prompt_tokens = draw(COUNTS)
    return RequestView(
        request_id=draw(st.text("abc", min_size=1, max_size=6)),
        workflow_id=draw(st.sampled_from(["a", "b", "c"])),
        arrival_s=draw(INSTANTS),
        workflow_type=draw(NAMES),
        stage=draw(NAMES),
        deadline_s=draw(st.none() | INSTANTS | INSTANTS.map(lambda instant: -instant)),
        predicted_remaining_s=draw(DURATIONS),
        num_prompt_tokens=num_prompt_tokens,
        num_cached_tokens=draw(st.integers(0, num_prompt_tokens)),
        expected_output_tokens=draw(st.none() | st.integers(1, 2**20)),
        siblings=siblings,
        sibling_index=draw(st.integers(0, siblings - 1)),
        tenant=draw(NAMES),
    )


QUEUES = st.lists(views(), max_size=12, unique_by=lambda view: view.request_id)
every_policy = pytest.mark.parametrize("name", list(ORDERING))
thoroughly = settings(max_examples=50, deadline=None)


def ranked(name: str, queue: list[RequestView]) -> list[str]:
    policy = ORDERING.create(name)
    ordered = sorted(queue, key=lambda view: total_order_key(policy, view))
    return [view.request_id for view in ordered]


def shifted(view: RequestView, by_s: float) -> RequestView:
    """The same request as told by a clock that started `by_s` earlier."""
    deadline_s = None if view.deadline_s is None else view.deadline_s + by_s
    return dataclasses.replace(view, arrival_s=view.arrival_s + by_s, deadline_s=deadline_s)


def test_the_registry_is_not_empty():
    assert {"fcfs", "least_slack"} <= set(ORDERING)


@every_policy
@thoroughly
@given(queue=QUEUES)
def test_keys_are_finite_and_of_one_length(name, queue):
    policy = ORDERING.create(name)
    keys = [policy.sort_key(view) for view in queue]
    assert all(isinstance(part, float) and math.isfinite(part) for key in keys for part in key)
    assert all(type(key) is tuple for key in keys)
    assert len({len(key) for key in keys}) <= 1


@every_policy
@thoroughly
@given(queue=QUEUES)
def test_the_order_is_total_and_transitive(name, queue):
    policy = ORDERING.create(name)
    keys = sorted(total_order_key(policy, view) for view in queue)
    assert all(one < other for i, one in enumerate(keys) for other in keys[i + 1 :])


@every_policy
@thoroughly
@given(queue=QUEUES, data=st.data())
def test_the_order_does_not_depend_on_the_order_of_the_input(name, queue, data):
    assert ranked(name, queue) == ranked(name, data.draw(st.permutations(queue)))


@every_policy
@thoroughly
@given(queue=QUEUES, other=views())
def test_one_request_does_not_change_how_others_are_ranked(name, queue, other):
    together = ranked(name, [*queue, other])
    assert [i for i in together if i != other.request_id] == [
        i for i in ranked(name, queue) if i != other.request_id
    ]


@every_policy
@thoroughly
@given(queue=QUEUES)
def test_inputs_are_unchanged_and_the_same_question_gets_the_same_answer(name, queue):
    before = [dataclasses.replace(view) for view in queue]
    policy = ORDERING.create(name)
    first = [policy.sort_key(view) for view in queue]
    assert [policy.sort_key(view) for view in reversed(queue)][::-1] == first
    assert [ORDERING.create(name).sort_key(view) for view in queue] == first
    assert queue == before


@every_policy
@thoroughly
@given(queue=QUEUES, by_s=DURATIONS)
def test_the_origin_of_the_clock_does_not_matter(name, queue, by_s):
    assert ranked(name, [shifted(view, by_s) for view in queue]) == ranked(name, queue)
