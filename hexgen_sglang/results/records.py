"""What was observed of one run: every request and every workflow, in emulated seconds.

Written by the replay, read by statistics, laws and reports. Instants are seconds since the
start of the run, multiplied by the time scale, so that they compare with profiles, arrivals
and deadlines of the workload.
"""

from __future__ import annotations

from msgspec import Struct

COMPLETED = "completed"


class RequestRecord(Struct, frozen=True):
    """One LLM call as the driver saw it.

    Attributes:
        request_id: unique within the run.
        workflow: index of its workflow.
        stage: index of its stage; `stage_name` is that of the tag.
        sibling: index among the stage's requests.
        due_s: when it should have been sent: arrival, or end of the stages before plus tools.
        sent_s: when its body was handed to the connection.
        first_byte_s: first part of the answer; None when none came.
        end_s: end of the answer, or of the attempt.
        worker: who served it; "" when that could not be told.
        input_tokens, output_tokens: as the worker counted them; 0 when it did not say.
        cached_tokens: of the input, found in the prefix cache.
        queue_s: waiting in the engine, as it tells; None when it does not.
        retractions: times the engine threw its running state away.
        to_engine_s: from `sent_s` until the worker's server had handed it to its scheduler,
            what stands in between included; None when the worker does not tell.
        back_s: from the end of its prefill in the scheduler until `first_byte_s`; None likewise.
        outcome: "completed", or what went wrong.
    """

    request_id: str
    workflow: int
    stage: int
    stage_name: str
    sibling: int
    due_s: float
    sent_s: float
    end_s: float
    first_byte_s: float | None = None
    worker: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None
    retractions: int = 0
    to_engine_s: float | None = None
    back_s: float | None = None
    outcome: str = COMPLETED

    @property
    def lag_s(self) -> float:
        """How late the driver sent it."""
        return self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """From when it should have been sent to the first part of its answer."""
        return None if self.first_byte_s is None else self.first_byte_s - self.due_s


class WorkflowRecord(Struct, frozen=True):
    """One workflow as the driver saw it.

    Attributes:
        index, workflow_id, arrival_s, unloaded_s, budget_s, warmup: as planned.
        end_s: end of its last request.
        completed: every request of it completed.
    """

    index: int
    workflow_id: str
    arrival_s: float
    unloaded_s: float
    budget_s: float | None
    warmup: bool
    end_s: float
    completed: bool

    @property
    def e2e_s(self) -> float:
        """Latency, counted from the scheduled arrival."""
        return self.end_s - self.arrival_s

    @property
    def scale(self) -> float:
        """Latency as a multiple of the unloaded one: the smallest deadline scale it meets."""
        return self.e2e_s / self.unloaded_s


class RunRecord(Struct, frozen=True):
    """One replay of one workload against one system.

    Attributes:
        system: its name.
        seed, rate_per_s: of the workload.
        time_scale: emulated seconds in a real one.
        workflows: in order of arrival.
        requests: in order of their ends.
        max_in_flight: most requests open at once.
        connection_waits: requests that had to wait for a free connection.
    """

    system: str
    seed: int
    rate_per_s: float
    time_scale: float
    workflows: tuple[WorkflowRecord, ...]
    requests: tuple[RequestRecord, ...]
    max_in_flight: int = 0
    connection_waits: int = 0

    @property
    def span_s(self) -> float:
        """From the start of the run to its last end."""
        return max((workflow.end_s for workflow in self.workflows), default=0.0)

    def measured(self) -> tuple[WorkflowRecord, ...]:
        """The workflows behind the warm-up."""
        return tuple(workflow for workflow in self.workflows if not workflow.warmup)

    def measured_requests(self) -> tuple[RequestRecord, ...]:
        """The requests of those workflows."""
        warm = {workflow.index for workflow in self.workflows if workflow.warmup}
        return tuple(request for request in self.requests if request.workflow not in warm)
