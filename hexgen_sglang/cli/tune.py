"""`hexgen-sglang tune`: search a system's settings on a simulated cluster."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hexgen_sglang.bench.loads import parse_loads
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.tuner.objective import Objective, parse_objective
from hexgen_sglang.tuner.runs import Runs, usable_cores
from hexgen_sglang.tuner.search import Race, Standing, race
from hexgen_sglang.tuner.space import (
    Range,
    candidates,
    default_settings,
    search_space,
    with_settings,
)
from hexgen_sglang.tuner.trials import SettingTrial
from hexgen_sglang.workload.arrivals import Arrivals
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings


def command(
    cluster: Annotated[Path, typer.Option(help="Cluster file (TOML).")],
    system: Annotated[str, typer.Option(help="Whose settings, as in `bench`.")] = "hexgen",
    trace: Annotated[
        str, typer.Option(help="Trace file of any known format, or synthetic[:N[:seed]].")
    ] = "synthetic",
    objective: Annotated[
        str, typer.Option(help="p95, p99, mean, attainment, goodput or goodput_per_usd.")
    ] = "p95",
    rate: Annotated[
        str, typer.Option(help="Workflows per second, or a share of the capacity: 90%.")
    ] = "90%",
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="name, name=low:high or name=low:high:log; the name: of a dispatch setting, "
            "working_set, or ordering.NAME for the engines' and the queue's; default: all."
        ),
    ] = None,
    workflows: Annotated[int, typer.Option(help="Workflows of each run.", min=1)] = 200,
    seeds: Annotated[int, typer.Option(help="Most runs of a candidate.", min=2)] = 8,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds.", min=0)] = 0,
    count: Annotated[
        int, typer.Option("--candidates", help="Settings tried, the default included.", min=2)
    ] = 9,
    arrivals: Annotated[str, typer.Option(help="poisson, fixed or gamma:<cv>.")] = "poisson",
    deadline_scale: Annotated[
        float, typer.Option(help="Deadline / unloaded latency; 0: no deadlines.", min=0)
    ] = 4.0,
    reference: Annotated[
        Path | None, typer.Option(help="Profile of workers that are not emulated.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; default: all cores.", min=1)] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
) -> None:
    """Find the best settings of a system by simulation: dispatch, working set, ordering.

    Candidates run on the same seeds; losers stop early. Gains are over the settings in the
    system's name (else the policy's defaults), with intervals that hold for all candidates.
    """
    began_s = time.monotonic()
    found = parse_objective(objective)
    tuned = parse_system(system)
    space = search_space(tuned, search or [])
    points = candidates(space, default_settings(tuned, space), count)
    profiles = cluster_profiles(load_cluster(cluster), reference)
    loaded = load_trace(trace)
    capacity = capacity_per_s(loaded, profiles) if "%" in rate else math.inf
    loads = parse_loads(rate, capacity)
    if len(loads) > 1:
        raise ConfigError(f"--rate={rate}: must be one rate; settings depend on it")
    trial = SettingTrial(
        tuned,
        loaded,
        WorkloadSettings(
            rate_per_s=loads[0].rate_per_s,
            num_workflows=workflows,
            arrivals=Arrivals.parse(arrivals),
            deadline_scale=deadline_scale or None,
        ),
        profiles,
        objective,
    )
    say(
        f"{tuned.name}: {len(points)} settings, at most {seeds} seeds of {workflows} workflows at "
        f"{loads[0].rate_per_s:.4f}/s; searching "
        + ", ".join(f"{name} in {values}" for name, values in space.items())
    )
    with Runs(trial, jobs or usable_cores(), progress) as runs:
        outcome = race(points, range(first_seed, first_seed + seeds), runs, found, say=say)
    wall_s = time.monotonic() - began_s
    for line in _conclusion(trial, found, outcome):
        print(line)
    say(f"{outcome.num_runs} runs in {wall_s:.1f} s")
    if json is not None:
        write_json(json, _result(trial, found, space, outcome, wall_s))


def _conclusion(trial: SettingTrial, objective: Objective, outcome: Race) -> list[str]:
    """The best setting, its gain, and the next best."""
    best, default = outcome.best, outcome.default
    lines = [f"default   {_told(default)}: {objective.name} {default.mean:.4g} {objective.unit}"]
    if best is default:
        return [*lines, "best      the default: no candidate did better"]
    lines.append(f"best      {_told(best)}: {_figures(objective, best)}")
    second = next((one for one in outcome.ranking[1:] if one is not default), None)
    if second is not None:
        lines.append(f"runner-up {_told(second)}: {_figures(objective, second)}")
    if best.gain.low <= objective.no_gain:
        lines.append("The gain is not sure: its interval holds no gain; more seeds may tell.")
    lines.append(f"system    {with_settings(trial.system, best.settings).name}")
    return lines


def _told(standing: Standing) -> str:
    return " ".join(f"{name}={value:g}" for name, value in standing.settings.items())


def _figures(objective: Objective, standing: Standing) -> str:
    """Figure, and gain with its interval."""
    gain = standing.gain
    unit = "times better" if objective.is_relative else f"{objective.unit} more"
    text = (
        f"{objective.name} {standing.mean:.4g} {objective.unit}, "
        f"{gain.value:.3g} [{gain.low:.3g}, {gain.high:.3g}] {unit}"
    )
    if standing.dropped_after is not None:
        text += f" (dropped after {standing.dropped_after} seeds)"
    return text


def _result(
    trial: SettingTrial,
    objective: Objective,
    space: dict[str, Range],
    outcome: Race,
    wall_s: float,
) -> dict[str, Any]:
    """The `--json` file: null stands for an end of an interval that is not finite."""
    return {
        "system": trial.system.name,
        "best_system": with_settings(trial.system, outcome.best.settings).name,
        "objective": {
            "name": objective.name,
            "unit": objective.unit,
            "less_is_better": objective.less_is_better,
            "gain": "factor" if objective.is_relative else "difference",
        },
        "space": {name: str(values) for name, values in space.items()},
        "trace": trial.trace.origin,
        "rate_per_s": trial.workload.rate_per_s,
        "workflows": trial.workload.num_workflows,
        "workers": [profile.name for profile in trial.profiles],
        "default": outcome.default.settings,
        "gain_is_sure": outcome.best.gain.low > objective.no_gain,
        "ranking": [
            {
                "settings": standing.settings,
                "mean": standing.mean,
                "values": standing.values,
                "gain": {
                    "value": standing.gain.value,
                    "low": standing.gain.low,
                    "high": standing.gain.high,
                    "confidence": standing.gain.confidence,
                },
                "dropped_after": standing.dropped_after,
            }
            for standing in outcome.ranking
        ],
        "num_runs": outcome.num_runs,
        "num_seeds": outcome.num_seeds,
        "wall_s": wall_s,
        "command": ["hexgen-sglang", *sys.argv[1:]],
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, with null for what is not finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def progress(done: int, total: int) -> None:
    """A counter that overwrites itself, on terminals only."""
    if sys.stderr.isatty():
        print(f"\r  {done}/{total} runs", end="\n" if done == total else "", file=sys.stderr)


def say(text: str) -> None:
    """Tell how it goes; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)
