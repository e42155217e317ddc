"""The central queue: order, bounds, lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.policies.ordering import ORDERING

MakeRequest = Callable[..., LiveRequest]


def new_queue(max_queued: int = 100, max_bytes: int = 10_000) -> CentralQueue:
    return CentralQueue(ORDERING.create("least_slack"), max_queued, max_bytes, lambda: 7.5)


def ids(queue: CentralQueue, blocked: set[str] | None = None) -> list[str]:
    return [request.view.request_id for request in queue.in_order(blocked or set())]


def test_tight_deadlines_overtake_and_ties_go_by_arrival_then_id(make_request: MakeRequest) -> None:
    queue = new_queue()
    queue.push(make_request("slack", deadline_s=100.0))
    queue.push(make_request("tight", arrival_s=5.0, deadline_s=10.0))
    queue.push(make_request("b", arrival_s=1.0))  # best effort: ranks as 31 s
    queue.push(make_request("a", arrival_s=1.0))
    queue.push(make_request("work", deadline_s=100.0, predicted_remaining_s=60.0))
    assert ids(queue) == ["tight", "a", "b", "work", "slack"]


def test_a_changed_deadline_moves_a_waiting_request_only(make_request: MakeRequest) -> None:
    queue = new_queue()
    first, second = make_request("first", deadline_s=10.0), make_request("second", deadline_s=20.0)
    queue.push(first)
    queue.push(second)
    second.view = replace(second.view, deadline_s=5.0)
    queue.reorder(second)
    assert ids(queue) == ["second", "first"]
    queue.remove(second)
    queue.reorder(second)
    assert ids(queue) == ["first"]


def test_removing_twice_is_told_apart(make_request: MakeRequest) -> None:
    queue = new_queue()
    requests = [make_request(f"r{i}", arrival_s=float(i)) for i in range(5)]
    for request in requests:
        queue.push(request)
    assert queue.remove(requests[2])
    assert not queue.remove(requests[2])
    assert ids(queue) == ["r0", "r1", "r3", "r4"]
    assert len(queue) == 4


def test_a_full_queue_refuses_but_takes_back(make_request: MakeRequest) -> None:
    queue = new_queue(max_queued=2)
    queue.push(make_request("a"))
    queue.check_room()
    queue.push(make_request("b"))
    with pytest.raises(
        AdmissionRejected, match=r"2 requests of .* are waiting: at most 2 of"
    ) as refusal:
        queue.check_room()
    assert refusal.value.retry_after_s == 7.5
    queue.push(make_request("comes-back"))
    assert len(queue) == 3


def test_lanes_merge_by_rank_and_a_blocked_one_is_left_out(make_request: MakeRequest) -> None:
    queue = new_queue()
    for number, lane in enumerate(["x", "y", "x", "y"]):
        queue.push(make_request(f"{lane}{number}", lane=lane, arrival_s=float(number)))
    assert ids(queue) == ["x0", "y1", "x2", "y3"]
    blocked: set[str] = set()
    seen = []
    for request in queue.in_order(blocked):
        seen.append(request.view.request_id)
        if request.lane == "x":
            blocked.add(request.queue_lane)
    assert seen == ["x0", "y1", "y3"]


def test_taking_requests_out_while_going_through(make_request: MakeRequest) -> None:
    queue = new_queue()
    for number in range(6):
        queue.push(make_request(f"r{number}", arrival_s=float(number)))
    seen = []
    for request in queue.in_order(set()):
        seen.append(request.view.request_id)
        if len(seen) % 2:
            queue.remove(request)
    assert seen == [f"r{number}" for number in range(6)]
    assert ids(queue) == ["r1", "r3", "r5"]


def test_bodies_are_bounded_together(make_request: MakeRequest) -> None:
    queue = new_queue(max_bytes=1_000)
    large = make_request("large", text="x" * 1_000)
    queue.push(large)
    with pytest.raises(AdmissionRejected, match=r"1 requests of 1011 bytes .* of 1000 bytes may"):
        queue.check_room()
    queue.remove(large)
    queue.check_room()
