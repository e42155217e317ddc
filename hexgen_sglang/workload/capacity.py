"""How many workflows per second a cluster could serve at most: the measure of load.

A bound of linear programming, as a yardstick for "60 % of capacity": no real system reaches
it, since it takes every worker as busy without a gap with batches of the largest size.

For each step k and worker w, `t[k][w]` is the mean seconds of w that one workflow's requests
of step k cost: the uncached prompt under perfect reuse as one prefill, and for each output
token a share 1/B of a decode step with B requests. B is the number of requests that fit the
worker's KV memory (at most its batch limit) when every template is stored once and a request
adds what it has behind its template, half its output included, weighted by output tokens.
The bound is the largest rate r for which fractions x[k][w] >= 0 exist with
    sum over w of x[k][w] = 1 for every k, and sum over k of r x[k][w] t[k][w] <= 1 for every w.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.latency import Reuse, cached_tokens, prompt_s, template_part
from hexgen_sglang.workload.prefixes import prompts_of
from hexgen_sglang.workload.trace import Trace


def capacity_per_s(trace: Trace, profiles: Sequence[AcceleratorProfile]) -> float:
    """The bound, in workflows per second, for workflows drawn evenly from the trace.

    Args:
        trace: what the workflows are drawn from.
        profiles: one for each worker.

    Raises:
        ConfigError: no profile was given.
    """
    if not profiles:
        raise ConfigError("profiles=[]: at least one accelerator profile is needed")
    return 1.0 / least_makespan(step_seconds(trace, profiles))


def step_seconds(trace: Trace, profiles: Sequence[AcceleratorProfile]) -> NDArray[np.float64]:
    """t[step][worker] of the module docstring: mean seconds of one workflow's requests.

    A column depends on its own profile only, so that columns can be put together to mixes;
    n workers alike are one worker with a column n times as small.
    """
    batches = [_batch(trace, profile) for profile in profiles]
    rows: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(profiles)))
    for workflow in trace.workflows:
        hits = cached_tokens(workflow, Reuse.PERFECT)
        for stage, sibling, request in workflow.requests():
            context = request.num_input_tokens + request.num_output_tokens / 2
            row = rows[workflow.stages[stage].name]
            for index, (profile, batch) in enumerate(zip(profiles, batches, strict=True)):
                prefill = prompt_s(profile, request.num_input_tokens, hits[stage][sibling])
                step = decode_s(profile, batch, int(batch * context))
                row[index] += prefill + (request.num_output_tokens - 1) * step / batch
    return np.array(list(rows.values())) / len(trace.workflows)


def _batch(trace: Trace, profile: AcceleratorProfile) -> int:
    """B of the module docstring, at least 1."""
    templates: dict[str, int] = {}
    own = weight = 0.0
    for workflow in trace.workflows:
        for prompts, stage in zip(prompts_of(workflow, "0", "0"), workflow.stages, strict=True):
            for prompt, request in zip(prompts, stage.requests, strict=True):
                shared = template_part(prompt)
                for segment in shared:
                    held = templates.get(segment.key, 0)
                    templates[segment.key] = max(held, segment.num_tokens)
                behind = request.num_input_tokens - sum(part.num_tokens for part in shared)
                own += request.num_output_tokens * (behind + request.num_output_tokens / 2)
                weight += request.num_output_tokens
    room = profile.capacity.kv_tokens.value - sum(templates.values())
    return int(min(max(room * weight / own, 1), profile.capacity.max_running_requests.value))


def least_makespan(seconds: NDArray[np.float64]) -> float:
    """Least time in which divisible jobs can be done: min T, sum_w x=1, sum_k x t <= T.

    Solved through its dual, max over y >= 0 of sum_k u_k with u_k <= y_w t[k][w] and
    sum_w y_w = 1, by a simplex method with Bland's rule (sizes here are a dozen by a dozen).

    Args:
        seconds: t[job][worker], positive and finite.

    Raises:
        ConfigError: an entry is not positive or not finite.
    """
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ConfigError("seconds of a step on a worker must be positive and finite")
    jobs, workers = seconds.shape
    scale = float(seconds.max())
    costs = np.concatenate([np.ones(jobs), np.zeros(workers)])
    limits = np.zeros((jobs * workers + 1, jobs + workers))
    for job in range(jobs):
        for worker in range(workers):
            limits[job * workers + worker, job] = 1.0
            limits[job * workers + worker, jobs + worker] = -seconds[job, worker] / scale
    limits[-1, jobs:] = 1.0
    bounds = np.zeros(jobs * workers + 1)
    bounds[-1] = 1.0
    return _simplex(costs, limits, bounds) * scale


def _simplex(
    costs: NDArray[np.float64], limits: NDArray[np.float64], bounds: NDArray[np.float64]
) -> float:
    """Maximum of costs.z with limits z <= bounds, z >= 0, for bounds >= 0."""
    rows, columns = limits.shape
    table = np.zeros((rows + 1, columns + rows + 1))
    table[:rows, :columns] = limits
    table[:rows, columns : columns + rows] = np.eye(rows)
    table[:rows, -1] = bounds
    table[rows, :columns] = -costs
    basis = list(range(columns, columns + rows))
    tolerance = 1e-12
    while True:
        entering = np.flatnonzero(table[rows, :-1] < -tolerance)
        if not entering.size:
            return float(table[rows, -1])
        column = int(entering[0])
        positive = np.flatnonzero(table[:rows, column] > tolerance)
        if not positive.size:
            raise ConfigError("the capacity bound is unbounded: a step costs no time")
        ratios = table[positive, -1] / table[positive, column]
        least = ratios.min()
        ties = positive[ratios <= least + tolerance]
        row = min(ties, key=lambda candidate: basis[candidate])
        table[row] /= table[row, column]
        others = [index for index in range(rows + 1) if index != row]
        table[others] -= np.outer(table[others, column], table[row])
        basis[row] = column
