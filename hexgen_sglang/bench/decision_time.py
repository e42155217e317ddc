"""How long one dispatch decision takes: the coordinator's own queue, estimates and dispatcher.

No sockets and no engines: requests of many workflows wait, workers are full but for a few, and
ends come one at a time, each followed by a pass, as in a coordinator under load. A decision is
what `Dispatcher` itself times for its metrics: the candidates' views, their cached prefixes and
the policy's pick.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import COMPLETIONS, IncomingRequest
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.prompt import PromptShape
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.workflows import WorkflowTracker
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts, WorkerState
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.tag import WorkflowTag
from hexgen_sglang.results.statistics import quantile

_RULES = RoomRules(
    look_ahead=2, look_ahead_tokens=16_384, default_max_in_flight=64, stale_after_s=3.0
)
_BATCH = 16  # requests that a worker runs at once
_STAGES = ("link_schema", "generate_candidate", "repair", "judge")


@dataclass
class DecisionTimes:
    """Hears of every decision of a dispatcher.

    Attributes:
        seconds: of each.
        num_placed: how many chose a worker.
    """

    seconds: list[float] = field(default_factory=list)
    num_placed: int = 0

    def decided(self, policy: str, picked: str | None, seconds: float) -> None:
        """See `dispatcher.Decisions`."""
        self.seconds.append(seconds)
        self.num_placed += picked is not None


def measure(
    num_workers: int, num_queued: int, num_ends: int, policy: str = "marginal_cost", seed: int = 0
) -> dict[str, float]:
    """Times of decisions and of whole passes, in microseconds.

    Args:
        num_workers: of four speeds, all full when the measuring begins; at least 1.
        num_queued: requests that wait then; as many come in as are placed.
        num_ends: requests that end, one after the other, each with a pass after it.
        policy: the dispatch policy, with its default settings.
        seed: of lengths, deadlines and of who ends.
    """
    return asyncio.run(_measure(num_workers, num_queued, num_ends, policy, seed))


async def _measure(
    num_workers: int, num_queued: int, num_ends: int, policy: str, seed: int
) -> dict[str, float]:
    chance = random.Random(seed)
    times, passes = DecisionTimes(), list[float]()
    estimates = Estimates()
    workers = [_worker(estimates, number) for number in range(num_workers)]
    dispatcher = Dispatcher(
        DISPATCH.create(policy),
        policy,
        lambda: workers,
        estimates,
        _RULES,
        times,
        soon=lambda action: None,  # passes are run here, and timed
    )
    queue = CentralQueue(
        ORDERING.create("least_slack"), 2 * num_queued, 2**40, dispatcher.retry_after_s
    )
    dispatcher.serve(queue)
    tracker = WorkflowTracker(estimates.stages, 2**20, 3_600.0, {}, lambda workflow: None)
    arrivals = (_request(tracker, chance, number) for number in range(2**30))
    while len(queue) < num_queued:
        queue.push(next(arrivals))
        if len(queue) == num_queued:
            dispatcher.run_pass()
    times.seconds.clear()
    for _ in range(num_ends):
        worker = chance.choice([row for row in workers if row.in_flight])
        attempt = chance.choice(list(worker.in_flight.values()))
        dispatcher.release(attempt)
        while len(queue) < num_queued:
            queue.push(next(arrivals))
        started_s = time.perf_counter()
        dispatcher.run_pass()
        passes.append(time.perf_counter() - started_s)
    return {
        "decision_p50_us": 1e6 * quantile(times.seconds, 0.5),
        "decision_p99_us": 1e6 * quantile(times.seconds, 0.99),
        "pass_p50_us": 1e6 * quantile(passes, 0.5),
        "pass_p99_us": 1e6 * quantile(passes, 0.99),
        "num_decisions": len(times.seconds),
        "num_workers": num_workers,
        "num_queued": num_queued,
    }


def _worker(estimates: Estimates, number: int) -> Worker:
    """A ready worker of one of four speeds, which measured what its steps cost."""
    worker = Worker(f"worker-{number:02}", f"http://127.0.0.1:{20_000 + number}", "config")
    worker.state = WorkerState.READY
    worker.models = ("mock",)
    worker.max_running_requests = _BATCH
    worker.kv_capacity_tokens = 400_000
    slow = 1.0 + number % 4
    costs = StepCosts(0.01, slow / 8_000, 0.0, 0.01 * slow, 0.0005 * slow, 1e-7 * slow)
    estimates.costs.note(worker.worker_id, costs)
    return worker


def _request(tracker: WorkflowTracker, chance: random.Random, number: int) -> LiveRequest:
    """One request of a workflow of several, with a deadline and a prefix of its workflow's."""
    now_s = time.monotonic()
    workflow_id, stage = f"workflow-{number // 8}", chance.choice(_STAGES)
    siblings = chance.choice((1, 1, 4))
    tag = WorkflowTag(
        workflow_id,
        "text2sql",
        stage,
        chance.randrange(5_000, 120_000),
        siblings,
        chance.randrange(siblings),
    )
    tokens = chance.randrange(500, 6_000)
    shape = PromptShape(
        1, 4 * tokens, 0, tuple(hash((number // 8, i)) for i in range(tokens // 64))
    )
    workflow, record = tracker.accept(tag, f"request-{number}", now_s)
    deadline_s = workflow.deadline_s or now_s
    loop = asyncio.get_running_loop()
    return LiveRequest(
        incoming=IncomingRequest(
            COMPLETIONS, {}, tag, "mock", False, False, shape, 1, 512, 4 * tokens
        ),
        view=RequestView(
            request_id=record.request_id,
            workflow_id=workflow_id,
            arrival_s=now_s,
            workflow_type="text2sql",
            stage=stage,
            deadline_s=deadline_s,
            budget_s=deadline_s - workflow.started_s,
            predicted_remaining_s=chance.uniform(1.0, 20.0),
            num_prompt_tokens=tokens,
            expected_output_tokens=chance.randrange(10, 512),
            siblings=siblings,
            sibling_index=tag.sibling_index,
        ),
        workflow=workflow,
        record=record,
        lane="mock",
        placed=loop.create_future(),
        cancelled=loop.create_future(),
    )
