"""The whole comparison: every system on every load and seed, one run after the other.

Owns the engines, the dispatchers and the replays; runs in the process of
`hexgen-sglang bench`. What to compare comes in as a `Plan`, the facts of all runs go out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from hexgen_sglang.bench import laws, machine
from hexgen_sglang.bench.dispatchers import dispatching, held_budgets_s
from hexgen_sglang.bench.engines import Engines, emulation_between, totals_between
from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.replay import Replay, ReplaySettings
from hexgen_sglang.bench.result import RunFacts
from hexgen_sglang.bench.systems import Engine, Place, System
from hexgen_sglang.cluster.config import ClusterConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.prefixes import TokenSource
from hexgen_sglang.workload.trace import Trace

Say = Callable[[str], None]

# Special tokens stand at either end of common vocabularies; a few thousand ids are plenty.
_FIRST_TOKEN_ID = 300
_MAX_TOKEN_IDS = 30_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare.

    Attributes:
        cluster: workers; their policies are replaced by each system's.
        profiles: of every worker, in the cluster's order.
        trace: what the workflows are drawn from.
        loads: at least one.
        seeds: at least one; each draws workflows, arrivals and prompts anew.
        systems: at least one.
        workload: settings of the workload; rate and seed are replaced.
        time_scale: emulated seconds in a real one.
        folder: logs, configurations and records.
        num_token_ids: how many token ids prompts are made of; None: as many as the workers'
            tokenizer has, at most 30,000.
    """

    cluster: ClusterConfig
    profiles: tuple[AcceleratorProfile, ...]
    trace: Trace
    loads: tuple[Load, ...]
    seeds: tuple[int, ...]
    systems: tuple[System, ...]
    workload: WorkloadSettings
    time_scale: float
    folder: Path
    num_token_ids: int | None = None

    @property
    def usd_per_hour(self) -> float:
        """Price of all workers."""
        return sum(profile.price.usd_per_hour.value for profile in self.profiles)


# (load, system) -> facts by seed
Facts = dict[tuple[str, str], list[RunFacts]]


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


def run_all(plan: Plan, say: Say) -> Facts:
    """Run everything; `say` gets lines of progress.

    Systems that share an engine policy share running workers, so systems may run in another
    order than given. Every run starts with empty caches and a fresh dispatcher.

    Raises:
        ProcessError: a worker or dispatcher could not be started, or died.
    """
    progress = _Progress(say, len(plan.loads) * len(plan.seeds) * len(plan.systems))
    facts: Facts = {(load.label, system.name): [] for load in plan.loads for system in plan.systems}
    for engine, systems in _by_engine(plan.systems):
        linked = any(system.place is Place.COORDINATOR for system in systems)
        folder = plan.folder / engine.name
        say(f"starting {len(plan.profiles)} workers with engine policy {engine.name}")
        with Engines(plan.cluster, engine, plan.time_scale, linked, folder) as engines:
            engines.start()
            for load, workload in _workloads(plan):
                tokens = _tokens(plan, engines, workload.settings.seed)
                for system in systems:
                    name = f"{system.name}, {load.label}, seed {workload.settings.seed}"
                    one = _run_one(plan, engines, system, workload, tokens)
                    _write(plan.folder / "records", load, one)
                    facts[load.label, system.name].append(one)
                    progress.ended(name, one)
    return facts


def _by_engine(systems: Sequence[System]) -> list[tuple[Engine, list[System]]]:
    """Systems grouped by engine, both in order of first appearance."""
    groups: dict[Engine, list[System]] = {}
    for system in systems:
        groups.setdefault(system.engine, []).append(system)
    return list(groups.items())


def _workloads(plan: Plan) -> Iterator[tuple[Load, Workload]]:
    """Every load with every seed; equal for equal load and seed, whatever the system."""
    for load in plan.loads:
        for seed in plan.seeds:
            settings = replace(plan.workload, rate_per_s=load.rate_per_s, seed=seed)
            yield load, build_workload(plan.trace, settings, plan.profiles)


def _run_one(
    plan: Plan, engines: Engines, system: System, workload: Workload, tokens: TokenSource
) -> RunFacts:
    """One replay between two readings of all counters, judged by the laws."""
    began_s = time.monotonic()
    ticks = machine.cpu_ticks()
    engines.check()
    engines.flush()
    before = engines.read()
    settings = ReplaySettings(
        time_scale=plan.time_scale, send_priority=system.engine.policy == "priority"
    )
    folder = engines.folder / "dispatch"
    with dispatching(system, engines, plan.cluster.coordinator, plan.time_scale, folder) as (
        target,
        coordinator_url,
    ):
        run = asyncio.run(Replay(system.name, workload, target, tokens, settings).run())
        held = (
            held_budgets_s(coordinator_url, [planned.workflow_id for planned in workload.workflows])
            if coordinator_url
            else None
        )
    engines.check()
    after = engines.read()
    emulation = emulation_between(before, after)
    broken = [
        *laws.broken_laws(workload, run),
        *laws.broken_engine_totals(run, totals_between(before, after)),
        *laws.broken_emulation(emulation),
        *(laws.broken_deadlines(run, held) if held is not None else ()),
    ]
    return RunFacts(
        run=run,
        broken=tuple(broken),
        emulation=emulation,
        wall_s=time.monotonic() - began_s,
        machine_busy_frac=machine.busy_frac(ticks, machine.cpu_ticks()),
    )


def _tokens(plan: Plan, engines: Engines, seed: int) -> TokenSource:
    """Where the prompts' token ids of one seed come from, the same for every system."""
    num_ids = plan.num_token_ids
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


def _write(folder: Path, load: Load, facts: RunFacts) -> None:
    """Keep the records of a run, for plots and later questions."""
    folder.mkdir(parents=True, exist_ok=True)
    safe = "".join(c if c.isalnum() or c in "+-_." else "_" for c in facts.run.system)
    name = f"{safe}.{load.label.replace('%', 'pct')}.{facts.run.seed}.json"
    (folder / name).write_bytes(msgspec.json.encode(facts))


def read_facts(path: Path) -> RunFacts:
    """A record file written by a bench.

    Raises:
        ConfigError: not readable or not one.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunFacts)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def cluster_profiles(
    config: ClusterConfig, reference: Path | None
) -> tuple[AcceleratorProfile, ...]:
    """The accelerator profile of every worker, in the cluster file's order.

    Args:
        config: the cluster.
        reference: profile of workers that are not emulated; None when there are none.

    Raises:
        ConfigError: a profile cannot be read, or a real worker has none.
    """
    profiles: list[AcceleratorProfile] = []
    for row in config.workers:
        path = Path(row.profile) if row.profile else reference
        if path is None:
            raise ConfigError(
                f"worker {row.name!r} has no profile: state --reference, which deadlines and "
                "capacity are then computed from (`hexgen-sglang profile` measures one)"
            )
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        profiles += [profile_from_toml(text, str(path))] * row.count
    return tuple(profiles)
