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
from hexgen_sglang.policies.dispatch.base import DISPATCH, Candidate, with_room


@DISPATCH.register("round_robin")
class RoundRobin:
    """Next id in the circle; stays a circle when workers come and go."""

    def __init__(self) -> None:
        self._last_id = ""

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """The first id above the last pick, else the smallest."""
        ids = [candidate.worker.worker_id for candidate in with_room(candidates)]
        if not ids:
            return None
        self._last_id = next((worker_id for worker_id in ids if worker_id > self._last_id), ids[0])
        return self._last_id
