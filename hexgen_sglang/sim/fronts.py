"""What stands in front of the simulated engines: nobody, a model of sglang-router, or the
coordinator's own code (`coordinator_front`).

A front is given each request when the driver sends it, and hands it to an engine, now or later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.router_tree import RouterTree
from hexgen_sglang.workload.streams import Subsystem, stream

Segments = tuple[tuple[str, int], ...]
# (engine, request): the request goes to that engine.
Send = Callable[[Engine, EngineRequest], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One LLM call as the driver sends it.

    Attributes:
        request_id: unique in the run.
        workflow_id, workflow_type, stage, siblings, sibling_index, final: its tag.
        budget_s: what is left until the deadline; None for best effort.
        segments: the prompt.
        num_output_tokens: true output length, for the engine alone.
        priority: SGLang's own.
        tenant: of the tag, too.
    """

    request_id: str
    workflow_id: str
    workflow_type: str
    stage: str
    siblings: int
    sibling_index: int
    final: bool
    budget_s: float | None
    segments: Segments
    num_output_tokens: int
    priority: int = 0
    tenant: str = ""


class Front(Protocol):
    """Finds an engine for each request."""

    def take(self, asked: Asked) -> None:
        """The driver sends a request now.

        Raises:
            ApiError: its workflow is refused.
        """
        ...

    def first_token(self, request_id: str) -> None:
        """An engine gave the request's first token."""
        ...

    def ended(self, engine: Engine, request: EngineRequest) -> None:
        """An engine gave the request's last token."""
        ...

    def load_changed(self, engine: Engine) -> None:
        """What runs or waits in the engine has changed."""
        ...


class Blind:
    """Base of fronts that tell the engine nothing of workflows and need no load reports."""

    def __init__(self, engines: Sequence[Engine], send: Send) -> None:
        self._engines = list(engines)
        self._send = send

    def first_token(self, request_id: str) -> None:
        """Not needed."""

    def ended(self, engine: Engine, request: EngineRequest) -> None:
        """Not needed."""

    def load_changed(self, engine: Engine) -> None:
        """Not needed."""


class InTurn(Blind):
    """The driver itself sends to the engines in turn."""

    _next = 0

    def take(self, asked: Asked) -> None:
        """To the next engine."""
        engine = self._engines[self._next]
        self._next = (self._next + 1) % len(self._engines)
        self._send(engine, engine_request(asked))


class Router(Blind):
    """sglang-router's policies, as of 0.3 with its default settings.

    `cache_aware`: while loads are balanced, to the worker that the longest known prefix belongs
    to, when that is more than 30 % of the prompt; else to the worker with the least load. Loads are
    requests in flight; they are out of balance when they differ by more than 64 and by more
    than a factor of 1.5. `power_of_two`: the less loaded of two drawn at random.
    """

    POLICIES = ("cache_aware", "power_of_two", "round_robin")
    CACHE_THRESHOLD = 0.3
    BALANCE_ABS = 64
    BALANCE_REL = 1.5

    def __init__(
        self,
        engines: Sequence[Engine],
        send: Send,
        policy: str,
        seed: int,
    ) -> None:
        super().__init__(engines, send)
        if policy not in self.POLICIES:
            raise ConfigError(
                f"sglang-router policy {policy!r}: must be {', '.join(self.POLICIES)}"
            )
        self._policy = policy
        self._random = stream(seed, Subsystem.DISPATCH)
        self._loads = dict.fromkeys((engine.name for engine in engines), 0)
        self._by_name = {engine.name: engine for engine in engines}
        self._tree = RouterTree(seed)
        self._count = 0

    def take(self, asked: Asked) -> None:
        """Route by the policy."""
        engine = getattr(self, f"_{self._policy}")(asked)
        self._count += 1
        self._loads[engine.name] += 1
        self._send(engine, engine_request(asked))

    def ended(self, engine: Engine, request: EngineRequest) -> None:
        """One request less there."""
        self.left(engine.name)

    def left(self, worker: str) -> None:
        """A request has left a worker."""
        self._loads[worker] -= 1

    def moved(self, chosen: str, real: str) -> None:
        """The last request went to another worker than chosen; for replays of decisions."""
        self._loads[chosen] -= 1
        self._loads[real] += 1

    def _round_robin(self, asked: Asked) -> Engine:
        return self._engines[self._count % len(self._engines)]

    def _power_of_two(self, asked: Asked) -> Engine:
        first, second = self._random.choice(len(self._engines), size=2, replace=False)
        one, other = self._engines[int(first)], self._engines[int(second)]
        return one if self._loads[one.name] <= self._loads[other.name] else other

    def _cache_aware(self, asked: Asked) -> Engine:
        length = sum(count for _, count in asked.segments)
        loads = self._loads.values()
        most, least = max(loads), min(loads)
        chosen = min(self._engines, key=lambda engine: self._loads[engine.name])
        if most - least <= self.BALANCE_ABS or most <= least * self.BALANCE_REL:
            matched, owner = self._tree.match(asked.segments)
            if matched > self.CACHE_THRESHOLD * length:
                chosen = self._by_name[owner]
        self._tree.insert(asked.segments, chosen.name)
        return chosen


def engine_request(asked: Asked, view: RequestView | None = None) -> EngineRequest:
    """The request as an engine gets it; `view`: what a coordinator's tag tells of it."""
    if view is None:
        view = RequestView(
            request_id=asked.request_id, workflow_id=asked.workflow_id, arrival_s=0.0
        )
    return EngineRequest(view, asked.segments, asked.num_output_tokens, priority=asked.priority)
