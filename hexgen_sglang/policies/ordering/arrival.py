"""Order of arrival: the baseline `fcfs`.

Rule: the request that came first goes first.
When to choose it: to compare with; it is what engines do by default.
Reads (and how fresh): arrival instants only; always exact.
Cost: constant for each request.
Trade-offs: nobody starves; a tight workflow waits behind every relaxed one.
"""

from __future__ import annotations

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.ordering.base import ORDERING


@ORDERING.register("fcfs")
class FirstComeFirstServed:
    """Rank by arrival; the caller's tie-break does all the work."""

    def sort_key(self, request: RequestView) -> tuple[float, ...]:
        """One key for all: arrival and id decide."""
        return (0.0,)
