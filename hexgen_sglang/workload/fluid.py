"""A lower bound on the mean latency of workflows at a rate: what no schedule on a cluster can beat.

Every chunk of a prompt and every token of an answer is made in some step of some worker, and its
request is there while the step lasts. Let each request r of the workflow's longest chain of stages
have a weight v_r, the weights of siblings adding up to 1, and every other request the weight 0. The
longest of the siblings takes at least their weighted mean, so that

    latency of a workflow >= tool time on the chain + sum over r of v_r x (seconds of r's steps).

A step of worker w lasts b_w + (sum over its parts j of m_jw): a base, and what each part adds. With
V the sum of the weights of its requests, split it among its parts:

    V x seconds of the step = sum over j of (v_j b_w + m_jw V)      latency that part j causes
        seconds of the step = sum over j of (v_j b_w / V + m_jw)    time of the worker it takes

Both are equalities, whatever is batched with what. In the long run a worker has no more than a
second of time in a second, so that for any prices p_w >= 0 (weak duality), `rate` workflows a
second and an expectation over workflows

    mean latency >= tool time + E[sum over r of min over w of sum over parts j of r of
                        min over V >= v_j of (v_j b_w + m_jw V + p_w (v_j b_w / V + m_jw))]
                    - (sum over w of p_w) / rate

and the inner minimum is at V = max(v_j, sqrt(p_w b_w v_j / m_jw)). Any prices and weights give a
bound; here prices are raised where a worker is asked for more time than it has. Prefixes are taken
as perfectly reused, memory as endless, and nobody as stalled by others' prefills: a real system
cannot come close where these cost much. Of a short run the rate is its workflows over its whole
span, its end included: one that begins with idle workers may beat the bound at which it arrives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s, prefill_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.latency import Reuse, cached_tokens, request_s
from hexgen_sglang.workload.trace import Trace, TraceRequest, TraceWorkflow

# Of the ascent in the prices: it changes where the bound is best, not that it is one.
_ROUNDS = 150
_FIRST_PRICE_S = 1.0
_STEP, _STEP_HALVES, _MOST_ASKED = 0.5, 20, 10.0

Floats = NDArray[np.float64]
Weigh = Callable[[Sequence[float]], list[float]]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of every request on one kind of worker.

    Attributes:
        owner: index of the request that the part is of.
        count: how many parts like this.
        base_s: of the step it is in.
        more_s: what the part adds to it.
    """

    owner: NDArray[np.int64]
    count: Floats
    base_s: Floats
    more_s: Floats


def fluid_mean_s(trace: Trace, profiles: Sequence[AcceleratorProfile], rate_per_s: float) -> float:
    """The bound, in seconds, for workflows drawn evenly from the trace.

    Args:
        trace: what the workflows are drawn from.
        profiles: one for each worker.
        rate_per_s: workflows that come and end in a second, above 0.

    Raises:
        ConfigError: no profile was given, or the rate is not above 0.
    """
    if not profiles:
        raise ConfigError("profiles=[]: at least one accelerator profile is needed")
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise ConfigError(f"rate_per_s={rate_per_s}: must be a finite number above 0")
    numbers = Counter(profile.name for profile in profiles)
    kinds = list({profile.name: profile for profile in profiles}.values())
    counts = [numbers[profile.name] for profile in kinds]
    parts = [_parts(trace, profile) for profile in kinds]
    found = 0.0
    for weigh in (_longest, _evenly):
        weights, tool_s = _weights(trace, kinds, weigh)
        mean_s = _ascend(parts, counts, weights, rate_per_s, len(trace.workflows))
        found = max(found, tool_s + mean_s)
    return found


def _ascend(
    parts: Sequence[_Parts],
    counts: Sequence[int],
    weights: Floats,
    rate_per_s: float,
    num_workflows: int,
) -> float:
    """The best bound found: prices rise where a worker is asked for more time than it has."""
    prices = np.full(len(parts), _FIRST_PRICE_S)
    has = np.array(counts) / rate_per_s
    best = 0.0
    for number in range(_ROUNDS):
        priced = [_priced(kind, weights, price) for kind, price in zip(parts, prices, strict=True)]
        costs = np.stack([cost for cost, _ in priced])
        chosen = costs.argmin(axis=0)
        value = costs.min(axis=0).sum() / num_workflows - float(prices @ has)
        best = max(best, value)
        busy = [time[chosen == kind].sum() / num_workflows for kind, (_, time) in enumerate(priced)]
        over = np.minimum(np.array(busy) / has, _MOST_ASKED) - 1.0
        prices = prices * np.exp(_STEP / (1 + number / _STEP_HALVES) * over)
    return best


def _priced(parts: _Parts, weights: Floats, price: float) -> tuple[Floats, Floats]:
    """Of each request on this kind of worker: its least cost at this price, and its time then.

    With V = sqrt(p b v / m) the terms m V and p b v / V are equal; with V = v they are m v and p b.
    """
    weight = weights[parts.owner]
    base, more = price * parts.base_s, weight * parts.more_s
    is_batched = base >= more
    shared = np.sqrt(base * more)
    cost = weight * parts.base_s + price * parts.more_s
    cost = parts.count * (cost + np.where(is_batched, 2 * shared, base + more))
    time = parts.count * (parts.more_s + np.where(is_batched, shared, base) / price)

    def by_request(values: Floats) -> Floats:
        return np.bincount(parts.owner, values, weights.size).astype(np.float64)

    return by_request(cost), by_request(time)


def _parts(trace: Trace, profile: AcceleratorProfile) -> _Parts:
    """Every part of every request on such a worker."""
    rows = [
        (owner, *part)
        for owner, (request, num_cached) in enumerate(_requests(trace))
        for part in _request_parts(profile, request, num_cached)
    ]
    owner, count, base_s, more_s = zip(*rows, strict=True)
    return _Parts(np.array(owner), np.array(count), np.array(base_s), np.array(more_s))


def _request_parts(
    profile: AcceleratorProfile, request: TraceRequest, num_cached: int
) -> Iterator[tuple[float, float, float]]:
    """How many, base seconds of their step, and seconds that each adds.

    The least price is concave in what a part adds. Tokens of an answer add more and more in equal
    steps, so half of them at the first's and half at the last's cost no more than all of them.
    """
    base_s = profile.prefill.base_s.value
    start = min(num_cached, request.num_input_tokens - 1)
    while start < request.num_input_tokens:
        size = min(profile.prefill.chunk_tokens.value, request.num_input_tokens - start)
        yield 1.0, base_s, prefill_s(profile, [(size, start)]) - base_s
        start += size
    base_s, frac = profile.decode.base_s.value, profile.decode.repeated_read_frac
    for context in (1, request.num_output_tokens - 1) if request.num_output_tokens > 1 else ():
        held = request.num_input_tokens + context
        shared = 0 if frac is None else held
        more_s = decode_s(profile, 1, held, shared) - base_s
        yield (request.num_output_tokens - 1) / 2, base_s, more_s


def _requests(trace: Trace) -> Iterator[tuple[TraceRequest, int]]:
    """Every request with the prompt tokens that it finds cached, in a fixed order."""
    for workflow in trace.workflows:
        hits = cached_tokens(workflow, Reuse.PERFECT)
        for stage, sibling, request in workflow.requests():
            yield request, hits[stage][sibling]


def _weights(
    trace: Trace, kinds: Sequence[AcceleratorProfile], weigh: Weigh
) -> tuple[Floats, float]:
    """The weights v, in the order of `_requests`, and the mean tool time on the chain."""
    weights: list[float] = []
    tool_s = 0.0
    for workflow in trace.workflows:
        alone = _alone_s(workflow, kinds)
        chain = _longest_chain(workflow, [max(stage) for stage in alone])
        for number, siblings in enumerate(alone):
            weights += weigh(siblings) if number in chain else [0.0] * len(siblings)
        tool_s += sum(workflow.stages[number].tool_s for number in chain)
    return np.array(weights), tool_s / len(trace.workflows)


def _alone_s(workflow: TraceWorkflow, kinds: Sequence[AcceleratorProfile]) -> list[list[float]]:
    """Least seconds of each request alone, as [stage][sibling]."""
    hits = cached_tokens(workflow, Reuse.PERFECT)
    return [
        [
            min(
                request_s(profile, request.num_input_tokens, hit, request.num_output_tokens)
                for profile in kinds
            )
            for request, hit in zip(stage.requests, hits[number], strict=True)
        ]
        for number, stage in enumerate(workflow.stages)
    ]


def _longest_chain(workflow: TraceWorkflow, seconds: Sequence[float]) -> set[int]:
    """The stages, one after the other, that take longest alone."""
    ends: list[float] = []
    before: list[int | None] = []
    for stage, own_s in zip(workflow.stages, seconds, strict=True):
        last = max(stage.after, key=lambda number: ends[number], default=None)
        before.append(last)
        ends.append((0.0 if last is None else ends[last]) + stage.tool_s + own_s)
    at: int | None = max(range(len(ends)), key=lambda number: ends[number])
    chain: set[int] = set()
    while at is not None:
        chain.add(at)
        at = before[at]
    return chain


def _longest(seconds: Sequence[float]) -> list[float]:
    """All weight on the sibling that takes longest."""
    first = max(range(len(seconds)), key=lambda number: seconds[number])
    return [float(number == first) for number in range(len(seconds))]


def _evenly(seconds: Sequence[float]) -> list[float]:
    """The same weight for each."""
    return [1.0 / len(seconds)] * len(seconds)
