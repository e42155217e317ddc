"""A bounded window of the workflows that ended last, as a trace to simulate.

Pure: observations in, trace and workload settings out. Lengths, stages and instants only; no
text ever gets here. What could not be seen is reconstructed by stated rules:

* Requests of one stage name are one stage while they overlap in time or were announced as
  siblings; otherwise the workflow passed through the stage again.
* A stage waited for the stages that had ended when it started, as far as none of these waited
  for another of them. Branches that happened to run one after the other look dependent.
* The time between the end of the last of them and its own start is tool time.
* Prefixes: what nine of ten first requests of a stage had in cache at most is taken as its
  template, what later ones had beyond that as the workflow's own context. Caches that were
  full or cold make both too short.

The rate is that of the workflows in the window: what failed or was cancelled is not in it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.observed import ObservedRequest, ObservedWorkflow
from hexgen_sglang.results.statistics import quantile
from hexgen_sglang.workload.arrivals import ArrivalProcess, Arrivals
from hexgen_sglang.workload.plan import WorkloadSettings
from hexgen_sglang.workload.prefixes import CONTEXT
from hexgen_sglang.workload.trace import (
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

FORMAT = "observed"
UNTAGGED = "untagged"
_USUAL = 0.9
_CV_RANGE = (0.1, 10.0)
# Clock readings of one event loop: what ended this much later had ended.
_SAME_INSTANT_S = 0.001


class RecentWorkflows:
    """The newest workflows, as many as both limits allow; older ones are forgotten.

    Args:
        max_workflows: at least 2.
        max_requests: of all of them together, at least 1.
        max_age_s: workflows that arrived longer than this before the newest are forgotten, so
            that a change of traffic is seen; above 0.
    """

    def __init__(
        self,
        max_workflows: int = 500,
        max_requests: int = 20_000,
        max_age_s: float = math.inf,
    ) -> None:
        if max_workflows < 2 or max_requests < 1 or not max_age_s > 0:
            raise ConfigError(
                f"window of {max_workflows} workflows, {max_requests} requests, {max_age_s} s: "
                "must be at least 2, at least 1, above 0"
            )
        self._max_age_s = max_age_s
        self._newest_s = -math.inf
        self._max_workflows = max_workflows
        self._max_requests = max_requests
        self._workflows: deque[ObservedWorkflow] = deque()
        self._num_requests = 0

    def __len__(self) -> int:
        return len(self._workflows)

    @property
    def num_requests(self) -> int:
        """Of all workflows in the window."""
        return self._num_requests

    def add(self, workflow: ObservedWorkflow) -> None:
        """Take in a workflow that just ended; forget the oldest beyond the limits.

        The newest one stays even when it alone has more requests than the limit.
        """
        self._workflows.append(workflow)
        self._num_requests += len(workflow.requests)
        self._newest_s = max(self._newest_s, workflow.arrival_s)
        while len(self._workflows) > 1 and self._is_over():
            self._num_requests -= len(self._workflows.popleft().requests)

    def _is_over(self) -> bool:
        """Whether the workflow that ended first has to go."""
        return (
            len(self._workflows) > self._max_workflows
            or self._num_requests > self._max_requests
            or self._workflows[0].arrival_s < self._newest_s - self._max_age_s
        )

    def observed(self) -> Observed:
        """The window as something to simulate.

        Raises:
            ConfigError: fewer than 2 workflows, or all arrived at one instant.
        """
        by_arrival = sorted(self._workflows, key=lambda workflow: workflow.arrival_s)
        return Observed.of(by_arrival)


@dataclass(frozen=True, slots=True)
class Observed:
    """A window's traffic, ready for the simulator.

    Attributes:
        trace: one workflow for each that was seen, in order of arrival.
        budgets_s: deadline by id of the trace's workflow; None: best effort.
        rate_per_s: arrivals per second, from the first to the last.
        arrivals: the process whose gaps vary as much as those seen.
    """

    trace: Trace
    budgets_s: dict[str, float | None]
    rate_per_s: float
    arrivals: Arrivals

    @classmethod
    def of(cls, workflows: Sequence[ObservedWorkflow]) -> Observed:
        """From workflows in order of arrival.

        Raises:
            ConfigError: fewer than 2 workflows, or all arrived at one instant.
        """
        gaps = [
            later.arrival_s - earlier.arrival_s for earlier, later in itertools.pairwise(workflows)
        ]
        if not gaps or sum(gaps) <= 0:
            raise ConfigError(f"{len(workflows)} observed workflows: no rate can be told from them")
        stages = [_stages(workflow.requests) for workflow in workflows]
        prefixes = _usual_prefixes(stages)
        ids = [f"observed-{index}" for index in range(len(workflows))]
        trace = Trace(
            name=FORMAT,
            origin=f"{FORMAT}:{len(workflows)}",
            format=FORMAT,
            workflows=tuple(
                TraceWorkflow(
                    workflow_id, workflow.workflow_type or UNTAGGED, _trace_stages(visits, prefixes)
                )
                for workflow_id, workflow, visits in zip(ids, workflows, stages, strict=True)
            ),
        )
        budgets = {name: one.budget_s for name, one in zip(ids, workflows, strict=True)}
        return cls(trace, budgets, len(gaps) / sum(gaps), _arrivals(gaps))

    def settings(self, num_workflows: int) -> WorkloadSettings:
        """Draw that many workflows of the trace at the observed rate; budgets are replaced."""
        return WorkloadSettings(
            rate_per_s=self.rate_per_s,
            num_workflows=num_workflows,
            arrivals=self.arrivals,
            deadline_scale=None,
        )


def _arrivals(gaps: Sequence[float]) -> Arrivals:
    """Gamma gaps with the coefficient of variation seen; with few gaps Poisson."""
    if len(gaps) < 30:
        return Arrivals()
    mean = math.fsum(gaps) / len(gaps)
    variance = math.fsum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    low, high = _CV_RANGE
    return Arrivals(ArrivalProcess.GAMMA, min(max(math.sqrt(variance) / mean, low), high))


@dataclass(slots=True)
class _Visit:
    """One pass through a stage; `is_first`: of this workflow through a stage of this name."""

    name: str
    is_first: bool
    requests: list[ObservedRequest] = field(default_factory=list)

    @property
    def start_s(self) -> float:
        return self.requests[0].start_s

    @property
    def end_s(self) -> float:
        return max(request.end_s for request in self.requests)

    def takes(self, request: ObservedRequest) -> bool:
        """Whether a request that starts no earlier than those here belongs to this pass."""
        if request.start_s < self.end_s:
            return True
        first = self.requests[0]
        seen = {one.sibling_index for one in self.requests}
        announced = request.siblings > 1 and request.siblings == first.siblings
        return announced and request.sibling_index not in seen


def _stages(requests: Iterable[ObservedRequest]) -> list[_Visit]:
    """The passes of one workflow, by start."""
    visits: list[_Visit] = []
    newest: dict[str, _Visit] = {}
    for request in sorted(requests, key=lambda one: (one.start_s, one.end_s)):
        name = request.stage or UNTAGGED
        visit = newest.get(name)
        if visit is None or not visit.takes(request):
            visit = _Visit(name, is_first=name not in newest)
            visits.append(visit)
            newest[name] = visit
        visit.requests.append(request)
    return visits


def _trace_stages(
    visits: Sequence[_Visit], prefixes: dict[str, tuple[int, int]]
) -> tuple[TraceStage, ...]:
    """Stages with what each waited for."""
    ended: list[list[int]] = []
    stages = []
    for index, visit in enumerate(visits):
        before = [
            other
            for other in range(index)
            if visits[other].end_s <= visit.start_s + _SAME_INSTANT_S
        ]
        ended.append(before)
        implied = {earlier for other in before for earlier in ended[other]}
        after = tuple(other for other in before if other not in implied)
        free_s = max((visits[other].end_s for other in after), default=0.0)
        siblings = sorted(visit.requests, key=lambda request: request.sibling_index)
        stages.append(
            TraceStage(
                name=visit.name,
                requests=tuple(_trace_request(one, visit.name, prefixes) for one in siblings),
                after=after,
                tool_s=max(0.0, visit.start_s - free_s),
            )
        )
    return tuple(stages)


def _trace_request(
    request: ObservedRequest, name: str, prefixes: dict[str, tuple[int, int]]
) -> TraceRequest:
    """The request with the usual prefix of its stage, as far as its prompt is that long."""
    if name not in prefixes:
        return TraceRequest(request.input_tokens, request.output_tokens)
    template, context = prefixes[name]
    # At least the last token of a prompt is always computed.
    room = request.input_tokens - 1
    template = min(template, room)
    context = min(context, room - template)
    parts = [
        (PrefixScope.TEMPLATE, name, template),
        (PrefixScope.WORKFLOW, _context(name), context),
    ]
    prefix = tuple(PrefixPart(scope, key, tokens) for scope, key, tokens in parts if tokens)
    return TraceRequest(request.input_tokens, request.output_tokens, prefix)


def _context(name: str) -> str:
    return f"{name}.{CONTEXT}"[-64:]


def _usual_prefixes(workflows: Sequence[Sequence[_Visit]]) -> dict[str, tuple[int, int]]:
    """Template and context tokens by stage, where workers told of cached tokens."""
    first: dict[str, list[int]] = defaultdict(list)
    later: dict[str, list[int]] = defaultdict(list)
    for visits in workflows:
        for visit in visits:
            for index, request in enumerate(visit.requests):
                if request.cached_tokens is None:
                    continue
                known = first if visit.is_first and index == 0 else later
                known[visit.name].append(request.cached_tokens)
    usual = {}
    for name in {*first, *later}:
        template = int(quantile(first[name], _USUAL)) if first[name] else 0
        reused = int(quantile(later[name], _USUAL)) if later[name] else 0
        usual[name] = (template, max(0, reused - template))
    return usual
