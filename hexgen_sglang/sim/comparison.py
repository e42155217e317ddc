"""The runs of a bench's plan in the simulator: one job for each load, seed and system.

The jobs are independent and picklable, so that they can run in any process and order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Plan
from hexgen_sglang.bench.systems import System
from hexgen_sglang.results.schema import RunFacts
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
    """

    plan: Plan
    settings: SimSettings = DEFAULT_SETTINGS

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
        )
        return simulate(run.system, workload, plan.profiles, sim)
