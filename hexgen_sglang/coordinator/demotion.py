"""Which workflows cannot meet their deadline any more, and how long they stand back for that.

A workflow that will be late gains nothing by going first, and costs others their deadlines. What
it still needs lies between the time it would take alone on the fastest worker and the time that
such workflows took lately, beside others. Once that is more than is left, its requests are
scheduled by a later instant: `ageing` budgets after that, plus the work that is left. In the
central queue they go behind all that can still be in time; when those budgets have passed, only by
that instant, which lies before that of whatever comes from then on. Nothing is ever dropped for
it, and the workflow's own deadline, by which it is judged, stays.

The instants are known when a request comes, so that a heap finds who is due: O(log n) for each.
Runs in the coordinator and in the simulator, on their clocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace

from hexgen_sglang.coordinator.live_request import QueuedRequest
from hexgen_sglang.coordinator.workflows import OPEN, Workflow

_LEAST_WATCHED = 1_024


class Demotion:
    """Watches the deadlines of open requests.

    Args:
        ageing: budgets of the workflow for which it stands back, at least 0; 0: never does.
        clock: the instants' clock.
        caution: 0: a workflow needs what it would alone on the fastest worker, so that one that
            stands back is surely late; 1: what was learned under load; in between, and beyond.

    Attributes:
        num_demoted: workflows that were, so far.
        on_engine: told of requests at a worker whose deadline was put off there.
    """

    def __init__(self, ageing: float, clock: Callable[[], float], *, caution: float = 0.0) -> None:
        self._ageing = ageing
        self._caution = caution
        self._clock = clock
        self._watched: list[tuple[float, int, QueuedRequest]] = []
        self._num_entries = 0
        self._most_watched = _LEAST_WATCHED
        self.num_demoted = 0
        self.on_engine: Callable[[QueuedRequest], None] = _ignore

    def look(self, request: QueuedRequest) -> None:
        """Bring a request's standing up to date, and watch for its next change.

        Changes `stands_back` and the deadline that policies see; who ranks the request has to
        rank it anew.
        """
        workflow, deadline_s = request.workflow, request.workflow.deadline_s
        alone_s = request.view.predicted_alone_s
        needed_s = alone_s + self._caution * max(0.0, request.view.predicted_remaining_s - alone_s)
        if not self._ageing or deadline_s is None or needed_s <= 0:
            return
        now_s = self._clock()
        hopeless_s = deadline_s - needed_s
        if now_s < hopeless_s:
            self._see(request, deadline_s)
            request.stands_back = False
            self._watch(hopeless_s, request)
            return
        if workflow.demoted_s is None:
            workflow.demoted_s = max(hopeless_s, request.view.arrival_s)
            self.num_demoted += 1
        aged_s = self._aged_s(workflow, deadline_s)
        self._see(request, aged_s + request.view.predicted_remaining_s)
        request.stands_back = now_s < aged_s
        if request.stands_back:
            self._watch(aged_s, request)

    def due(self) -> list[QueuedRequest]:
        """Open requests whose standing changes by now; `look` at each of them."""
        now_s = self._clock()
        found = []
        while self._watched and self._watched[0][0] <= now_s:
            request = heapq.heappop(self._watched)[2]
            if request.record.outcome in OPEN:
                found.append(request)
        return found

    def _aged_s(self, workflow: Workflow, deadline_s: float) -> float:
        """When a demoted workflow stands back no more."""
        assert workflow.demoted_s is not None
        return workflow.demoted_s + self._ageing * max(0.0, deadline_s - workflow.started_s)

    def _see(self, request: QueuedRequest, deadline_s: float) -> None:
        """Have policies, and the worker it is at, see this deadline."""
        if request.view.deadline_s == deadline_s:
            return
        request.view = replace(request.view, deadline_s=deadline_s)
        if request.attempt is not None:
            request.attempt.seen.deadline_s = deadline_s
            request.attempt.worker.version += 1
            self.on_engine(request)

    def _watch(self, instant_s: float, request: QueuedRequest) -> None:
        """Have `due` find the request then; ended ones leave when the heap has doubled."""
        self._num_entries += 1
        heapq.heappush(self._watched, (instant_s, self._num_entries, request))
        if len(self._watched) > self._most_watched:
            self._watched = [row for row in self._watched if row[2].record.outcome in OPEN]
            heapq.heapify(self._watched)
            self._most_watched = max(_LEAST_WATCHED, 2 * len(self._watched))


def _ignore(request: QueuedRequest) -> None:
    """Nobody is told."""
