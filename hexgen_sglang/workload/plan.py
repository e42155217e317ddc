"""The workload of one run: which workflow arrives when, with which prompts and deadline.

Built once from (trace, settings, seed) and given to every system of a comparison, on
emulated or real workers or in the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.arrivals import Arrivals
from hexgen_sglang.workload.latency import Reuse, unloaded_s
from hexgen_sglang.workload.prefixes import Prompt, prompts_of
from hexgen_sglang.workload.streams import Subsystem, stream
from hexgen_sglang.workload.trace import Trace, TraceWorkflow


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """What to make of a trace.

    Attributes:
        rate_per_s: mean arrivals per second, finite, greater than 0.
        num_workflows: at least 1.
        seed: at least 0.
        arrivals: distribution of the gaps.
        deadline_scale: the deadline is this many times the workflow's unloaded latency,
            greater than 0; None: no deadlines.
        reuse: what the unloaded latency takes as cached.
        share_repeated_queries: workflows of the trace that are equal in every length are
            repeats of one query and share its context. False: every workflow has its own
            context, also a workflow of the trace that is drawn a second time.
        warmup_frac: share of the first arrivals that statistics leave out, 0 to below 1.
    """

    rate_per_s: float
    num_workflows: int
    seed: int = 0
    arrivals: Arrivals = field(default_factory=Arrivals)
    deadline_scale: float | None = 4.0
    reuse: Reuse = Reuse.PERFECT
    share_repeated_queries: bool = False
    warmup_frac: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_per_s) and self.rate_per_s > 0):
            raise ConfigError(f"rate={self.rate_per_s}: must be finite and greater than 0")
        if self.num_workflows < 1:
            raise ConfigError(f"workflows={self.num_workflows}: must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must be at least 0")
        if self.deadline_scale is not None and not (
            math.isfinite(self.deadline_scale) and self.deadline_scale > 0
        ):
            raise ConfigError(
                f"deadline_scale={self.deadline_scale}: must be finite and greater than 0"
            )
        if not 0 <= self.warmup_frac < 1:
            raise ConfigError(f"warmup_frac={self.warmup_frac}: must be 0 to below 1")


@dataclass(frozen=True, slots=True)
class PlannedWorkflow:
    """One arrival. All seconds are emulated ones, before any time scale.

    Attributes:
        index: 0, 1, ... in order of arrival.
        workflow_id: unique within the workload, the same for every system.
        workflow: stages and lengths.
        arrival_s: scheduled arrival, seconds after the start of the run.
        unloaded_s: latency with the cluster to itself; see `latency.unloaded_s`.
        budget_s: deadline as a duration from the arrival; None: best effort.
        prompts: [stage][sibling].
        warmup: left out of statistics.
        tenant: whose it is; "" where that does not matter.
    """

    index: int
    workflow_id: str
    workflow: TraceWorkflow
    arrival_s: float
    unloaded_s: float
    budget_s: float | None
    prompts: list[list[Prompt]]
    warmup: bool
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that is the same for all systems of a comparison.

    Attributes:
        trace: what the workflows were drawn from.
        settings: how.
        workflows: in order of arrival.
    """

    trace: Trace
    settings: WorkloadSettings
    workflows: tuple[PlannedWorkflow, ...]

    @property
    def num_requests(self) -> int:
        """LLM calls of all workflows."""
        return sum(planned.workflow.num_requests for planned in self.workflows)


def build_workload(
    trace: Trace, settings: WorkloadSettings, profiles: Sequence[AcceleratorProfile]
) -> Workload:
    """Draw workflows, arrivals and deadlines.

    Workflows are drawn without replacement, in random order; when more are wanted than the
    trace has, it is gone through again in another order, so that every workflow appears as
    often as any other, give or take one. Changing the rate changes the arrival instants only.

    Args:
        trace: what to draw from.
        settings: rate, number, seed, deadlines.
        profiles: of the cluster's workers, one each, for the unloaded latency.
    """
    instants = settings.arrivals.instants_s(
        settings.rate_per_s, settings.num_workflows, stream(settings.seed, Subsystem.ARRIVALS)
    )
    unloaded: dict[int, float] = {}
    workflows = []
    num_warmup = math.floor(settings.warmup_frac * settings.num_workflows)
    for index, drawn in enumerate(_draw(len(trace.workflows), settings)):
        workflow = trace.workflows[drawn]
        if drawn not in unloaded:
            unloaded[drawn] = unloaded_s(workflow, profiles, settings.reuse)
        workflow_id = f"s{settings.seed}-w{index:05d}"
        context = workflow.shape_digest() if settings.share_repeated_queries else workflow_id
        scale = settings.deadline_scale
        workflows.append(
            PlannedWorkflow(
                index=index,
                workflow_id=workflow_id,
                workflow=workflow,
                arrival_s=float(instants[index]),
                unloaded_s=unloaded[drawn],
                budget_s=None if scale is None else scale * unloaded[drawn],
                prompts=prompts_of(workflow, workflow_id, context),
                warmup=index < num_warmup,
            )
        )
    return Workload(trace, settings, tuple(workflows))


def _draw(num_available: int, settings: WorkloadSettings) -> list[int]:
    """Indices into the trace: permutations of it, one after the other."""
    generator = stream(settings.seed, Subsystem.RESAMPLING)
    drawn: list[int] = []
    while len(drawn) < settings.num_workflows:
        drawn.extend(int(index) for index in generator.permutation(num_available))
    return drawn[: settings.num_workflows]
