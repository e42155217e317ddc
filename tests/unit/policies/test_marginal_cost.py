"""What the marginal-cost policy weighs, one term at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import InFlight, StepCosts, WorkerView
from hexgen_sglang.policies.dispatch import DISPATCH, Candidate

FAST = StepCosts(0.05, 0.0003, 0.0, 0.02, 0.0005, 2e-7)
SLOW = StepCosts(0.07, 0.0009, 0.0, 0.035, 0.0008, 3e-7)


def request(**fields: Any) -> RequestView:
    """A candidate of a workflow with half of its budget left."""
    values: dict[str, Any] = {
        "request_id": "r",
        "workflow_id": "w",
        "stage": "generate_candidate",
        "arrival_s": 100.0,
        "deadline_s": 150.0,
        "budget_s": 100.0,
        "num_prompt_tokens": 4_000,
        "expected_output_tokens": 300,
        **fields,
    }
    return RequestView(**values)


def in_flight(name: str, **fields: Any) -> InFlight:
    """A request of another workflow that decodes since a second."""
    values: dict[str, Any] = {
        "request_id": name,
        "workflow_id": f"of-{name}",
        "stage": "revise",
        "num_prompt_tokens": 2_000,
        "num_uncached_tokens": 500,
        "expected_output_tokens": 200,
        "sent_s": 98.0,
        "deadline_s": 150.0,
        "budget_s": 100.0,
        "predicted_remaining_s": 5.0,
        "siblings": 1,
        "first_token_s": 99.0,
        **fields,
    }
    return InFlight(**values)


def worker(name: str, *busy: InFlight, costs: StepCosts | None = FAST, **fields: Any) -> WorkerView:
    """A ready worker at second 100."""
    return WorkerView(
        name, num_in_flight=len(busy), in_flight=busy, costs=costs, now_s=100.0, **fields
    )


def pick(asked: RequestView, *candidates: Candidate, **settings: float) -> str | None:
    """One decision of a fresh policy."""
    return DISPATCH.create("marginal_cost", **settings).pick(asked, list(candidates))


def test_the_faster_of_two_idle_workers_gets_the_request() -> None:
    assert pick(request(), Candidate(worker("a", costs=SLOW)), Candidate(worker("b"))) == "b"


def test_it_goes_where_its_prefix_is_when_that_saves_more_than_it_waits() -> None:
    holder = Candidate(worker("a", in_flight("x")), num_cached_tokens=3_900)
    idle = Candidate(worker("b"))
    assert pick(request(), holder, idle) == "a"
    assert pick(request(), holder, idle, prefix_trust=0.0) == "b"


def test_it_spares_urgent_requests_the_stall_of_its_prefill() -> None:
    urgent = in_flight("u", deadline_s=106.0)
    relaxed = in_flight("r", deadline_s=199.0)
    tight, loose = Candidate(worker("a", urgent)), Candidate(worker("b", relaxed))
    assert pick(request(), tight, loose) == "b"
    # Without the delay imposed on others they are alike, and the smaller name goes first.
    assert pick(request(), tight, loose, imposed_weight=0.0) == "a"


def test_it_waits_for_the_better_worker_only_when_it_may() -> None:
    full = Candidate(worker("a", in_flight("x")), num_cached_tokens=3_900, has_room=False)
    hopeless = Candidate(worker("b", costs=replace(SLOW, prefill_token_s=0.02)))
    assert pick(request(), full, hopeless) is None
    policy = DISPATCH.create("marginal_cost", may_wait=0.0)
    assert not policy.sees_full_workers
    assert policy.pick(request(), [hopeless]) == "b"


def test_a_sibling_that_decides_nothing_leaves_the_fast_worker_to_others() -> None:
    policy = DISPATCH.create("marginal_cost")
    crowd = [in_flight(str(number), deadline_s=110.0) for number in range(6)]
    fast, slow = Candidate(worker("a", *crowd, version=6)), Candidate(worker("b", costs=SLOW))
    long = request(request_id="long", siblings=2, expected_output_tokens=900)
    short = request(request_id="short", siblings=2, sibling_index=1, expected_output_tokens=60)
    first = policy.pick(long, [Candidate(worker("a")), slow])
    assert first == "a"
    assert policy.pick(short, [fast, slow]) == "b"


def test_memory_that_must_be_freed_first_counts_as_waiting() -> None:
    busy = [in_flight(str(number), expected_output_tokens=900) for number in range(4)]
    cramped = Candidate(worker("a", *busy, kv_capacity_tokens=9_000))
    roomy = Candidate(worker("b", *busy, kv_capacity_tokens=120_000))
    assert pick(request(), cramped, roomy) == "b"


def test_what_was_cached_there_already_takes_no_more_memory() -> None:
    """Four prompts of 2,000 tokens with 1,500 of them in common fit where 9,600 would not."""
    shared = [in_flight(str(number), expected_output_tokens=400) for number in range(4)]
    alone = [replace(x, num_uncached_tokens=2_000) for x in shared]
    for busy, choice in ((shared, "a"), (alone, "b")):
        cramped = Candidate(worker("a", *busy, kv_capacity_tokens=9_000))
        roomy = Candidate(worker("b", *busy, kv_capacity_tokens=120_000))
        assert pick(request(), cramped, roomy) == choice


def test_a_workflow_that_will_be_later_pays_more_to_spare_itself_a_second() -> None:
    """Both would be late; only how late differs, and so whose delay is the cheaper one."""
    little = in_flight("little", deadline_s=98.0)
    much = in_flight("much", deadline_s=40.0)
    candidates = Candidate(worker("a", much)), Candidate(worker("b", little))
    assert pick(request(), *candidates) == "b"
    assert pick(request(deadline_s=None), *candidates) == "b"


@pytest.mark.parametrize(("used", "choice"), [(0.4, "b"), (0.6, "a")])
def test_best_effort_counts_as_a_workflow_that_will_use_half_its_budget(
    used: float, choice: str
) -> None:
    best_effort = in_flight("e", deadline_s=None, budget_s=None)
    other = in_flight("o", deadline_s=205.0 - 100.0 * used)  # 5 s of work are left
    candidates = Candidate(worker("a", best_effort)), Candidate(worker("b", other))
    assert pick(request(), *candidates) == choice


def test_a_budget_that_nothing_could_keep_gains_no_more_than_a_very_late_one() -> None:
    late = in_flight("late", deadline_s=-1_000.0)  # twelve times its budget by its end
    absurd = in_flight("absurd", deadline_s=100.001, budget_s=0.001)
    for busy, other in ((late, absurd), (absurd, late)):
        candidates = Candidate(worker("a", busy)), Candidate(worker("b", other))
        assert pick(request(), *candidates) == "a"  # equal, so the first


def test_a_workflow_whose_deadline_was_put_off_still_counts_a_little() -> None:
    policy = DISPATCH.create("marginal_cost")
    put_off = [in_flight(str(n), deadline_s=900.0, budget_s=50.0) for n in range(3)]
    slower = replace(FAST, decode_base_s=0.0201)
    busy = Candidate(worker("a", *put_off))
    assert policy.pick(request(), [busy, Candidate(worker("b", costs=slower))]) == "b"


def test_a_worker_of_which_nothing_is_known_is_priced_by_its_rates() -> None:
    unknown = Candidate(
        worker("a", costs=None, prefill_tokens_per_s=100.0, decode_tokens_per_s=2.0)
    )
    assert pick(request(), unknown, Candidate(worker("b", costs=SLOW))) == "b"
    assert pick(request(), Candidate(worker("a", costs=None))) == "a"


def test_what_is_kept_of_a_worker_is_dropped_when_something_there_changes() -> None:
    policy = DISPATCH.create("marginal_cost")
    calm = Candidate(worker("a", version=1))
    other = Candidate(worker("b", costs=SLOW, version=1))
    assert policy.pick(request(), [calm, other]) == "a"
    waiting = [in_flight(str(n), first_token_s=None, num_uncached_tokens=9_000) for n in range(9)]
    assert policy.pick(request(), [Candidate(worker("a", *waiting, version=2)), other]) == "b"


@pytest.mark.parametrize("setting", ["least_urgency", "prefix_trust", "caution"])
def test_settings_out_of_range_are_refused_by_name(setting: str) -> None:
    with pytest.raises(Exception, match=setting):
        DISPATCH.create("marginal_cost", **{setting: -1.0})


def test_a_request_is_cheap_beside_those_that_share_its_prefix_where_that_is_read_once() -> None:
    """Dear reads, and nobody in a hurry: alike but for the stage that is decoding there."""
    dear = replace(FAST, decode_context_s=1e-5)
    asked = request(stage="revise", num_prompt_tokens=2_100)
    others = in_flight("x", stage="vote"), in_flight("y", stage="vote")
    alike = in_flight("x"), in_flight("y")

    def choice(frac: float) -> str | None:
        costs = replace(dear, decode_repeated_frac=frac)
        candidates = (
            Candidate(worker("a", *others, costs=costs), num_cached_tokens=1_500),
            Candidate(worker("b", *alike, costs=costs), num_cached_tokens=1_500),
        )
        return pick(asked, *candidates)

    assert choice(1.0) == "a"  # the same price: the smaller name
    assert choice(0.0) == "b"
