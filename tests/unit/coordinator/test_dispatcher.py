"""The dispatcher's passes: who is asked, who is stepped over, what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hexgen_sglang.coordinator.dispatcher import Dispatcher, with_deadline
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.policies.dispatch import DISPATCH, DispatchPolicy
from hexgen_sglang.policies.ordering import ORDERING

MakeRequest = Callable[..., LiveRequest]
MakeWorker = Callable[..., Worker]
RULES = RoomRules(
    look_ahead=0, look_ahead_tokens=10_000, default_max_in_flight=2, stale_after_s=3.0
)


class Bench:
    """A dispatcher with a queue, run by hand at instants of the test's choice."""

    def __init__(self, *workers: Worker, policy: DispatchPolicy | None = None) -> None:
        self.now_s = 0.0
        self.estimates = Estimates()
        self.dispatcher = Dispatcher(
            policy or DISPATCH.create("least_requests"),
            "test",
            lambda: list(workers),
            self.estimates,
            RULES,
            Metrics(),
            clock=lambda: self.now_s,
        )
        self.queue = CentralQueue(
            ORDERING.create("least_slack"), 100, 10_000, self.dispatcher.retry_after_s
        )
        self.dispatcher.serve(self.queue)

    def push(self, *requests: LiveRequest) -> None:
        for request in requests:
            self.queue.push(request)


def placed_at(request: LiveRequest) -> str | None:
    return request.placed.result().worker.worker_id if request.placed.done() else None


def test_the_first_in_rank_gets_the_room_there_is(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    bench = Bench(make_worker("a"))
    slack, tight, tighter = (
        make_request(name, deadline_s=due) for name, due in [("s", 90.0), ("t", 9.0), ("u", 8.0)]
    )
    bench.push(slack, tight, tighter)
    assert bench.dispatcher.run_pass() == 2
    assert [placed_at(r) for r in (slack, tight, tighter)] == [None, "a", "a"]
    assert len(bench.queue) == 1


def test_each_placement_counts_in_the_next_decision(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    bench = Bench(make_worker("a"), make_worker("b"))
    requests = [make_request(f"r{i}", arrival_s=float(i)) for i in range(5)]
    bench.push(*requests)
    bench.dispatcher.run_pass()
    assert [placed_at(r) for r in requests] == ["a", "b", "a", "b", None]


def test_a_request_goes_to_workers_that_have_not_failed_it(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    bench = Bench(make_worker("a"), make_worker("b"))
    request = make_request("r")
    request.failed_on = {"a"}
    bench.push(request)
    bench.dispatcher.run_pass()
    assert placed_at(request) == "b"
    everywhere = make_request("e")
    everywhere.failed_on = {"a", "b"}
    bench.push(everywhere)
    bench.dispatcher.run_pass()
    assert placed_at(everywhere) is not None


def test_one_that_waits_for_an_untried_worker_does_not_hold_up_the_rest(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    full, free = make_worker("full", max_in_flight=1), make_worker("free")
    bench = Bench(full, free)
    occupant = make_request("o")
    occupant.failed_on = {"free"}
    bench.push(occupant)
    bench.dispatcher.run_pass()
    retried, fresh = make_request("retried", deadline_s=1.0), make_request("fresh")
    retried.failed_on = {"free"}
    bench.push(retried, fresh)
    bench.dispatcher.run_pass()
    assert (placed_at(retried), placed_at(fresh)) == (None, "free")


def test_large_requests_are_not_starved_of_memory_by_small_ones(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    bench = Bench(make_worker("a", max_in_flight=9, kv_capacity_tokens=1_000))
    bench.push(make_request("running", num_prompt_tokens=500))
    bench.dispatcher.run_pass()
    large = make_request("large", num_prompt_tokens=800, deadline_s=5.0)
    small = make_request("small", num_prompt_tokens=10)
    bench.push(large, small)
    assert bench.dispatcher.run_pass() == 0
    assert len(bench.queue) == 2


def test_a_full_model_does_not_block_another(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    other = make_worker("other")
    other.models = ("n",)
    bench = Bench(make_worker("a", max_in_flight=1), other)
    first, second = (make_request(name, lane="m", deadline_s=1.0) for name in "fs")
    third = make_request("t", lane="n")
    bench.push(first, second, third)
    bench.dispatcher.run_pass()
    assert [placed_at(r) for r in (first, second, third)] == ["a", None, "other"]


def test_a_request_whose_exchange_is_leaving_is_not_placed(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    worker = make_worker("a")
    bench = Bench(worker)
    leaving, staying = make_request("leaving", deadline_s=1.0), make_request("staying")
    bench.push(leaving, staying)
    leaving.placed.cancel()
    assert bench.dispatcher.run_pass() == 1
    assert list(worker.in_flight) == ["staying"]


def test_later_attempts_have_ids_of_their_own(
    make_request: MakeRequest, make_worker: MakeWorker, loop: asyncio.AbstractEventLoop
) -> None:
    bench = Bench(make_worker("a"))
    request = make_request("r")
    bench.push(request)
    bench.dispatcher.run_pass()
    first = request.placed.result()
    first.worker.release(first, 0.0)
    request.placed = loop.create_future()
    bench.push(request)
    bench.dispatcher.run_pass()
    assert (first.rid, request.placed.result().rid) == ("r", "2.r")


def test_believed_prefixes_reach_the_policy_and_the_count(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    bench = Bench(make_worker("a"), make_worker("z"), policy=DISPATCH.create("earliest_completion"))
    prompt = "".join(f"table {number}; " for number in range(200))
    first = make_request("first", text=prompt, num_prompt_tokens=700)
    first.failed_on = {"a"}
    bench.push(first)
    bench.dispatcher.run_pass()
    assert placed_at(first) == "z"
    z = first.placed.result().worker
    z.release(first.placed.result(), 1.0)
    second = make_request("second", text=prompt + "more", num_prompt_tokens=701)
    bench.push(second)
    bench.dispatcher.run_pass()
    assert placed_at(second) == "z"
    assert second.placed.result().num_uncached_tokens < 100


def test_retry_after_follows_the_pace(make_request: MakeRequest, make_worker: MakeWorker) -> None:
    worker = make_worker("a", max_in_flight=1)
    bench = Bench(worker)
    assert bench.dispatcher.retry_after_s() == 1.0
    requests = [make_request(f"r{i}", arrival_s=float(i)) for i in range(13)]
    bench.push(*requests)
    for number in range(3):
        bench.now_s = 2.0 * number
        bench.dispatcher.run_pass()
        [attempt] = worker.in_flight.values()
        worker.release(attempt, bench.now_s)
    # one every 2 s; ten are left, half of them leave in 10 s
    assert bench.dispatcher.retry_after_s() == pytest.approx(10.0)


def test_a_new_deadline_reaches_what_policies_see_of_a_request_at_a_worker(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    worker = make_worker("a")
    bench = Bench(worker)
    request = make_request("r", deadline_s=90.0)
    bench.push(request)
    bench.dispatcher.run_pass()
    before = worker.version
    with_deadline(request, 30.0, 4.0)
    (seen,) = worker.seen.values()
    assert (seen.deadline_s, seen.predicted_remaining_s) == (30.0, 4.0)
    assert seen.budget_s == 30.0 - request.workflow.started_s
    assert request.view.budget_s == seen.budget_s
    assert worker.version > before
    with_deadline(request, None, 4.0)
    assert (seen.deadline_s, seen.budget_s) == (None, None)
