"""The contract of a dispatch policy, the registry of them, and filter -> score -> pick.

Pure: worker views and the request come in, a worker id or "wait" goes out. Time is in the
views (ages) and in the request (instants); there is no clock and no randomness here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerState, WorkerView
from hexgen_sglang.policies.registry import PolicyRegistry


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker that could serve the request, at the instant of the decision.

    Attributes:
        worker: the worker's view.
        num_cached_tokens: leading prompt tokens of this request believed to be in that
            worker's prefix cache, from the record of what was sent there; never verified.
        has_room: the worker can soon start the request (batch slot and KV memory). A policy
            must not pick a worker without room; with `sees_full_workers` it may see that one
            would be better, and wait.
    """

    worker: WorkerView
    num_cached_tokens: int = 0
    has_room: bool = True


class DispatchPolicy(Protocol):
    """Picks the worker of one request.

    The same sequence of calls gives the same picks; the order of `candidates` is without
    meaning; state, where there is any (`round_robin`), is in the policy object.

    A policy that may wait for a worker without room has a true class attribute
    `sees_full_workers`; the others are shown workers with room only, which is cheaper.
    """

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """The id of a READY candidate with room, or None: wait for the next event."""
        ...


DISPATCH: PolicyRegistry[DispatchPolicy] = PolicyRegistry("dispatch")


def with_room(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that may be picked now, by worker id."""
    usable = [c for c in candidates if c.has_room and c.worker.state is WorkerState.READY]
    return sorted(usable, key=lambda candidate: candidate.worker.worker_id)


class ScoredDispatch(ABC):
    """Filter those with room, score each, pick the smallest; the worker id breaks ties."""

    @abstractmethod
    def score(
        self, request: RequestView, candidate: Candidate, usable: Sequence[Candidate]
    ) -> tuple[float, ...]:
        """Finite floats, same length for all; the smaller goes first.

        `usable` are all candidates with room, for comparisons between workers.
        """

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """The worker with the smallest score, or None when none has room."""
        usable = with_room(candidates)
        if not usable:
            return None
        best = min(usable, key=lambda c: (self.score(request, c, usable), c.worker.worker_id))
        return best.worker.worker_id


def queued_tokens(worker: WorkerView) -> int:
    """Prompt plus expected output tokens on the worker's hands, counted by the coordinator."""
    return worker.num_in_flight_tokens


def own_tokens(request: RequestView) -> int:
    """Prompt plus expected output tokens of a request; an unknown length counts as 0."""
    return request.num_prompt_tokens + (request.expected_output_tokens or 0)
