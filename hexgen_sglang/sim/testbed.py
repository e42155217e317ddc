"""A cluster file and a trace, ready for simulated runs: what the measurements of one rule share.

`hexgen-sglang simulate` compares systems; this is for scripts that change something else between
two runs of one system.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hexgen_sglang.bench.loads import parse_loads
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import HexgenError, LawViolation
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace


@dataclass(frozen=True, slots=True)
class Testbed:
    """A cluster's workers, and what their workflows are drawn from.

    Attributes:
        profiles, worker_names: of each worker, in the order of the cluster file.
        coordinator: the file's settings of the coordinator.
        trace: of the workflows.
        capacity_per_s: what a load of 100 % is.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    profiles: tuple[AcceleratorProfile, ...]
    worker_names: tuple[str, ...]
    coordinator: CoordinatorConfig
    trace: Trace
    capacity_per_s: float

    @classmethod
    def of(cls, cluster: Path, trace: str) -> Testbed:
        """From a cluster file and a trace as the bench takes it.

        Raises:
            ConfigError: one of them cannot be read, or is wrong.
        """
        config, loaded = load_cluster(cluster), load_trace(trace)
        profiles = tuple(cluster_profiles(config, None))
        names = tuple(name for row in config.workers for name in row.names())
        capacity = capacity_per_s(loaded, profiles)
        return cls(profiles, names, config.coordinator, loaded, capacity)

    def rate_per_s(self, load: str) -> float:
        """Of a load as the bench takes it, such as 60%."""
        return parse_loads(load, self.capacity_per_s)[0].rate_per_s

    def workload(
        self, load: str, workflows: int, seed: int, *, deadline_scale: float | None = 4.0
    ) -> Workload:
        """Workflows of the trace with Poisson arrivals."""
        rate = self.rate_per_s(load)
        settings = WorkloadSettings(rate, workflows, seed, deadline_scale=deadline_scale)
        return build_workload(self.trace, settings, self.profiles)

    def settings(self) -> SimSettings:
        """Of the simulator, with the names and the coordinator of the cluster file."""
        return SimSettings(worker_names=self.worker_names, coordinator=self.coordinator)

    def run(self, system: str, workload: Workload, settings: SimSettings | None = None) -> RunFacts:
        """Simulate a system, by its name in the bench.

        Raises:
            LawViolation: a law of the simulator broke.
        """
        settings = self.settings() if settings is None else settings
        facts = simulate(parse_system(system), workload, self.profiles, settings)
        if facts.broken:
            raise LawViolation("; ".join(facts.broken))
        return facts


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of workflows, or of requests."""

    p95_s: float
    mean_s: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of single ones, at least one."""
        return cls(float(np.percentile(seconds, 95)), float(np.mean(seconds)))

    def over(self, other: Latency, name: str = "") -> dict[str, float]:
        """Both as a multiple of another's, under keys with a name in front."""
        return {
            f"{name}p95_ratio": self.p95_s / other.p95_s,
            f"{name}mean_ratio": self.mean_s / other.mean_s,
        }


def options(docstring: str, *, loads: Sequence[str], workflows: int) -> argparse.ArgumentParser:
    """Of a script that measures load by load; `loads` and `workflows` are its defaults."""
    parser = argparse.ArgumentParser(description=docstring.partition("\n")[0])
    parser.add_argument(
        "--cluster", type=Path, default=Path("launch/configs/clusters/hetero-1.toml")
    )
    parser.add_argument("--trace", required=True, help="as for the bench")
    parser.add_argument("--loads", nargs="+", default=loads, help="shares of the capacity")
    parser.add_argument("--workflows", type=int, default=workflows)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    return parser


def measure_loads(
    args: argparse.Namespace,
    name: str,
    rows_at: Callable[[Testbed, str], Iterable[dict[str, Any]]],
) -> int:
    """Measure every load of `options`, and write all rows under a name; returns the exit status."""
    try:
        bed = Testbed.of(args.cluster, args.trace)
        rows = [row for load in args.loads for row in rows_at(bed, load)]
    except HexgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    report = {"command": " ".join(["python", *sys.argv]), name: rows}
    args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0
