"""What tenants attained of the workers, and what each may have of them next.

Beside the central queue, on its owner's clock; the rule is `policies.fairness`. A request is
charged with what it is expected to use when a worker gets it, and with what it did use when it
ends; one that comes back from a worker is charged with nothing until it is placed again. What
tenants attained at other coordinators before the same workers counts, as these last told it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping

from hexgen_sglang.coordinator.live_request import QueuedRequest
from hexgen_sglang.policies.fairness import AttainedService, service

# Other coordinators are told of so many tenants, and of none that had less than a token.
MOST_TOLD = 4_096
_LEAST_TOLD = 1.0
# Of the queue's free room, one tenant may hold so many times as much: 8/9 of it all, at most.
_FREE_ROOM_FACTOR = 8.0


class TenantShares:
    """Keeps the books of `AttainedService`.

    Args:
        attained: the counters.
        clock: monotonic seconds.
    """

    def __init__(self, attained: AttainedService, clock: Callable[[], float]) -> None:
        self._attained = attained
        self._clock = clock
        self._waiting: dict[str, int] = {}

    @property
    def tenants_waiting(self) -> dict[str, int]:
        """How many requests of each tenant wait in the queue; none of them 0."""
        return self._waiting

    def all_attained(self) -> dict[str, float]:
        """What is left of the service that each tenant was given here, in prompt tokens."""
        return self._attained.all_attained(self._clock())

    def told(self) -> dict[str, float]:
        """The same of the tenants that have most, for other coordinators."""
        attained = self.all_attained()
        most = heapq.nlargest(MOST_TOLD, attained, key=attained.__getitem__)
        return {tenant: attained[tenant] for tenant in most if attained[tenant] >= _LEAST_TOLD}

    def note_elsewhere(self, coordinator_id: str, attained: Mapping[str, float]) -> None:
        """Another coordinator tells what tenants attained there."""
        self._attained.note_elsewhere(coordinator_id, attained, self._clock())

    def levels(self, tenants: Collection[str]) -> dict[str, int]:
        """The level of each of these tenants; the lower one goes first."""
        return self._attained.levels(tenants)

    def share(self, tenant: str, tenants: Collection[str]) -> float:
        """The tenant's part of what these tenants share, 0 to 1."""
        return self._attained.share(tenant, tenants)

    def room_frac(self, tenant: str) -> float:
        """The part of each worker's memory and batch that the tenant may hold."""
        return self._attained.room_frac(tenant, self._waiting.keys())

    def may_wait(self, tenant: str, max_queued: int, num_queued: int) -> bool:
        """Whether one more request of the tenant leaves enough room for those of others."""
        free = max_queued - num_queued
        return self._waiting.get(tenant, 0) < _FREE_ROOM_FACTOR * free

    def queued(self, request: QueuedRequest) -> None:
        """The request waits now; what a worker that failed it was to do for it is given back."""
        tenant = request.view.tenant
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        self._charge(request, 0.0)

    def left(self, request: QueuedRequest) -> None:
        """The request waits no more."""
        tenant = request.view.tenant
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def placed(self, request: QueuedRequest) -> None:
        """A worker got it."""
        attempt = request.attempt
        if attempt is not None:
            expected = attempt.num_uncached_tokens, attempt.seen.expected_output_tokens
            self._charge(request, service(*expected))

    def ended(self, request: QueuedRequest) -> None:
        """It is over; where nobody told what it used, the expectation stays."""
        record = request.record
        if record.prompt_tokens is not None:
            uncached = max(1, record.prompt_tokens - (record.cached_tokens or 0))
            self._charge(request, service(uncached, record.output_tokens or 0))

    def _charge(self, request: QueuedRequest, amount: float) -> None:
        """Have the tenant charged with this much for the request, instead of what it was."""
        if amount != request.charged:
            self._attained.note(request.view.tenant, amount - request.charged, self._clock())
            request.charged = amount
