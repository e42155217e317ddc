"""The whole comparison: every system on every load and seed, one run after the other.

Owns the engines, the dispatchers and the replays; runs in the process of
`hexgen-sglang bench`. What to compare comes in as a `Plan`, the facts of all runs go out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.dispatchers import Told, ask, dispatching
from hexgen_sglang.bench.engines import (
    Engines,
    emulation_between,
    prefixes_between,
    totals_between,
)
from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Facts, Plan
from hexgen_sglang.bench.replay import Replay, ReplaySettings
from hexgen_sglang.bench.store import RecordStore
from hexgen_sglang.bench.systems import Engine, Place, System
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results import laws
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.workload.plan import Workload, build_workload
from hexgen_sglang.workload.prefixes import TokenSource

Say = Callable[[str], None]
Run = tuple[Load, int, System]

# Special tokens stand at either end of common vocabularies; a few thousand ids are plenty.
_FIRST_TOKEN_ID = 300
_MAX_TOKEN_IDS = 30_000


@dataclass(slots=True)
class _Progress:
    """Counts runs for messages."""

    say: Say
    total: int
    done: int = 0
    began_s: float = field(default_factory=time.monotonic)

    def ended(self, name: str, facts: RunFacts) -> None:
        """Tell one line about a run."""
        self.done += 1
        minutes = (time.monotonic() - self.began_s) / 60
        verdict = "" if not facts.broken else f"  VOID: {facts.broken[0]}"
        self.say(
            f"[{self.done}/{self.total}, {minutes:.1f} min] {name}: "
            f"{len(facts.run.workflows)} workflows in {facts.wall_s:.0f} s{verdict}"
        )


def run_all(plan: Plan, say: Say, *, resume: bool = False) -> Facts:
    """Run everything and keep every run's records in the plan's folder.

    Systems that share an engine policy share running workers, so systems may run in another
    order than given. Every run starts with empty caches and a fresh dispatcher.

    Args:
        plan: what to run.
        say: gets lines of progress.
        resume: take over the records of earlier, unbroken runs of an equal plan.

    Raises:
        ProcessError: a worker or dispatcher could not be started, or died.
    """
    progress = _Progress(say, len(plan.loads) * len(plan.seeds) * len(plan.systems))
    store = RecordStore(plan)
    facts: Facts = {(load.label, system.name): [] for load in plan.loads for system in plan.systems}
    for engine, systems in _by_engine(plan.systems):
        runs = [
            (load, seed, system) for load in plan.loads for seed in plan.seeds for system in systems
        ]
        kept = [store.read(*run) if resume else None for run in runs]
        missing = [run for run, found in zip(runs, kept, strict=True) if found is None]
        progress.done += len(runs) - len(missing)
        made = iter(_run_engine(plan, engine, missing, store, progress) if missing else ())
        for (load, _, system), found in zip(runs, kept, strict=True):
            facts[load.label, system.name].append(found or next(made))
    return facts


def _run_engine(
    plan: Plan, engine: Engine, runs: Sequence[Run], store: RecordStore, progress: _Progress
) -> list[RunFacts]:
    """Start the workers once and do runs that share their engine policy, in order."""
    linked = any(system.place is Place.COORDINATOR for _, _, system in runs)
    progress.say(f"starting {len(plan.profiles)} workers with engine policy {engine.name}")
    done = []
    with Engines(
        plan.cluster, engine, plan.time_scale, linked, plan.folder / engine.name
    ) as engines:
        engines.start()
        for load, seed, system in runs:
            settings = replace(plan.workload, rate_per_s=load.rate_per_s, seed=seed)
            workload = build_workload(plan.trace, settings, plan.profiles)
            one = run_one(
                engines,
                system,
                workload,
                plan.cluster.coordinator,
                num_token_ids=plan.num_token_ids,
            )
            store.write(load, seed, system, one)
            done.append(one)
            progress.ended(f"{system.name}, {load.label}, seed {seed}", one)
    return done


def _nothing(coordinator_url: str) -> None:
    """Nobody wants to ask the coordinator anything."""


def _by_engine(systems: Sequence[System]) -> list[tuple[Engine, list[System]]]:
    """Systems grouped by engine, both in order of first appearance."""
    groups: dict[Engine, list[System]] = {}
    for system in systems:
        groups.setdefault(system.engine, []).append(system)
    return list(groups.items())


def run_one(
    engines: Engines,
    system: System,
    workload: Workload,
    coordinator: CoordinatorConfig,
    at_end: Callable[[str], None] = _nothing,
    *,
    num_token_ids: int | None = None,
) -> RunFacts:
    """One replay between two readings of all counters, judged by the laws.

    Args:
        engines: started.
        system: what dispatches to them.
        workload: what is sent.
        coordinator: of a system that has one; its policies are replaced by the system's.
        at_end: given the coordinator's base address ("" where there is none) once the last
            workflow is over.
        num_token_ids: as of `Plan`.
    """
    time_scale = engines.time_scale
    began_s = time.monotonic()
    ticks = machine.cpu_ticks()
    engines.check()
    engines.flush()
    before = engines.read()
    tokens = _tokens(num_token_ids, engines, workload.settings.seed)
    settings = ReplaySettings(
        time_scale=time_scale, send_priority=system.engine.policy == "priority"
    )
    folder = engines.folder / "dispatch"
    with dispatching(system, engines, coordinator, time_scale, folder) as (
        target,
        coordinator_url,
    ):
        run = asyncio.run(Replay(system.name, workload, target, tokens, settings).run())
        at_end(coordinator_url)
        told: Told | None = None
        if coordinator_url:
            told = ask(coordinator_url, [planned.workflow_id for planned in workload.workflows])
    engines.check()
    after = engines.read()
    emulation = emulation_between(before, after)
    broken = [
        *laws.broken_laws(workload, run),
        *laws.broken_engine_totals(run, totals_between(before, after)),
        *laws.broken_emulation(emulation),
        *(laws.broken_deadlines(run, told.budgets_s) if told else ()),
    ]
    return RunFacts(
        run=run,
        broken=tuple(broken),
        emulation=emulation,
        prefixes=prefixes_between(before, after),
        dispatch_waits_s=tuple(wait * time_scale for wait in told.waits_s) if told else (),
        wall_s=time.monotonic() - began_s,
        machine_busy_frac=machine.busy_frac(ticks, machine.cpu_ticks()),
    )


def _tokens(num_ids: int | None, engines: Engines, seed: int) -> TokenSource:
    """Where the prompts' token ids of one seed come from, the same for every system."""
    if num_ids is None:
        vocabularies = [_vocabulary(Path(spec.model_path)) for spec in engines.specs.values()]
        num_ids = min(min(vocabularies) - _FIRST_TOKEN_ID, _MAX_TOKEN_IDS)
    return TokenSource(seed, num_ids, _FIRST_TOKEN_ID)


def _vocabulary(model: Path) -> int:
    """Size of a local model's vocabulary.

    Raises:
        ConfigError: not a folder with a config.json that states it.
    """
    try:
        return int(json.loads((model / "config.json").read_text("utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model {model}: the size of its vocabulary cannot be read ({error}); "
            "state --num-token-ids"
        ) from error
