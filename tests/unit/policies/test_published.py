"""HexGen-Flow's two published policies on examples worked out by hand."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerView
from hexgen_sglang.policies.dispatch import Candidate
from hexgen_sglang.policies.dispatch.paper import Paper
from hexgen_sglang.policies.ordering.urgency import Urgency

REQUEST = RequestView("r", "w", 0.0, num_prompt_tokens=1000, expected_output_tokens=100)


def worker(
    name: str, prefill: float | None, decode: float | None, work: tuple[int, int] = (0, 0)
) -> WorkerView:
    return WorkerView(
        name,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        num_pending_prefill_tokens=work[0],
        num_pending_decode_tokens=work[1],
    )


def pick(alpha: float, *workers: WorkerView, has_room: tuple[bool, ...] = ()) -> str | None:
    rooms = has_room or (True,) * len(workers)
    candidates = [Candidate(view, has_room=room) for view, room in zip(workers, rooms, strict=True)]
    return Paper(alpha=alpha).pick(REQUEST, candidates)


def test_idle_base_takes_the_request() -> None:
    slow = worker("a", 500.0, 25.0)
    fast = worker("b", 1000.0, 50.0, (0, 0))
    assert pick(0.0, slow, fast) == "b"


def test_score_by_hand() -> None:
    """Alone: fast 1 + 2 = 3 s, slow 2 + 4 = 6 s. Queued: fast 4 + 2 = 6 s, slow 2 + 2 = 4 s.

    fast: alpha - (1 - alpha) x 1; slow: alpha / 2 - (1 - alpha) x 4 / 6.
    They are equal at alpha = 2 (1 - alpha) / 3, which is 0.4.
    """
    fast = worker("fast", 1000.0, 50.0, (4000, 100))
    slow = worker("slow", 500.0, 25.0, (1000, 50))
    assert pick(0.39, fast, slow) == "slow"
    assert pick(0.41, fast, slow) == "fast"


def test_worker_without_room_is_not_picked_and_is_not_the_base() -> None:
    fast = worker("fast", 1000.0, 50.0)
    slow = worker("slow", 500.0, 25.0, (1000, 50))
    assert pick(0.9, fast, slow, has_room=(False, True)) == "slow"
    assert pick(0.9, fast, slow, has_room=(False, False)) is None


def test_unknown_rates_are_the_mean_of_the_known() -> None:
    """The unknown worker counts as fast as the known one and has less work."""
    known = worker("a", 1000.0, 50.0, (2000, 0))
    unknown = worker("b", None, None, (1000, 0))
    assert pick(0.4, known, unknown) == "b"


def test_alpha_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha=1\.5"):
        Paper(alpha=1.5)


def view(**fields: float) -> RequestView:
    return RequestView("r", "w", **fields)  # type: ignore[arg-type]


def test_urgency_key_by_hand() -> None:
    """Left 60 s, the stage takes 10 of the remaining 40: budget 15 s, the key 5 + 15 - 10."""
    request = view(
        arrival_s=5.0, deadline_s=65.0, predicted_remaining_s=40.0, predicted_stage_s=10.0
    )
    assert Urgency().sort_key(request) == (10.0,)


def test_urgency_ranks_as_urgency_does_at_any_instant() -> None:
    """t + waited - budget at three instants gives the order of the keys, the largest first."""
    requests = [
        view(arrival_s=0.0, deadline_s=50.0, predicted_remaining_s=30.0, predicted_stage_s=20.0),
        view(arrival_s=4.0, deadline_s=20.0, predicted_remaining_s=25.0, predicted_stage_s=5.0),
        view(arrival_s=7.0, deadline_s=200.0, predicted_remaining_s=80.0, predicted_stage_s=2.0),
    ]
    by_key = sorted(range(3), key=lambda number: Urgency().sort_key(requests[number]))
    for now in (7.0, 30.0, 500.0):
        urgencies = []
        for request in requests:
            assert request.deadline_s is not None
            left = request.deadline_s - request.arrival_s
            budget = left * request.predicted_stage_s / request.predicted_remaining_s
            urgencies.append(request.predicted_stage_s + now - request.arrival_s - budget)
        assert by_key == sorted(range(3), key=lambda number: -urgencies[number])


def test_without_knowledge_the_budget_is_all_that_is_left() -> None:
    assert Urgency().sort_key(view(arrival_s=2.0, deadline_s=9.0)) == (9.0,)
    assert Urgency(best_effort_slack_s=4.0).sort_key(view(arrival_s=2.0)) == (6.0,)


def test_late_workflow_has_no_budget() -> None:
    request = view(arrival_s=9.0, deadline_s=8.0, predicted_remaining_s=4.0, predicted_stage_s=4.0)
    assert Urgency().sort_key(request) == (5.0,)
