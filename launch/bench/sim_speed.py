"""How fast the simulator is: LLM requests a second of one core's CPU time, and where time goes.

    .venv/bin/python launch/bench/sim_speed.py --trace ../shared/traces/trace1.json --json FILE

Every system on the cluster, each by skipping and step by step (the naive way: one event for each
decode step, as token-by-token simulators work); the event core against simpy's, if that is
installed; the time by part of the program; and growing clusters, each in a process of its own,
so that memory is its own. CPU time is the process's, so another load on the machine disturbs
little; it still slows caches and shared cores.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import pstats
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system, parse_systems
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.clock import STEP, EventQueue
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace

WANTED_PER_S = 300_000
LOAD_FRAC = 0.6
NUM_EVENTS = 50_000
NUM_TIMERS = 100
SYSTEMS = (
    "fcfs+round_robin,lpm+round_robin,sglang-router:cache_aware+lpm,"
    "coordinator:least_tokens+fcfs,paper,hexgen"
)

# Growing clusters at one load, then growing queues on one cluster.
SCALE = [
    *(f"fcfs+round_robin:{workers}:8000:0.6" for workers in (4, 16, 64, 256)),
    *(f"hexgen:{workers}:4000:0.6" for workers in (4, 16, 64)),
    *(f"{system}:4:4000:{load}" for system in ("fcfs+round_robin", "hexgen") for load in (1.2, 4)),
]


def timed(
    system: str, workload: Workload, profiles: list[AcceleratorProfile], settings: SimSettings
) -> tuple[RunFacts, float]:
    """A run's facts and the CPU seconds of this process that it took.

    Raises:
        ConfigError: a law was broken.
    """
    began_s = time.process_time()
    facts = simulate(parse_system(system), workload, profiles, settings)
    cpu_s = time.process_time() - began_s
    if facts.broken:
        raise ConfigError(f"{system}: {facts.broken[0]}")
    return facts, cpu_s


def workload_for(
    trace: Trace,
    base: list[AcceleratorProfile],
    workflows: int,
    load: float = LOAD_FRAC,
    copies: float = 1,
) -> Workload:
    """Workflows at a share of the capacity bound of so many copies of a cluster.

    The bound of copies is that many times the cluster's own; its linear program would be slower
    than the simulation.
    """
    rate = load * copies * capacity_per_s(trace, base)
    return build_workload(trace, WorkloadSettings(rate_per_s=rate, num_workflows=workflows), base)


def systems(
    trace: Trace, profiles: list[AcceleratorProfile], names: str, workflows: int
) -> dict[str, Any]:
    """Requests a second of every system, skipping and step by step."""
    rows: dict[str, Any] = {}
    workload = workload_for(trace, profiles, workflows)
    for system in parse_systems(names):
        facts, cpu_s = timed(system.name, workload, profiles, SimSettings())
        _, naive_s = timed(system.name, workload, profiles, SimSettings(step_by_step=True))
        steps = sum(int(row["steps"]) for row in facts.emulation.values())
        tokens = sum(request.output_tokens for request in facts.run.requests)
        rows[system.name] = {
            "requests": workload.num_requests,
            "cpu_s": cpu_s,
            "requests_per_s": workload.num_requests / cpu_s,
            "steps_per_s": steps / cpu_s,
            "output_tokens_per_s": tokens / cpu_s,
            "naive_requests_per_s": workload.num_requests / naive_s,
            "speed_up": naive_s / cpu_s,
        }
        print(
            f"{system.name:<32} {workload.num_requests / cpu_s:9.0f} requests/s, "
            f"{steps / cpu_s:9.0f} steps/s; step by step {workload.num_requests / naive_s:7.0f}",
            flush=True,
        )
    return rows


def event_core() -> dict[str, float | None]:
    """Events a second of our queue and of simpy's: timers that set themselves again."""
    events = EventQueue()

    def fire() -> None:
        if events.num_run < NUM_EVENTS:
            events.at(events.now_s + 1.0, STEP, fire)

    for number in range(NUM_TIMERS):
        events.at(number / NUM_TIMERS, STEP, fire)
    began_s = time.process_time()
    events.run()
    ours = events.num_run / (time.process_time() - began_s)
    try:
        import simpy  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        print("event core: simpy is not installed (`pip install simpy`), so not compared")
        return {"events_per_s": ours, "simpy_events_per_s": None, "ratio": None}
    environment = simpy.Environment()
    each = NUM_EVENTS // NUM_TIMERS

    def timer(start_s: float) -> Any:
        yield environment.timeout(start_s)
        for _ in range(each):
            yield environment.timeout(1.0)

    for number in range(NUM_TIMERS):
        environment.process(timer(number / NUM_TIMERS))
    began_s = time.process_time()
    environment.run()
    theirs = NUM_TIMERS * (each + 1) / (time.process_time() - began_s)
    return {"events_per_s": ours, "simpy_events_per_s": theirs, "ratio": ours / theirs}


def profile(system: str, workload: Workload, profiles: list[AcceleratorProfile]) -> dict[str, Any]:
    """Share of the CPU time by module and the most expensive functions, time of callees apart.

    The profiler slows calls more than loops, so shares are rough.
    """
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    simulate(parse_system(system), workload, profiles)
    profiler.disable()
    by_module: dict[str, float] = {}
    functions: list[tuple[float, int, str]] = []
    calls = 0
    for (file, _, name), row in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        _, count, own_s = row[:3]
        path = Path(file)
        module = f"{path.parent.name}/{path.stem}" if "hexgen_sglang" in path.parts else "python"
        by_module[module] = by_module.get(module, 0.0) + own_s
        functions.append((own_s, count, f"{module}:{name}"))
        calls += count
    total_s = sum(by_module.values())
    shares = {name: own_s / total_s for name, own_s in by_module.items()}
    return {
        "system": system,
        "calls_per_request": calls / workload.num_requests,
        "share_by_module": dict(sorted(shares.items(), key=lambda item: -item[1])[:20]),
        "functions": [
            {
                "function": name,
                "share": own_s / total_s,
                "calls_per_request": count / workload.num_requests,
            }
            for own_s, count, name in sorted(functions, reverse=True)[:20]
        ],
    }


def scaled(job: tuple[str, Path, Path, int, int, float]) -> dict[str, Any]:
    """One run of a grown cluster, in a process of its own: (system, cluster, trace, workers,
    requests, load); workflows as many as make the requests.
    """
    system, cluster, trace_path, workers, requests, load = job
    trace = load_trace(str(trace_path))
    base = list(cluster_profiles(load_cluster(cluster), None))
    profiles = [base[number % len(base)] for number in range(workers)]
    mean = sum(workflow.num_requests for workflow in trace.workflows) / len(trace.workflows)
    began_s = time.process_time()
    count = max(1, round(requests / mean))
    workload = workload_for(trace, base, count, load, workers / len(base))
    built_s = time.process_time() - began_s
    facts, cpu_s = timed(system, workload, profiles, SimSettings())
    return {
        "system": system,
        "load": load,
        "most_in_flight": facts.run.max_in_flight,
        "workers": workers,
        "requests": workload.num_requests,
        "workload_cpu_s": built_s,
        "cpu_s": cpu_s,
        "requests_per_s": workload.num_requests / cpu_s,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def scale(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of `--scale`, each in a new process."""
    rows = []
    for text in args.scale:
        system, workers, requests, load = text.rsplit(":", 3)
        job = (system, args.cluster, args.trace, int(workers), int(requests), float(load))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(scaled, job).result())
        print(
            f"{system:<24} {workers:>6} workers {rows[-1]['requests']:>9} requests, load {load}: "
            f"{rows[-1]['cpu_s']:.1f} CPU s, {rows[-1]['requests_per_s']:.0f} requests/s, "
            f"{rows[-1]['peak_memory_bytes'] / 1e6:.0f} MB",
            flush=True,
        )
    return rows


def main() -> int:
    """Measure, print, write; 2 when an argument is wrong."""
    args = _arguments()
    try:
        profiles = list(cluster_profiles(load_cluster(args.cluster), None))
        trace = load_trace(str(args.trace))
        rows = systems(trace, profiles, args.systems, args.workflows)
        workload = workload_for(trace, profiles, args.workflows)
        profiled = [profile(name, workload, profiles) for name in list(rows)[:1] + list(rows)[-1:]]
        grown = scale(args)
    except HexgenError as error:
        print(f"sim_speed: {error}", file=sys.stderr)
        return 2
    best = max(row["requests_per_s"] for row in rows.values())
    result = {
        "requests_per_s": best,
        "wanted_requests_per_s": WANTED_PER_S,
        "systems": rows,
        "event_core": event_core(),
        "profile": profiled,
        "scale": grown,
        "trace": args.trace.name,
        "cluster": args.cluster.name,
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    print(f"fastest: {best:.0f} requests/s of {WANTED_PER_S:,} wanted")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    configs = Path(__file__).resolve().parents[1] / "configs"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--cluster", type=Path, default=configs / "clusters" / "hetero-1.toml")
    parser.add_argument("--systems", default=SYSTEMS)
    parser.add_argument("--workflows", type=int, default=100)
    parser.add_argument(
        "--scale",
        nargs="*",
        default=SCALE,
        metavar="SYSTEM:WORKERS:REQUESTS:LOAD",
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
