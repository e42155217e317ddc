"""What holds for the estimators whatever they are told: exact sums, bounds, no harm by liars."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import InFlight, StepCosts, WorkerView
from hexgen_sglang.policies.dispatch import DISPATCH, Candidate
from hexgen_sglang.policies.estimators import (
    Quantiles,
    StageChains,
    StageEstimates,
    StageVisit,
    Step,
    WorkerCosts,
    WorkerRates,
)
from hexgen_sglang.policies.estimators.chain import MAX_REQUESTS, MAX_SECONDS, MAX_STATES

STAGES = st.sampled_from(["link", "draft", "run", "revise", "vote"])
STEPS = st.builds(
    Step,
    STAGES,
    num_requests=st.integers(1, 8),
    num_tokens=st.integers(0, 500),
    service_s=st.floats(0, 20),
    gap_s=st.floats(0, 5),
)
PATHS = st.lists(st.lists(STEPS, min_size=1, max_size=7), min_size=1, max_size=4)
few = settings(max_examples=12, deadline=None)


def learned(paths: list[list[Step]], keep: float = 1.0) -> StageChains:
    chains = StageChains(keep=keep)
    for path in paths:
        chains.note("t", path)
    return chains


@few
@given(PATHS)
def test_what_a_whole_workflow_needs_is_the_mean_over_those_that_ended(
    paths: list[list[Step]],
) -> None:
    """However the paths loop: visits of the chain are visits of the paths it was made from."""
    total = learned(paths).total("t")
    assert total is not None
    means = [
        sum(step.num_requests for path in paths for step in path),
        sum(step.num_tokens for path in paths for step in path),
        sum(step.service_s for path in paths for step in path)
        + sum(step.gap_s for path in paths for step in path[:-1]),
    ]
    found = (total.num_requests, total.num_tokens, total.seconds)
    assert found == pytest.approx([mean / len(paths) for mean in means], rel=1e-6, abs=1e-9)


@few
@given(PATHS, STAGES)
def test_remaining_work_is_that_of_a_walk_by_the_counted_moves(
    paths: list[list[Step]], stage: str
) -> None:
    """Against the chain walked step by step, as a distribution, until nothing is on its way."""
    moves: dict[str, Counter[str]] = defaultdict(Counter)
    requests: dict[str, list[float]] = defaultdict(list)
    for path in paths:
        names = [step.stage for step in path] + ["(end)"]
        for step, later in zip(path, names[1:], strict=True):
            moves[step.stage][later] += 1
            requests[step.stage].append(step.num_requests)
    assume(stage in moves)
    at, expected = {stage: 1.0}, 0.0
    for _ in range(20_000):
        following: dict[str, float] = defaultdict(float)
        for name, share in at.items():
            for later, count in moves[name].items():
                if later != "(end)":
                    part = share * count / moves[name].total()
                    following[later] += part
                    expected += part * sum(requests[later]) / len(requests[later])
        at = following
        if sum(at.values()) < 1e-12:
            break
    chains = learned(paths)
    graph = chains._types.at("t").by_stage
    assert graph.remaining((stage, 0)) is not None
    graph.solved_at = 0  # solve it now
    found = graph.remaining((stage, 0))
    assert found is not None
    assert found.num_requests == pytest.approx(expected, rel=1e-6, abs=1e-9)


@few
@given(PATHS, st.floats(0.5, 1.0))
def test_what_enters_a_stage_leaves_it(paths: list[list[Step]], keep: float) -> None:
    for graph in graphs_of(learned(paths, keep)):
        entered: dict[object, float] = defaultdict(float)
        for targets in graph.edges.values():
            for target, edge in targets.items():
                entered[target] += edge.moves
        for state, sums in graph.sums.items():
            left = sum(edge.moves for edge in graph.edges[state].values())
            assert entered[state] == pytest.approx(left)
            assert sums.visits == pytest.approx(left)
        assert entered["", -1] == pytest.approx(
            sum(edge.moves for edge in graph.edges["", -2].values())
        )


def graphs_of(chains: StageChains) -> tuple:
    chain = chains._types.at("t")
    return chain.by_round, chain.by_stage


@few
@given(st.integers(0, 10), st.integers(30, 60))
def test_a_loop_of_known_length_is_counted_down(num_loops: int, num_paths: int) -> None:
    once = Step("revise", 1, 100, 2.0, 0.5)
    chains = learned([[once] * (num_loops + 1)] * num_paths, keep=0.98)
    left = [chains.remaining("t", "revise", visit) for visit in range(1, num_loops + 2)]
    numbers = [one.num_requests for one in left if one is not None]
    assert len(numbers) == num_loops + 1
    assert numbers == sorted(numbers, reverse=True)
    # The stage alone, which knows no rounds, says num_loops for each; it fades.
    for visit, number in enumerate(numbers, 1):
        assert number == pytest.approx(num_loops + 1 - visit, abs=0.1 * num_loops + 1e-9)
    assert left[0] is not None
    assert left[0].seconds == pytest.approx(num_loops * 2.5, rel=0.1, abs=1e-9)


@few
@given(
    st.lists(
        st.lists(
            st.builds(
                Step,
                st.integers(0, 9).map(str),
                num_requests=st.floats(0, 1e9),
                num_tokens=st.floats(0, 1e12),
                service_s=st.floats(0, 1e9),
                gap_s=st.floats(0, 1e9),
            ),
            max_size=6,
        ),
        max_size=4,
    ),
    st.sampled_from([1e-30, 0.5, 1.0]),
)
def test_whatever_is_told_memory_and_answers_stay_bounded(
    paths: list[list[Step]], keep: float
) -> None:
    # So small a `keep` makes weights overflow, so that all are lightened.
    many = [[Step(f"{n}-{k}", 1, 1, 1.0) for k in range(9)] for n in range(9)]
    chains = learned([*paths, *many, *paths], keep)
    for graph in graphs_of(chains):
        assert len(graph.sums) <= MAX_STATES
    for path in paths:
        for step in path:
            left = chains.remaining("t", step.stage)
            if left is not None:
                assert 0 <= left.num_requests <= MAX_REQUESTS
                assert 0 <= left.seconds <= MAX_SECONDS
    assert chains.remaining("unknown", "0") is None


@few
@given(st.lists(st.floats(1, 1e12), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_within_five_percent_of_the_exact_one(
    samples: list[float], share: float
) -> None:
    quantiles = Quantiles(keep=1.0)
    for sample in samples:
        quantiles.add(sample)
    found = quantiles.at(share)
    exact = sorted(samples)[max(0, math.ceil(share * len(samples) - 1e-9) - 1)]
    assert found is not None
    assert exact / 1.05 <= found <= exact * 1.05
    assert quantiles.at(0.0) <= found <= quantiles.at(1.0)  # type: ignore[operator]


def test_quantiles_follow_a_change_and_never_overflow() -> None:
    quantiles = Quantiles(keep=0.5)
    for sample in [10.0] * 2_000 + [1_000.0] * 2_000:
        quantiles.add(sample)
    assert quantiles.at(0.01) == pytest.approx(1_000, rel=0.05)
    assert Quantiles().at(0.5) is None


EXTREMES = st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 60.0, 604_800.0]) | st.floats(0, 604_800)
COUNTS = st.sampled_from([0, 1, 2**40]) | st.integers(0, 2**40)


@few
@given(
    st.lists(st.tuples(COUNTS, EXTREMES, EXTREMES), max_size=6),
    st.lists(st.tuples(*[st.floats(0, 1)] * 6), max_size=2),
)
def test_a_workers_claims_harm_neither_finiteness_nor_others(
    claims: list[tuple[int, float, float]], steps: list[tuple[float, ...]]
) -> None:
    rates, costs = WorkerRates(), WorkerCosts()
    rates.note_prefill("honest", 1_000, 0.5)
    rates.note_decode("honest", 100, 2.0, 4)
    costs.note("honest", StepCosts(0.05, 3e-4, 0.0, 0.02, 1e-3, 1e-6))
    before = rates.of("honest"), costs.of("honest")
    for count, first, second in claims:
        rates.note_prefill("liar", count, first)
        rates.note_decode("liar", count, second, 1 + count % 64)
        rates.note_stall("liar", first, second)
    for row in steps:
        costs.note("liar", StepCosts(*row))
    claimed = rates.of("liar")
    for rate, most in ((claimed.prefill_tokens_per_s, 1e7), (claimed.decode_tokens_per_s, 1e4)):
        assert rate is None or 0 < rate <= most * (1 + 1e-9)
    assert 1.0 <= claimed.decode_stall <= 20.0
    assert (rates.of("honest"), costs.of("honest")) == before
    views = [
        WorkerView(
            name,
            num_in_flight=1,
            now_s=9.0,
            in_flight=[InFlight("x", "x", "", 9, 9, 9, 1.0, None, None, 0.0, 1, 2.0)],
            prefill_tokens_per_s=rates.of(name).prefill_tokens_per_s,
            decode_tokens_per_s=rates.of(name).decode_tokens_per_s,
            usual_batch=rates.of(name).usual_batch,
            decode_stall=rates.of(name).decode_stall,
            costs=costs.of(name),
        )
        for name in ("honest", "liar")
    ]
    asked = RequestView("r", "r", 9.0, num_prompt_tokens=2_000, expected_output_tokens=200)
    policy = DISPATCH.create("marginal_cost")
    assert policy.pick(asked, [Candidate(view) for view in views]) in ("honest", "liar")
    assert all(math.isfinite(term) for price in policy.prices for term in price.terms)
    liar = next(price for price in policy.prices if price.worker_id == "liar")
    # No claim makes a worker free: 199 of the shortest steps, by rates of a batch of 64.
    assert dict(zip(policy.price_terms, liar.terms, strict=True))["end_s"] > 199 * 1e-4 / 5


def test_predictions_are_held_against_what_came() -> None:
    stages = StageEstimates()
    for _ in range(40):
        visits = [StageVisit("a", 0.0, 2.0, 2.0, 3, 30), StageVisit("b", 3.0, 7.0, 4.0, 1, 10)]
        stages.note_workflow("t", visits)
    for estimate in ("stage_s", "remaining_s", "remaining_chain_s", "remaining_requests", "gap_s"):
        error = stages.errors.of(estimate, "t")
        assert error is not None, estimate
        assert error.absolute_frac == pytest.approx(0.0, abs=1e-9)
    work = stages.remaining_work("t", "a")
    assert work is not None
    assert (work.num_requests, work.num_tokens) == pytest.approx((1.0, 10.0))
    assert work.seconds == pytest.approx(5.0)
    assert stages.gap_s("t", "a") == pytest.approx(1.0)
    assert stages.gap_s("t", "b") is None
    stages.note_workflow("t", [StageVisit("a", 0.0, 8.0, 8.0, 3, 30)])
    error = stages.errors.of("stage_s", "t")
    assert error is not None
    assert error.bias_frac < 0 < error.absolute_frac


def test_both_answers_are_the_same_where_workflows_are() -> None:
    plain, chain = StageEstimates(), StageEstimates(remaining="chain")
    visits = [StageVisit(name, 2.0 * n, 2.0 * n + 1, 1.0) for n, name in enumerate("abc")]
    assert chain.remaining_after_s("t", "a") is None
    for stages in (plain, chain):
        for _ in range(9):
            stages.note_workflow("t", visits)
    for name in "abc":
        assert chain.remaining_after_s("t", name) == pytest.approx(
            plain.remaining_after_s("t", name), abs=1e-9
        )
