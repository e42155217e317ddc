"""Least marginal cost: what a placement costs this workflow and all the others there.

Rule: for each worker, urgency x (predicted seconds until the request would end there) plus the
delay it imposes on the requests already there, each weighted by its own urgency; the least goes
first. When that worker has no room, the request waits for it (or for whatever is best at the
next event).
  end = wait for prefills ahead + wait for KV memory + own prefill + own decode. What a request
    takes of the memory is what it did not find cached there, and its output.
  own prefill: a step over the tokens not believed cached there; what is on its way counts.
  own decode: a step of the batch it joins, times the stall that prefills of others cause there.
  join: a sibling's end counts only where it is later than that of its stage's other siblings,
    beside `sibling_cost_frac` of it.
  shared reads: where a worker reads a prefix once for all that share it, what a request found
    cached counts little beside another of its stage.
  imposed: its prefill stalls every request that decodes there and delays those behind it, and
    its presence lengthens each of their later steps, while both run.
  urgency: 1 - relative slack, from `least_urgency` to 10: the share of its budget that the workflow
    will have used by its end, relative slack = (deadline - now - `caution` x remaining work) /
    budget. So a second costs as it does in the sum of the squares of these shares, the late
    ones' the more the later they are; but nobody gains by stating a budget that nothing could
    keep. Times `early_sibling_weight` for a sibling of a stage whose end another one decides.
    Best effort: a half.
When to choose it: unequal workers and workflows with deadlines; `hexgen` in the bench.
Reads (and how fresh): requests in flight (counted; first tokens as heard, of answers that are
not streamed as predicted); step costs (measured
by the plugin, else rates of ended requests in a usual shape); prefixes by the
coordinator's record; output lengths as learned; deadlines.
Cost: a few operations for each worker, and for each request in flight on one that changed.
Trade-offs: a request may wait although a slow worker is idle; it is looked at again on every
event. Rule and constants come from a simulator study of unequal GPUs and are a first guess.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts, WorkerState, WorkerView
from hexgen_sglang.policies.dispatch.base import DISPATCH, Candidate, Price, priced
from hexgen_sglang.policies.settings import at_least, positive, within

_MAX_STAGES = 16_384
_MAX_WORKERS = 4_096
# Slack and progress of what is in flight are looked at again after so long.
_CROWD_AGE_S = 0.1
# As of a workflow that will have used half of its budget: with less, requests without a deadline go
# to the slow workers while others have one, and get slower than under `least_load`.
_BEST_EFFORT_URGENCY = 0.5
_MOST_URGENCY = 10.0
# Of a worker of which nothing is known: prefill 2,000 tokens/s, 30 ms a step.
_UNKNOWN = StepCosts(0.05, 1 / 2_000, 0.0, 0.03, 0.0007, 2e-7)
# A decode step grows by about so much of itself with each request and its context.
_GROWTH = 0.05


@DISPATCH.register("marginal_cost")
class MarginalCost:
    """The rule above.

    Args:
        prefix_trust: share of the believed cached tokens that is counted, 0 to 1.
        imposed_weight: weight of the delay imposed on others, at least 0.
        sibling_cost_frac: weight of a sibling's own end when it decides nothing, 0 to 1.
        early_sibling_weight: urgency of such a sibling, as a share, 0 to 1.
        least_urgency: of any workflow, one that stands back included; above 0.
        caution: how often the remaining work is taken off the slack, at least 0.
        default_output_tokens: output length while none is known; at least 1.
        may_wait: 1: wait for a better worker; 0: only workers with room count.

    Raises:
        ConfigError: a setting is out of range.
    """

    price_terms = (
        "cost",
        "end_s",
        "wait_s",
        "prefill_s",
        "decode_s",
        "imposed",
        "urgency",
    )

    def __init__(
        self,
        prefix_trust: float = 1.0,
        imposed_weight: float = 1.0,
        sibling_cost_frac: float = 0.05,
        early_sibling_weight: float = 0.6,
        least_urgency: float = 0.02,
        caution: float = 1.0,
        default_output_tokens: float = 128.0,
        may_wait: float = 1.0,
    ) -> None:
        self.prefix_trust = within("prefix_trust", prefix_trust, 0.0, 1.0)
        self.imposed_weight = at_least("imposed_weight", imposed_weight, 0.0)
        self.sibling_cost_frac = within("sibling_cost_frac", sibling_cost_frac, 0.0, 1.0)
        self.early_sibling_weight = within("early_sibling_weight", early_sibling_weight, 0.0, 1.0)
        self.least_urgency = positive("least_urgency", least_urgency)
        self.caution = at_least("caution", caution, 0.0)
        self.default_output = at_least("default_output_tokens", default_output_tokens, 1.0)
        self.sees_full_workers = within("may_wait", may_wait, 0.0, 1.0) >= 0.5
        # (workflow, stage) -> when the last of its placed siblings is expected to end
        self._stage_ends: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._crowds: OrderedDict[str, _Crowd] = OrderedDict()
        self.prices: tuple[Price, ...] = ()

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """The cheapest worker; None when it has no room."""
        ready = [c for c in candidates if c.worker.state is WorkerState.READY]
        if not ready:
            self.prices = ()
            return None
        ready.sort(key=lambda candidate: candidate.worker.worker_id)
        now_s = ready[0].worker.now_s
        stage = (request.workflow_id, request.stage)
        stage_end_s = self._stage_ends.get(stage, now_s) if request.siblings > 1 else now_s
        urgency = self._urgency(
            request.deadline_s, request.budget_s, request.predicted_remaining_s, now_s
        )
        found = [self._price(request, candidate, now_s) for candidate in ready]
        early = urgency * self.early_sibling_weight
        left_s = stage_end_s - now_s
        frac, imposed_weight = self.sibling_cost_frac, self.imposed_weight
        costs = [
            (urgency if now_s + end_s > stage_end_s else early)
            * ((end_s if end_s > left_s else left_s) + frac * end_s)
            + imposed_weight * imposed
            for end_s, _, _, _, imposed in found
        ]
        first = costs.index(min(costs))
        best, best_end_s = ready[first], found[first][0]
        self.prices = (priced(best, (costs[first], *found[first], urgency)),)
        if len(costs) > 1:
            costs[first] = math.inf
            second = costs.index(min(costs))
            terms = (costs[second], *found[second], urgency)
            self.prices += (priced(ready[second], terms),)
        if not best.has_room:
            return None
        if request.siblings > 1:
            self._stage_ends[stage] = max(stage_end_s, now_s + best_end_s)
            self._stage_ends.move_to_end(stage)
            if len(self._stage_ends) > _MAX_STAGES:
                self._stage_ends.popitem(last=False)
        return best.worker.worker_id

    def _price(
        self, request: RequestView, candidate: Candidate, now_s: float
    ) -> tuple[float, float, float, float, float]:
        """Seconds until the end there, of waiting, prefill and decode, and the others' delay.

        The delay imposed on the others is weighted by their urgency.
        """
        crowd = self._crowd(candidate.worker, now_s)
        costs = crowd.costs
        prompt = request.num_prompt_tokens
        cached = self.prefix_trust * min(candidate.num_cached_tokens, max(0, prompt - 1))
        output = request.expected_output_tokens or self.default_output
        own_s = costs.prefill_s(prompt - cached, cached)
        num_read = prompt - crowd.num_shared(request.stage, cached)
        longer_s = costs.decode_request_s + costs.decode_context_s * num_read
        step_s = (crowd.step_s + longer_s) * candidate.worker.decode_stall
        wait_s = crowd.ahead_s + crowd.memory_wait_s(candidate.worker, prompt - cached + output)
        imposed = own_s * crowd.weight + longer_s * crowd.weighted_overlap(output)
        decode_s = (output - 1) * step_s
        return wait_s + own_s + decode_s, wait_s, own_s, decode_s, imposed

    def _crowd(self, worker: WorkerView, now_s: float) -> _Crowd:
        """What is on the worker's hands; kept while nothing there changes."""
        known = self._crowds.get(worker.worker_id)
        if known is None or known.version != worker.version or now_s - known.at_s > _CROWD_AGE_S:
            weights = [
                self._urgency(x.deadline_s, x.budget_s, x.predicted_remaining_s, now_s)
                for x in worker.in_flight
            ]
            known = self._crowds[worker.worker_id] = _Crowd(worker, weights, now_s)
            self._crowds.move_to_end(worker.worker_id)
            if len(self._crowds) > _MAX_WORKERS:
                self._crowds.popitem(last=False)
        return known

    def _urgency(
        self,
        deadline_s: float | None,
        budget_s: float | None,
        remaining_s: float,
        now_s: float,
    ) -> float:
        """Weight of a second of this request."""
        if deadline_s is None or not budget_s or budget_s <= 0:
            return _BEST_EFFORT_URGENCY
        slack = (deadline_s - now_s - self.caution * remaining_s) / budget_s
        return min(_MOST_URGENCY, max(self.least_urgency, 1.0 - slack))


def step_costs(worker: WorkerView) -> StepCosts:
    """What the worker's steps cost: as known, else a usual shape at its learned rates."""
    if worker.costs is not None:
        return worker.costs
    prefill, decode = worker.prefill_tokens_per_s, worker.decode_tokens_per_s
    if prefill is None and decode is None:
        return _UNKNOWN
    token_s = 1 / prefill if prefill else _UNKNOWN.prefill_token_s
    step_s = 1 / decode if decode else _UNKNOWN.decode_base_s
    alone_s = step_s / (1 + _GROWTH * max(1.0, worker.usual_batch))
    return StepCosts(0.0, token_s, 0.0, alone_s, _GROWTH * alone_s, 0.0)


class _Crowd:
    """The requests on one worker's hands at one instant, added up for quick pricing.

    Attributes:
        version: of the worker's view.
        at_s: instant.
        costs: of the worker's steps.
        step_s: a decode step of all of them.
        ahead_s: prefills that have not been heard to end.
        weight: sum of the urgencies.
    """

    __slots__ = (
        "_freed",
        "_held",
        "_left",
        "_stages",
        "_weight_left",
        "_weight_more",
        "ahead_s",
        "at_s",
        "costs",
        "step_s",
        "version",
        "weight",
    )

    def __init__(self, worker: WorkerView, weights: Sequence[float], now_s: float) -> None:
        self.version = worker.version
        self.at_s = now_s
        self.costs = costs = step_costs(worker)
        context = sum([x.num_prompt_tokens for x in worker.in_flight])
        self._stages: dict[str, list[int]] = {}
        if costs.decode_repeated_frac < 1:
            for x in worker.in_flight:
                cached = x.num_prompt_tokens - x.num_uncached_tokens
                self._stages.setdefault(x.stage, []).append(cached)
        repeated = sum(sum(cached) - max(cached) for cached in self._stages.values())
        self.step_s = costs.decode_s(len(worker.in_flight), context, repeated)
        stalled_s = max(1e-6, self.step_s * worker.decode_stall)
        self.ahead_s = 0.0
        prefilled_s = float("-inf")
        rows: list[tuple[float, float, int]] = []
        for x, weight in zip(worker.in_flight, weights, strict=True):
            left = float(x.expected_output_tokens)
            first_s = x.first_token_s
            if first_s is None:
                cached = x.num_prompt_tokens - x.num_uncached_tokens
                prefill_s = costs.prefill_s(x.num_uncached_tokens, cached)
                if not x.streams:  # nobody will tell: one prefill after the other
                    prefilled_s = max(prefilled_s, x.sent_s) + prefill_s
                    first_s = prefilled_s if prefilled_s <= now_s else None
                if first_s is None:
                    self.ahead_s += prefill_s
            if first_s is not None:
                left = max(1.0, left - (now_s - first_s) / stalled_s)
            rows.append((left, weight, x.num_uncached_tokens + x.expected_output_tokens))
        rows.sort()
        # By tokens left, fewest first: running sums of what has left, and of what is longer.
        self._left = [left for left, _, _ in rows]
        self._freed = list(itertools.accumulate(held for _, _, held in rows))
        self._weight_left = list(itertools.accumulate(left * weight for left, weight, _ in rows))
        self._held = self._freed[-1] if rows else 0
        self.weight = sum(weights)
        passed = itertools.accumulate(weight for _, weight, _ in rows)
        self._weight_more = [self.weight - sofar for sofar in passed]

    def num_shared(self, stage: str, num_cached: float) -> float:
        """Context tokens that cost nothing beside those there already; 0 where all are read."""
        if stage not in self._stages:
            return 0.0
        return (1.0 - self.costs.decode_repeated_frac) * num_cached

    def weighted_overlap(self, output: float) -> float:
        """Sum of urgency x tokens that each makes while a request of `output` tokens runs."""
        place = bisect_right(self._left, output)
        if place == 0:
            return output * self.weight
        return self._weight_left[place - 1] + output * self._weight_more[place - 1]

    def memory_wait_s(self, worker: WorkerView, wanted: float) -> float:
        """Seconds until enough KV memory and a batch slot will be free."""
        capacity, slots = worker.kv_capacity_tokens, worker.max_running_requests
        short = 0.0 if capacity is None else self._held + wanted - capacity
        too_many = 0 if not slots else len(self._left) + 1 - slots
        if not self._left or (short <= 0 and too_many <= 0):
            return 0.0
        leaving = max(bisect_left(self._freed, short) + 1 if short > 0 else 0, too_many)
        last = min(leaving, len(self._left)) - 1
        return self._left[last] * self.step_s * worker.decode_stall
