"""`hexgen-sglang bench`: compare scheduling systems on one cluster and one trace.

`hexgen-sglang simulate` is the same command with `--engine sim`.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hexgen_sglang.bench.assemble import bench_result, read_json, write_json
from hexgen_sglang.bench.loads import parse_loads
from hexgen_sglang.bench.plan import EngineKind, Facts, Plan, cluster_profiles, engine_kind
from hexgen_sglang.bench.run import run_all
from hexgen_sglang.bench.systems import parse_systems
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.cluster.signals import termination_raises
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.schema import BenchResult
from hexgen_sglang.results.table import table
from hexgen_sglang.workload.arrivals import Arrivals
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.latency import Reuse
from hexgen_sglang.workload.plan import WorkloadSettings

DEFAULT_SYSTEMS = (
    "fcfs+round_robin,lpm+round_robin,sglang-router:cache_aware+lpm,"
    "coordinator:least_tokens+fcfs,coordinator:least_load+lpm,paper,hexgen"
)


_TOLD = 20  # lines of progress at most


def command(
    cluster: Annotated[Path, typer.Option(help="Cluster file (TOML).")],
    trace: Annotated[
        str, typer.Option(help="Trace file of any known format, or synthetic[:N[:seed]].")
    ] = "synthetic",
    rate: Annotated[
        str, typer.Option(help="Workflows per second, or a share of the capacity; a list: 60%,90%.")
    ] = "60%",
    workflows: Annotated[int, typer.Option(help="Workflows of each run.", min=1)] = 100,
    seeds: Annotated[int, typer.Option(help="Runs of each system at each rate.", min=1)] = 1,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds.", min=0)] = 0,
    systems: Annotated[str, typer.Option(help="Names, separated by commas.")] = DEFAULT_SYSTEMS,
    baseline: Annotated[
        str | None, typer.Option(help="System that ratios compare with; default: the first.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    perfetto: Annotated[
        Path | None, typer.Option(help="Write a trace for ui.perfetto.dev here.")
    ] = None,
    time_scale: Annotated[
        float, typer.Option(help="Emulated seconds in a real one; not for sim.")
    ] = 1.0,
    arrivals: Annotated[str, typer.Option(help="poisson, fixed or gamma:<cv>.")] = "poisson",
    deadline_scale: Annotated[
        float, typer.Option(help="Deadline / unloaded latency; 0: no deadlines.", min=0)
    ] = 4.0,
    warmup_frac: Annotated[float, typer.Option(help="Share of arrivals not measured.")] = 0.1,
    reuse: Annotated[Reuse, typer.Option(help="Cached, in the unloaded latency.")] = Reuse.PERFECT,
    share_repeated_queries: Annotated[
        bool, typer.Option(help="Repeats of a query in the trace share their context.")
    ] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Profile of workers that are not emulated.")
    ] = None,
    num_token_ids: Annotated[
        int | None, typer.Option(help="Token ids prompts are made of; default: as many as fit.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Logs and records; simulations leave none.")] = Path(
        "runs/bench"
    ),
    resume: Annotated[
        bool, typer.Option(help="Take over unbroken runs of an equal plan from the folder.")
    ] = False,
    engine: Annotated[
        EngineKind | None, typer.Option(help="What serves; default: what the cluster file says.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes of a simulation; default: all cores.", min=1)
    ] = None,
    host: Annotated[
        Path | None,
        typer.Option(help="A bench's --json: simulate its host's times, too; default: none."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print loads and expected time, and leave.")
    ] = False,
) -> None:
    """Run every system on the same arrivals and prompts; exit with 1 when a law was broken."""
    plan, capacity = _plan(
        cluster=cluster,
        trace=trace,
        rate=rate,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        systems=systems,
        workload=WorkloadSettings(
            rate_per_s=1.0,
            num_workflows=workflows,
            arrivals=Arrivals.parse(arrivals),
            deadline_scale=deadline_scale or None,
            reuse=reuse,
            share_repeated_queries=share_repeated_queries,
            warmup_frac=warmup_frac,
        ),
        time_scale=time_scale,
        reference=reference,
        num_token_ids=num_token_ids,
        folder=folder,
        engine=engine,
    )
    if plan.engine is EngineKind.SIM and resume:
        raise ConfigError("--resume: simulations leave no records to take over")
    if plan.engine is not EngineKind.SIM and jobs is not None:
        raise ConfigError(f"--jobs={jobs}: only simulations run on several processes")
    if plan.engine is not EngineKind.SIM and host is not None:
        raise ConfigError(f"--host={host}: only simulations take a host's times from elsewhere")
    base = _baseline(plan, baseline)
    _announce(plan, capacity)
    if dry_run:
        return
    began_s = time.monotonic()
    if plan.engine is EngineKind.SIM:
        facts = _simulated(plan, jobs, host)
    else:
        with termination_raises():
            facts = run_all(plan, _say, resume=resume)
    wall_s = time.monotonic() - began_s
    result = bench_result(plan, facts, base, capacity, ["hexgen-sglang", *sys.argv[1:]], wall_s)
    if json is not None:
        write_json(result, json)
    if report is not None:
        from hexgen_sglang.bench.report import write_report

        write_report(result, facts, report)
    if perfetto is not None:
        from hexgen_sglang.bench.perfetto import write_trace

        write_trace(facts, perfetto)
    _conclude(result)


def _plan(
    *,
    cluster: Path,
    trace: str,
    rate: str,
    seeds: tuple[int, ...],
    systems: str,
    workload: WorkloadSettings,
    time_scale: float,
    reference: Path | None,
    num_token_ids: int | None,
    folder: Path,
    engine: EngineKind | None,
) -> tuple[Plan, float]:
    """The plan and the capacity bound that loads in per cent refer to."""
    if not (math.isfinite(time_scale) and time_scale > 0):
        raise ConfigError(f"--time-scale={time_scale}: must be finite and above 0")
    config = load_cluster(cluster)
    kind = engine_kind(config, engine)
    profiles = cluster_profiles(config, reference)
    loaded = load_trace(trace)
    capacity = capacity_per_s(loaded, profiles)
    plan = Plan(
        cluster=config,
        profiles=profiles,
        trace=loaded,
        loads=tuple(parse_loads(rate, capacity)),
        seeds=seeds,
        systems=tuple(parse_systems(systems)),
        workload=workload,
        time_scale=1.0 if kind is EngineKind.SIM else time_scale,
        folder=folder,
        num_token_ids=num_token_ids,
        engine=kind,
    )
    return plan, capacity


def _simulated(plan: Plan, jobs: int | None, host: Path | None) -> Facts:
    """All runs of the plan in the simulator, on several processes."""
    from hexgen_sglang.sim.comparison import PlannedSimulation, measured_hosts, planned_runs
    from hexgen_sglang.tuner.runs import Runs, usable_cores

    runs = planned_runs(plan)
    began_s = time.monotonic()

    def progress(done: int, total: int) -> None:
        if total <= _TOLD or done * _TOLD // total > (done - 1) * _TOLD // total:
            _say(f"[{done}/{total}, {(time.monotonic() - began_s) / 60:.1f} min] simulated")

    hosts = {} if host is None else measured_hosts(plan, read_json(host))
    simulation = PlannedSimulation(plan, hosts=hosts)
    with Runs(simulation, min(jobs or usable_cores(), len(runs)), progress) as pool:
        found = pool(runs)
    facts: Facts = {}
    for run, one in zip(runs, found, strict=True):
        facts.setdefault((run.load.label, run.system.name), []).append(one)
    return facts


def _baseline(plan: Plan, wanted: str | None) -> str:
    """The name of the system that ratios compare with."""
    names = [system.name for system in plan.systems]
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise ConfigError(f"--baseline={wanted}: must be one of the systems: {', '.join(names)}")
    return wanted


def _announce(plan: Plan, capacity: float) -> None:
    """Say what will run and how long it will take at least."""
    _say(
        f"{plan.cluster.cluster.name}: {len(plan.profiles)} workers; trace {plan.trace.name}, "
        f"{len(plan.trace.workflows)} workflows; capacity bound {capacity:.4f} workflows/s"
    )
    least_s = 0.0
    for load in plan.loads:
        _say(f"  load {load.label}: {load.rate_per_s:.4f} workflows/s")
        least_s += plan.workload.num_workflows / load.rate_per_s / plan.time_scale
    runs = len(plan.seeds) * len(plan.systems)
    least = "" if plan.engine is EngineKind.SIM else f", at least {runs * least_s / 60:.0f} minutes"
    _say(f"  {runs * len(plan.loads)} runs{least}")


def _conclude(result: BenchResult) -> None:
    """Print the tables and the verdict; leave with 1 when a law was broken."""
    for load in result.loads:
        _say(table(result, load))
    if not result.valid:
        for sentence in result.invalid_because:
            _say(f"INVALID: {sentence}")
        raise typer.Exit(1)
    _say(f"valid; {result.wall_s / 60:.1f} minutes; {shlex.join(result.command)}")


def _say(text: str) -> None:
    print(text, flush=True)
