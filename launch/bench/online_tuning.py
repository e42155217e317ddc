"""Traffic changes half way: what the tuner beside a coordinator makes of it, off, advise or auto.

    .venv/bin/python launch/bench/online_tuning.py --trace ../shared/traces/trace1.json --json FILE
    ... --engine emulated --time-scale 5 --systems hexgen --seeds 1

Both halves have as many workflows. From the change on they arrive twice as fast and go through
each revision three times as often; the rate is such that the second half is at a stated share of
the cluster's capacity bound. Every mode sees the same arrivals, workflows and prompts. States the
attainment of each half, and of the last half of the second (after the tuner had time to see the
change), with every change of settings.

With `--engine sim` the simulator runs the coordinator's code and the tuner's own window, search
and rule. With `--engine emulated` SGLang's schedulers run on emulated accelerators behind a
coordinator with its tuner's process, both started anew for every run; the tuner takes only time
that nothing else wants. The options' seconds are emulated ones.
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
from hexgen_sglang.bench.engines import Engines
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.run import run_one
from hexgen_sglang.bench.scaling import scaled_settings
from hexgen_sglang.bench.systems import Place, System, parse_system, with_ordering_settings
from hexgen_sglang.cluster.config import ClusterConfig, load_cluster
from hexgen_sglang.cluster.ports import fetch_json
from hexgen_sglang.cluster.signals import termination_raises
from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError, HexgenError, ProcessError
from hexgen_sglang.policies.ordering import ORDERING
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
        return msgspec.structs.replace(self.tuning, mode=mode, engine=system.engine.text)


@dataclass(frozen=True)
class EmulatedTrial:
    """One run of the comparison on emulated workers.

    Attributes:
        planned: what is compared; its seconds are emulated ones.
        time_scale: emulated seconds in a real one.
        folder: logs and configurations.
    """

    planned: Trial
    time_scale: float
    folder: Path

    def __call__(self, job: tuple[str, str, int]) -> dict[str, Any]:
        """Figures of (system, mode, seed).

        Raises:
            ConfigError: the system has no coordinator that hears its workers.
            ProcessError: a process could not be started, or died.
        """
        name, mode, seed = job
        system, trial = parse_system(name), self.planned
        if system.place is not Place.COORDINATOR or not system.linked:
            raise ConfigError(f"system {name!r}: only a linked coordinator has a tuner")
        workload, change_s = changing_workload(
            trial.trace, trial.profiles, trial.load, trial.each, seed
        )
        folder = self.folder / f"{system.dispatch}-{mode}-{seed}"
        coordinator = msgspec.structs.replace(
            trial.cluster.coordinator, tuning=self.tuning_of(system, mode)
        )
        told: dict[str, Any] = {}
        last_s = workload.workflows[-1].arrival_s
        print(
            f"{name}, {mode}, seed {seed}: {last_s / self.time_scale / 60:.1f} minutes of arrivals",
            file=sys.stderr,
            flush=True,
        )
        with Engines(trial.cluster, system.engine, self.time_scale, True, folder) as engines:
            engines.start()
            facts = run_one(
                engines, system, workload, coordinator, lambda url: told.update(_tuning_report(url))
            )
        end_s = max(one.arrival_s + one.e2e_s for one in facts.run.workflows)
        counts = told["counts"]
        return {
            "system": name,
            "mode": mode,
            "seed": seed,
            "valid": not facts.broken,
            "broken": list(facts.broken),
            **attainments(facts, change_s),
            "change_s": change_s,
            "num_changes": counts.get("apply", 0) + counts.get("return", 0),
            "num_searches": sum(counts.values()) - counts.get("return", 0),
            # Ages are as of the last workflow's end, in real seconds.
            "said": [
                {**row, "at_s": end_s - row["age_s"] * self.time_scale} for row in told["said"]
            ],
            "settings": told["settings"],
            "engines": told["engines"],
            "is_down": told["is_down"],
            "emulation": facts.emulation,
            "machine_busy_frac": facts.machine_busy_frac,
        }

    def tuning_of(self, system: System, mode: str) -> TuningConfig:
        """The tuner's settings in real seconds."""
        scale, engine = self.time_scale, system.engine
        if engine.ordering:
            own = dict(engine.ordering_settings)
            engine = with_ordering_settings(
                engine, scaled_settings(ORDERING, engine.ordering, own, scale)
            )
        tuning = self.planned.tuning
        return msgspec.structs.replace(
            tuning,
            mode=mode,
            engine=engine.text,
            every_s=tuning.every_s / scale,
            window_s=tuning.window_s / scale,
            cool_down_s=tuning.cool_down_s / scale,
        )


def _tuning_report(url: str) -> dict[str, Any]:
    """What the coordinator tells of its tuner.

    Raises:
        ProcessError: it does not answer.
    """
    report = fetch_json(f"{url}/tuning")
    if not isinstance(report, dict):
        raise ProcessError(f"{url}/tuning: no answer")
    return report


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
        rows = _run(args, trial, jobs)
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
            "engine": args.engine,
            "time_scale": args.time_scale if args.engine == "emulated" else 1.0,
            "table": means,
            "runs": rows,
            "tuning": {**msgspec.to_builtins(tuning), "profiles": sorted(files)},
            "command": sys.argv,
            "versions": machine.versions(),
            "machine": machine.machine(),
            "wall_s": time.monotonic() - began_s,
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _run(
    args: argparse.Namespace, trial: Trial, jobs: Sequence[tuple[str, str, int]]
) -> list[dict[str, Any]]:
    """All runs: simulated ones on several processes, emulated ones one after the other."""
    if args.engine == "sim":
        with Runs(trial, args.jobs, _progress) as runs:
            return runs(jobs)
    if args.jobs != 1:
        raise ConfigError(f"--jobs={args.jobs}: must be 1 with --engine emulated")
    if not 0 < args.time_scale <= 1_000:
        raise ConfigError(f"--time-scale={args.time_scale}: must be above 0, at most 1000")
    emulated = EmulatedTrial(trial, args.time_scale, args.folder)
    rows = []
    with termination_raises():
        for done, job in enumerate(jobs, 1):
            rows.append(emulated(job))
            _progress(done, len(jobs))
    return rows


def _progress(done: int, total: int) -> None:
    print(f"[{done}/{total}]", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    configs = Path(__file__).resolve().parents[1] / "configs"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", type=Path, default=configs / "clusters" / "hetero-1.toml")
    parser.add_argument("--trace", required=True)
    parser.add_argument("--systems", nargs="+", default=["paper", "hexgen"])
    parser.add_argument("--engine", default="sim", choices=("sim", "emulated"))
    parser.add_argument("--time-scale", type=float, default=5.0, help="emulated s in a real one")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/online-tuning"), help="logs of emulated runs"
    )
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
