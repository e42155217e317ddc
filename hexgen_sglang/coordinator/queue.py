"""The central queue: accepted requests that no worker has yet, ranked by an ordering policy.

Two lanes for each model: for workflows that have begun and for those that have not. So a model
whose workers are full does not hold up the others, and new workflows can wait by themselves,
nearer to the order of their arrival than of their slack.
In each lane what can still meet its deadline goes before what cannot (see `demotion`). While
several tenants wait, what has a deadline goes before best effort, and within either the tenant
that attained less goes first (see `tenant_shares`). Keys do not depend on the present instant; a
request keeps its place until it changes.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import replace

from hexgen_sglang.coordinator.demotion import Demotion
from hexgen_sglang.coordinator.live_request import QueuedRequest, QueueKey, QueueLane, QueueRow
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.ordering import OrderingPolicy, total_order_key

# Share of its slack that counts in the rank of a workflow that has not begun. With all of it short
# workflows, whose deadlines are near, overtake long ones at the door, which makes the tail of the
# latencies longer; with none of it fewer deadlines are met.
_SLACK_AT_THE_DOOR = 0.25

_Entries = list[tuple[QueueKey, QueuedRequest]]


class CentralQueue:
    """A bounded, totally ordered queue.

    Args:
        ordering: ranks the requests.
        max_queued: requests; beyond it `check_room` refuses.
        max_bytes: of their bodies together; likewise.
        retry_after_s: asked for the hint that goes with a refusal.
        demotion: says which requests stand back; None: none do.
        shares: says which tenant goes first; None: all are taken for one.
    """

    def __init__(
        self,
        ordering: OrderingPolicy,
        max_queued: int,
        max_bytes: int,
        retry_after_s: Callable[[], float],
        demotion: Demotion | None = None,
        shares: TenantShares | None = None,
    ) -> None:
        self._ordering = ordering
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._demotion = demotion
        self.shares = shares
        self._rows: dict[QueueRow, _Entries] = {}
        self._length = 0
        self._num_bytes = 0

    def __len__(self) -> int:
        return self._length

    @property
    def is_full(self) -> bool:
        """No new request would be accepted."""
        return self._length >= self._max_queued or self._num_bytes >= self._max_bytes

    def check_room(self, tenant: str = "") -> None:
        """Refuse when the queue is full, or full enough of requests of this tenant.

        Raises:
            AdmissionRejected: with the seconds after which trying again makes sense.
        """
        if self.is_full:
            raise AdmissionRejected(
                f"{self._length} requests of {self._num_bytes} bytes are waiting: at most "
                f"{self._max_queued} of {self._max_bytes} bytes may",
                self._retry_after_s(),
            )
        if self.shares and not self.shares.may_wait(tenant, self._max_queued, self._length):
            raise AdmissionRejected(
                f"{self.shares.tenants_waiting[tenant]} requests of tenant {tenant!r} are waiting, "
                f"and the room that is left of {self._max_queued} is for others",
                self._retry_after_s(),
            )

    def push(self, request: QueuedRequest) -> None:
        """Put an accepted request in its place; also one that comes back from a worker.

        A request that comes back has its old arrival and so its old rank; it always fits.
        """
        # First what became hopeless before it: a workflow stands back from the earliest instant.
        self.advance()
        self._insert(request)

    def _insert(self, request: QueuedRequest) -> None:
        if self._demotion is not None:
            self._demotion.look(request)
        key = total_order_key(self._ordering, _ranked(request))
        request.queue_key = key
        request.queue_lane = (request.lane, request.workflow.has_begun)
        request.queue_row = self._row(request)
        insort(self._rows.setdefault(request.queue_row, []), (key, request))
        if self.shares is not None:
            self.shares.queued(request)
        self._length += 1
        self._num_bytes += request.incoming.num_bytes

    def remove(self, request: QueuedRequest) -> bool:
        """Take a request out; False when it is not waiting here."""
        key = request.queue_key
        if key is None:
            return False
        entries = self._rows[request.queue_row]
        # A shorter tuple sorts before the entry with the same key; keys are unique.
        del entries[bisect_left(entries, (key,))]
        if not entries:
            del self._rows[request.queue_row]
        if self.shares is not None:
            self.shares.left(request)
        request.queue_key = None
        self._length -= 1
        self._num_bytes -= request.incoming.num_bytes
        return True

    def reorder(self, request: QueuedRequest) -> None:
        """Look at a request anew after its deadline changed; one that waits here is ranked anew."""
        if self.remove(request):
            self._insert(request)
        elif self._demotion is not None:
            self._demotion.look(request)

    def use(self, ordering: OrderingPolicy) -> None:
        """Rank by another policy from now on, what waits included."""
        self._ordering = ordering
        waiting = [request for entries in self._rows.values() for _, request in entries]
        for request in waiting:
            self.reorder(request)

    def advance(self) -> None:
        """Rank anew what can no longer meet its deadline by now, and what has stood back enough."""
        if self._demotion is not None:
            for request in self._demotion.due():
                self.reorder(request)

    def in_order(self, blocked: set[QueueLane | QueueRow]) -> Iterator[QueuedRequest]:
        """Requests by rank over all lanes; those that the caller adds to `blocked` are left.

        The caller may remove the request it was given last, and no other.
        """
        levels = self._levels()
        heads = [(_rank(row, levels), entries[0][0], 0, row) for row, entries in self._rows.items()]
        heapq.heapify(heads)
        while heads:
            _, _, place, row = heads[0]
            if row[0] in blocked or row in blocked:
                heapq.heappop(heads)
                continue
            entries = self._rows[row]
            request = entries[place][1]
            yield request
            was_removed = request.queue_key is None
            place += not was_removed
            if place < len(entries):
                heapq.heapreplace(heads, (_rank(row, levels), entries[place][0], place, row))
            else:
                heapq.heappop(heads)
            if was_removed and levels:  # its tenant attained something, so that all may move
                levels = self._levels()
                heads = [(_rank(row, levels), key, place, row) for _, key, place, row in heads]
                heapq.heapify(heads)

    def _row(self, request: QueuedRequest) -> QueueRow:
        if self.shares is None:
            return request.queue_lane, request.stands_back, False, ""
        is_best_effort = request.view.deadline_s is None
        return request.queue_lane, request.stands_back, is_best_effort, request.view.tenant

    def _levels(self) -> dict[str, int]:
        """Of the tenants that wait; empty while they are fewer than two."""
        waiting = () if self.shares is None else self.shares.tenants_waiting
        return {} if self.shares is None or len(waiting) < 2 else self.shares.levels(waiting)


def _rank(row: QueueRow, levels: dict[str, int]) -> tuple[bool, bool, int]:
    """Which rows go before others, whatever the keys in them."""
    _, stands_back, is_best_effort, tenant = row
    if not levels:
        return stands_back, False, 0
    return stands_back, is_best_effort, levels.get(tenant, 0)


def _ranked(request: QueuedRequest) -> RequestView:
    """What a request is ranked by: of a workflow that has not begun, a nearer deadline."""
    view, workflow = request.view, request.workflow
    if workflow.has_begun or not workflow.is_tagged or view.deadline_s is None:
        return view
    slack_s = view.deadline_s - view.predicted_remaining_s - workflow.started_s
    return replace(view, deadline_s=view.deadline_s - (1.0 - _SLACK_AT_THE_DOOR) * slack_s)
