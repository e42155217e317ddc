"""What to compare: one cluster, one trace, loads, seeds and systems."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.systems import System
from hexgen_sglang.cluster.config import ClusterConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.workload.plan import WorkloadSettings
from hexgen_sglang.workload.trace import Trace


class EngineKind(StrEnum):
    """What serves: simulated schedulers, real SGLang on timed waits, or real accelerators."""

    SIM = "sim"
    EMULATED = "emulated"
    LIVE = "live"


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
        engine: what serves; None: what each worker of the cluster file is.
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
    engine: EngineKind | None = None

    @property
    def usd_per_hour(self) -> float:
        """Price of all workers."""
        return sum(profile.price.usd_per_hour.value for profile in self.profiles)


def engine_kind(config: ClusterConfig, wanted: EngineKind | None) -> EngineKind | None:
    """What serves a cluster; None when some of its workers are emulated and some are real.

    Args:
        config: the cluster; a worker with a profile is emulated.
        wanted: what the user asked for; None: what the cluster file says.

    Raises:
        ConfigError: emulated workers are wanted and one has no profile, or real ones and one
            has.
    """
    real = [row.name for row in config.workers if row.profile is None]
    emulated = [row.name for row in config.workers if row.profile is not None]
    if wanted is EngineKind.EMULATED and real:
        raise ConfigError(f"engine=emulated: workers without a profile: {', '.join(real)}")
    if wanted is EngineKind.LIVE and emulated:
        raise ConfigError(f"engine=live: workers with a profile: {', '.join(emulated)}")
    if wanted is not None or (real and emulated):
        return wanted
    return EngineKind.LIVE if real else EngineKind.EMULATED


# (load, system) -> facts by seed
Facts = dict[tuple[str, str], list[RunFacts]]


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
