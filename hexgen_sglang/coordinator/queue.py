"""The central queue: accepted requests that no worker has yet, ranked by an ordering policy.

One lane for each model, so that a model whose workers are full does not hold up the others.
Keys do not depend on the present instant; a request keeps its place until it changes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from hexgen_sglang.coordinator.live_request import LiveRequest, QueueKey
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.policies.ordering import OrderingPolicy, total_order_key

_Lane = list[tuple[QueueKey, LiveRequest]]


class CentralQueue:
    """A bounded, totally ordered queue.

    Args:
        ordering: ranks the requests.
        max_queued: requests; beyond it `check_room` refuses.
        max_bytes: of their bodies together; likewise.
        retry_after_s: asked for the hint that goes with a refusal.
    """

    def __init__(
        self,
        ordering: OrderingPolicy,
        max_queued: int,
        max_bytes: int,
        retry_after_s: Callable[[], float],
    ) -> None:
        self._ordering = ordering
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._lanes: dict[str, _Lane] = {}
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

    def push(self, request: LiveRequest) -> None:
        """Put an accepted request in its place; also one that comes back from a worker.

        A request that comes back has its old arrival and so its old rank; it always fits.
        """
        key = total_order_key(self._ordering, request.view)
        request.queue_key = key
        insort(self._lanes.setdefault(request.lane, []), (key, request))
        self._length += 1
        self._num_bytes += request.incoming.num_bytes

    def remove(self, request: LiveRequest) -> bool:
        """Take a request out; False when it is not waiting here."""
        key = request.queue_key
        if key is None:
            return False
        lane = self._lanes[request.lane]
        # A shorter tuple sorts before the entry with the same key; keys are unique.
        del lane[bisect_left(lane, (key,))]
        if not lane:
            del self._lanes[request.lane]
        request.queue_key = None
        self._length -= 1
        self._num_bytes -= request.incoming.num_bytes
        return True

    def reorder(self, request: LiveRequest) -> None:
        """Rank a waiting request anew after its view changed; else do nothing."""
        if self.remove(request):
            self.push(request)

    def in_order(self, blocked: set[str]) -> Iterator[LiveRequest]:
        """Requests by rank over all lanes; lanes that the caller adds to `blocked` are left.

        The caller may remove the request it was given last, and no other.
        """
        positions = dict.fromkeys(self._lanes, 0)
        while True:
            heads = [
                (self._lanes[name][at], name)
                for name, at in positions.items()
                if name not in blocked and at < len(self._lanes.get(name, ()))
            ]
            if not heads:
                return
            (_, request), name = min(heads, key=lambda head: head[0][0])
            yield request
            if request.queue_key is not None:
                positions[name] += 1
