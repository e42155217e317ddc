"""From records to the figures of the result: pools seeds, compares with the baseline.

Pure; the definitions of single figures are in `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from hexgen_sglang.results import statistics
from hexgen_sglang.results.host import host_costs
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import LoadResult, Ratio, RunFacts, SystemFigures
from hexgen_sglang.results.statistics import Interval, Values
from hexgen_sglang.workload.streams import Subsystem, stream

Runs = Mapping[str, Sequence[RunFacts]]

GOODPUT_LEVEL = 0.95
LATENCY_FIGURES: dict[str, Callable[[Values], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "p50": lambda values: statistics.quantile(values, 0.50),
    "p95": lambda values: statistics.quantile(values, 0.95),
    "p99": lambda values: statistics.quantile(values, 0.99),
}
_BOOTSTRAP_SEED = 0
_DRAWS = 2_000


def load_result(
    label: str, rate: float, runs: Runs, baseline: str, usd_per_hour: float
) -> LoadResult:
    """Figures of every system at one load.

    Args:
        label: the rate as the user wrote it.
        rate: arrivals per second.
        runs: by system, one for each seed, in the same order of seeds.
        baseline: the system that ratios compare with; one of `runs`.
        usd_per_hour: of the whole cluster.
    """
    broken = tuple(
        f"{name}, {label}, seed {facts.run.seed}: {law}"
        for name, all_facts in runs.items()
        for facts in all_facts
        for law in facts.broken
    )
    systems = {
        name: _figures(all_facts, runs[baseline], usd_per_hour) for name, all_facts in runs.items()
    }
    every = [facts for all_facts in runs.values() for facts in all_facts]
    return LoadResult(rate, label, not broken, broken, overhead_frac(every), systems)


def overhead_frac(facts: Sequence[RunFacts]) -> float | None:
    """Overhead over busy seconds, all workers and runs together; None without emulation."""
    rows = [row for one in facts for row in one.emulation.values()]
    busy_s = sum(row["busy_s"] for row in rows)
    return sum(row["overhead_s"] for row in rows) / busy_s if busy_s else None


def _figures(
    facts: Sequence[RunFacts], baseline: Sequence[RunFacts], usd_per_hour: float
) -> SystemFigures:
    runs = [one.run for one in facts]
    seconds = np.concatenate([statistics.latencies(run) for run in runs])
    scales = np.concatenate([statistics.latency_scales(run) for run in runs])
    requests = [request for run in runs for request in run.measured_requests()]
    ttfts = [request.ttft_s for request in requests if request.ttft_s is not None]
    queues = [request.queue_s for request in requests if request.queue_s is not None]
    waits = [wait for one in facts for wait in one.dispatch_waits_s]
    latency = {name: _finite(figure(seconds)) for name, figure in LATENCY_FIGURES.items()}
    return SystemFigures(
        mean_s=latency["mean"],
        p50_s=latency["p50"],
        p95_s=latency["p95"],
        p99_s=latency["p99"],
        attainment={
            f"{scale:g}": statistics.attainment(scales, scale) for scale in statistics.SCALES
        },
        scale_at_95=statistics.smallest_scale(scales, 0.95),
        scale_at_99=statistics.smallest_scale(scales, 0.99),
        deadline_attainment=_share(np.concatenate([deadlines_met(run) for run in runs])),
        prefix_hit_frac=statistics.prefix_hit_frac(runs),
        num_workflows=len(seconds),
        num_requests=len(requests),
        ttft_mean_s=float(np.mean(ttfts)) if ttfts else None,
        ttft_p95_s=statistics.quantile(ttfts, 0.95) if ttfts else None,
        queue_mean_s=float(np.mean(queues)) if queues else None,
        queue_p95_s=statistics.quantile(queues, 0.95) if queues else None,
        dispatch_wait_mean_s=float(np.mean(waits)) if waits else None,
        tokens_per_s=statistics.tokens_per_s(runs),
        utilisation=_utilisation(facts),
        usd_per_1000_workflows=statistics.usd_per_1000_workflows(runs, usd_per_hour),
        retractions=sum(request.retractions for request in requests),
        overhead_frac=overhead_frac(facts),
        driver_lag_frac=max(statistics.driver_lag_frac(run) for run in runs),
        ratios=_latency_ratios(baseline, facts),
        host=host_costs(facts),
        prefixes=_prefixes(facts),
    )


def _prefixes(facts: Sequence[RunFacts]) -> dict[str, float]:
    """Kept and prewarmed prefix tokens of all runs together."""
    sums: dict[str, float] = {}
    for name, tokens in (row for one in facts for row in one.prefixes.items()):
        sums[name] = sums.get(name, 0.0) + tokens
    return sums


def deadlines_met(run: RunRecord) -> Values:
    """1 for each measured workflow within the deadline that it was sent with, 0 for others.

    Empty when the workload has no deadlines.
    """
    return np.array(
        [
            float(workflow.completed and workflow.e2e_s <= workflow.budget_s)
            for workflow in run.measured()
            if workflow.budget_s is not None
        ]
    )


def _share(met: Values) -> float | None:
    return float(met.mean()) if met.size else None


def _utilisation(facts: Sequence[RunFacts]) -> dict[str, float]:
    """Mean over the runs, by worker."""
    sums: dict[str, float] = {}
    for one in facts:
        used = statistics.busy_frac(one.run)
        if one.emulation:
            used = {name: row["busy_s"] / one.run.span_s for name, row in one.emulation.items()}
        for name, share in used.items():
            sums[name] = sums.get(name, 0.0) + share / len(facts)
    return sums


def _latency_ratios(baseline: Sequence[RunFacts], facts: Sequence[RunFacts]) -> dict[str, Ratio]:
    """Baseline / system for each latency figure."""
    left = [statistics.latencies(one.run) for one in baseline]
    right = [statistics.latencies(one.run) for one in facts]
    return {
        name: _ratio(
            statistics.paired_ratio(
                left, right, figure, stream(_BOOTSTRAP_SEED, Subsystem.BOOTSTRAP), _DRAWS
            )
        )
        for name, figure in LATENCY_FIGURES.items()
    }


def with_goodput(
    loads: Sequence[LoadResult], runs: Sequence[Runs], baseline: str
) -> list[LoadResult]:
    """The loads with each system's goodput at 95 % and its ratio to the baseline's.

    Goodput is about the deadlines that were sent and needs two loads or more; otherwise the
    loads come back unchanged. The ratio is system / baseline: above 1 is better here too. It is
    left out when one of the two is unknown, because it fails at the lowest load already.

    Args:
        loads: by ascending or any other order of rates.
        runs: those of each load.
        baseline: name of a system.
    """
    has_deadlines = all(
        figures.deadline_attainment is not None
        for load in loads
        for figures in load.systems.values()
    )
    if len({load.rate for load in loads}) < 2 or not has_deadlines:
        return list(loads)
    rates = [load.rate for load in loads]
    met = {
        name: [[deadlines_met(one.run) for one in load_runs[name]] for load_runs in runs]
        for name in runs[0]
    }
    found = {
        name: statistics.goodput_per_s(_points(rates, seeds), GOODPUT_LEVEL)
        for name, seeds in met.items()
    }
    fields: dict[str, tuple[float | None, bool, Ratio | None]] = {
        name: (
            *found[name],
            None
            if found[name][0] is None or found[baseline][0] is None
            else _goodput_ratio(rates, met[baseline], met[name]),
        )
        for name in met
    }
    return [_with_goodput(load, fields) for load in loads]


def _with_goodput(
    load: LoadResult, fields: Mapping[str, tuple[float | None, bool, Ratio | None]]
) -> LoadResult:
    systems = {}
    for name, figures in load.systems.items():
        goodput, is_bound, ratio = fields[name]
        systems[name] = msgspec.structs.replace(
            figures,
            goodput_at_95_per_s=goodput,
            goodput_is_bound=is_bound,
            ratios=figures.ratios if ratio is None else {**figures.ratios, "goodput": ratio},
        )
    return msgspec.structs.replace(load, systems=systems)


def _points(rates: Sequence[float], met: Sequence[Sequence[Values]]) -> dict[float, float]:
    """Attainment by rate, seeds pooled."""
    return {
        rate: float(np.concatenate(seeds).mean()) for rate, seeds in zip(rates, met, strict=True)
    }


def _goodput_ratio(
    rates: Sequence[float],
    baseline: Sequence[Sequence[Values]],
    system: Sequence[Sequence[Values]],
) -> Ratio:
    """System / baseline with a paired bootstrap interval; a draw without goodput counts as 0."""

    def ratio(left: Sequence[Sequence[Values]], right: Sequence[Sequence[Values]]) -> float:
        below, _ = statistics.goodput_per_s(_points(rates, left), GOODPUT_LEVEL)
        above, _ = statistics.goodput_per_s(_points(rates, right), GOODPUT_LEVEL)
        return statistics.quotient(above or 0.0, below or 0.0)

    generator = stream(_BOOTSTRAP_SEED, Subsystem.BOOTSTRAP, 1)
    samples = [
        statistics.block_draws([len(values) for values in seeds], _DRAWS, generator)
        for seeds in baseline
    ]
    drawn = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        left, right = (
            [
                [values[index[draw]] for values, index in zip(seeds, indices, strict=True)]
                for seeds, indices in zip(side, samples, strict=True)
            ]
            for side in (baseline, system)
        )
        drawn[draw] = ratio(left, right)
    low, high = statistics.quantile(drawn, 0.025), statistics.quantile(drawn, 0.975)
    return _ratio(Interval(ratio(baseline, system), low, high))


def _ratio(interval: Interval) -> Ratio:
    """JSON has no infinity: None stands for it."""
    return Ratio(_finite(interval.value), _finite(interval.low), _finite(interval.high))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
