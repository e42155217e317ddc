"""How a simulated engine orders its waiting queue: SGLang's own policies, or ours.

SGLang's as of 0.5.23: `lpm` and `hrrn` match every waiting prompt with the cache, put back
those that share an uncached prefix with an earlier one, and fall back to order of arrival with
more than 128 waiting. Ours are the plugin's own policy objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.prefix_hold import WORTH_WAITING
from hexgen_sglang.policies.ordering import ORDERING, OrderingPolicy, total_order_key
from hexgen_sglang.sim.engine_request import EngineRequest, OrderKey
from hexgen_sglang.sim.prefix_cache import PrefixCache, Segments

MATCHED_AT_MOST = 128
# A prompt with at most so many cached tokens is compared with the other waiting ones, and put
# back when it shares at least so many with one of them.
SMALL_MATCH = 32

Queue = list[EngineRequest]


class QueueOrder(Protocol):
    """Puts a waiting queue in order, in place.

    Attributes:
        holds_prefixes: a request waits while a prefix that it needs is being computed.
        patience: the longest wait of a prompt for decodes, in prefills of its own; 0: none.
    """

    holds_prefixes: bool
    patience: float

    def sort(self, queue: Queue, cache: PrefixCache, num_processed_tokens: int) -> None:
        """`num_processed_tokens`: prompt tokens that the engine has computed so far."""
        ...


class Arrival:
    """SGLang's `fcfs`: the queue stays as it came, retracted requests at its end."""

    holds_prefixes = False
    patience = 0.0

    def sort(self, queue: Queue, cache: PrefixCache, num_processed_tokens: int) -> None:
        """Nothing to do."""


class Priority:
    """SGLang's `fcfs` with priorities, the smaller value first."""

    holds_prefixes = False
    patience = 0.0

    def sort(self, queue: Queue, cache: PrefixCache, num_processed_tokens: int) -> None:
        """By priority, then arrival."""
        queue.sort(key=lambda request: (request.priority, request.number))


class LongestPrefix:
    """SGLang's `lpm`."""

    holds_prefixes = False
    patience = 0.0

    def sort(self, queue: Queue, cache: PrefixCache, num_processed_tokens: int) -> None:
        """Most cached tokens first; what repeats an uncached prefix of another goes last."""
        if len(queue) > MATCHED_AT_MOST:
            return
        matched, put_back = _matches(queue, cache)
        ranks = {
            id(request): (request in put_back, -tokens)
            for request, tokens in zip(queue, matched, strict=True)
        }
        queue.sort(key=lambda request: ranks[id(request)])


class HighestResponseRatio:
    """SGLang's `hrrn`, whose ratio ages by prefilled tokens instead of seconds."""

    holds_prefixes = False
    patience = 0.0

    def sort(self, queue: Queue, cache: PrefixCache, num_processed_tokens: int) -> None:
        """1 + tokens processed since arrival / own uncached tokens, the largest first."""
        if len(queue) > MATCHED_AT_MOST:
            return
        matched, put_back = _matches(queue, cache)
        ranks = {}
        for request, tokens in zip(queue, matched, strict=True):
            uncached = max(1, request.num_prompt_tokens - tokens)
            waited = num_processed_tokens - request.processed_at_arrival
            ratio = 1.0 + waited / uncached
            ranks[id(request)] = (request in put_back, -ratio, request.number)
        queue.sort(key=lambda request: ranks[id(request)])


class PolicyOrder:
    """The plugin's order, by a policy of the registry.

    Attributes:
        policy: it; whoever changes it clears the keys that requests have.
    """

    def __init__(self, policy: OrderingPolicy, holds_prefixes: bool, patience: float) -> None:
        self.policy = policy
        self.holds_prefixes = holds_prefixes
        self.patience = patience

    def sort(self, queue: Queue, cache: PrefixCache, num_processed_tokens: int) -> None:
        """By the policy's key, which does not change while a request waits."""
        for request in queue:
            if request.order_key is None:
                request.order_key = total_order_key(self.policy, request.view)
        queue.sort(key=_order_key)


def _order_key(request: EngineRequest) -> OrderKey:
    assert request.order_key is not None
    return request.order_key


_OWN: dict[str, Callable[[], QueueOrder]] = {
    "fcfs": Arrival,
    "hrrn": HighestResponseRatio,
    "lpm": LongestPrefix,
    "priority": Priority,
}


def queue_order(
    policy: str,
    ordering: str,
    settings: dict[str, float],
    *,
    holds_prefixes: bool,
    patience: float = 0.0,
) -> QueueOrder:
    """The order of an engine with this `--schedule-policy`.

    Args:
        policy: fcfs, hrrn, lpm, priority or hexgen.
        ordering: the plugin's policy, for hexgen.
        settings: of that policy.
        holds_prefixes: as the plugin does, let a request wait while a prefix that it needs is
            being computed.
        patience: the longest wait of a prompt for decodes that it would stall, in prefills of
            its own, for hexgen.

    Raises:
        ConfigError: unknown policy, or settings out of range.
    """
    if policy == "hexgen":
        return PolicyOrder(ORDERING.create(ordering, **settings), holds_prefixes, patience)
    make = _OWN.get(policy)
    if make is None:
        raise ConfigError(f"engine policy {policy!r}: must be hexgen, {', '.join(sorted(_OWN))}")
    return make()


def repeats(
    request: EngineRequest, in_progress: Sequence[EngineRequest], cache: PrefixCache
) -> bool:
    """Whether prompts in progress will soon cache much of this one that is not cached yet."""
    most = 0
    for other in in_progress:
        if other.view.workflow_id == request.view.workflow_id:
            most = max(most, common_prefix(request.segments, other.segments))
    if most < WORTH_WAITING:
        return False
    return bool(most - cache.num_matched(request.segments, most) >= WORTH_WAITING)


def common_prefix(one: Segments, other: Segments) -> int:
    """Tokens that two prompts share from the first on."""
    shared = 0
    for (key, length), (other_key, other_length) in zip(one, other, strict=False):
        if key != other_key:
            break
        shared += min(length, other_length)
        if length != other_length:
            break
    return shared


def _matches(queue: Queue, cache: PrefixCache) -> tuple[list[int], set[EngineRequest]]:
    """Cached tokens of each, and those put back for sharing an uncached prefix with another."""
    seen = PrefixCache()
    matched: list[int] = []
    put_back: set[EngineRequest] = set()
    for request in queue:
        _, tokens = cache.match(request.fill, request.num_fill_tokens - 1)
        matched.append(tokens)
        if tokens > SMALL_MATCH:
            continue
        if seen.num_matched(request.segments, request.num_prompt_tokens) >= SMALL_MATCH:
            put_back.add(request)
        else:
            seen.insert(request.segments, request.num_prompt_tokens)
    return matched, put_back
