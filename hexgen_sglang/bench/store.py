"""The records of runs on disk, and whether those found there belong to the same plan.

A long comparison can so be done in several sittings. Two versions of our own code are not
told apart: use a fresh folder after changing it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Plan
from hexgen_sglang.bench.systems import System
from hexgen_sglang.cluster.config import ClusterConfig
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.schema import RunFacts


class RecordFile(Struct, frozen=True):
    """One file: whose run it is, and the run.

    Attributes:
        fingerprint: of everything that decides the run.
        facts: what came of it.
    """

    fingerprint: str
    facts: RunFacts


class RecordStore:
    """The folder `records` of a plan's folder."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._folder = plan.folder / "records"
        self._common = _digest(
            [workflow.shape_digest() for workflow in plan.trace.workflows],
            plan.profiles,
            _without_places(plan.cluster),
            plan.workload,
            plan.time_scale,
            plan.num_token_ids,
            sorted(machine.versions().items()),
        )

    def write(self, load: Load, seed: int, system: System, facts: RunFacts) -> None:
        """Keep a run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        record = RecordFile(self._fingerprint(load, seed, system), facts)
        self.path(load, seed, system).write_bytes(msgspec.json.encode(record))

    def read(self, load: Load, seed: int, system: System) -> RunFacts | None:
        """The run of an equal plan, if it is there and broke no law.

        Raises:
            ConfigError: there is a file that is no record.
        """
        path = self.path(load, seed, system)
        if not path.exists():
            return None
        record = read_record(path)
        is_same = record.fingerprint == self._fingerprint(load, seed, system)
        return record.facts if is_same and not record.facts.broken else None

    def path(self, load: Load, seed: int, system: System) -> Path:
        """Where the run is kept."""
        name = "".join(c if c.isalnum() or c in "+-_." else "_" for c in system.name)
        return self._folder / f"{name}.{load.label.replace('%', 'pct')}.{seed}.json"

    def _fingerprint(self, load: Load, seed: int, system: System) -> str:
        return _digest(self._common, load.rate_per_s, seed, system)


def read_record(path: Path) -> RecordFile:
    """A record file.

    Raises:
        ConfigError: not readable, or not one.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RecordFile)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _without_places(cluster: ClusterConfig) -> ClusterConfig:
    """The cluster without where its profiles lie: what they say is in the plan."""
    return replace(
        cluster,
        workers=tuple(replace(row, profile=None) for row in cluster.workers),
        coordinator=replace(cluster.coordinator, accelerators=None),
    )


def _digest(*parts: object) -> str:
    """A short digest of values whose `repr` tells everything about them."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
