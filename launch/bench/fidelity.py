"""How far the simulator is from real SGLang schedulers on emulated accelerators.

Reads the records that `hexgen-sglang bench --folder FOLDER` left, simulates the same workloads
under the same systems, and prints and writes the errors of each cell (trace, rate, system):

    .venv/bin/python launch/bench/fidelity.py --cluster launch/configs/clusters/hetero-1.toml \
        --compare ../shared/traces/trace1.json runs/trace1 --json FILE

What the host added is taken from the records, not modelled (`results/host.py`): the standstill of
each worker before a step, the driver's time between siblings, a request's way to the scheduler and
back. sglang-router keeps its workers in an order of its own, which decides who gets which template:
the order is taken that explains most of its decisions, and how many it explains is stated. Near
saturation a queue doubles any small difference, so each seed is simulated with ways a little
shorter and longer than measured; the error of the mean over them is stated with the spread
(standard deviation) among them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.store import read_record
from hexgen_sglang.bench.systems import Place, parse_system
from hexgen_sglang.cluster.config import ClusterConfig, load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.results import statistics
from hexgen_sglang.results.figures import LATENCY_FIGURES, deadlines_met
from hexgen_sglang.results.host import host_costs
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.fronts import Asked, Router
from hexgen_sglang.sim.host import HostTimes
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.tuner.runs import Runs
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace

# A replicate's way there and back, relative to the measured one, is spread evenly over 1 +- this.
WAY_SPREAD = 0.25
FIGURES = (*LATENCY_FIGURES, "attainment", "prefix_hit")
P95_LIMIT, MEAN_LIMIT = 0.10, 0.07
# A difference between two systems counts when it is this many of its standard deviations.
SURE = 2.0


@dataclass(frozen=True)
class Setup:
    """What all runs of one invocation share; goes to the processes once."""

    cluster: ClusterConfig
    profiles: tuple[AcceleratorProfile, ...]
    traces: dict[str, Trace]
    is_plain: bool = False

    @property
    def by_worker(self) -> dict[str, AcceleratorProfile]:
        """The profile of each worker, in the order of the cluster file."""
        names = [name for row in self.cluster.workers for name in row.names()]
        return dict(zip(names, self.profiles, strict=True))

    def __call__(self, job: tuple[str, RunFacts, tuple[str, ...], float]) -> RunRecord:
        """Simulate what was run: (trace, real run, workers in order, share of its way)."""
        trace, real, order, share = job
        costs = host_costs([real])
        if costs is None:
            raise ConfigError(f"{real.run.system}: no emulated worker in its records")
        measured = HostTimes.measured(costs)
        host = replace(
            measured,
            to_engine_s=share * measured.to_engine_s,
            back_s=share * measured.back_s,
        )
        host = HostTimes() if self.is_plain else host
        settings = SimSettings(host=host, worker_names=order, coordinator=self.cluster.coordinator)
        workload = workload_of(self.traces[trace], real.run, self.profiles)
        profiles = [self.by_worker[name] for name in order]
        facts = simulate(parse_system(real.run.system), workload, profiles, settings)
        if facts.broken:
            raise ConfigError(f"simulation of {real.run.system}: {facts.broken[0]}")
        return facts.run


def workload_of(trace: Trace, run: RunRecord, profiles: Sequence[AcceleratorProfile]) -> Workload:
    """The workload that a run replayed.

    Raises:
        ConfigError: it is another one: other arrivals, or another number of requests.
    """
    budgets = [w.budget_s / w.unloaded_s for w in run.workflows if w.budget_s is not None]
    warmup = sum(workflow.warmup for workflow in run.workflows)
    workload = build_workload(
        trace,
        WorkloadSettings(
            rate_per_s=run.rate_per_s,
            num_workflows=len(run.workflows),
            seed=run.seed,
            deadline_scale=budgets[0] if budgets else None,
            warmup_frac=warmup / len(run.workflows),
        ),
        profiles,
    )
    for planned, found in zip(workload.workflows, run.workflows, strict=True):
        if not math.isclose(planned.arrival_s, found.arrival_s, abs_tol=1e-6):
            raise ConfigError(
                f"{run.system}, seed {run.seed}: workflow {found.index} arrived at "
                f"{found.arrival_s}: must be {planned.arrival_s} by the trace and the defaults"
            )
    if workload.num_requests != len(run.requests):
        raise ConfigError(
            f"{run.system}, seed {run.seed}: {len(run.requests)} requests: "
            f"must be {workload.num_requests} by the trace"
        )
    return workload


def calibrated(setup: Setup, trace: str, real: RunFacts) -> dict[str, Any]:
    """Order of the workers for simulations of a run, and what its host added.

    `router_agreement`: share of sglang-router's decisions that its model takes as it did, told
    who was in flight; None elsewhere.
    """
    order, agreement = tuple(setup.by_worker), None
    if parse_system(real.run.system).place is Place.SGLANG_ROUTER:
        workload = workload_of(setup.traces[trace], real.run, setup.profiles)
        agreement, order = max(
            (router_agreement(real.run, workload, names), names)
            for names in itertools.permutations(order)
        )
    host = msgspec.to_builtins(host_costs([real]))
    return {"order": order, "host": host, "router_agreement": agreement}


def router_agreement(run: RunRecord, workload: Workload, names: Sequence[str]) -> float:
    """Replay a run's sends and ends through the router's model; share of equal decisions."""
    chosen: list[str] = []
    # The model asks nothing of an engine but its name.
    engines = [cast(Engine, SimpleNamespace(name=name)) for name in names]
    policy = parse_system(run.system).dispatch
    router = Router(engines, lambda engine, _: chosen.append(engine.name), policy, run.seed)
    events = [(request.sent_s, 1, request) for request in run.requests]
    events += [(request.end_s, 0, request) for request in run.requests]
    equal = 0
    for _, is_send, request in sorted(events, key=lambda event: event[:2]):
        if not is_send:
            router.left(request.worker)
            continue
        prompt = workload.workflows[request.workflow].prompts[request.stage][request.sibling]
        segments = tuple((segment.key, segment.num_tokens) for segment in prompt)
        router.take(Asked(request.request_id, "", "", "", 1, 0, False, None, segments, 1))
        equal += chosen[-1] == request.worker
        router.moved(chosen[-1], request.worker)
    return equal / len(run.requests)


def figures(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Of runs of one system, seeds pooled: latencies in seconds, shares as fractions."""
    seconds = np.concatenate([statistics.latencies(run) for run in runs])
    met = np.concatenate([deadlines_met(run) for run in runs])
    found = {name: figure(seconds) for name, figure in LATENCY_FIGURES.items()}
    found["attainment"] = float(met.mean()) if met.size else math.nan
    found["prefix_hit"] = statistics.prefix_hit_frac(runs) or 0.0
    return found


def cell(
    where: dict[str, Any], real: Sequence[RunFacts], simulated: Sequence[Sequence[RunRecord]]
) -> dict[str, Any]:
    """Errors of one cell: relative for latencies, differences for shares.

    Args:
        where: cluster, trace, rate and system.
        real: a run for each seed.
        simulated: for each replicate, a run for each seed.
    """
    truth = figures([facts.run for facts in real])
    found = [figures(runs) for runs in simulated]
    errors: dict[str, float] = {}
    for name in FIGURES:
        values = np.array([one[name] for one in found])
        unit = truth[name] if name in LATENCY_FIGURES else 1.0
        errors[f"{name}_error_frac"] = float(values.mean() - truth[name]) / unit
        errors[f"{name}_spread_frac"] = float(values.std(ddof=1)) / unit
    return {
        **where,
        **errors,
        "real": truth,
        "simulated": {name: float(np.mean([one[name] for one in found])) for name in FIGURES},
        "seeds": [facts.run.seed for facts in real],
        "void_seeds": [facts.run.seed for facts in real if facts.broken],
        "holds": abs(errors["p95_error_frac"]) <= P95_LIMIT
        and abs(errors["mean_error_frac"]) <= MEAN_LIMIT,
    }


def other_order(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Pairs of systems that the simulator ranks the other way round, as sentences, where both
    sides' differences in mean or P95 are larger than `SURE` standard deviations.

    A real run's deviation is taken to be that of the simulator's replicates.
    """
    found = []
    for one, other in itertools.combinations(cells, 2):
        if any(one[key] != other[key] for key in ("cluster", "trace", "rate")):
            continue
        for name in ("mean", "p95"):
            spread = math.hypot(*(c[f"{name}_spread_frac"] * c["real"][name] for c in (one, other)))
            real = one["real"][name] - other["real"][name]
            simulated = one["simulated"][name] - other["simulated"][name]
            if real * simulated < 0 and min(abs(real), abs(simulated)) > SURE * spread:
                found.append(
                    f"{one['trace']}, {one['rate']:.4f}/s, {name}: "
                    f"{one['system']} and {other['system']}"
                )
    return found


def compare(
    setup: Setup, folders: dict[str, Path], replicates: int, jobs: int, valid_only: bool
) -> list[dict[str, Any]]:
    """Every cell for which there are records, in the order of traces, rates and systems."""
    groups: dict[tuple[str, float, str], list[RunFacts]] = {}
    for trace, folder in folders.items():
        for path in sorted((folder / "records").glob("*.json")):
            facts = read_record(path).facts
            if not (valid_only and facts.broken):
                key = (trace, facts.run.rate_per_s, facts.run.system)
                groups.setdefault(key, []).append(facts)
    factors = np.linspace(1 - WAY_SPREAD, 1 + WAY_SPREAD, replicates)
    cells = []

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r  {done}/{total}", end="", file=sys.stderr)

    with Runs(setup, jobs, progress) as pool:
        for trace, rate, system in sorted(groups):
            real = groups[trace, rate, system]
            known = [calibrated(setup, trace, facts) for facts in real]
            todo = [
                (trace, facts, one["order"], float(factor))
                for factor in factors
                for facts, one in zip(real, known, strict=True)
            ]
            runs = pool(todo)
            by_replicate = [runs[at : at + len(real)] for at in range(0, len(runs), len(real))]
            where = {
                "cluster": setup.cluster.cluster.name,
                "trace": trace,
                "rate": rate,
                "system": system,
                "calibrated": known,
            }
            cells.append(cell(where, real, by_replicate))
            print(line(cells[-1]), flush=True)
    return cells


def line(one: dict[str, Any]) -> str:
    """One cell for people."""
    told = "  ".join(
        f"{name} {one[f'{name}_error_frac']:+6.1%}±{one[f'{name}_spread_frac']:.1%}"
        for name in FIGURES
    )
    void = f"  void: {one['void_seeds']}" if one["void_seeds"] else ""
    verdict = "ok " if one["holds"] else "OFF"
    return f"{verdict} {one['trace']} {one['rate']:.4f}/s {one['system']:<32} {told}{void}"


def main() -> int:
    """Compare, print, write; 2 when what was given does not fit together."""
    args = _arguments()
    if len({Path(trace).stem for trace, _ in args.compare}) < len(args.compare):
        print("--compare: two traces have the same name", file=sys.stderr)
        return 2
    try:
        cluster = load_cluster(args.cluster)
        traces = {Path(trace).stem: load_trace(trace) for trace, _ in args.compare}
        setup = Setup(cluster, cluster_profiles(cluster, None), traces, args.plain)
        folders = {Path(trace).stem: Path(folder) for trace, folder in args.compare}
        cells = compare(setup, folders, args.replicates, args.jobs, args.valid_only)
    except HexgenError as error:
        print(f"fidelity: {error}", file=sys.stderr)
        return 2
    swapped = other_order(cells)
    for sentence in swapped:
        print(f"other order: {sentence}")
    result = {"cells": cells, "same_ranking": not swapped, "other_order": swapped}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{sum(one['holds'] for one in cells)}/{len(cells)} cells within the limits")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=Path, required=True)
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        required=True,
        metavar=("TRACE", "FOLDER"),
        help="trace file, and the folder that a bench over it left; may be repeated",
    )
    parser.add_argument("--replicates", type=int, default=6, choices=range(2, 101), metavar="N")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--plain", action="store_true", help="as if the host took no time")
    parser.add_argument("--valid-only", action="store_true", help="leave out void runs")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
