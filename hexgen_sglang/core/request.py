"""What a policy may know of one LLM request.

Built by the coordinator (one for each HTTP request) and by the plugin (one for each SGLang
`Req`), read by ordering and dispatch policies. All instants are seconds of the reader's own
monotonic clock; they never cross machines.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestView:
    """One LLM call, as far as a policy may know it: never its true output length.

    A request without a workflow tag is a workflow of one stage: `workflow_id` is its own
    `request_id` and `deadline_s` is None (best effort).

    Attributes:
        request_id: unique; SGLang's `rid`.
        workflow_id: the user question that this call belongs to.
        workflow_type: workflows whose stages are alike, e.g. "text2sql"; "" when unknown.
        stage: name of the workflow's node, e.g. "generate_candidate"; "" when unknown.
        arrival_s: instant at which this process accepted the request.
        deadline_s: instant by which the whole workflow should end; None: best effort. For a
            workflow that cannot meet it any more, the later instant it is scheduled by.
        budget_s: seconds from the workflow's start to its deadline; None: best effort, unknown.
        predicted_remaining_s: seconds the workflow is still expected to need on an idle
            worker, this request included; 0.0 when unknown.
        predicted_stage_s: the part of it that this request's stage needs; 0.0 when unknown.
        num_prompt_tokens: prompt length (exact in the engine, estimated before it).
        num_cached_tokens: leading prompt tokens known to be in this worker's prefix cache.
        expected_output_tokens: predicted (never true) output length; None when unknown.
        siblings: parallel requests of this stage, this one included; at least 1.
        sibling_index: which of them this is, 0 <= sibling_index < siblings.
        tenant: for fairness and accounting; "" when unknown.
        predicted_alone_s: seconds the workflow would still need with the fastest worker to
            itself, this request included; 0.0 when unknown.
    """

    request_id: str
    workflow_id: str
    arrival_s: float
    workflow_type: str = ""
    stage: str = ""
    deadline_s: float | None = None
    budget_s: float | None = None
    predicted_remaining_s: float = 0.0
    predicted_stage_s: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    expected_output_tokens: int | None = None
    siblings: int = 1
    sibling_index: int = 0
    tenant: str = ""
    predicted_alone_s: float = 0.0

    @property
    def latest_start_s(self) -> float | None:
        """Instant at which slack reaches zero: deadline minus predicted remaining seconds.

        Ordering by it is ordering by slack, since `now` is the same for every request of a
        queue; unlike slack it does not change while a request waits, so it can be cached.
        None for best-effort requests.
        """
        if self.deadline_s is None:
            return None
        return self.deadline_s - self.predicted_remaining_s

    def slack_s(self, now_s: float) -> float | None:
        """Seconds to spare before the workflow must miss its deadline; may be negative.

        slack = deadline - now - predicted remaining. None for best-effort requests.
        """
        latest_start_s = self.latest_start_s
        return None if latest_start_s is None else latest_start_s - now_s
