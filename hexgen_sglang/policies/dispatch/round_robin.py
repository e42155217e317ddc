"""Workers in turn.

Rule: of the workers with room, the next one by id after the one picked last, in a circle.
When to choose it: to compare with; or for alike workers and alike requests.
Reads (and how fresh): only which workers have room.
Cost: one pass over the workers.
Trade-offs: slow workers get as much as fast ones, long requests count like short ones, and
prefixes are spread over all caches. State: the id picked last, in the policy object.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.dispatch.base import DISPATCH, Candidate, Price, priced, with_room


@DISPATCH.register("round_robin")
class RoundRobin:
    """Next id in the circle; stays a circle when workers come and go."""

    price_terms: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._last_id = ""
        self.prices: tuple[Price, ...] = ()

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """The first id above the last pick, else the smallest."""
        usable = with_room(candidates)
        if not usable:
            self.prices = ()
            return None
        picked = next((c for c in usable if c.worker.worker_id > self._last_id), usable[0])
        self.prices = (priced(picked, ()),)
        self._last_id = picked.worker.worker_id
        return self._last_id
