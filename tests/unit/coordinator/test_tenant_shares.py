"""Tenants in the central queue, at the door and at the workers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.policies.fairness import AttainedService
from hexgen_sglang.policies.ordering import ORDERING

MakeRequest = Callable[..., LiveRequest]
RULES = RoomRules(2, 8_192, 32, 3.0)


@pytest.fixture
def shares() -> TenantShares:
    return TenantShares(AttainedService(), lambda: 0.0)


def new_queue(shares: TenantShares, max_queued: int = 100) -> CentralQueue:
    ordering = ORDERING.create("least_slack")
    return CentralQueue(ordering, max_queued, 1_000_000, lambda: 1.0, None, shares)


def ids(queue: CentralQueue) -> list[str]:
    return [request.view.request_id for request in queue.in_order(set())]


def placed(shares: TenantShares, request: LiveRequest, tokens: int, output: int = 0) -> None:
    request.attempt = SimpleNamespace(  # type: ignore[assignment]
        num_uncached_tokens=tokens, seen=SimpleNamespace(expected_output_tokens=output)
    )
    shares.placed(request)


def test_whoever_attained_less_goes_first_and_slack_decides_within(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    queue = new_queue(shares)
    placed(shares, make_request("past", tenant="busy"), 1_000)
    for name, tenant, deadline_s in (
        ("busy-1", "busy", 1.0),
        ("busy-2", "busy", 2.0),
        ("calm-late", "calm", 90.0),
        ("calm-soon", "calm", 80.0),
    ):
        queue.push(make_request(name, tenant=tenant, deadline_s=deadline_s))
    assert ids(queue) == ["calm-soon", "calm-late", "busy-1", "busy-2"]


def test_one_tenant_alone_is_ordered_as_without_shares(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    queue = new_queue(shares)
    queue.push(make_request("none", tenant="a"))  # ranks as 30 s
    queue.push(make_request("late", tenant="a", deadline_s=40.0))
    queue.push(make_request("soon", tenant="a", deadline_s=20.0))
    assert ids(queue) == ["soon", "none", "late"]


def test_deadlines_go_before_best_effort_of_whatever_tenant(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    queue = new_queue(shares)
    placed(shares, make_request("past", tenant="a"), 1_000)
    queue.push(make_request("b-none", tenant="b"))
    queue.push(make_request("a-late", tenant="a", deadline_s=1_000.0))
    assert ids(queue) == ["a-late", "b-none"]


def test_what_is_placed_in_a_pass_counts_in_it(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    queue = new_queue(shares)
    for number in range(3):
        for tenant in ("a", "b"):
            name = f"{tenant}{number}"
            queue.push(make_request(name, tenant=tenant, arrival_s=0.1 * (tenant == "b")))
    order = []
    for request in queue.in_order(set()):
        queue.remove(request)
        placed(shares, request, 100)  # type: ignore[arg-type]
        order.append(request.view.request_id)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_request_is_charged_with_what_it_used_in_the_end_and_once(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    queue = new_queue(shares)
    request = make_request("r", tenant="a")
    queue.push(request)
    queue.remove(request)
    placed(shares, request, 100, output=50)
    assert shares.all_attained() == {"a": 200.0}
    queue.push(request)  # its worker failed
    assert shares.all_attained() == {"a": 0.0}
    queue.remove(request)
    placed(shares, request, 100, output=50)
    record = request.record
    record.prompt_tokens, record.cached_tokens, record.output_tokens = 120, 90, 10
    shares.ended(request)
    assert shares.all_attained() == {"a": 30.0 + 2 * 10}


def test_an_end_that_tells_nothing_leaves_the_expectation(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    request = make_request("r", tenant="a")
    placed(shares, request, 100)
    shares.ended(request)
    assert shares.all_attained() == {"a": 100.0}


def test_a_flood_leaves_room_in_the_queue_for_others(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    queue = new_queue(shares, max_queued=90)
    for number in range(80):
        queue.check_room("flood")
        queue.push(make_request(f"f{number}", tenant="flood"))
    with pytest.raises(AdmissionRejected, match="80 requests of tenant 'flood' are waiting"):
        queue.check_room("flood")
    for number in range(5):
        queue.check_room("calm")
        queue.push(make_request(f"c{number}", tenant="calm"))


def test_the_row_of_a_request_is_the_one_it_was_put_in(
    shares: TenantShares, make_request: MakeRequest
) -> None:
    from hexgen_sglang.coordinator.dispatcher import with_deadline

    queue = new_queue(shares)
    request = make_request("r", tenant="a", deadline_s=10.0)
    queue.push(request)
    with_deadline(request, None, 0.0)  # another class
    queue.reorder(request)
    assert queue.remove(request)
    assert len(queue) == 0
    assert not shares.tenants_waiting


def test_a_worker_counts_tenants_and_leaves_each_its_part(
    make_request: MakeRequest,
    make_worker: Callable[..., Worker],
    make_attempt: Callable[..., Attempt],
) -> None:
    worker = make_worker("w", kv_capacity_tokens=1_000, max_running_requests=10)
    attempts = [
        make_attempt(worker, make_request(f"r{number}", tenant="a"), f"r{number}")
        for number in range(3)
    ]
    assert worker.leaves_room("a", 5_000, 0.1, RULES)  # the first may always come
    for attempt in attempts:
        worker.start(attempt)  # 150 tokens each
    assert worker.leaves_room("a", 50, 0.5, RULES)
    assert not worker.leaves_room("a", 51, 0.5, RULES)
    assert not worker.leaves_room("a", 10, 0.3, RULES)  # of the batch
    assert worker.leaves_room("b", 51, 0.1, RULES)
    assert worker.leaves_room("a", 5_000, 1.0, RULES)
    for attempt in attempts:
        worker.release(attempt, 1.0)
    assert not worker.tenants


def test_a_tenants_part_of_the_working_set_is_kept_from_others(shares: TenantShares) -> None:
    working_set = WorkingSet(1.0, shares)

    def workflow(number: int, tenant: str) -> Any:
        return SimpleNamespace(
            workflow_id=f"{tenant}{number}",
            workflow_type="",
            tenant=tenant,
            is_tagged=True,
            has_begun=False,
            context_tokens=0,
            ended_s=None,
            num_open=1,
            last_active_s=0.0,
        )

    first = workflow(0, "flood")
    working_set.note_placed(first, "m", 100)
    first.ended_s = 0.5
    assert working_set.admits(workflow(1, "flood"), "m", 1_000, 1.0)
    for number in range(2, 12):
        working_set.note_placed(workflow(number, "flood"), "m", 100)
    assert not working_set.admits(workflow(20, "flood"), "m", 1_000, 2.0)
    for number in range(5):
        assert working_set.admits(workflow(number, "calm"), "m", 1_000, 3.0 + number)
        working_set.note_placed(workflow(number, "calm"), "m", 100)
    assert not working_set.admits(workflow(9, "calm"), "m", 1_000, 9.0)
