"""Figures of a run, each with its definition. Pure: records in, numbers out.

Quantiles are nearest-rank: the smallest observed value that at least a share q of the values
does not exceed, so that "95 % met the deadline" and "P95" mean the same. Several runs (seeds)
of one system are pooled: their workflows count alike.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.records import COMPLETED, RunRecord

Values = NDArray[np.float64]

# Deadline scales of the attainment curve: fine where systems differ.
SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0)


def quantile(values: Sequence[float] | Values, share: float) -> float:
    """Nearest-rank quantile.

    Args:
        values: at least one.
        share: greater than 0, at most 1.

    Raises:
        ConfigError: no values, or the share is out of range.
    """
    if not len(values) or not 0 < share <= 1:
        raise ConfigError(f"quantile {share} of {len(values)} values: needs values and 0 < q <= 1")
    return float(np.sort(np.asarray(values, dtype=float))[_rank(len(values), share)])


def _rank(count: int, share: float) -> int:
    """Index of the nearest-rank quantile; guards against 0.95 x 20 = 19.000000000000004."""
    return min(max(math.ceil(share * count - 1e-9), 1), count) - 1


def attainment(scales: Sequence[float] | Values, deadline_scale: float) -> float:
    """Workflows within their deadline / workflows sent, for deadline = scale x unloaded.

    `scales` are the workflows' latencies as multiples of their unloaded ones; a workflow that
    did not complete has infinity.
    """
    return float(np.mean(np.asarray(scales) <= deadline_scale))


def smallest_scale(scales: Sequence[float] | Values, level: float) -> float | None:
    """The smallest deadline scale with attainment >= `level`; None when none has it."""
    value = quantile(scales, level)
    return value if math.isfinite(value) else None


def goodput_per_s(points: Mapping[float, float], level: float) -> tuple[float | None, bool]:
    """The highest arrival rate with attainment >= `level`, from a few measured rates.

    `points` maps rate to attainment. Between the highest rate up to which all meet the level
    and the next one attainment is taken as linear.

    Returns:
        The rate and whether it is a bound only: True when every measured rate meets the
        level (the true goodput is at least this). None when the lowest rate fails already.
    """
    met: float | None = None
    for rate in sorted(points):
        if points[rate] >= level:
            met = rate
            continue
        if met is None:
            return None, True
        drop = points[met] - points[rate]
        return met + (rate - met) * (points[met] - level) / drop, False
    return met, True


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval: `low` and `high` enclose `confidence` of the draws."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


def block_draws(
    lengths: Sequence[int], draws: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Indices of bootstrap samples of several series, one array [draws, length] a series.

    A circular block bootstrap: workflows that arrive one after the other share queues, so
    blocks of about the square root of the series' length are drawn, not single workflows.
    """
    samples = []
    for length in lengths:
        block = max(1, round(math.sqrt(length)))
        num_blocks = math.ceil(length / block)
        starts = generator.integers(0, length, size=(draws, num_blocks, 1))
        indices = (starts + np.arange(block)) % length
        samples.append(indices.reshape(draws, -1)[:, :length])
    return samples


def paired_ratio(
    baseline: Sequence[Values],
    system: Sequence[Values],
    figure: Callable[[Values], float],
    generator: np.random.Generator,
    draws: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """figure(baseline) / figure(system), above 1 when the system is better at "less is better".

    Args:
        baseline: values by arrival, one array a seed.
        system: the same workflows in the same order under the system.
        figure: of one pooled array.
        generator: the bootstrap's stream.
        draws: bootstrap samples, at least 100.
        confidence: of the interval, between 0 and 1.

    Both sides of a sample draw the same workflows, so that what both have in common (an
    expensive question, a burst) cancels. Percentile interval; samples whose ratio is not a
    finite number (a figure of 0 or infinity) count as the far end.

    Raises:
        ConfigError: the two sides differ in seeds or lengths.
    """
    if [len(values) for values in baseline] != [len(values) for values in system]:
        raise ConfigError("a paired ratio needs the same workflows on both sides")
    value = quotient(figure(np.concatenate(baseline)), figure(np.concatenate(system)))
    samples = block_draws([len(values) for values in baseline], draws, generator)
    ratios = np.empty(draws)
    for draw in range(draws):
        left = [values[index[draw]] for values, index in zip(baseline, samples, strict=True)]
        right = [values[index[draw]] for values, index in zip(system, samples, strict=True)]
        ratios[draw] = quotient(figure(np.concatenate(left)), figure(np.concatenate(right)))
    tail = (1 - confidence) / 2
    return Interval(value, quantile(ratios, tail), quantile(ratios, 1 - tail), confidence)


def quotient(left: float, right: float) -> float:
    """Quotient with a defined value where one is 0 or infinite."""
    if left == right:
        return 1.0
    if right == 0 or math.isinf(left):
        return math.inf
    return left / right


def latencies(run: RunRecord) -> Values:
    """Latency in seconds of each measured workflow, infinite when it did not complete."""
    return np.array(
        [workflow.e2e_s if workflow.completed else math.inf for workflow in run.measured()]
    )


def latency_scales(run: RunRecord) -> Values:
    """Latency of each measured workflow as a multiple of its unloaded one."""
    return np.array(
        [workflow.scale if workflow.completed else math.inf for workflow in run.measured()]
    )


def prefix_hit_frac(runs: Sequence[RunRecord]) -> float | None:
    """Prompt tokens found in cache / prompt tokens, of the measured completed requests."""
    cached = total = 0
    for run in runs:
        for request in run.measured_requests():
            if request.outcome == COMPLETED:
                cached += request.cached_tokens
                total += request.input_tokens
    return cached / total if total else None


def tokens_per_s(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Input and output tokens of all completed requests per second from start to last end.

    With an open loop below capacity this is the offered load; compare it across rates.
    """
    span = sum(run.span_s for run in runs)
    done = [request for run in runs for request in run.requests if request.outcome == COMPLETED]
    return {
        "input": sum(request.input_tokens for request in done) / span,
        "output": sum(request.output_tokens for request in done) / span,
    }


def busy_frac(run: RunRecord) -> dict[str, float]:
    """Share of the run in which a worker had at least one request, sent and not ended.

    A request's time at the dispatcher counts too, when the dispatcher holds it back.
    """
    intervals: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for request in run.requests:
        if request.worker:
            intervals[request.worker].append((request.sent_s, request.end_s))
    return {worker: _covered(spans) / run.span_s for worker, spans in sorted(intervals.items())}


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    covered = 0.0
    reached = -math.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def usd_per_1000_workflows(runs: Sequence[RunRecord], usd_per_hour: float) -> float | None:
    """The cluster's price for the time of the runs, for each 1,000 completed workflows.

    The time is from the start of a run to its last end, warm-up included, since the cluster
    is paid for that long; None when nothing completed.
    """
    hours = sum(run.span_s for run in runs) / 3600
    completed = sum(workflow.completed for run in runs for workflow in run.workflows)
    return 1000 * hours * usd_per_hour / completed if completed else None


def driver_lag_frac(run: RunRecord) -> float:
    """Share of the workflows' latency that is the driver's own lateness.

    The sum over stages of the latest sibling's lag, over all workflows, divided by the sum of
    their latencies: an upper limit of how much the driver lengthened the critical paths.
    """
    lags: dict[tuple[int, int], float] = defaultdict(float)
    for request in run.requests:
        key = (request.workflow, request.stage)
        lags[key] = max(lags[key], request.lag_s)
    total = sum(workflow.e2e_s for workflow in run.workflows)
    return sum(lags.values()) / total if total else 0.0
