"""One simulated run for a figure: what the processes of a search are given and asked.

Objects here are pickled into the worker processes once; they hold plain data and cache the
workload of the seed they saw last, since a search goes through its jobs seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hexgen_sglang.bench.systems import System
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.tuner.mixes import Counts, Offer
from hexgen_sglang.tuner.objective import parse_objective
from hexgen_sglang.tuner.search import Job
from hexgen_sglang.tuner.space import with_settings
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace


@dataclass(slots=True)
class SettingTrial:
    """The objective's figure of a system under some settings and a seed.

    Attributes:
        system: its dispatch policy's settings are replaced by each job's.
        trace: what the workflows are drawn from.
        workload: how; its seed is replaced by each job's.
        profiles: one for each worker.
        objective: key of `OBJECTIVES`.
        budgets_s: deadline by the trace's workflow id, in place of the workload's; None: as
            the workload says.
    """

    system: System
    trace: Trace
    workload: WorkloadSettings
    profiles: tuple[AcceleratorProfile, ...]
    objective: str
    budgets_s: dict[str, float | None] | None = None
    _last: Workload | None = field(default=None, init=False)

    def __call__(self, job: Job) -> float:
        """The figure.

        Raises:
            LawViolation: the run broke a law.
            ConfigError: the policy refuses the settings.
        """
        facts = simulate(
            with_settings(self.system, job.settings), self._workload(job.seed), self.profiles
        )
        return parse_objective(self.objective).value(facts, self.usd_per_hour)

    @property
    def usd_per_hour(self) -> float:
        """Price of all workers."""
        return sum(profile.price.usd_per_hour.value for profile in self.profiles)

    def _workload(self, seed: int) -> Workload:
        if self._last is None or self._last.settings.seed != seed:
            built = build_workload(self.trace, replace(self.workload, seed=seed), self.profiles)
            if self.budgets_s is not None:
                built = with_budgets(built, self.budgets_s)
            self._last = built
        return self._last


@dataclass(frozen=True, slots=True)
class MixTrial:
    """Attainment of a fixed deadline by a system on a mix of workers.

    Attributes:
        system: under test.
        trace: what the workflows are drawn from.
        workload: how; seed and deadlines are replaced.
        offer: gives a mix's profiles.
        slo_s: deadline of every workflow.
    """

    system: System
    trace: Trace
    workload: WorkloadSettings
    offer: Offer
    slo_s: float

    def __call__(self, job: tuple[Counts, int]) -> float:
        """Attainment of a mix under a seed.

        Raises:
            LawViolation: the run broke a law.
            ConfigError: a request fits on no worker of the mix.
        """
        counts, seed = job
        profiles = self.offer.workers(counts)
        built = build_workload(self.trace, replace(self.workload, seed=seed), profiles)
        budgets = {workflow.workflow_id: self.slo_s for workflow in self.trace.workflows}
        facts = simulate(self.system, with_budgets(built, budgets), profiles)
        return parse_objective("attainment").value(facts, self.offer.usd_per_hour(counts))


def with_budgets(workload: Workload, budgets_s: Mapping[str, float | None]) -> Workload:
    """The workload with other deadlines, by the id of the trace's workflow; all must be there."""
    planned = tuple(
        replace(one, budget_s=budgets_s[one.workflow.workflow_id]) for one in workload.workflows
    )
    return replace(workload, workflows=planned)
