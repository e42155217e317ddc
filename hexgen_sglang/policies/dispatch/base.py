"""The contract of a dispatch policy, the registry of them, and filter -> score -> pick.

Pure: worker views and the request come in, a worker id or "wait" goes out. Time is in the
views (ages) and in the request (instants); there is no clock and no randomness here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerState, WorkerView
from hexgen_sglang.policies.registry import PolicyRegistry


class Candidate(Struct, frozen=True):
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


class Price(NamedTuple):
    """What one worker came to in a decision.

    Attributes:
        worker_id: whose price it is.
        has_room, num_cached_tokens: as in its `Candidate`.
        num_in_flight: requests there at that instant.
        terms: numbers in the order of the policy's `price_terms`; () for a policy without any.
    """

    worker_id: str
    has_room: bool
    num_cached_tokens: int
    num_in_flight: int
    terms: tuple[float, ...]


def priced(candidate: Candidate, terms: tuple[float, ...]) -> Price:
    """The candidate's price of these terms."""
    worker = candidate.worker
    return Price(
        worker.worker_id,
        candidate.has_room,
        candidate.num_cached_tokens,
        worker.num_in_flight,
        terms,
    )


class DispatchPolicy(Protocol):
    """Picks the worker of one request.

    The same sequence of calls gives the same picks; the order of `candidates` is without
    meaning; state, where there is any (`round_robin`), is in the policy object.

    A policy that may wait for a worker without room has a true class attribute
    `sees_full_workers`; the others are shown workers with room only, which is cheaper.
    """

    @property
    def price_terms(self) -> tuple[str, ...]:
        """Names of the numbers in a price."""
        ...

    @property
    def prices(self) -> tuple[Price, ...]:
        """Of the last decision, for people: the winner's, then the runner-up's if there was one.

        A policy that waits for a worker without room names that one first.
        """
        ...

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

    price_terms: tuple[str, ...] = ("score",)
    prices: tuple[Price, ...] = ()

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
        scores = [self.score(request, candidate, usable) for candidate in usable]
        self.prices = cheapest_two(usable, scores)
        return self.prices[0].worker_id if self.prices else None


def cheapest_two(
    candidates: Sequence[Candidate],
    scores: Sequence[tuple[float, ...]],
    terms: Sequence[tuple[float, ...]] | None = None,
) -> tuple[Price, ...]:
    """Prices of the two with the smallest scores, the smaller first; of equal ones the first.

    `terms`: of each candidate; the scores themselves without it.
    """
    told = scores if terms is None else terms
    best = second = -1
    for at, score in enumerate(scores):
        if best < 0 or score < scores[best]:
            best, second = at, best
        elif second < 0 or score < scores[second]:
            second = at
    return tuple(priced(candidates[at], told[at]) for at in (best, second) if at >= 0)


def queued_tokens(worker: WorkerView) -> int:
    """Prompt plus expected output tokens on the worker's hands, counted by the coordinator."""
    return worker.num_in_flight_tokens


def own_tokens(request: RequestView) -> int:
    """Prompt plus expected output tokens of a request; an unknown length counts as 0."""
    return request.num_prompt_tokens + (request.expected_output_tokens or 0)
