"""Late binding: gives waiting requests to workers that can soon start them.

A pass runs on every event (arrival, end, load report, change of a worker), at most once per
turn of the event loop, and never by polling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from hexgen_sglang.coordinator.estimates import (
    UNKNOWN_OUTPUT_TOKENS,
    Estimates,
    tokens_of_blocks,
)
from hexgen_sglang.coordinator.live_request import Attempt, QueuedRequest, QueueLane, QueueRow
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import InFlight, WorkerView
from hexgen_sglang.policies.dispatch import Candidate, DispatchPolicy
from hexgen_sglang.policies.estimators import DecayedRate

# Requests that one pass may step over because only workers that failed them have room,
_MAX_STEPPED_OVER = 64
# and because the policy waits for a worker: most want the same one, and a pass must stay short.
_MAX_WAITING = 8


class Decisions(Protocol):
    """Hears of every decision."""

    def decided(self, policy: str, picked: str | None, seconds: float) -> None:
        """`policy` picked that worker id, or None to wait, and took `seconds` for it."""
        ...


def soon(action: Callable[[], None]) -> None:
    """Run `action` in the next turn of the running event loop."""
    asyncio.get_running_loop().call_soon(action)


def both(lane: str) -> set[QueueLane]:
    """A model's two lanes of the queue."""
    return {(lane, False), (lane, True)}


class Dispatcher:
    """Runs the dispatch policy over the central queue.

    Args:
        ready_workers: the workers that take requests now.
        clock: monotonic seconds.
        working_set: says when another workflow may begin; None: at any time.
        soon: runs a pass after whatever goes on now.
    """

    def __init__(
        self,
        policy: DispatchPolicy,
        policy_name: str,
        ready_workers: Callable[[], list[Worker]],
        estimates: Estimates,
        rules: RoomRules,
        metrics: Decisions,
        working_set: WorkingSet | None = None,
        clock: Callable[[], float] = time.monotonic,
        soon: Callable[[Callable[[], None]], None] = soon,
    ) -> None:
        self._policy = policy
        self._policy_name = policy_name
        self._sees_full_workers = bool(getattr(policy, "sees_full_workers", False))
        self._ready_workers = ready_workers
        self._estimates = estimates
        self._rules = rules
        self._metrics = metrics
        self._working_set = working_set or WorkingSet(0.0)
        self._clock = clock
        self._soon = soon
        self._pass_is_due = False
        self._pace = DecayedRate()
        self._last_placed_s: float | None = None
        self._queue: CentralQueue | None = None

    @property
    def price_terms(self) -> tuple[str, ...]:
        """Names of the numbers in the prices of its decisions."""
        return self._policy.price_terms

    def serve(self, queue: CentralQueue) -> None:
        """Take requests from this queue from now on."""
        self._queue = queue

    def kick(self) -> None:
        """Something changed: run a pass soon, if anything waits. Any number make one pass."""
        if self._queue and not self._pass_is_due:
            self._pass_is_due = True
            self._soon(self._run_due_pass)

    def retry_after_s(self) -> float:
        """Seconds until about half of a full queue will have left, from the recent pace."""
        per_second = self._pace.per_second
        length = len(self._queue) if self._queue is not None else 0
        return min(60.0, length / 2 / per_second) if per_second else 1.0

    def foresee(self, request: QueuedRequest) -> str | None:
        """The worker that would get the request if it came now, with room or without.

        Nothing is placed or counted. None where nobody can tell: no worker, or a policy whose
        picks depend on those before.
        """
        if not self._sees_full_workers:
            return None
        crew = _Crew(self._ready_workers(), self._estimates, self._rules, self._clock())
        candidates = crew.candidates(request, True)
        picked = self._policy.pick(request.view, candidates)
        prices = self._policy.prices
        return picked or (prices[0].worker_id if prices else None)

    def release(self, attempt: Attempt) -> float:
        """The attempt is over; returns the worker's busy seconds it ended. Idempotent."""
        busy_s = attempt.worker.release(attempt, self._clock())
        if attempt.request.attempt is attempt:
            attempt.request.attempt = None
        self.kick()
        return busy_s

    def _run_due_pass(self) -> None:
        self._pass_is_due = False
        self.run_pass()

    def run_pass(self) -> int:
        """Place what can be placed now; returns how many requests were."""
        queue = self._queue
        if not queue:
            return 0
        queue.advance()
        workers, now_s = self._ready_workers(), self._clock()
        crew = _Crew(workers, self._estimates, self._rules, now_s, queue.shares)
        blocked: set[QueueLane | QueueRow] = set()
        num_placed = stepped_over = 0
        most = _MAX_WAITING if self._sees_full_workers else _MAX_STEPPED_OVER
        for request in queue.in_order(blocked):
            if request.is_placed:
                continue  # its exchange was cancelled and is about to take it out
            if not crew.any_open(request.lane):
                blocked |= both(request.lane)
                continue
            if not crew.any_idle(request.lane) and not self._working_set.admits(
                request.workflow, request.lane, crew.kv_capacity_tokens(request.lane), crew.now_s
            ):
                blocked.add(request.queue_lane)
                continue
            started_s = time.perf_counter()
            candidates = crew.candidates(request, self._sees_full_workers)
            has_room = any(candidate.has_room for candidate in candidates)
            if not has_room and crew.holds_back:
                blocked.add(request.queue_row)  # requests of other tenants may have room
                continue
            if not has_room and not request.failed_on:
                # Smaller requests behind it must not keep the memory from it for ever.
                blocked |= both(request.lane)
                continue
            picked = self._policy.pick(request.view, candidates) if has_room else None
            self._metrics.decided(self._policy_name, picked, time.perf_counter() - started_s)
            if has_room:
                request.decision = request.workflow.decisions.add(
                    request.decision,
                    request.view,
                    picked,
                    crew.now_s,
                    len(candidates),
                    self._policy.prices,
                )
            if picked is not None:
                queue.remove(request)
                self._place(request, crew.by_id[picked], crew)
                num_placed += 1
                continue
            stepped_over += 1
            if stepped_over >= most:
                break
        return num_placed

    def _place(self, request: QueuedRequest, worker: Worker, crew: _Crew) -> None:
        """Count the request as in flight there and wake its exchange."""
        now_s = crew.now_s
        cached = crew.num_cached_tokens(request, worker)
        prompt_tokens = request.view.num_prompt_tokens
        request.num_attempts += 1
        number = request.num_attempts
        attempt = Attempt(
            # No rid may begin with another: SGLang's abort takes all that begin with the one named.
            rid=(f"{number}." if number > 1 else "") + request.view.request_id,
            worker=worker,
            request=request,
            dispatched_s=now_s,
            num_prompt_tokens=prompt_tokens,
            num_uncached_tokens=max(1, prompt_tokens - cached),
            expected_output_tokens=request.view.expected_output_tokens or 0,
            batch=len(worker.in_flight) + 1,
            seen=in_flight_of(
                request.view,
                max(1, prompt_tokens - cached),
                now_s,
                streams=request.incoming.stream,
            ),
            expected_first_s=self._expected_first_s(worker),
        )
        worker.start(attempt)
        crew.refresh(worker)
        self._working_set.note_placed(
            request.workflow, request.lane, prompt_tokens + attempt.expected_output_tokens
        )
        self._estimates.note_sent(attempt)
        if self._last_placed_s is not None:
            self._pace.add(1, max(1e-6, now_s - self._last_placed_s))
        self._last_placed_s = now_s
        request.place(attempt)
        if self._queue is not None and self._queue.shares is not None:
            self._queue.shares.placed(request)

    def _expected_first_s(self, worker: Worker) -> float | None:
        """Seconds until a first token there, by the last decision; None when it told none."""
        for price in self._policy.prices[:1]:
            terms = dict(zip(self._policy.price_terms, price.terms, strict=False))
            if price.worker_id == worker.worker_id and "prefill_s" in terms:
                return terms.get("wait_s", 0.0) + terms["prefill_s"]
        return None


class _Crew:
    """The workers of one pass and their views, each made when first needed.

    Attributes:
        holds_back: the last request had no room somewhere since its tenant holds enough there.
    """

    def __init__(
        self,
        workers: list[Worker],
        estimates: Estimates,
        rules: RoomRules,
        now_s: float,
        shares: TenantShares | None = None,
    ) -> None:
        self.now_s = now_s
        self.holds_back = False
        self._shares = shares
        self.by_id = {worker.worker_id: worker for worker in workers}
        self._estimates = estimates
        self._rules = rules
        self._open = {w.worker_id for w in workers if w.is_open(now_s, rules)}
        self._views: dict[str, WorkerView] = {}

    def any_open(self, lane: str) -> bool:
        """Whether any worker of the lane can start one more request of some kind."""
        return any(self.by_id[worker_id].serves(lane) for worker_id in self._open)

    def any_idle(self, lane: str) -> bool:
        """Whether a worker of the lane has nothing in flight."""
        return any(not w.in_flight and w.serves(lane) for w in self.by_id.values())

    def kv_capacity_tokens(self, lane: str) -> int | None:
        """Of the lane's workers together; None while one's is not known."""
        total = 0
        for worker in self.by_id.values():
            if worker.serves(lane):
                if worker.kv_capacity_tokens is None:
                    return None
                total += worker.kv_capacity_tokens
        return total

    def candidates(self, request: QueuedRequest, with_full: bool) -> list[Candidate]:
        """The workers that could serve the request; those that failed it only if all did.

        `with_full`: those without room, too.
        """
        able = [worker for worker in self.by_id.values() if worker.serves(request.lane)]
        if request.failed_on:
            able = [w for w in able if w.worker_id not in request.failed_on] or able
        view = request.view
        most = view.num_prompt_tokens + (view.expected_output_tokens or 0)
        room_frac = 1.0 if self._shares is None else self._shares.room_frac(view.tenant)
        self.holds_back = False
        found = []
        for worker in able:
            has_room = worker.worker_id in self._open and (
                worker.has_kv_room(most, self.now_s, self._rules)
                or worker.has_kv_room(num_new_tokens(request, worker), self.now_s, self._rules)
            )
            if has_room and self._shares is not None:
                has_room = worker.leaves_room(view.tenant, most, room_frac, self._rules)
                self.holds_back = self.holds_back or not has_room
            if has_room or with_full:
                cached = self.num_cached_tokens(request, worker)
                found.append(Candidate(self._view(worker), cached, has_room))
        return found

    def num_cached_tokens(self, request: QueuedRequest, worker: Worker) -> int:
        """Prompt tokens believed to be cached at the worker."""
        return self._estimates.num_cached_tokens(
            worker.worker_id, request.incoming.shape, request.view.num_prompt_tokens
        )

    def refresh(self, worker: Worker) -> None:
        """The worker got a request: look at it anew."""
        self._views.pop(worker.worker_id, None)
        if not worker.is_open(self.now_s, self._rules):
            self._open.discard(worker.worker_id)

    def _view(self, worker: Worker) -> WorkerView:
        view = self._views.get(worker.worker_id)
        if view is None:
            rates = self._estimates.rates.of(worker.worker_id)
            costs = self._estimates.step_costs(worker.worker_id, worker.hardware)
            view = worker.view(self.now_s, rates, self._rules, costs)
            self._views[worker.worker_id] = view
        return view


def num_new_tokens(request: QueuedRequest, worker: Worker) -> int:
    """KV memory that the request would take at the worker, beside what is held there already."""
    view, shape = request.view, request.incoming.shape
    shared = worker.num_shared_blocks(shape.blocks)
    prompt_tokens = view.num_prompt_tokens
    own = prompt_tokens - tokens_of_blocks(shape, shared, prompt_tokens)
    return own + (view.expected_output_tokens or 0)


def in_flight_of(
    view: RequestView, num_uncached_tokens: int, now_s: float, *, streams: bool = True
) -> InFlight:
    """How policies see a request from its dispatch on."""
    return InFlight(
        request_id=view.request_id,
        workflow_id=view.workflow_id,
        stage=view.stage,
        num_prompt_tokens=view.num_prompt_tokens,
        num_uncached_tokens=num_uncached_tokens,
        expected_output_tokens=max(1, view.expected_output_tokens or UNKNOWN_OUTPUT_TOKENS),
        sent_s=now_s,
        deadline_s=view.deadline_s,
        budget_s=view.budget_s,
        predicted_remaining_s=view.predicted_remaining_s,
        siblings=view.siblings,
        streams=streams,
    )


def with_deadline(
    request: QueuedRequest, deadline_s: float | None, predicted_remaining_s: float
) -> None:
    """Give a request a new deadline and prediction; its queue must be reordered after."""
    budget_s = None if deadline_s is None else deadline_s - request.workflow.started_s
    request.view = replace(
        request.view,
        deadline_s=deadline_s,
        budget_s=budget_s,
        predicted_remaining_s=predicted_remaining_s,
    )
    if request.attempt is not None:
        seen = request.attempt.seen
        seen.deadline_s, seen.budget_s = deadline_s, budget_s
        seen.predicted_remaining_s = predicted_remaining_s
        request.attempt.worker.version += 1
