"""Whether one tenant that asks for ten times its share moves another's attainment.

Two tenants of equal weight on one cluster. Each one's share is `--share` of the capacity bound.
The steady tenant asks for its share in every run; the other one for its share, and then for
`--times` as much over the same time; each with the tenants' shares kept by the coordinator and
without. What counts is how far the steady tenant's attainment moves.

    .venv/bin/python launch/bench/fairness.py --engine sim --json FILE
    .venv/bin/python launch/bench/fairness.py --engine emulated --workflows 40 --json FILE
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.engines import Engines
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.run import run_one
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STEADY, BUSY = "steady", "busy"
SHARES = {"off": "off", "on": "stated"}
MOST_MOVED_POINTS = 5.0
# Seeds of the busy tenant's workload are others than those of the steady one's.
_OTHER_SEEDS = 10_000


def two_tenants(
    trace: Trace,
    profiles: Sequence[AcceleratorProfile],
    steady: WorkloadSettings,
    times: float,
) -> Workload:
    """The steady tenant's workload and the busy one's over the same time, by arrival."""
    busy = replace(
        steady,
        rate_per_s=steady.rate_per_s * times,
        num_workflows=max(1, round(steady.num_workflows * times)),
        seed=steady.seed + _OTHER_SEEDS,
    )
    both = [
        replace(planned, tenant=tenant)
        for tenant, settings in ((STEADY, steady), (BUSY, busy))
        for planned in build_workload(trace, settings, profiles).workflows
    ]
    both.sort(key=lambda planned: (planned.arrival_s, planned.workflow_id))
    num_warmup = math.floor(steady.warmup_frac * len(both))
    workflows = tuple(
        replace(planned, index=index, warmup=index < num_warmup)
        for index, planned in enumerate(both)
    )
    return Workload(trace, steady, workflows)


def attainment(workload: Workload, facts: RunFacts, tenant: str) -> float:
    """Share of the tenant's workflows, warm-up apart, that ended within their deadline."""
    met = [
        record.completed
        and record.budget_s is not None
        and record.end_s <= record.arrival_s + record.budget_s
        for planned, record in zip(workload.workflows, facts.run.workflows, strict=True)
        if planned.tenant == tenant and not planned.warmup
    ]
    return statistics.mean(met) if met else math.nan


class Bench:
    """Runs workloads on one engine kind, under one system."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._system = parse_system(args.system)
        self._cluster = load_cluster(args.cluster)
        self.profiles = cluster_profiles(self._cluster, None)
        self.trace = load_trace(args.trace)
        self.rate_per_s = args.share * capacity_per_s(self.trace, list(self.profiles))
        self._engines: Engines | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        if self._args.engine == "emulated":
            scale = self._args.time_scale
            engines = Engines(self._cluster, self._system.engine, scale, True, self._folder)
            self._engines = self._stack.enter_context(engines)
            engines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def settings(self, seed: int) -> WorkloadSettings:
        """Of the steady tenant."""
        return WorkloadSettings(self.rate_per_s, self._args.workflows, seed)

    def run(self, workload: Workload, shares: str) -> RunFacts:
        """One run with a fresh coordinator."""
        coordinator = msgspec.structs.replace(
            self._cluster.coordinator,
            tenant_shares=SHARES[shares],
            tenant_half_life_s=self._args.half_life / self._time_scale,
        )
        if self._engines is None:
            names = tuple(name for row in self._cluster.workers for name in row.names())
            settings = SimSettings(worker_names=names, coordinator=coordinator)
            return simulate(self._system, workload, self.profiles, settings)
        return run_one(self._engines, self._system, workload, coordinator)

    @property
    def _time_scale(self) -> float:
        return self._args.time_scale if self._args.engine == "emulated" else 1.0


def arms(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Every run's attainments, and how far the steady tenant's moved."""
    rows: list[dict[str, Any]] = []
    for shares in args.shares.split(","):
        for times in (1.0, args.times):
            for seed in range(args.seeds):
                workload = two_tenants(bench.trace, bench.profiles, bench.settings(seed), times)
                facts = bench.run(workload, shares)
                rows.append(
                    {
                        "shares": shares,
                        "times": times,
                        "seed": seed,
                        "steady": attainment(workload, facts, STEADY),
                        "busy": attainment(workload, facts, BUSY),
                        "workflows": len(workload.workflows),
                        "end_s": max(record.end_s for record in facts.run.workflows),
                        "broken": facts.broken,
                        "wall_s": facts.wall_s,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    moved = {shares: moved_points(rows, shares, args.times) for shares in args.shares.split(",")}
    return {"runs": rows, "moved_points": moved, "valid": not any(row["broken"] for row in rows)}


def moved_points(rows: Sequence[dict[str, Any]], shares: str, times: float) -> float:
    """Percentage points by which the steady tenant's attainment fell, over all seeds."""

    def mean(at: float) -> float:
        return statistics.mean(
            row["steady"] for row in rows if (row["shares"], row["times"]) == (shares, at)
        )

    return 100.0 * (mean(1.0) - mean(times))


def main() -> int:
    """Run, print, write; 1 when a tenant was moved too far, 2 when an argument is wrong."""
    args = _arguments()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hexgen-fairness-") as folder,
            Bench(args, Path(folder)) as bench,
        ):
            result = arms(bench, args)
    except HexgenError as error:
        print(f"fairness: {error}", file=sys.stderr)
        return 2
    result |= {
        "command": " ".join(["launch/bench/fairness.py", *sys.argv[1:]]),
        "rate_per_s_of_each_share": bench.rate_per_s,
        "most_moved_points": MOST_MOVED_POINTS,
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    print(f"steady tenant moved by, in points: {result['moved_points']}")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    is_fair = result["moved_points"].get("on", 0.0) <= MOST_MOVED_POINTS
    return 0 if is_fair and result["valid"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=("sim", "emulated"), default="sim")
    parser.add_argument("--trace", default="synthetic:100:0", help="as for `hexgen-sglang bench`")
    parser.add_argument("--cluster", type=Path, default=CONFIGS / "clusters" / "hetero-1.toml")
    parser.add_argument("--system", default="hexgen", help="as for `hexgen-sglang bench`")
    parser.add_argument("--share", type=float, default=0.4, help="of the capacity bound, each")
    parser.add_argument("--times", type=float, default=10.0, help="of its share, for the busy one")
    parser.add_argument("--workflows", type=int, default=100, help="of the steady tenant")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", default="off,on", help="of off, on")
    parser.add_argument("--half-life", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--time-scale", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
