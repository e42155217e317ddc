"""Earliest predicted completion on unequal workers.

Rule: predicted seconds until the request would end on a worker = wait for the prefills ahead
of it + wait for a batch slot + its own uncached prefill + its own decode at the step time of
the batch it joins. The smallest goes first; near ties go to the holder of the longest prefix.
  wait for prefills: pending prefill tokens / prefill rate.
  wait for a slot: (in flight + 1 - slots) leavers are needed; slots leave at
    slots x decode rate / mean remaining output.
  own prefill: (prompt - `prefix_trust` x believed cached tokens) / prefill rate.
  own decode: expected output / decode rate, the rate taken from the batch it was measured in
    to the batch joined: a step costs 1 + `batch_cost_frac` x batch.
When to choose it: workers of different speed, with or without workflow tags.
Reads (and how fresh): counts of what is in flight (exact); rates (learned, as of the last
finish; unknown: mean of workers of the same hardware, then of all, then the defaults);
prefixes by the coordinator's record of what it sent (unverified, hence the trust factor).
Cost: a few operations for each worker, and one pass for missing rates.
Trade-offs: prices only this request, not the delay it imposes on the others there, and knows
no deadlines; slow workers see little work at low load. Nobody starves: a waiting request is
looked at again on every event.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerView
from hexgen_sglang.policies.dispatch.base import DISPATCH, Candidate, ScoredDispatch
from hexgen_sglang.policies.dispatch.rates import known_or_mean
from hexgen_sglang.policies.settings import at_least, positive, within


@DISPATCH.register("earliest_completion")
class EarliestCompletion(ScoredDispatch):
    """Score: predicted seconds to completion.

    Args:
        prefix_trust: share of the believed cached tokens that is counted, 0 to 1.
        batch_cost_frac: growth of a decode step with each request of the batch, at least 0.
            0.05: A100, A6000 and L40S serving Llama-3.1-70B grow by 2-2.5 % a request, and
            about as much again for 3,000 tokens of its context.
        default_prefill_tokens_per_s, default_decode_tokens_per_s: rates while none is known.
        default_output_tokens: output length while none is known; at least 1.
        tie_s: predictions rounded to this many seconds are ties; above 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    price_terms = ("completion_ticks", "minus_cached_tokens", "num_in_flight")

    def __init__(
        self,
        prefix_trust: float = 0.8,
        batch_cost_frac: float = 0.05,
        default_prefill_tokens_per_s: float = 2_000.0,
        default_decode_tokens_per_s: float = 30.0,
        default_output_tokens: float = 128.0,
        tie_s: float = 0.01,
    ) -> None:
        self.prefix_trust = within("prefix_trust", prefix_trust, 0.0, 1.0)
        self.batch_cost_frac = at_least("batch_cost_frac", batch_cost_frac, 0.0)
        self.default_prefill = positive(
            "default_prefill_tokens_per_s", default_prefill_tokens_per_s
        )
        self.default_decode = positive("default_decode_tokens_per_s", default_decode_tokens_per_s)
        self.default_output = at_least("default_output_tokens", default_output_tokens, 1.0)
        self.tie_s = positive("tie_s", tie_s)

    def score(
        self, request: RequestView, candidate: Candidate, usable: Sequence[Candidate]
    ) -> tuple[float, ...]:
        """Rounded completion; then the longest prefix; then the fewest in flight."""
        completion_s = self.completion_s(request, candidate, usable)
        return (
            float(round(completion_s / self.tie_s)),
            -float(candidate.num_cached_tokens),
            float(candidate.worker.num_in_flight),
        )

    def completion_s(
        self, request: RequestView, candidate: Candidate, usable: Sequence[Candidate]
    ) -> float:
        """Predicted seconds from now until the request would end on the candidate."""
        worker = candidate.worker
        prefill_rate = self._prefill_rate(worker, usable)
        decode_rate = self._decode_rate(worker, usable)
        cached = min(candidate.num_cached_tokens, request.num_prompt_tokens)
        uncached = request.num_prompt_tokens - self.prefix_trust * cached
        output = request.expected_output_tokens or self.default_output
        prefills_s = (worker.num_pending_prefill_tokens + uncached) / prefill_rate
        return prefills_s + self._slot_wait_s(worker, decode_rate) + output / decode_rate

    def _slot_wait_s(self, worker: WorkerView, decode_rate: float) -> float:
        """Seconds until enough requests have left the batch for one more to join."""
        slots = worker.max_running_requests
        if slots is None or slots < 1 or worker.num_in_flight < slots:
            return 0.0
        mean_remaining = worker.num_pending_decode_tokens / worker.num_in_flight
        return (worker.num_in_flight + 1 - slots) * mean_remaining / (slots * decode_rate)

    def _prefill_rate(self, worker: WorkerView, usable: Sequence[Candidate]) -> float:
        """Tokens per second of the worker's prefill, assumed where unknown."""
        if worker.prefill_tokens_per_s is not None:
            return worker.prefill_tokens_per_s
        alike = [c.worker.prefill_tokens_per_s for c in usable if _alike(c.worker, worker)]
        every = (c.worker.prefill_tokens_per_s for c in usable)
        fallback = known_or_mean(None, every, self.default_prefill)
        return known_or_mean(None, alike, fallback)

    def _decode_rate(self, worker: WorkerView, usable: Sequence[Candidate]) -> float:
        """Tokens per second of one request in the batch that this request would join."""
        measured = worker.decode_tokens_per_s
        if measured is None:
            alike = [c.worker.decode_tokens_per_s for c in usable if _alike(c.worker, worker)]
            every = (c.worker.decode_tokens_per_s for c in usable)
            fallback = known_or_mean(None, every, self.default_decode)
            measured = known_or_mean(None, alike, fallback)
        batch = worker.num_in_flight + 1
        if worker.max_running_requests:
            batch = min(batch, worker.max_running_requests)
        cost = self.batch_cost_frac
        return measured * (1.0 + cost * max(1.0, worker.usual_batch)) / (1.0 + cost * batch)


def _alike(one: WorkerView, other: WorkerView) -> bool:
    """Same, stated hardware."""
    return bool(one.hardware) and one.hardware == other.hardware
