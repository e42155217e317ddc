"""The runs of a bench's plan in the simulator: one job for each load, seed and system.

The jobs are independent and picklable, so that they can run in any process and order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Plan
from hexgen_sglang.bench.systems import System, parse_system
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.schema import BenchResult, HostCosts, RunFacts
from hexgen_sglang.sim.host import HostTimes
from hexgen_sglang.sim.run import DEFAULT_SETTINGS, SimSettings, simulate
from hexgen_sglang.workload.plan import build_workload


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a plan."""

    load: Load
    seed: int
    system: System


def planned_runs(plan: Plan) -> list[PlannedRun]:
    """Every run of a plan; those of one load and system stand in the order of seeds."""
    return [
        PlannedRun(load, seed, system)
        for load in plan.loads
        for system in plan.systems
        for seed in plan.seeds
    ]


@dataclass(frozen=True, slots=True)
class PlannedSimulation:
    """Simulates runs of one plan, on the workload that the bench would replay.

    Attributes:
        plan: its time scale and folder do not matter.
        settings: of the simulator; workers' names and the coordinator's settings are those of
            the plan's cluster.
        hosts: what the host adds, by label of the load and name of the system; where there is
            none, what `settings` say.
    """

    plan: Plan
    settings: SimSettings = DEFAULT_SETTINGS
    hosts: Mapping[tuple[str, str], HostTimes] = field(default_factory=dict)

    def __call__(self, run: PlannedRun) -> RunFacts:
        """The facts of one run."""
        plan = self.plan
        settings = replace(plan.workload, rate_per_s=run.load.rate_per_s, seed=run.seed)
        workload = build_workload(plan.trace, settings, plan.profiles)
        cluster = plan.cluster
        sim = replace(
            self.settings,
            worker_names=tuple(name for row in cluster.workers for name in row.names()),
            coordinator=cluster.coordinator,
            host=self.hosts.get((run.load.label, run.system.name), self.settings.host),
        )
        return simulate(run.system, workload, plan.profiles, sim)


def measured_hosts(plan: Plan, bench: BenchResult) -> dict[tuple[str, str], HostTimes]:
    """What a bench measured of its host, for every load and system of a plan.

    A system that the bench had at a load of that label takes its own figures; others the mean of
    those with a dispatcher at the same place, since the way of a request is the same there.

    Raises:
        ConfigError: the bench measured none that would do, or its workers have other names.
    """
    measured = {
        (load.label, name): figures.host
        for load in bench.loads
        for name, figures in load.systems.items()
        if figures.host is not None
    }
    found = {}
    for load in plan.loads:
        for system in plan.systems:
            own = measured.get((load.label, system.name))
            alike = [
                costs
                for (_, name), costs in measured.items()
                if parse_system(name).place is system.place
            ]
            if own is None and not alike:
                raise ConfigError(
                    f"host times for {system.name!r}: the bench has none of a system whose "
                    f"dispatcher is at {system.place}"
                )
            found[load.label, system.name] = HostTimes.measured(own or _mean(alike))
    names = {name for row in plan.cluster.workers for name in row.names()}
    for times in found.values():
        if set(times.step_s) != names:
            raise ConfigError(
                f"host times of workers {', '.join(sorted(times.step_s))}: must be those of the "
                f"cluster: {', '.join(sorted(names))}"
            )
    return found


def _mean(costs: Sequence[HostCosts]) -> HostCosts:
    """Of each term."""

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    return HostCosts(
        time_scale=mean([one.time_scale for one in costs]),
        send_s=mean([one.send_s for one in costs]),
        to_engine_s=mean([one.to_engine_s for one in costs]),
        back_s=mean([one.back_s for one in costs]),
        step_s={
            name: mean([one.step_s.get(name, 0.0) for one in costs])
            for name in {name for one in costs for name in one.step_s}
        },
    )
