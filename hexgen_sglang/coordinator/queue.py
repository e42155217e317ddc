"""The central queue: accepted requests that no worker has yet, ranked by an ordering policy.

Two lanes for each model: for workflows that have begun and for those that have not. So a model
whose workers are full does not hold up the others, and new workflows can wait by themselves,
nearer to the order of their arrival than of their slack.
In each lane what can still meet its deadline goes before what cannot (see `demotion`). Keys do
not depend on the present instant; a request keeps its place until it changes.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import replace

from hexgen_sglang.coordinator.demotion import Demotion
from hexgen_sglang.coordinator.live_request import QueuedRequest, QueueKey, QueueLane
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.ordering import OrderingPolicy, total_order_key

# Share of its slack that counts in the rank of a workflow that has not begun. With all of it short
# workflows, whose deadlines are near, overtake long ones at the door, which makes the tail of the
# latencies longer; with none of it fewer deadlines are met.
_SLACK_AT_THE_DOOR = 0.25

# Of a lane: those that stand back are apart.
_Row = tuple[QueueLane, bool]
_Entries = list[tuple[QueueKey, QueuedRequest]]


class CentralQueue:
    """A bounded, totally ordered queue.

    Args:
        ordering: ranks the requests.
        max_queued: requests; beyond it `check_room` refuses.
        max_bytes: of their bodies together; likewise.
        retry_after_s: asked for the hint that goes with a refusal.
        demotion: says which requests stand back; None: none do.
    """

    def __init__(
        self,
        ordering: OrderingPolicy,
        max_queued: int,
        max_bytes: int,
        retry_after_s: Callable[[], float],
        demotion: Demotion | None = None,
    ) -> None:
        self._ordering = ordering
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._demotion = demotion
        self._rows: dict[_Row, _Entries] = {}
        self._length = 0
        self._num_bytes = 0

    def __len__(self) -> int:
        return self._length

    @property
    def is_full(self) -> bool:
        """No new request would be accepted."""
        return self._length >= self._max_queued or self._num_bytes >= self._max_bytes

    def check_room(self) -> None:
        """Refuse when the queue is full.

        Raises:
            AdmissionRejected: with the seconds after which trying again makes sense.
        """
        if self.is_full:
            raise AdmissionRejected(
                f"{self._length} requests of {self._num_bytes} bytes are waiting: at most "
                f"{self._max_queued} of {self._max_bytes} bytes may",
                self._retry_after_s(),
            )

    def push(self, request: QueuedRequest) -> None:
        """Put an accepted request in its place; also one that comes back from a worker.

        A request that comes back has its old arrival and so its old rank; it always fits.
        """
        if self._demotion is not None:
            self._demotion.look(request)
        key = total_order_key(self._ordering, _ranked(request))
        request.queue_key = key
        request.queue_lane = (request.lane, request.workflow.has_begun)
        insort(self._rows.setdefault(_row(request), []), (key, request))
        self._length += 1
        self._num_bytes += request.incoming.num_bytes

    def remove(self, request: QueuedRequest) -> bool:
        """Take a request out; False when it is not waiting here."""
        key = request.queue_key
        if key is None:
            return False
        entries = self._rows[_row(request)]
        # A shorter tuple sorts before the entry with the same key; keys are unique.
        del entries[bisect_left(entries, (key,))]
        if not entries:
            del self._rows[_row(request)]
        request.queue_key = None
        self._length -= 1
        self._num_bytes -= request.incoming.num_bytes
        return True

    def reorder(self, request: QueuedRequest) -> None:
        """Look at a request anew after its deadline changed; one that waits here is ranked anew."""
        if self.remove(request):
            self.push(request)
        elif self._demotion is not None:
            self._demotion.look(request)

    def advance(self) -> None:
        """Rank anew what can no longer meet its deadline by now, and what has stood back enough."""
        if self._demotion is not None:
            for request in self._demotion.due():
                self.reorder(request)

    def in_order(self, blocked: set[QueueLane]) -> Iterator[QueuedRequest]:
        """Requests by rank over all lanes; lanes that the caller adds to `blocked` are left.

        The caller may remove the request it was given last, and no other.
        """
        heads = [(row[1], entries[0][0], 0, row) for row, entries in self._rows.items()]
        heapq.heapify(heads)
        while heads:
            stands_back, _, place, row = heads[0]
            if row[0] in blocked:
                heapq.heappop(heads)
                continue
            entries = self._rows[row]
            request = entries[place][1]
            yield request
            if request.queue_key is not None:
                place += 1
            if place < len(entries):
                heapq.heapreplace(heads, (stands_back, entries[place][0], place, row))
            else:
                heapq.heappop(heads)


def _ranked(request: QueuedRequest) -> RequestView:
    """What a request is ranked by: of a workflow that has not begun, a nearer deadline."""
    view, workflow = request.view, request.workflow
    if workflow.has_begun or not workflow.is_tagged or view.deadline_s is None:
        return view
    slack_s = view.deadline_s - view.predicted_remaining_s - workflow.started_s
    return replace(view, deadline_s=view.deadline_s - (1.0 - _SLACK_AT_THE_DOOR) * slack_s)


def _row(request: QueuedRequest) -> _Row:
    return request.queue_lane, request.stands_back
