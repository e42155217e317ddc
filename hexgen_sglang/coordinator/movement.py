"""Takes back requests that wait at a worker, when it drains or keeps them waiting for too long.

A request that was sent and has not begun costs nothing to send elsewhere. It comes back to the
central queue with its old rank and deadline, when its worker is about to leave, or when it has
waited there for a multiple of what was predicted when it was sent, which is how a worker shows
that it got slow, whatever the cause. Only while another worker has room, and at most so often for
each request. A worker that failed needs none of this: all that it had is tried elsewhere.

What has begun is not known exactly: a stream that has shown nothing may be in its prefill, an
answer in one piece may be half made. Of these as many are taken as the worker said that wait
there, the last sent first. Runs in the coordinator and in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hexgen_sglang.coordinator.live_request import Attempt
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.core.worker import WorkerState

MOST_MOVES = 2  # of one request
DRAIN, SLOW = "drain", "slow"
_INTERVAL_S = 1.0
# Less than this is not slow, whatever was predicted.
_LEAST_OVERDUE_S = 2.0


class Mover:
    """Looks for requests that would better wait here than where they are.

    Args:
        workers: all that are registered.
        rules: when a worker can soon start another request.
        overdue: waiting for so many times as long as was predicted is too long; 0: never.
        recall: takes the attempt back for a reason; it may turn out to have begun.
    """

    def __init__(
        self,
        workers: Callable[[], Iterable[Worker]],
        rules: RoomRules,
        overdue: float,
        recall: Callable[[Attempt, str], None],
    ) -> None:
        self._workers = workers
        self._rules = rules
        self._overdue = overdue
        self._recall = recall
        self._looked_s = float("-inf")

    def look(self, now_s: float) -> None:
        """Take back what is overdue, and what a draining worker has not begun; now and then."""
        if now_s - self._looked_s < _INTERVAL_S:
            return
        self._looked_s = now_s
        for worker in list(self._workers()):
            if worker.state is WorkerState.DRAINING:
                self.drain(worker, now_s)
            elif worker.state is WorkerState.READY and self._overdue:
                self._take(worker, SLOW, now_s)

    def drain(self, worker: Worker, now_s: float) -> None:
        """Take back what waits at a worker that is about to leave."""
        self._take(worker, DRAIN, now_s)

    def _take(self, worker: Worker, reason: str, now_s: float) -> None:
        for attempt in self._waiting(worker, now_s):
            if reason == SLOW and not self._is_overdue(attempt, now_s):
                continue
            if attempt.request.num_moves < MOST_MOVES and self._has_room_elsewhere(attempt, now_s):
                self._recall(attempt, reason)

    def _waiting(self, worker: Worker, now_s: float) -> list[Attempt]:
        """What is taken to wait there, the last sent first."""
        unseen = [a for a in worker.in_flight.values() if a.first_byte_s is None]
        unseen.sort(key=lambda attempt: -attempt.dispatched_s)
        load = worker.fresh_load(now_s, self._rules.stale_after_s)
        if load is not None:
            later = sum(attempt.dispatched_s > worker.load_at_s for attempt in unseen)
            return unseen[: load.num_waiting + later]
        slots = worker.slots or self._rules.default_max_in_flight
        return unseen[: max(0, len(worker.in_flight) - slots)]

    def _is_overdue(self, attempt: Attempt, now_s: float) -> bool:
        expected_s = attempt.expected_first_s
        if expected_s is None:
            return False
        waited_s = now_s - attempt.dispatched_s
        return waited_s > max(_LEAST_OVERDUE_S, self._overdue * expected_s)

    def _has_room_elsewhere(self, attempt: Attempt, now_s: float) -> bool:
        """Whether another worker could soon start it."""
        request = attempt.request
        num_tokens = attempt.num_prompt_tokens + attempt.expected_output_tokens
        return any(
            worker is not attempt.worker
            and worker.state is WorkerState.READY
            and worker.serves(request.lane)
            and worker.worker_id not in request.failed_on
            and worker.is_open(now_s, self._rules)
            and worker.has_kv_room(num_tokens, now_s, self._rules)
            for worker in self._workers()
        )
