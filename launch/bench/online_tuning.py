"""Traffic changes half way: what the tuner beside a coordinator makes of it, off, advise or auto.

    .venv/bin/python launch/bench/online_tuning.py --trace ../shared/traces/trace1.json --json FILE

Both halves have as many workflows. From the change on they arrive twice as fast and go through
each revision three times as often; the rate is such that the second half is at a stated share of
the cluster's capacity bound. The simulator runs the coordinator's code and the tuner's own window,
search and rule; every mode sees the same arrivals, workflows and prompts. States the attainment of
each half, and of the last half of the second (after the tuner had time to see the change), with
every change of settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import System, parse_system
from hexgen_sglang.cluster.config import ClusterConfig, load_cluster
from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.tuner.online import SimulatedTuner
from hexgen_sglang.tuner.runs import Runs
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace, TraceStage, TraceWorkflow

FASTER, LONGER = 2.0, 3
REVISIONS = ("revise", "repair", "refine")
# Seeds of the second half; its workflow ids must differ from those of the first.
SEEDS_APART = 10_000
MODES = ("off", "advise", "auto")


def with_longer_loops(workflow: TraceWorkflow, times: int) -> TraceWorkflow:
    """Every revision `times` times, one after the other; what waited for it waits for the last."""
    stages: list[TraceStage] = []
    last: list[int] = []
    for stage in workflow.stages:
        after = tuple(last[before] for before in stage.after)
        rounds = times if stage.name.lower().startswith(REVISIONS) else 1
        for _ in range(rounds):
            stages.append(replace(stage, after=after))
            after = (len(stages) - 1,)
        last.append(len(stages) - 1)
    return replace(workflow, stages=tuple(stages))


def changing_workload(
    trace: Trace, profiles: Sequence[AcceleratorProfile], load: float, each: int, seed: int
) -> tuple[Workload, float]:
    """The workload, and the instant of the change.

    The second half is at `load`, a share of the capacity bound for its workflows; each half has
    `each` of them.

    Raises:
        ConfigError: the trace has no stage that is a revision.
    """
    longer = replace(
        trace, workflows=tuple(with_longer_loops(one, LONGER) for one in trace.workflows)
    )
    if longer.workflows == trace.workflows:
        raise ConfigError(f"trace {trace.name}: no stage begins with {', '.join(REVISIONS)}")
    after_per_s = load * capacity_per_s(longer, profiles)
    settings = WorkloadSettings(
        rate_per_s=after_per_s / FASTER, num_workflows=each, seed=seed, warmup_frac=0.1
    )
    first = build_workload(trace, settings, profiles)
    changed = replace(settings, rate_per_s=after_per_s, seed=seed + SEEDS_APART, warmup_frac=0.0)
    second = build_workload(longer, changed, profiles)
    change_s = first.workflows[-1].arrival_s
    moved = [
        replace(one, index=each + one.index, arrival_s=change_s + one.arrival_s)
        for one in second.workflows
    ]
    whole = replace(settings, num_workflows=2 * each)
    return Workload(trace, whole, (*first.workflows, *moved)), change_s


@dataclass(frozen=True)
class Trial:
    """One run of the comparison; goes to the processes once."""

    cluster: ClusterConfig
    profiles: tuple[AcceleratorProfile, ...]
    trace: Trace
    tuning: TuningConfig
    load: float
    each: int
    search_s: float

    def __call__(self, job: tuple[str, str, int]) -> dict[str, Any]:
        """Figures of (system, mode, seed)."""
        name, mode, seed = job
        system = parse_system(name)
        workload, change_s = changing_workload(
            self.trace, self.profiles, self.load, self.each, seed
        )
        tuner = SimulatedTuner(
            self.tuning_of(system, mode),
            tuple(profile.name for profile in self.profiles),
            len(workload.workflows),
            self.search_s,
        )
        settings = SimSettings(
            worker_names=tuple(one for row in self.cluster.workers for one in row.names()),
            coordinator=self.cluster.coordinator,
            beside=tuner,
        )
        facts = simulate(system, workload, self.profiles, settings)
        return {
            "system": name,
            "mode": mode,
            "seed": seed,
            "valid": not facts.broken,
            **attainments(facts, change_s),
            "change_s": change_s,
            "num_changes": tuner.num_changes,
            "said": [{"at_s": at_s, **msgspec.to_builtins(said)} for at_s, said in tuner.said],
        }

    def tuning_of(self, system: System, mode: str) -> TuningConfig:
        """The tuner's settings for a system."""
        engine = system.engine
        text = engine.policy
        if engine.ordering:
            hold = "on" if engine.holds_prefixes else "off"
            text = f"{engine.policy}[ordering={engine.ordering};hold={hold}]"
        return msgspec.structs.replace(self.tuning, mode=mode, engine=text)


def attainments(facts: RunFacts, change_s: float) -> dict[str, float]:
    """Share of deadlines met before the change, after it, and in the last half after it."""
    measured = [one for one in facts.run.measured() if one.budget_s is not None]
    met = np.array([one.completed and one.e2e_s <= (one.budget_s or 0) for one in measured])
    arrival_s = np.array([one.arrival_s for one in measured])
    after = arrival_s > change_s
    settled = arrival_s > (change_s + arrival_s.max()) / 2
    return {
        "before": float(met[~after].mean()),
        "after": float(met[after].mean()),
        "settled": float(met[settled].mean()),
    }


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, by system and mode, in the order of the runs."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["mode"]), []).append(row)
    names = ("before", "after", "settled", "num_changes")
    return [
        {
            "system": system,
            "mode": mode,
            "seeds": len(some),
            **{name: float(np.mean([one[name] for one in some])) for name in names},
            "most_changes": max(one["num_changes"] for one in some),
        }
        for (system, mode), some in groups.items()
    ]


def main() -> int:
    """Run, print, write; 2 when an argument is wrong."""
    args = _arguments()
    began_s = time.monotonic()
    try:
        cluster = load_cluster(args.cluster)
        profiles = cluster_profiles(cluster, None)
        files = {
            profile.name: row.profile or ""
            for row, profile in zip(
                [row for row in cluster.workers for _ in row.names()], profiles, strict=True
            )
        }
        tuning = TuningConfig(
            mode="auto",
            profiles=files,
            objective=args.objective,
            every_s=args.every_s,
            window_s=args.window_s,
            min_workflows=args.min_workflows,
            candidates=args.candidates,
            seeds=args.search_seeds,
            workflows=args.search_workflows,
            cool_down_s=args.cool_down_s,
        )
        trial = Trial(
            cluster, profiles, load_trace(args.trace), tuning, args.load, args.each, args.search_s
        )
        jobs = [
            (system, mode, seed)
            for system in args.systems
            for mode in args.modes
            for seed in range(args.seeds)
        ]
        with Runs(trial, args.jobs, _progress) as runs:
            rows = runs(jobs)
    except HexgenError as error:
        print(f"online_tuning: {error}", file=sys.stderr)
        return 2
    means = table(rows)
    for row in means:
        print(
            f"{row['system']:<10} {row['mode']:<7} before {row['before']:6.1%}  after "
            f"{row['after']:6.1%}  settled {row['settled']:6.1%}  changes {row['num_changes']:.1f}"
        )
    if args.json is not None:
        result = {
            "valid": all(row["valid"] for row in rows),
            "table": means,
            "runs": rows,
            "tuning": msgspec.to_builtins(msgspec.structs.replace(tuning, profiles={})),
            "profiles": sorted(files),
            "command": sys.argv,
            "versions": machine.versions(),
            "machine": machine.machine(),
            "wall_s": time.monotonic() - began_s,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _progress(done: int, total: int) -> None:
    print(f"[{done}/{total}]", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    configs = Path(__file__).resolve().parents[1] / "configs"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=Path, default=configs / "clusters" / "hetero-1.toml")
    parser.add_argument("--trace", required=True)
    parser.add_argument("--systems", nargs="+", default=["paper", "hexgen"])
    parser.add_argument("--modes", nargs="+", default=["off", "auto"], choices=MODES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", type=int, default=150, help="workflows of each half")
    parser.add_argument("--load", type=float, default=0.85, help="share of the capacity, after")
    parser.add_argument("--objective", default="attainment")
    parser.add_argument("--every-s", type=float, default=120.0)
    parser.add_argument("--search-s", type=float, default=10.0, help="virtual seconds of a search")
    parser.add_argument("--window-s", type=float, default=300.0)
    parser.add_argument("--min-workflows", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--search-seeds", type=int, default=4)
    parser.add_argument("--search-workflows", type=int, default=60)
    parser.add_argument("--cool-down-s", type=float, default=120.0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
