"""The contract of an ordering policy and the registry of them."""

from __future__ import annotations

from typing import Protocol

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.registry import PolicyRegistry


class OrderingPolicy(Protocol):
    """Ranks the requests of one queue."""

    def sort_key(self, request: RequestView) -> tuple[float, ...]:
        """Finite floats, same length for every request; the smaller key goes first.

        The key must not depend on the present instant, so that a queue keeps it until the
        request itself changes (a new deadline or prediction) and a deep queue stays cheap.
        """
        ...


ORDERING: PolicyRegistry[OrderingPolicy] = PolicyRegistry("ordering")


def total_order_key(
    policy: OrderingPolicy, request: RequestView
) -> tuple[tuple[float, ...], float, str]:
    """The policy's key with arrival and id behind it, so that no two requests are equal."""
    return policy.sort_key(request), request.arrival_s, request.request_id
