"""Late binding: gives waiting requests to workers that can soon start them.

A pass runs on every event (arrival, end, load report, change of a worker), at most once per
turn of the event loop, and never by polling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.core.worker import WorkerView
from hexgen_sglang.policies.dispatch import Candidate, DispatchPolicy
from hexgen_sglang.policies.estimators import DecayedRate

# Requests that one pass may step over: their policy waits, or only workers that failed them
# have room.
_MAX_STEPPED_OVER = 64


class Dispatcher:
    """Runs the dispatch policy over the central queue.

    Args:
        ready_workers: the workers that take requests now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        policy: DispatchPolicy,
        policy_name: str,
        ready_workers: Callable[[], list[Worker]],
        estimates: Estimates,
        rules: RoomRules,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._policy_name = policy_name
        self._sees_full_workers = bool(getattr(policy, "sees_full_workers", False))
        self._ready_workers = ready_workers
        self._estimates = estimates
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._pass_is_due = False
        self._pace = DecayedRate()
        self._last_placed_s: float | None = None
        self._queue: CentralQueue | None = None

    def serve(self, queue: CentralQueue) -> None:
        """Take requests from this queue from now on."""
        self._queue = queue

    def kick(self) -> None:
        """Something changed: run a pass soon. Any number of kicks make one pass."""
        if not self._pass_is_due:
            self._pass_is_due = True
            asyncio.get_running_loop().call_soon(self._run_due_pass)

    def retry_after_s(self) -> float:
        """Seconds until about half of a full queue will have left, from the recent pace."""
        per_second = self._pace.per_second
        length = len(self._queue) if self._queue is not None else 0
        return min(60.0, length / 2 / per_second) if per_second else 1.0

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
        crew = _Crew(self._ready_workers(), self._estimates, self._rules, self._clock())
        blocked: set[str] = set()
        num_placed = stepped_over = 0
        for request in queue.in_order(blocked):
            if request.placed.done():
                continue  # its exchange was cancelled and is about to take it out
            if not crew.any_open(request.lane):
                blocked.add(request.lane)
                continue
            started_s = time.perf_counter()
            candidates = crew.candidates(request, self._sees_full_workers)
            has_room = any(candidate.has_room for candidate in candidates)
            if not has_room and not request.failed_on:
                # Smaller requests behind it must not keep the memory from it for ever.
                blocked.add(request.lane)
                continue
            picked = self._policy.pick(request.view, candidates) if has_room else None
            self._metrics.decided(self._policy_name, picked, time.perf_counter() - started_s)
            if picked is not None:
                queue.remove(request)
                self._place(request, crew.by_id[picked], crew)
                num_placed += 1
                continue
            stepped_over += 1
            if stepped_over >= _MAX_STEPPED_OVER:
                break
        return num_placed

    def _place(self, request: LiveRequest, worker: Worker, crew: _Crew) -> None:
        """Count the request as in flight there and wake its exchange."""
        now_s = crew.now_s
        cached = crew.num_cached_tokens(request, worker)
        prompt_tokens = request.view.num_prompt_tokens
        request.num_attempts += 1
        number = request.num_attempts
        attempt = Attempt(
            rid=request.view.request_id + (f".{number}" if number > 1 else ""),
            worker=worker,
            request=request,
            dispatched_s=now_s,
            num_prompt_tokens=prompt_tokens,
            num_uncached_tokens=max(1, prompt_tokens - cached),
            expected_output_tokens=request.view.expected_output_tokens or 0,
            batch=len(worker.in_flight) + 1,
        )
        worker.start(attempt)
        crew.refresh(worker)
        request.attempt = attempt
        self._estimates.note_sent(attempt)
        if self._last_placed_s is not None:
            self._pace.add(1, max(1e-6, now_s - self._last_placed_s))
        self._last_placed_s = now_s
        request.placed.set_result(attempt)


class _Crew:
    """The workers of one pass and their views, each made when first needed."""

    def __init__(
        self, workers: list[Worker], estimates: Estimates, rules: RoomRules, now_s: float
    ) -> None:
        self.now_s = now_s
        self.by_id = {worker.worker_id: worker for worker in workers}
        self._estimates = estimates
        self._rules = rules
        self._open = {w.worker_id for w in workers if w.is_open(now_s, rules)}
        self._views: dict[str, WorkerView] = {}

    def any_open(self, lane: str) -> bool:
        """Whether any worker of the lane can start one more request of some kind."""
        return any(self.by_id[worker_id].serves(lane) for worker_id in self._open)

    def candidates(self, request: LiveRequest, with_full: bool) -> list[Candidate]:
        """The workers that could serve the request; those that failed it only if all did.

        `with_full`: those without room, too.
        """
        able = [worker for worker in self.by_id.values() if worker.serves(request.lane)]
        if request.failed_on:
            able = [w for w in able if w.worker_id not in request.failed_on] or able
        view = request.view
        num_tokens = view.num_prompt_tokens + (view.expected_output_tokens or 0)
        found = []
        for worker in able:
            has_room = worker.worker_id in self._open and worker.has_kv_room(
                num_tokens, self.now_s, self._rules
            )
            if has_room or with_full:
                cached = self.num_cached_tokens(request, worker)
                found.append(Candidate(self._view(worker), cached, has_room))
        return found

    def num_cached_tokens(self, request: LiveRequest, worker: Worker) -> int:
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
            view = worker.view(self.now_s, rates, self._rules)
            self._views[worker.worker_id] = view
        return view


def with_deadline(
    request: LiveRequest, deadline_s: float | None, predicted_remaining_s: float
) -> None:
    """Give a request a new deadline and prediction; its queue must be reordered after."""
    request.view = replace(
        request.view, deadline_s=deadline_s, predicted_remaining_s=predicted_remaining_s
    )
