"""The workflow tracker: every workflow in progress and the newest that ended.

Instants are the coordinator's monotonic seconds. Bounded: ended workflows are forgotten
first, then the longest idle; with only busy ones left, new ones are refused.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from hexgen_sglang.coordinator.decisions import DecisionLog
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.policies.deadlines import stage_budget_s
from hexgen_sglang.policies.estimators import StageEstimates, StageVisit
from hexgen_sglang.protocol.tag import WorkflowTag

# Of one workflow: more requests, or passes through stages, drop the oldest ended ones.
_MAX_RECORDS = 2_048
# Requests without a tag are workflows too, but must not push tagged ones out of memory.
_MAX_UNTAGGED = 1_000


class Outcome(StrEnum):
    """Where a request stands, or how it ended."""

    QUEUED = "queued"  # waits in the central queue
    RUNNING = "running"  # at a worker
    COMPLETED = "completed"  # the client got the worker's whole answer
    REJECTED = "rejected"  # the worker called it wrong (4xx)
    CANCELLED = "cancelled"  # its workflow was cancelled
    DISCONNECTED = "disconnected"  # the client went away
    FAILED = "failed"  # the client got an error of the coordinator


OPEN = frozenset({Outcome.QUEUED, Outcome.RUNNING})


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What is told of one request in `GET /workflows/{id}`.

    Attributes:
        retries, moves: tries that failed at a worker; times it was taken back from one.
        engine_queue_s, prefill_s, decode_s: of the attempt that answered, as its engine timed
            them; None without a link.
    """

    request_id: str
    stage: str
    siblings: int
    sibling_index: int
    accepted_s: float
    final: bool = False
    worker_id: str = ""
    dispatched_s: float | None = None
    first_byte_s: float | None = None
    finished_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    outcome: Outcome = Outcome.QUEUED
    retries: int = 0
    moves: int = 0
    engine_queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None


@dataclass(slots=True, eq=False)
class Visit:
    """One pass through a stage: siblings that overlap or were announced together."""

    stage: str
    start_s: float
    siblings: int
    budget_s: float | None
    seen: set[int] = field(default_factory=set)
    num_requests: int = 0
    num_output_tokens: int = 0
    num_path_tokens: int = 0
    num_path_uncached: int = 0
    num_open: int = 0
    end_s: float = 0.0
    service_s: float = 0.0

    def take_lengths(self, record: RequestRecord) -> None:
        """What a request of it that has ended is known to have computed."""
        output = record.output_tokens or 0
        self.num_output_tokens += output
        self.num_path_tokens = max(self.num_path_tokens, output)
        if record.prompt_tokens is not None and record.cached_tokens is not None:
            uncached = max(0, record.prompt_tokens - record.cached_tokens)
            self.num_path_uncached = max(self.num_path_uncached, uncached)

    def takes(self, record: RequestRecord) -> bool:
        """Whether a new request of the stage belongs to this pass."""
        if self.num_open:
            return True
        announced = record.siblings > 1 and record.siblings == self.siblings
        return announced and record.sibling_index not in self.seen


@dataclass(slots=True, eq=False)
class Workflow:
    """One user job.

    Attributes:
        deadline_s: None for best effort.
        budget_is_stated: a request or PATCH stated the budget; a type's default did not.
        final_is_done: a request marked final has ended since the workflow was (re)opened.
        was_counted: its end was told once.
        ended_s: end, by `final`, by its client, by cancel or by idleness; None while it lasts.
        decisions: what the dispatcher decided about its requests.
        demoted_s: when one of its requests first could not be in time any more, whatever later
            ones are expected to need; None before, and where nobody looks (see `demotion`).
        has_begun, context_tokens: kept by `working_set`: a worker got a request of it since it
            was (re)opened, and the longest of them, prompt and output.
    """

    workflow_id: str
    workflow_type: str
    tenant: str
    is_tagged: bool
    started_s: float
    deadline_s: float | None = None
    budget_is_stated: bool = False
    ended_s: float | None = None
    is_cancelled: bool = False
    final_is_done: bool = False
    was_counted: bool = False
    last_active_s: float = 0.0
    num_open: int = 0
    records: OrderedDict[str, RequestRecord] = field(default_factory=OrderedDict)
    visits: list[Visit] = field(default_factory=list)
    decisions: DecisionLog = field(default_factory=DecisionLog)
    demoted_s: float | None = None
    has_begun: bool = False
    context_tokens: int = 0

    def num_visits(self, stage: str) -> int:
        """How often the stage was entered."""
        return sum(1 for visit in self.visits if visit.stage == stage)

    def met_deadline(self, now_s: float) -> bool | None:
        """True or False once it is decided; None before, without deadline, or when cancelled."""
        if self.deadline_s is None or self.is_cancelled:
            return None
        if self.ended_s is not None:
            return self.ended_s <= self.deadline_s
        return False if now_s > self.deadline_s else None


class WorkflowTracker:
    """Accepts requests into workflows and closes workflows.

    Args:
        stages: asked for stage budgets, told of ended workflows.
        max_workflows: tagged workflows remembered.
        idle_s: a workflow without an open request for this long has ended.
        default_budget_ms: by type, for workflows that state none.
        on_end: told once of each workflow that ends.
    """

    def __init__(
        self,
        stages: StageEstimates,
        max_workflows: int,
        idle_s: float,
        default_budget_ms: dict[str, int],
        on_end: Callable[[Workflow], None],
    ) -> None:
        self._stages = stages
        self._max_workflows = max_workflows
        self._idle_s = idle_s
        self._default_budget_ms = default_budget_ms
        self._on_end = on_end
        # Both by last change, oldest first.
        self._lasting: OrderedDict[str, Workflow] = OrderedDict()
        self._ended: OrderedDict[str, Workflow] = OrderedDict()
        self._ended_untagged: OrderedDict[str, Workflow] = OrderedDict()

    def get(self, workflow_id: str) -> Workflow | None:
        """The workflow, or None when unknown or forgotten."""
        for table in (self._lasting, self._ended, self._ended_untagged):
            if workflow_id in table:
                return table[workflow_id]
        return None

    def budget_s(self, tag: WorkflowTag) -> float | None:
        """What a new workflow with this first tag gets; None: best effort."""
        default_ms = self._default_budget_ms.get(tag.workflow_type or "")
        budget_ms = default_ms if tag.budget_ms is None else tag.budget_ms
        return None if budget_ms is None else budget_ms / 1000

    def newest(self, limit: int) -> list[Workflow]:
        """At most `limit` workflows, the latest started first."""
        everything = [*self._lasting.values(), *self._ended.values()]
        everything += self._ended_untagged.values()
        return sorted(everything, key=lambda workflow: -workflow.started_s)[:limit]

    def recent(self, limit: int) -> Iterator[Workflow]:
        """Of those that last, of those that ended, of untagged ones: `limit` each, newest first.

        By their last change. Costs no more however many are remembered.
        """
        for table in (self._lasting, self._ended, self._ended_untagged):
            yield from itertools.islice(reversed(table.values()), limit)

    @property
    def num_lasting(self) -> int:
        """Workflows that have not ended."""
        return len(self._lasting)

    def accept(
        self, tag: WorkflowTag | None, request_id: str, now_s: float
    ) -> tuple[Workflow, RequestRecord]:
        """Enter a request; opens its workflow, or opens it again.

        The first budget stated fixes the deadline; later ones change nothing.

        Raises:
            AdmissionRejected: every remembered workflow is busy.
        """
        tag = tag or WorkflowTag(workflow_id=request_id, final=True)
        is_tagged = tag.workflow_id != request_id
        workflow = self.get(tag.workflow_id)
        if workflow is None:
            self._make_room()
            workflow = Workflow(
                tag.workflow_id, tag.workflow_type or "", tag.tenant or "", is_tagged, now_s
            )
            default_ms = self._default_budget_ms.get(workflow.workflow_type)
            if default_ms is not None:
                workflow.deadline_s = now_s + default_ms / 1000
        self._reopen(workflow, now_s)
        workflow.workflow_type = workflow.workflow_type or tag.workflow_type or ""
        if tag.budget_ms is not None and not workflow.budget_is_stated:
            workflow.deadline_s = now_s + tag.budget_ms / 1000
            workflow.budget_is_stated = True
        record = RequestRecord(
            request_id, tag.stage or "", tag.siblings, tag.sibling_index, now_s, tag.final
        )
        self._enter(workflow, record, now_s)
        return workflow, record

    def close(
        self, workflow: Workflow, record: RequestRecord, outcome: Outcome, now_s: float
    ) -> None:
        """A request ended; ends the workflow when it was the final one and none is open."""
        if record.outcome not in OPEN:
            return
        record.outcome = outcome
        record.finished_s = now_s
        workflow.num_open -= 1
        self._touch(workflow, now_s)
        visit = next((v for v in reversed(workflow.visits) if v.stage == record.stage), None)
        if visit is not None:
            visit.num_open -= 1
            visit.end_s = now_s
            visit.take_lengths(record)
            if record.dispatched_s is not None:
                visit.service_s = max(visit.service_s, now_s - record.dispatched_s)
        workflow.final_is_done = workflow.final_is_done or record.final
        if workflow.final_is_done and workflow.num_open == 0:
            self.end(workflow, now_s)

    def set_budget(self, workflow: Workflow, budget_ms: int | None, now_s: float) -> None:
        """A new deadline `budget_ms` from now; None: best effort."""
        workflow.deadline_s = None if budget_ms is None else now_s + budget_ms / 1000
        workflow.budget_is_stated = True
        workflow.demoted_s = None

    def end(self, workflow: Workflow, now_s: float, *, cancelled: bool = False) -> None:
        """The workflow is over; requests still open go on unless the caller cancels them."""
        if workflow.ended_s is not None:
            return
        workflow.ended_s = now_s
        workflow.is_cancelled = cancelled
        self._lasting.pop(workflow.workflow_id, None)
        table = self._ended if workflow.is_tagged else self._ended_untagged
        table[workflow.workflow_id] = workflow
        while len(self._ended_untagged) > _MAX_UNTAGGED:
            self._ended_untagged.popitem(last=False)
        if workflow.was_counted:
            return
        workflow.was_counted = True
        # Of a request without a tag nothing is predicted: there is nothing to learn from its end.
        if workflow.is_tagged and not cancelled and workflow.num_open == 0:
            self._learn(workflow)
        self._on_end(workflow)

    def sweep(self, now_s: float) -> None:
        """End what has been idle for too long, as of its last change."""
        for workflow in list(self._lasting.values()):
            if now_s - workflow.last_active_s < self._idle_s:
                return
            if workflow.num_open == 0:
                self.end(workflow, workflow.last_active_s)

    def _learn(self, workflow: Workflow) -> None:
        """Tell the estimators what the stages of an ended workflow took."""
        closed = [visit for visit in workflow.visits if visit.num_open == 0]
        closed.sort(key=lambda visit: visit.start_s)
        self._stages.note_workflow(
            workflow.workflow_type,
            [
                StageVisit(
                    v.stage,
                    v.start_s,
                    v.end_s,
                    v.service_s,
                    v.num_requests,
                    v.num_output_tokens,
                    v.num_path_tokens,
                    v.num_path_uncached,
                )
                for v in closed
            ],
        )

    def _make_room(self) -> None:
        """Forget one workflow when the table is full."""
        if len(self._lasting) + len(self._ended) < self._max_workflows:
            return
        if self._ended:
            self._ended.popitem(last=False)
            return
        for workflow in self._lasting.values():
            if workflow.num_open == 0:
                del self._lasting[workflow.workflow_id]
                return
        raise AdmissionRejected(
            f"{len(self._lasting)} workflows have open requests: at most {self._max_workflows} may",
            retry_after_s=1.0,
        )

    def _reopen(self, workflow: Workflow, now_s: float) -> None:
        """Make a workflow one of the lasting ones, whether new, lasting or ended."""
        if workflow.ended_s is not None:
            workflow.ended_s = None
            workflow.is_cancelled = False
            workflow.final_is_done = False
        self._ended.pop(workflow.workflow_id, None)
        self._ended_untagged.pop(workflow.workflow_id, None)
        self._lasting[workflow.workflow_id] = workflow
        self._touch(workflow, now_s)

    def _touch(self, workflow: Workflow, now_s: float) -> None:
        workflow.last_active_s = now_s
        if workflow.workflow_id in self._lasting:
            self._lasting.move_to_end(workflow.workflow_id)

    def _enter(self, workflow: Workflow, record: RequestRecord, now_s: float) -> None:
        """Add a record and find or open its visit."""
        workflow.records[record.request_id] = record
        workflow.num_open += 1
        if len(workflow.records) > _MAX_RECORDS:
            oldest = next(iter(workflow.records.values()))
            if oldest.outcome not in OPEN:
                del workflow.records[oldest.request_id]
        visit = next((v for v in reversed(workflow.visits) if v.stage == record.stage), None)
        if visit is None or not visit.takes(record):
            budget_s = self._stage_budget_s(workflow, record.stage, now_s)
            visit = Visit(record.stage, now_s, record.siblings, budget_s)
            workflow.visits.append(visit)
            del workflow.visits[:-_MAX_RECORDS]
        visit.seen.add(record.sibling_index)
        visit.num_requests += 1
        visit.num_open += 1

    def _stage_budget_s(self, workflow: Workflow, stage: str, now_s: float) -> float | None:
        """The stage's share of what is left; None without deadline or experience."""
        stage_s = self._stages.stage_s(workflow.workflow_type, stage)
        if workflow.deadline_s is None or stage_s is None:
            return None
        visit = 1 + workflow.num_visits(stage)
        remaining_s = self._stages.remaining_after_s(workflow.workflow_type, stage, visit) or 0.0
        return stage_budget_s(workflow.deadline_s - now_s, stage_s, remaining_s)
