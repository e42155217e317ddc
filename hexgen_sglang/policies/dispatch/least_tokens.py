"""Fewest tokens in flight.

Rule: the worker with the fewest prompt plus expected output tokens in flight, then the
fewest requests.
When to choose it: alike workers, requests of very different length.
Reads (and how fresh): tokens in flight, counted by the coordinator from its own estimates of
prompt and output lengths; as fresh as the last dispatch or finish.
Cost: one comparison for each worker.
Trade-offs: blind to speed: on unequal workers the slow ones become the tail.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.dispatch.base import (
    DISPATCH,
    Candidate,
    ScoredDispatch,
    queued_tokens,
)


@DISPATCH.register("least_tokens")
class LeastTokens(ScoredDispatch):
    """Score: tokens in flight, then requests in flight."""

    price_terms = ("num_tokens", "num_in_flight")

    def score(
        self, request: RequestView, candidate: Candidate, usable: Sequence[Candidate]
    ) -> tuple[float, ...]:
        """Tokens, then requests in flight."""
        return (float(queued_tokens(candidate.worker)), float(candidate.worker.num_in_flight))
