"""What the agent tells while it works, for progress displays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hexgen_sglang.text2sql.answer import Answer, Question, StageCost


class EventKind(StrEnum):
    """What happened to one question."""

    STARTED = "started"
    STAGE_STARTED = "stage_started"
    STAGE_FINISHED = "stage_finished"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """One step of one question.

    Attributes:
        question: which one.
        workflow_id: under which the coordinator knows it; None on another backend.
        elapsed_s: seconds since the question was started.
        stage: for the two kinds about stages; else "".
        num_requests: the stage's parallel requests, 0 for one without a model; else 0.
        cost: with STAGE_FINISHED.
        answer: with FINISHED.
    """

    kind: EventKind
    question: Question
    workflow_id: str | None
    elapsed_s: float
    stage: str = ""
    num_requests: int = 0
    cost: StageCost | None = None
    answer: Answer | None = None


OnEvent = Callable[[AgentEvent], None]


def ignore(event: AgentEvent) -> None:
    """Where no progress is wanted."""
