"""What became of one question so far: its stages' costs, and the events about them.

Used by both drivers, in the agent's process; knows nothing of how requests travel.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hexgen_sglang.client.tags import Workflow
from hexgen_sglang.text2sql.answer import Answer, Question, StageCost
from hexgen_sglang.text2sql.events import AgentEvent, EventKind, OnEvent
from hexgen_sglang.text2sql.steps import Reply


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; 0 where nobody tells."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


Outcome = tuple[Reply, Usage]
LATE = Reply(None, "not awaited any more", is_late=True)


class QuestionRecord:
    """Keeps one question's record and tells its events.

    Args:
        workflow: the question's; None on a backend without workflows.
    """

    def __init__(self, question: Question, workflow: Workflow | None, on_event: OnEvent) -> None:
        self._question = question
        self._workflow = workflow
        self._on_event = on_event
        self._started_s = time.monotonic()
        self._costs: list[StageCost] = []

    @property
    def workflow_id(self) -> str | None:
        """Under which the coordinator knows it."""
        return self._workflow.workflow_id if self._workflow else None

    def remaining_s(self) -> float | None:
        """Seconds left until the deadline; None without one."""
        return self._workflow.remaining_s() if self._workflow else None

    def started(self) -> None:
        """The question is being worked on."""
        self._tell(EventKind.STARTED)

    def stage_started(self, stage: str, num_requests: int) -> float:
        """A stage's requests are about to be sent; the instant, for `stage_finished`."""
        self._tell(EventKind.STAGE_STARTED, stage=stage, num_requests=num_requests)
        return time.monotonic()

    def stage_finished(
        self, stage: str, started_s: float, outcomes: Sequence[Outcome]
    ) -> StageCost:
        """A stage has its replies; what it cost."""
        cost = StageCost(
            stage=stage,
            elapsed_s=time.monotonic() - started_s,
            num_requests=len(outcomes),
            num_failed=sum(reply.failed for reply, _ in outcomes),
            prompt_tokens=sum(usage.prompt_tokens for _, usage in outcomes),
            cached_tokens=sum(usage.cached_tokens for _, usage in outcomes),
            output_tokens=sum(usage.output_tokens for _, usage in outcomes),
            num_late=sum(reply.is_late for reply, _ in outcomes),
        )
        self._costs.append(cost)
        self._tell(EventKind.STAGE_FINISHED, stage=stage, num_requests=len(outcomes), cost=cost)
        return cost

    def finished(self, answer: Answer) -> Answer:
        """The answer with times and costs."""
        elapsed_s = time.monotonic() - self._started_s
        deadline_s = self._workflow.deadline_s if self._workflow else None
        answer = replace(
            answer,
            workflow_id=self.workflow_id,
            deadline_s=deadline_s,
            elapsed_s=elapsed_s,
            met_deadline=None if deadline_s is None else elapsed_s <= deadline_s,
            stages=tuple(self._costs),
        )
        self._tell(EventKind.FINISHED, answer=answer)
        return answer

    def _tell(self, kind: EventKind, **fields: Any) -> None:
        elapsed_s = time.monotonic() - self._started_s
        self._on_event(AgentEvent(kind, self._question, self.workflow_id, elapsed_s, **fields))
