"""Fewest requests in flight.

Rule: the worker with the fewest requests sent there and not finished.
When to choose it: alike workers, unknown request lengths.
Reads (and how fresh): requests in flight, counted by the coordinator; exact.
Cost: one comparison for each worker.
Trade-offs: slow workers get as many requests as fast ones; nobody starves.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.dispatch.base import DISPATCH, Candidate, ScoredDispatch


@DISPATCH.register("least_requests")
class LeastRequests(ScoredDispatch):
    """Score: requests in flight."""

    price_terms = ("num_in_flight",)

    def score(
        self, request: RequestView, candidate: Candidate, usable: Sequence[Candidate]
    ) -> tuple[float, ...]:
        """Requests in flight."""
        return (float(candidate.worker.num_in_flight),)
