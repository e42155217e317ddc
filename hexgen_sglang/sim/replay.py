"""The open-loop driver on the virtual clock: the same workload and records as the bench's.

A workflow arrives at its scheduled instant; a stage is due when the stages it waits for have
ended and its tool time has passed.
"""

from __future__ import annotations

from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.results.records import RequestRecord, RunRecord, WorkflowRecord
from hexgen_sglang.sim.clock import ARRIVAL, EventQueue
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.fronts import Asked, Front
from hexgen_sglang.sim.host import HostTimes
from hexgen_sglang.workload.plan import PlannedWorkflow, Workload


class _Sent:
    """A request that has not ended."""

    __slots__ = ("due_s", "first_s", "key", "sent_s")

    def __init__(self, key: tuple[int, int, int], due_s: float, sent_s: float) -> None:
        self.key = key
        self.due_s = due_s
        self.sent_s = sent_s
        self.first_s: float | None = None


class Replay:
    """One replay of a workload; `start` it, run the events, then read `record`.

    Args:
        system: name for the record.
        workload: what to send.
        events: the virtual clock.
        host: what travels how long.
        to_front_s: of a request from the driver to the front.

    Attributes:
        refused: indices of workflows that the front refused; the driver gives them up.
    """

    def __init__(
        self,
        system: str,
        workload: Workload,
        events: EventQueue,
        host: HostTimes,
        to_front_s: float,
    ) -> None:
        self._system = system
        self._workload = workload
        self._events = events
        self._host = host
        self._to_front_s = to_front_s
        self._front: Front | None = None
        self._sent: dict[str, _Sent] = {}
        self._requests: list[RequestRecord] = []
        self._ends: list[list[float | None]] = [
            [None] * len(planned.workflow.stages) for planned in workload.workflows
        ]
        self._open: list[list[int]] = [
            [len(stage.requests) for stage in planned.workflow.stages]
            for planned in workload.workflows
        ]
        self._max_in_flight = 0
        self.refused: set[int] = set()

    def start(self, front: Front) -> None:
        """Schedule every arrival."""
        self._front = front
        for planned in self._workload.workflows:
            for index, stage in enumerate(planned.workflow.stages):
                if not stage.after:
                    self._schedule(planned, index, planned.arrival_s)

    def first_token(self, engine: Engine, request: EngineRequest) -> None:
        """An engine gave a request's first token."""
        first_s = self._events.now_s + self._host.back_s
        self._sent[request.view.request_id].first_s = first_s

    def ended(self, engine: Engine, request: EngineRequest) -> None:
        """An engine gave a request's last token."""
        sent = self._sent.pop(request.view.request_id)
        workflow, stage, sibling = sent.key
        planned = self._workload.workflows[workflow]
        assert request.admitted_s is not None
        end_s = self._events.now_s + self._host.back_s
        self._requests.append(
            RequestRecord(
                request_id=request.view.request_id,
                workflow=workflow,
                stage=stage,
                stage_name=planned.workflow.stages[stage].name,
                sibling=sibling,
                due_s=sent.due_s,
                sent_s=sent.sent_s,
                end_s=end_s,
                first_byte_s=sent.first_s,
                worker=engine.name,
                input_tokens=request.num_prompt_tokens,
                cached_tokens=request.num_cached_tokens,
                output_tokens=request.num_output_tokens,
                queue_s=request.admitted_s - request.queued_s,
                retractions=request.num_retractions,
                to_engine_s=request.arrival_s - sent.sent_s,
                back_s=self._host.back_s,
            )
        )
        self._open[workflow][stage] -= 1
        if self._open[workflow][stage] == 0:
            self._stage_ended(planned, stage, end_s)

    def record(self) -> RunRecord:
        """What happened, once all events have run."""
        settings = self._workload.settings
        return RunRecord(
            system=self._system,
            seed=settings.seed,
            rate_per_s=settings.rate_per_s,
            time_scale=1.0,
            workflows=tuple(self._workflow_record(p) for p in self._workload.workflows),
            requests=tuple(self._requests),
            max_in_flight=self._max_in_flight,
        )

    def _workflow_record(self, planned: PlannedWorkflow) -> WorkflowRecord:
        ends = self._ends[planned.index]
        known = [end_s for end_s in ends if end_s is not None]
        return WorkflowRecord(
            index=planned.index,
            workflow_id=planned.workflow_id,
            arrival_s=planned.arrival_s,
            unloaded_s=planned.unloaded_s,
            budget_s=planned.budget_s,
            warmup=planned.warmup,
            end_s=max(known, default=planned.arrival_s),
            completed=len(known) == len(ends),
        )

    def _stage_ended(self, planned: PlannedWorkflow, stage: int, end_s: float) -> None:
        """Schedule the stages for which this was the last one to wait for."""
        ends = self._ends[planned.index]
        ends[stage] = end_s
        for index, following in enumerate(planned.workflow.stages):
            if stage not in following.after:
                continue
            before = [ends[number] for number in following.after]
            known = [end for end in before if end is not None]
            if len(known) == len(before):
                self._schedule(planned, index, max(known))

    def _schedule(self, planned: PlannedWorkflow, stage: int, ready_s: float) -> None:
        due_s = ready_s + planned.workflow.stages[stage].tool_s
        for sibling in range(len(planned.workflow.stages[stage].requests)):
            self._events.at(
                due_s + sibling * self._host.send_s,
                ARRIVAL,
                lambda sibling=sibling: self._ask(planned, stage, sibling, due_s),  # type: ignore[misc]
            )

    def _ask(self, planned: PlannedWorkflow, stage: int, sibling: int, due_s: float) -> None:
        """Send a request, unless its workflow was refused."""
        if planned.index in self.refused:
            return
        asked = self._asked(planned, stage, sibling, due_s)
        if self._to_front_s:
            arrival_s = self._events.now_s + self._to_front_s
            self._events.at(arrival_s, ARRIVAL, lambda: self._hand(planned, asked))
        else:
            self._hand(planned, asked)

    def _hand(self, planned: PlannedWorkflow, asked: Asked) -> None:
        """A request has reached the front."""
        assert self._front is not None
        if planned.index not in self.refused:
            try:
                self._front.take(asked)
                return
            except ApiError:
                self.refused.add(planned.index)
        del self._sent[asked.request_id]

    def _asked(self, planned: PlannedWorkflow, stage: int, sibling: int, due_s: float) -> Asked:
        """The request as the driver sends it now."""
        now_s = self._events.now_s
        workflow = planned.workflow
        node = workflow.stages[stage]
        last = workflow.last_stages()
        request_id = f"{planned.workflow_id}-{stage}-{sibling}"
        self._sent[request_id] = _Sent((planned.index, stage, sibling), due_s, now_s)
        self._max_in_flight = max(self._max_in_flight, len(self._sent))
        budget_s = None
        if planned.budget_s is not None:
            budget_s = planned.arrival_s + planned.budget_s - now_s
        priority = 0 if planned.budget_s is None else round(planned.arrival_s + planned.budget_s)
        return Asked(
            request_id=request_id,
            workflow_id=planned.workflow_id,
            workflow_type=workflow.workflow_type,
            stage=node.name,
            siblings=len(node.requests),
            sibling_index=sibling,
            final=len(last) == 1 and stage in last,
            budget_s=budget_s,
            segments=tuple((s.key, s.num_tokens) for s in planned.prompts[stage][sibling]),
            num_output_tokens=node.requests[sibling].num_output_tokens,
            priority=priority,
            tenant=planned.tenant,
        )
