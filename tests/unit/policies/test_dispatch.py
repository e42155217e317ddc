"""Dispatch policies on examples worked out by hand."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerLoad, WorkerState, WorkerView
from hexgen_sglang.policies.dispatch import DISPATCH, Candidate
from hexgen_sglang.policies.dispatch.earliest_completion import EarliestCompletion
from hexgen_sglang.policies.dispatch.least_load import LeastLoad


def view(worker_id: str, **fields: object) -> WorkerView:
    return WorkerView(worker_id, **fields)  # type: ignore[arg-type]


def request(prompt: int = 1000, output: int | None = 100) -> RequestView:
    return RequestView("r", "r", 0.0, num_prompt_tokens=prompt, expected_output_tokens=output)


def pick(name: str, workers: list[WorkerView], **settings: float) -> str | None:
    policy = DISPATCH.create(name, **settings)
    return policy.pick(request(), [Candidate(worker) for worker in workers])


def test_round_robin_goes_in_a_circle_over_those_with_room() -> None:
    policy = DISPATCH.create("round_robin")
    a, b, c = (Candidate(view(name)) for name in "abc")
    full_b = Candidate(view("b"), has_room=False)
    assert [policy.pick(request(), [c, b, a]) for _ in range(4)] == ["a", "b", "c", "a"]
    assert policy.pick(request(), [a, full_b, c]) == "c"
    assert policy.pick(request(), [a, b]) == "a"  # c has gone: the circle begins again


def test_least_requests_takes_the_emptiest() -> None:
    assert pick("least_requests", [view("a", num_in_flight=2), view("b", num_in_flight=1)]) == "b"


def test_least_tokens_counts_length_not_requests() -> None:
    few_long = view("a", num_in_flight=1, num_in_flight_tokens=5000)
    many_short = view("b", num_in_flight=4, num_in_flight_tokens=400)
    assert pick("least_tokens", [few_long, many_short]) == "b"


def test_least_load_weighs_tokens_by_throughput() -> None:
    # own 1,100 tokens: fast (8,900 + 1,100) / 2,000 = 5.0 s; slow (2,000 + 1,100) / 500 = 6.2 s
    fast = view("fast", num_in_flight_tokens=8_900, tokens_per_s=2_000.0)
    slow = view("slow", num_in_flight_tokens=2_000, tokens_per_s=500.0)
    assert pick("least_load", [fast, slow], barrier_s=0.0) == "fast"


def test_least_load_barrier_is_one_second_at_half_full() -> None:
    policy = LeastLoad(barrier_s=1.0, default_tokens_per_s=1_000.0)
    load = WorkerLoad(1, 0, 0, 5_000, age_s=0.5)
    half = Candidate(view("a", kv_capacity_tokens=10_000, load=load))
    # (0 + 1,100) / 1,000 + 1.0 * 0.5 / (1 - 0.5) = 1.1 + 1.0
    assert policy.score(request(), half, [half])[0] == pytest.approx(2.1)


def test_least_load_ignores_a_stale_report() -> None:
    policy = LeastLoad(stale_after_s=3.0, default_tokens_per_s=1_000.0)
    load = WorkerLoad(1, 0, 0, 9_900, age_s=3.5)
    worker = Candidate(view("a", kv_capacity_tokens=10_000, num_in_flight_tokens=5_000, load=load))
    # 6.1 s of work + barrier of the 5,000 tokens counted here: 1.0
    assert policy.score(request(), worker, [worker])[0] == pytest.approx(7.1)


def test_earliest_completion_adds_up_by_hand() -> None:
    policy = EarliestCompletion(prefix_trust=0.5, batch_cost_frac=0.1)
    worker = view(
        "a",
        num_in_flight=3,
        num_pending_prefill_tokens=600,
        num_pending_decode_tokens=300,
        max_running_requests=3,
        prefill_tokens_per_s=1_000.0,
        decode_tokens_per_s=20.0,
        usual_batch=2.0,
    )
    candidate = Candidate(worker, num_cached_tokens=800)
    # prefill: (600 ahead + 1,000 - 0.5 x 800) / 1,000 = 1.2 s
    # decode rate in a batch of 3 (the limit): 20 x (1 + 0.1 x 2) / (1 + 0.1 x 3) = 18.4615
    # slot: (3 + 1 - 3) leaver x mean remaining 100 / (3 x 18.4615) = 1.80556 s
    # decode: 100 / 18.4615 = 5.41667 s
    assert policy.completion_s(request(), candidate, [candidate]) == pytest.approx(
        1.2 + 1.805556 + 5.416667
    )


def test_earliest_completion_sends_short_work_to_the_fast_busy_worker() -> None:
    fast = view(
        "fast",
        num_in_flight=1,
        num_pending_prefill_tokens=1_000,
        prefill_tokens_per_s=4_000.0,
        decode_tokens_per_s=50.0,
    )
    slow = view("slow", prefill_tokens_per_s=1_000.0, decode_tokens_per_s=20.0)
    assert pick("earliest_completion", [fast, slow]) == "fast"
    buried = view(
        "fast",
        num_in_flight=1,
        num_pending_prefill_tokens=40_000,
        prefill_tokens_per_s=4_000.0,
        decode_tokens_per_s=50.0,
    )
    assert pick("earliest_completion", [buried, slow]) == "slow"


def test_earliest_completion_prefers_the_prefix_but_not_at_any_price() -> None:
    policy = DISPATCH.create("earliest_completion")
    holder = view("holder", prefill_tokens_per_s=1_000.0, decode_tokens_per_s=20.0)
    other = view("a-other", prefill_tokens_per_s=1_000.0, decode_tokens_per_s=20.0)
    idle = [Candidate(holder, num_cached_tokens=900), Candidate(other)]
    assert policy.pick(request(), idle) == "holder"
    busy = view(
        "holder",
        num_pending_prefill_tokens=5_000,
        prefill_tokens_per_s=1_000.0,
        decode_tokens_per_s=20.0,
    )
    assert (
        policy.pick(request(), [Candidate(busy, num_cached_tokens=900), Candidate(other)])
        == "a-other"
    )


def test_earliest_completion_takes_an_unmeasured_worker_for_its_likes() -> None:
    slow = view("slow", hardware="l40s", prefill_tokens_per_s=500.0, decode_tokens_per_s=5.0)
    fast = view("fast", hardware="a100", prefill_tokens_per_s=5_000.0, decode_tokens_per_s=50.0)
    new_slow = view("a-new", hardware="l40s")
    policy = EarliestCompletion()
    usable = [Candidate(slow), Candidate(fast), Candidate(new_slow)]
    scores = {c.worker.worker_id: policy.completion_s(request(), c, usable) for c in usable}
    assert scores["a-new"] == pytest.approx(scores["slow"])


def test_a_worker_that_drains_is_never_picked() -> None:
    draining = view("a", state=WorkerState.DRAINING)
    for name in DISPATCH:
        assert DISPATCH.create(name).pick(request(), [Candidate(draining)]) is None


@pytest.mark.parametrize(
    ("name", "setting", "value", "said"),
    [
        ("earliest_completion", "prefix_trust", 1.5, "prefix_trust=1.5: must be between 0 and 1"),
        ("earliest_completion", "tie_s", 0.0, "tie_s=0.0: must be a finite number > 0"),
        ("least_load", "barrier_s", -1.0, "barrier_s=-1.0: must be a finite number >= 0"),
        ("least_tokens", "alpha", 1.0, "takes no arguments"),
    ],
)
def test_wrong_settings_name_value_and_range(
    name: str, setting: str, value: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        DISPATCH.create(name, **{setting: value})
