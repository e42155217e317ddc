"""Prefixes that a worker computes ahead, while a workflow's database runs.

Rule: when the coordinator says with what a workflow's next stage will begin, the worker computes
what it lacks of that, if nothing waits in its queue, and if all that was computed ahead and not
used yet stays within a share of the KV memory. Only one prefix for a workflow at a time.
When to choose it: tools take seconds between stages, workers are not always full.
Reads (and how fresh): the coordinator's word on stages; the worker's own cache and queue, now.
Cost: one prefill step for each prefix, which every request decoding there feels.
Trade-offs (who starves): whoever decodes meanwhile; what other workflows have in the cache.

Runs in the plugin on every rank of an engine, and in the simulator; instants are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.retention.prefixes import WORTH_KEEPING

P = TypeVar("P")


@dataclass(slots=True)
class AheadTotals:
    """Since the start.

    Attributes:
        computed: prompt tokens computed ahead of a request.
        saved: of those, that a later prompt of the workflow began with. It may have come before
            they were ready, or after they had been evicted.
        wasted: of those, that none did before the workflow ended or their time was over.
        refused: prefixes not computed: too many were, or requests waited.
        present: prefixes not computed because the cache had them.
    """

    computed: int = 0
    saved: int = 0
    wasted: int = 0
    refused: int = 0
    present: int = 0


@dataclass(slots=True, eq=False)
class _Ahead(Generic[P]):
    """A prefix that was computed from token `start` on, up to its end."""

    prefix: P
    start: int
    end: int
    expires_s: float

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


class PrefixesAhead(Generic[P]):
    """The prefixes of one worker that were computed ahead.

    Args:
        share: of the KV memory that they may take before they are used, in (0, 1].
        kv_capacity_tokens: the worker's KV memory.
        common: tokens that two prompts share from the first on.

    Attributes:
        totals: counts of what was computed, saved and wasted.

    Raises:
        ConfigError: `share` out of range.
    """

    def __init__(
        self, share: float, kv_capacity_tokens: int, common: Callable[[P, P], int]
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"prewarm share={share}: must be above 0 and at most 1")
        self.totals = AheadTotals()
        self._limit = share * kv_capacity_tokens
        self._common = common
        self._ahead: OrderedDict[str, _Ahead[P]] = OrderedDict()
        self._num_tokens = 0

    def begin(
        self,
        workflow_id: str,
        prefix: P,
        num_tokens: int,
        num_cached: int,
        *,
        is_busy: bool,
        now_s: float,
        ttl_s: float,
    ) -> bool:
        """Whether to compute the prefix now; counted as computed if so.

        Args:
            workflow_id: for whose next prompt.
            prefix: the whole of it,
            num_tokens: and its length.
            num_cached: tokens of it that are in the cache.
            is_busy: requests wait in the worker's queue.
            now_s: the present instant.
            ttl_s: it is wasted when nobody uses it for so long.
        """
        self._expire(now_s)
        num_missing = num_tokens - num_cached
        if num_missing < WORTH_KEEPING:
            self.totals.present += 1
            return False
        is_known = workflow_id in self._ahead
        if is_busy or is_known or self._num_tokens + num_missing > self._limit:
            self.totals.refused += 1
            return False
        self._ahead[workflow_id] = _Ahead(prefix, num_cached, num_tokens, now_s + ttl_s)
        self._num_tokens += num_missing
        self.totals.computed += num_missing
        return True

    def arrived(self, workflow_id: str, prompt: P) -> None:
        """A prompt of the workflow came: does it begin with what was computed ahead?"""
        ahead = self._ahead.get(workflow_id)
        if ahead is None:
            return
        used = min(self._common(ahead.prefix, prompt), ahead.end) - ahead.start
        if used > 0:
            self._leave(workflow_id, used)

    def release(self, workflow_id: str) -> None:
        """The workflow ended or is hopeless: what was computed for it was in vain."""
        if workflow_id in self._ahead:
            self._leave(workflow_id, 0)

    def _expire(self, now_s: float) -> None:
        for workflow_id in [key for key, one in self._ahead.items() if one.expires_s < now_s]:
            self._leave(workflow_id, 0)

    def _leave(self, workflow_id: str, used: int) -> None:
        ahead = self._ahead.pop(workflow_id)
        self._num_tokens -= ahead.num_tokens
        self.totals.saved += used
        self.totals.wasted += ahead.num_tokens - used
