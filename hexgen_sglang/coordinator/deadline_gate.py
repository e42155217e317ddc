"""Admission by deadline: may a new workflow begin, given what those in progress still need?

Off unless an attainment is stated. A new workflow is refused when it would not end in time with
that probability, or when it would make others late and the attainment of those admitted fall
below what was stated. What it needs is learned from ended workflows of its type: the work of all
its requests, as seconds of the whole cluster with full batches, and its longest path alone. How
far such predictions are off is learned, too: the wanted quantile of what came over what was said.
Nothing is refused while its type, or what steps cost, is unknown, nor ever a later stage.

Runs in the coordinator and in the simulator; instants come as arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.feasibility import Due, Schedule
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflow_needs import Crew, Usual, crew_of
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.policies.estimators import BoundedTable, RunningMean
from hexgen_sglang.protocol.tag import WorkflowTag

_MIN_ENDED = 8  # of a type, before anything of it is refused
_MAX_TYPES = 1_024
_MAX_OPEN = 100_000
# A workflow without an open request for so long has no work that anybody waits for.
_IDLE_S = 10.0
# Of a workflow that has made as much as is usual, and is not over.
_LEAST_LEFT = 0.1
# As the central queue ranks work without a deadline.
_BEST_EFFORT_S = 30.0
_RECENT = 50
_LEAST_FACTOR, _MOST_FACTOR = 0.5, 20.0
_MILLI = 1_000
# Its siblings get the answer that a refused workflow got.
_MAX_REFUSED = 1_024
_SIBLINGS_S = 1.0


@dataclass(slots=True)
class _Open:
    """An admitted workflow: where it runs, and when it was said to end without a factor."""

    workflow: Workflow
    lane: str
    predicted_s: float | None


class DeadlineGate:
    """Refuses new workflows that would be late, or make others late.

    Args:
        attainment: share of the admitted workflows that shall meet their deadlines, above 0 and
            below 1; None: nothing is ever refused.
        estimates: of the stages and of the workers' speed.
        ready: the workers that take requests now.
        default_slots: batch limit of a worker that tells none.
        on_refused: told the workflow type and why: "hopeless", "late" or "harm".
    """

    def __init__(
        self,
        attainment: float | None,
        estimates: Estimates,
        ready: Callable[[], Sequence[Worker]],
        default_slots: int,
        on_refused: Callable[[str, str], None] = lambda kind, why: None,
    ) -> None:
        self._attainment = attainment
        self._estimates = estimates
        self._ready = ready
        self._default_slots = default_slots
        self._on_refused = on_refused
        self._usual: BoundedTable[str, Usual] = BoundedTable(Usual, _MAX_TYPES)
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._met = RunningMean(1.0 / _RECENT)
        self._refused: OrderedDict[str, tuple[float, float, str]] = OrderedDict()

    def check(self, tag: WorkflowTag, lane: str, budget_s: float | None, now_s: float) -> None:
        """Refuse a new workflow that should not begin.

        Args:
            tag: of its first request.
            lane: the model it needs.
            budget_s: until its deadline; None: best effort, which is never refused.
            now_s: the present instant.

        Raises:
            ApiError: 429 with the earliest deadline that could be kept.
        """
        if self._attainment is None or budget_s is None:
            return
        workflow_id, workflow_type = tag.workflow_id, tag.workflow_type or ""
        asked = self._asked(workflow_type, tag.stage or "", lane, budget_s)
        if asked is None:
            return
        until_s, earliest_at_s, why = self._refused.get(workflow_id, (0.0, 0.0, ""))
        if now_s < until_s and now_s + budget_s < earliest_at_s:
            raise _refusal(budget_s, earliest_at_s - now_s, why)
        schedule = Schedule(self._rows(lane, now_s))
        if not schedule.num_counted:
            # With nobody to harm, what was learned of the past must not keep everybody out.
            asked = replace(asked, factor=min(1.0, asked.factor))
        allowed = self._may_harm(schedule)
        place = schedule.place(budget_s)
        if asked.alone_s > budget_s:
            why = "hopeless"
        elif schedule.end_s(place, asked) > budget_s:
            why = "late"
        elif schedule.num_harmed(place, asked) > allowed:
            why = "harm"
        else:
            return
        asked = replace(asked, deadline_s=max(budget_s, asked.alone_s))
        earliest_s = schedule.earliest_s(asked, allowed)
        self._on_refused(workflow_type, why)
        self._refused[workflow_id] = (now_s + _SIBLINGS_S, now_s + earliest_s, why)
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)
        raise _refusal(budget_s, earliest_s, why)

    def admitted(self, workflow: Workflow, stage: str, lane: str, now_s: float) -> None:
        """A new workflow has begun."""
        if self._attainment is None:
            return
        predicted_s = None
        if workflow.deadline_s is not None:
            budget_s = workflow.deadline_s - now_s
            asked = self._asked(workflow.workflow_type, stage, lane, budget_s)
            if asked is not None:
                schedule = Schedule(self._rows(lane, now_s))
                said_s = schedule.end_s(schedule.place(budget_s), asked) / asked.factor
                predicted_s = max(1e-6, said_s)
        self._open[workflow.workflow_id] = _Open(workflow, lane, predicted_s)
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)

    def ended(self, workflow: Workflow) -> None:
        """A workflow is over: learn what it took, and how far the prediction was off."""
        known = self._open.pop(workflow.workflow_id, None)
        if known is None or workflow.is_cancelled or workflow.ended_s is None:
            return
        usual = self._usual.at(workflow.workflow_type)
        usual.take(workflow)
        if workflow.deadline_s is not None:
            self._met.add(float(workflow.ended_s <= workflow.deadline_s))
        if known.predicted_s is not None:
            took_s = workflow.ended_s - workflow.started_s
            usual.take_latency(known.predicted_s, took_s)
            note = self._estimates.stages.errors.note
            note("admission_s", workflow.workflow_type, known.predicted_s, took_s)

    def _may_harm(self, schedule: Schedule) -> int:
        """How many may become late before too few are in time; a newcomer in time counts."""
        assert self._attainment is not None
        num_past = min(_RECENT, self._met.count)
        in_time = self._met.mean * num_past + schedule.num_in_time + 1
        total = num_past + schedule.num_counted + 1
        return max(0, int(in_time - self._attainment * total))

    def _asked(self, kind: str, stage: str, lane: str, budget_s: float) -> Due | None:
        """What a new workflow needs; None when that is not known."""
        usual = self._usual.get(kind)
        path = self._estimates.stages.alone.work(kind, stage)
        crew = self._crew(lane)
        if usual is None or path is None or crew is None:
            return None
        if usual.num_requests.count < _MIN_ENDED:
            return None
        return Due(budget_s, crew.work_s(usual), crew.alone_s(path), self._factor(usual))

    def _rows(self, lane: str, now_s: float) -> list[Due]:
        """What is left of the lane's workflows that somebody waits for."""
        crew = self._crew(lane)
        if crew is None:
            return []
        costs: dict[str, tuple[float, float, Usual] | None] = {}
        rows = []
        for workflow_id, known in list(self._open.items()):
            workflow = known.workflow
            if workflow.ended_s is not None:
                del self._open[workflow_id]
                continue
            is_idle = not workflow.num_open and now_s - workflow.last_active_s > _IDLE_S
            if known.lane != lane or is_idle:
                continue
            kind = workflow.workflow_type
            if kind not in costs:
                costs[kind] = self._costs(crew, workflow)
            cost = costs[kind]
            if cost is not None:
                rows.append(self._row(workflow, cost, now_s))
        return rows

    def _costs(self, crew: Crew, workflow: Workflow) -> tuple[float, float, Usual] | None:
        """Work and longest path of a whole workflow of this one's type; None when unknown."""
        usual = self._usual.get(workflow.workflow_type)
        first = workflow.visits[0].stage if workflow.visits else ""
        path = self._estimates.stages.alone.work(workflow.workflow_type, first)
        if usual is None or path is None:
            return None
        return crew.work_s(usual), crew.alone_s(path), usual

    def _row(self, workflow: Workflow, cost: tuple[float, float, Usual], now_s: float) -> Due:
        work_s, alone_s, usual = cost
        made = sum(visit.num_output_tokens for visit in workflow.visits)
        left = max(_LEAST_LEFT, 1.0 - made / max(1.0, usual.num_output.mean))
        deadline_s = workflow.deadline_s
        if deadline_s is None:
            at_s = workflow.started_s + _BEST_EFFORT_S - now_s
            return Due(at_s, work_s * left, alone_s * left, counts=False)
        return Due(deadline_s - now_s, work_s * left, alone_s * left, self._factor(usual))

    def _factor(self, usual: Usual) -> float:
        """The wanted quantile of real over predicted latency; 1 while too few are known."""
        assert self._attainment is not None
        if usual.factors.count < _MIN_ENDED:
            return 1.0
        return min(_MOST_FACTOR, max(_LEAST_FACTOR, usual.factor(self._attainment)))

    def _crew(self, lane: str) -> Crew | None:
        """The lane's workers; None when nothing is known of any."""
        able = [worker for worker in self._ready() if worker.serves(lane)]
        return crew_of(able, self._estimates, self._default_slots)


def _refusal(budget_s: float, earliest_s: float, why: str) -> ApiError:
    """What the client is told."""
    said = {
        "hopeless": "it takes longer even with all workers to itself",
        "late": "it would be late beside the work in progress",
        "harm": "it would make workflows in progress late",
    }
    earliest_ms = round(earliest_s * _MILLI) + 1
    return ApiError(
        429,
        f"budget_ms={round(budget_s * _MILLI)}: the workflow is not begun, {said[why]}; "
        f"now it must be at least {earliest_ms}",
        kind="rate_limit_error",
        code="deadline_infeasible",
        param="budget_ms",
        retry_after_s=earliest_s - budget_s,
        extra={"earliest_feasible_ms": earliest_ms},
    )
