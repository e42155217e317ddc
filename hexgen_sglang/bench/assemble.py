"""From a plan and the facts of its runs to the whole result, and to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.plan import EngineKind, Facts, Plan
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.figures import load_result, overhead_frac, with_goodput
from hexgen_sglang.results.schema import BenchResult

_SERVED_BY = {
    EngineKind.SIM: (
        "Simulated: a model of SGLang's scheduler on a virtual clock, the coordinator's own code "
        "in front of it; the host's time and the network's are 0 unless measured ones were given "
        "(`host` in the figures).",
        "sglang-router is a model of its default settings.",
    ),
    EngineKind.EMULATED: (
        "Everything but the forward pass is real SGLang; its duration is the profile's.",
        "sglang-router runs with its default settings.",
    ),
    EngineKind.LIVE: ("sglang-router runs with its default settings.",),
    None: (
        "Some workers are real; of the others, everything but the forward pass is.",
        "sglang-router runs with its default settings.",
    ),
}
_ALWAYS = (
    "Engines know each request's exact output length as its limit, as with sglang.bench_serving; "
    "dispatch and ordering policies do not.",
    "Every run starts with empty prefix caches and a dispatcher that has learned nothing.",
    "Deadlines are multiples of each workflow's latency alone on the cluster: mean over its "
    "workers, templates cached.",
    "100 % load is a bound of linear programming that no system reaches.",
)


def remarks(engine: str | None) -> tuple[str, ...]:
    """What a reader must know to judge the figures; the report prints it as it stands.

    Args:
        engine: an `EngineKind`, or None for workers of several kinds, as in the settings of
            a result.
    """
    return (*_SERVED_BY[None if engine is None else EngineKind(engine)], *_ALWAYS)


def bench_result(
    plan: Plan,
    facts: Facts,
    baseline: str,
    capacity_per_s: float,
    command: Sequence[str],
    wall_s: float,
) -> BenchResult:
    """The figures of every load and system, with what they were made from.

    Args:
        plan: what was compared.
        facts: of all runs.
        baseline: name of a system of the plan.
        capacity_per_s: the bound that loads in per cent refer to.
        command: the command line.
        wall_s: real seconds of everything.
    """
    runs = [
        {system.name: facts[load.label, system.name] for system in plan.systems}
        for load in plan.loads
    ]
    loads = [
        load_result(load.label, load.rate_per_s, load_runs, baseline, plan.usd_per_hour)
        for load, load_runs in zip(plan.loads, runs, strict=True)
    ]
    loads = with_goodput(loads, runs, baseline)
    broken = tuple(sentence for load in loads for sentence in load.invalid_because)
    return BenchResult(
        valid=not broken,
        cluster=plan.cluster.cluster.name,
        trace=plan.trace.name,
        rate=loads[0].rate,
        seeds=plan.seeds,
        overhead_frac=overhead_frac([one for some in facts.values() for one in some]),
        systems=loads[0].systems,
        invalid_because=broken,
        baseline=baseline,
        capacity_per_s=capacity_per_s,
        time_scale=plan.time_scale,
        loads=tuple(loads),
        settings=_settings(plan),
        versions=machine.versions(),
        profiles={profile.name: _profile(profile) for profile in plan.profiles},
        machine=machine.machine(),
        command=tuple(command),
        wall_s=wall_s,
    )


def _settings(plan: Plan) -> dict[str, Any]:
    """The workload's settings, and what each system's name stands for."""
    workload = plan.workload
    return {
        "engine": None if plan.engine is None else plan.engine.value,
        "trace_origin": plan.trace.origin,
        "trace_format": plan.trace.format,
        "trace_workflows": len(plan.trace.workflows),
        "workflows_per_run": workload.num_workflows,
        "arrivals": str(workload.arrivals),
        "deadline_scale": workload.deadline_scale,
        "reuse": workload.reuse.value,
        "share_repeated_queries": workload.share_repeated_queries,
        "warmup_frac": workload.warmup_frac,
        "workers": [profile.name for profile in plan.profiles],
        "usd_per_hour": plan.usd_per_hour,
        "systems": {
            system.name: {
                "engine": system.engine.name,
                "place": system.place.value,
                "dispatch": system.dispatch,
                "settings": system.settings,
                "binding": system.binding.value,
                "working_set": system.working_set,
            }
            for system in plan.systems
        },
    }


def _profile(profile: AcceleratorProfile) -> dict[str, Any]:
    """What a profile is and where its numbers come from."""
    known = msgspec.to_builtins(profile)
    return {
        "device": profile.device,
        "model": profile.model,
        "fit": profile.fit.method,
        **{part: known[part] for part in ("prefill", "decode", "capacity", "price")},
    }


def write_json(result: BenchResult, path: Path) -> None:
    """Write the `--json` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def read_json(path: Path) -> BenchResult:
    """Read a `--json` file.

    Raises:
        ConfigError: not readable, or not one.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchResult)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
