"""Least load in seconds, as in Shepherd Model Gateway.

Rule: (tokens in flight on the worker + the request's own) / measured tokens per second, plus
a barrier `barrier_s * u / (1 - u)` that grows with the used share u of the KV cache.
When to choose it: unequal workers, traffic without workflow tags.
Reads (and how fresh): tokens in flight (counted); throughput (learned; as of the last finish;
while unknown, the mean of the known ones, else `default_tokens_per_s`); KV use (the engine's
report when younger than `stale_after_s`, else the tokens in flight).
Cost: a few operations for each worker.
Trade-offs: knows nothing of prefixes, stages or deadlines; a worker that was idle for long
keeps its old throughput until it works again.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerView
from hexgen_sglang.policies.dispatch.base import (
    DISPATCH,
    Candidate,
    ScoredDispatch,
    own_tokens,
    queued_tokens,
)
from hexgen_sglang.policies.dispatch.rates import known_or_mean
from hexgen_sglang.policies.settings import at_least, positive

# A full cache costs finitely much, so that scores stay finite and comparable.
_MAX_KV_USED_FRAC = 0.99


@DISPATCH.register("least_load")
class LeastLoad(ScoredDispatch):
    """Score: predicted seconds of queued work, with a KV barrier.

    Args:
        barrier_s: seconds that a half-full KV cache costs; at least 0.
        default_tokens_per_s: throughput while no worker's is known; above 0.
        stale_after_s: reports older than this are not used; above 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    price_terms = ("work_s", "num_in_flight")

    def __init__(
        self,
        barrier_s: float = 1.0,
        default_tokens_per_s: float = 1_000.0,
        stale_after_s: float = 3.0,
    ) -> None:
        self.barrier_s = at_least("barrier_s", barrier_s, 0.0)
        self.default_tokens_per_s = positive("default_tokens_per_s", default_tokens_per_s)
        self.stale_after_s = positive("stale_after_s", stale_after_s)

    def score(
        self, request: RequestView, candidate: Candidate, usable: Sequence[Candidate]
    ) -> tuple[float, ...]:
        """Seconds of work, barrier included; then requests in flight."""
        worker = candidate.worker
        rate = known_or_mean(
            worker.tokens_per_s, [c.worker.tokens_per_s for c in usable], self.default_tokens_per_s
        )
        used = min(self._kv_used_frac(worker), _MAX_KV_USED_FRAC)
        work_s = (queued_tokens(worker) + own_tokens(request)) / rate
        return (work_s + self.barrier_s * used / (1.0 - used), float(worker.num_in_flight))

    def _kv_used_frac(self, worker: WorkerView) -> float:
        """Used share of the KV cache, 0 when the capacity is unknown."""
        if not worker.kv_capacity_tokens:
            return 0.0
        load = worker.load
        if load is not None and load.age_s <= self.stale_after_s:
            return load.num_kv_tokens_used / worker.kv_capacity_tokens
        return worker.num_in_flight_tokens / worker.kv_capacity_tokens
