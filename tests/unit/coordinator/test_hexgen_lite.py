"""`hexgen_lite` in a real dispatcher: everything goes at once, by the coordinator's own books."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.usage import Usage
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import InFlight, StepCosts, WorkerView
from hexgen_sglang.policies.dispatch import DISPATCH, Candidate
from hexgen_sglang.policies.ordering import ORDERING

MakeRequest = Callable[..., LiveRequest]
MakeWorker = Callable[..., Worker]


class Lite:
    """A coordinator's dispatcher in front of two stock workers, at instants of our choice."""

    def __init__(self, *workers: Worker) -> None:
        self.now_s = 0.0
        self.estimates = Estimates()
        self.dispatcher = Dispatcher(
            DISPATCH.create("hexgen_lite"),
            "hexgen_lite",
            lambda: list(workers),
            self.estimates,
            RoomRules(0, 10_000, 2, 3.0, early=True),
            Metrics(),
            clock=lambda: self.now_s,
            soon=lambda action: action(),
        )
        self.queue = CentralQueue(
            ORDERING.create("fcfs"), 999, 999_999, self.dispatcher.retry_after_s
        )
        self.dispatcher.serve(self.queue)

    def place(self, request: LiveRequest) -> Attempt:
        """The request comes; it must go at once."""
        self.queue.push(request)
        self.dispatcher.run_pass()
        return request.placed.result()

    def end(self, attempt: Attempt, first_s: float, end_s: float) -> None:
        """Its streamed answer came, as HTTP shows it."""
        self.now_s = end_s
        attempt.first_byte_s = first_s
        busy_s = self.dispatcher.release(attempt)
        self.estimates.note_answered(attempt, Usage(2_000, 101, 0), busy_s, end_s)


def test_no_request_waits_in_the_coordinator_however_full_the_workers_are(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    lite = Lite(make_worker("a", max_in_flight=1), make_worker("b", max_in_flight=1))
    places = [
        lite.place(make_request(f"r{n}", arrival_s=float(n), num_prompt_tokens=500)).worker
        for n in range(40)
    ]
    assert len(lite.queue) == 0
    counts = sorted(len(worker.in_flight) for worker in set(places))
    assert sum(counts) == 40
    assert counts[0] >= 15  # both are alike as far as the books say


def test_it_learns_from_http_alone_which_worker_is_faster(
    make_request: MakeRequest, make_worker: MakeWorker
) -> None:
    lite = Lite(make_worker("fast"), make_worker("slow"))
    for number in range(4):
        for name, prefill_s, decode_s in (("fast", 0.5, 2.0), ("slow", 2.0, 10.0)):
            request = make_request(f"{name}-{number}", num_prompt_tokens=2_000)
            request.failed_on = {"fast", "slow"} - {name}
            began_s = lite.now_s
            attempt = lite.place(request)
            assert attempt.worker.worker_id == name
            lite.end(attempt, began_s + prefill_s, began_s + prefill_s + decode_s)
    names = [
        lite.place(
            make_request(f"r{n}", arrival_s=9.0 + n, num_prompt_tokens=2_000)
        ).worker.worker_id
        for n in range(40)
    ]
    assert names[0] == "fast"
    assert names.count("fast") > names.count("slow") > 0


def in_flight(**fields: object) -> InFlight:
    seen = InFlight("x", "of-x", "draft", 4_000, 4_000, 200, 90.0, None, None, 0.0, 1)
    for name, value in fields.items():
        setattr(seen, name, value)
    return seen


def end_s(*busy: InFlight) -> float:
    """Predicted seconds of a request on a worker with these."""
    policy = DISPATCH.create("hexgen_lite")
    view = WorkerView(
        "w",
        num_in_flight=len(busy),
        in_flight=busy,
        now_s=100.0,
        costs=StepCosts(0.0, 0.0005, 0.0, 0.02, 0.001, 0.0),
    )
    asked = RequestView("r", "r", 100.0, num_prompt_tokens=1_000, expected_output_tokens=100)
    assert policy.pick(asked, [Candidate(view)]) == "w"
    (price,) = policy.prices
    return dict(zip(policy.price_terms, price.terms, strict=True))["wait_s"]


def test_an_answer_in_one_piece_is_taken_to_decode_once_its_prefill_should_be_over() -> None:
    # A prefill of 2 s that began 10 s ago: over, unless a stream has still not begun.
    assert end_s(in_flight(streams=False)) == 0.0
    assert end_s(in_flight(streams=True)) == pytest.approx(2.0)
    # The sixth of such prefills, one after the other, ends 12 s after the first began.
    queue = [in_flight(streams=False) for _ in range(6)]
    assert end_s(*queue) == pytest.approx(2.0)


def test_the_prices_of_both_policies_agree_where_there_is_room() -> None:
    view = WorkerView("w", in_flight=[in_flight()], num_in_flight=1, now_s=100.0)
    other = replace(view, worker_id="v", in_flight=(), num_in_flight=0)
    asked = RequestView("r", "r", 100.0, num_prompt_tokens=1_000, expected_output_tokens=100)
    both = []
    for name in ("hexgen_lite", "marginal_cost"):
        policy = DISPATCH.create(name)
        policy.pick(asked, [Candidate(view), Candidate(other)])
        both.append(policy.prices)
    assert both[0] == both[1]
