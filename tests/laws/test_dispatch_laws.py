"""What must hold for every dispatch policy of the registry, whatever it prefers."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerLoad, WorkerState, WorkerView
from hexgen_sglang.policies.dispatch import DISPATCH, Candidate
from hexgen_sglang.policies.dispatch.base import ScoredDispatch, with_room

TOKENS = st.integers(0, 2**40)
RATES = st.none() | st.floats(1e-3, 1e6)
LIMITS = st.none() | st.integers(0, 2**20)

LOADS = st.builds(WorkerLoad, TOKENS, TOKENS, TOKENS, TOKENS, st.floats(0, 1e9))
REQUESTS = st.builds(
    RequestView,
    request_id=st.just("r"),
    workflow_id=st.sampled_from(["a", "b"]),
    arrival_s=st.floats(0, 1e9),
    deadline_s=st.none() | st.floats(-1e9, 1e9),
    predicted_remaining_s=st.floats(0, 1e6),
    num_prompt_tokens=st.integers(0, 2**20),
    expected_output_tokens=st.none() | st.integers(1, 2**20),
)
WORKERS = st.builds(
    WorkerView,
    worker_id=st.text("abc123", min_size=1, max_size=4),
    hardware=st.sampled_from(["", "a100", "l40s"]),
    state=st.sampled_from(WorkerState),
    num_in_flight=st.integers(0, 2**20),
    num_in_flight_tokens=TOKENS,
    num_pending_prefill_tokens=TOKENS,
    num_pending_decode_tokens=TOKENS,
    max_running_requests=LIMITS,
    kv_capacity_tokens=LIMITS,
    prefill_tokens_per_s=RATES,
    decode_tokens_per_s=RATES,
    usual_batch=st.floats(0, 4096),
    tokens_per_s=RATES,
    load=st.none() | LOADS,
)
CANDIDATES = st.builds(Candidate, WORKERS, st.integers(0, 2**20), st.booleans())
CHOICES = st.lists(CANDIDATES, max_size=5, unique_by=lambda c: c.worker.worker_id)
ROUNDS = st.lists(st.tuples(REQUESTS, CHOICES), min_size=1, max_size=3)

every_policy = pytest.mark.parametrize("name", list(DISPATCH))
thoroughly = settings(max_examples=40, deadline=None)


def picks(name, rounds):
    policy = DISPATCH.create(name)
    return [policy.pick(request, candidates) for request, candidates in rounds]


def test_the_registry_is_not_empty():
    assert {"round_robin", "least_requests", "least_tokens"} <= set(DISPATCH)


@every_policy
@thoroughly
@given(rounds=ROUNDS)
def test_a_pick_is_a_ready_worker_with_room(name, rounds):
    for picked, (_, candidates) in zip(picks(name, rounds), rounds, strict=True):
        assert picked in {None, *(c.worker.worker_id for c in with_room(candidates))}


@every_policy
@thoroughly
@given(request=REQUESTS, choices=CHOICES)
def test_nothing_waits_while_every_worker_has_room(name, request, choices):
    ready = [
        Candidate(c.worker, c.num_cached_tokens)
        for c in choices
        if c.worker.state is WorkerState.READY
    ]
    assert (DISPATCH.create(name).pick(request, ready) is None) == (not ready)


@every_policy
@thoroughly
@given(rounds=ROUNDS, data=st.data())
def test_the_order_of_the_candidates_has_no_meaning(name, rounds, data):
    shuffled = [(request, data.draw(st.permutations(choices))) for request, choices in rounds]
    assert picks(name, shuffled) == picks(name, rounds)


@every_policy
@thoroughly
@given(rounds=ROUNDS)
def test_the_same_calls_give_the_same_picks_and_leave_their_inputs_alone(name, rounds):
    before = copy.deepcopy(rounds)
    assert picks(name, rounds) == picks(name, rounds)
    assert rounds == before


@every_policy
@thoroughly
@given(request=REQUESTS, choices=CHOICES)
def test_scores_are_finite_and_of_one_length(name, request, choices):
    policy = DISPATCH.create(name)
    if not isinstance(policy, ScoredDispatch):
        return
    usable = with_room(choices)
    scores = [policy.score(request, candidate, usable) for candidate in usable]
    assert all(isinstance(part, float) and math.isfinite(part) for s in scores for part in s)
    assert len({len(score) for score in scores}) <= 1


@every_policy
@settings(max_examples=20, deadline=None)
@given(rounds=ROUNDS)
def test_the_prices_told_are_of_the_winner_and_of_another_candidate(name, rounds):
    policy = DISPATCH.create(name)
    for request, choices in rounds:
        picked = policy.pick(request, choices)
        known = {c.worker.worker_id: c for c in choices}
        told = [price.worker_id for price in policy.prices]
        if picked is None:
            # It waits for one without room, or there was none at all.
            assert not told or not known[told[0]].has_room
        else:
            assert told[0] == picked
        assert len(told) == len(set(told)) <= 2
        for price in policy.prices:
            candidate = known[price.worker_id]
            assert len(price.terms) == len(policy.price_terms)
            assert all(math.isfinite(term) for term in price.terms)
            assert price.has_room == candidate.has_room
            assert price.num_cached_tokens == candidate.num_cached_tokens
        if len(told) == 2:
            assert policy.prices[0].terms[:1] <= policy.prices[1].terms[:1]
