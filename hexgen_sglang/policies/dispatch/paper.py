"""Workload-balanced dispatch, as HexGen-Flow published it.

Rule: the worker e with the largest alpha x t_base / t_e - (1 - alpha) x W_e / W_base, where
t_e is the expected time of the request alone on e, W_e the work queued there (the sum of the
times its requests still need alone), and base is the worker on which this request is fastest.
While base has no work the request goes there.
  t_e = prompt / prefill rate + expected output / decode rate; the whole prompt, since the
    published policy knows no prefixes.
  W_e = pending prefill tokens / prefill rate + pending decode tokens / decode rate.
When to choose it: to compare with the published system, together with the ordering `urgency`.
Reads (and how fresh): rates (learned from ended requests; unknown: mean of the known ones,
else the defaults); pending tokens (counted, with the engine's report where there is a link).
Cost: a few operations for each worker.
Trade-offs: with a small alpha it balances work, with a large one everything crowds on the
fastest worker; alpha has to be tuned for each cluster and load. Two faults of the published
code are not copied: there the queued work never shrinks, and slow hardware has its work
counted half under fixed names.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerView
from hexgen_sglang.policies.dispatch.base import (
    DISPATCH,
    Candidate,
    Price,
    cheapest_two,
    priced,
    with_room,
)
from hexgen_sglang.policies.dispatch.rates import known_or_mean
from hexgen_sglang.policies.settings import at_least, positive, within


@DISPATCH.register("paper")
class Paper:
    """The published score.

    Args:
        alpha: weight of the speed against the balance, 0 to 1. The authors tune it for each
            cluster and load by simulation, over 0 to 0.5 in the published code.
        default_prefill_tokens_per_s, default_decode_tokens_per_s: rates while none is known;
            above 0.
        default_output_tokens: output length while none is known; at least 1.

    Raises:
        ConfigError: a setting is out of range.
    """

    price_terms = ("minus_score", "alone_s", "queued_s")

    def __init__(
        self,
        alpha: float = 0.4,
        default_prefill_tokens_per_s: float = 2_000.0,
        default_decode_tokens_per_s: float = 30.0,
        default_output_tokens: float = 128.0,
    ) -> None:
        self.alpha = within("alpha", alpha, 0.0, 1.0)
        self.default_prefill = positive(
            "default_prefill_tokens_per_s", default_prefill_tokens_per_s
        )
        self.default_decode = positive("default_decode_tokens_per_s", default_decode_tokens_per_s)
        self.default_output = at_least("default_output_tokens", default_output_tokens, 1.0)
        self.prices: tuple[Price, ...] = ()

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """The worker with the largest score; ties go to the smaller id."""
        usable = with_room(candidates)
        if not usable:
            self.prices = ()
            return None
        workers = [candidate.worker for candidate in usable]
        rates = [self._rates(worker, workers) for worker in workers]
        times = [self._time_s(request, *rate) for rate in rates]
        queued = [self._queued_s(w, *rate) for w, rate in zip(workers, rates, strict=True)]
        base = times.index(min(times))
        if queued[base] <= 0.0:
            self.prices = (priced(usable[base], (-self.alpha, times[base], 0.0)),)
        else:
            scores = [
                (1.0 - self.alpha) * work_s / queued[base] - self.alpha * times[base] / time_s
                for time_s, work_s in zip(times, queued, strict=True)
            ]
            terms = list(zip(scores, times, queued, strict=True))
            self.prices = cheapest_two(usable, [(score,) for score in scores], terms)
        return self.prices[0].worker_id

    def _rates(self, worker: WorkerView, workers: Sequence[WorkerView]) -> tuple[float, float]:
        """Prefill and decode tokens per second, assumed where unknown."""
        prefills = [other.prefill_tokens_per_s for other in workers]
        decodes = [other.decode_tokens_per_s for other in workers]
        return (
            known_or_mean(worker.prefill_tokens_per_s, prefills, self.default_prefill),
            known_or_mean(worker.decode_tokens_per_s, decodes, self.default_decode),
        )

    def _time_s(self, request: RequestView, prefill_rate: float, decode_rate: float) -> float:
        """The request alone on a worker of these rates."""
        output = request.expected_output_tokens or self.default_output
        return request.num_prompt_tokens / prefill_rate + output / decode_rate

    def _queued_s(self, worker: WorkerView, prefill_rate: float, decode_rate: float) -> float:
        """Work on the worker's hands."""
        prefill_s = worker.num_pending_prefill_tokens / prefill_rate
        return prefill_s + worker.num_pending_decode_tokens / decode_rate
