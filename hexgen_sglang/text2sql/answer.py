"""What the agent gives back for one question: plain values that can be printed or stored.

Everything that can happen to a question is a value here; the agent raises nothing for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hexgen_sglang.text2sql.budget import Dropped
from hexgen_sglang.text2sql.execution import Cell, Execution, SqlOutcome


class AnswerOutcome(StrEnum):
    """How one question ended."""

    ROWS = "rows"  # a query ran and gave rows
    EMPTY = "empty"  # a query ran and gave none
    NO_VALID_SQL = "no_valid_sql"  # the model wrote SQL, and none of it could be run
    NO_SQL = "no_sql"  # the model wrote, and there was no SQL in it
    MODEL_FAILED = "model_failed"  # every request for a candidate failed


@dataclass(frozen=True, slots=True)
class Question:
    """One question for the agent.

    Attributes:
        text: in English; only its first 500 characters are read.
        question_id: the caller's own name for it; "" for none.
        deadline_s: seconds for its whole workflow; None: the driver's own setting, if any.
    """

    text: str
    question_id: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of one question cost.

    Attributes:
        stage: the tag's stage.
        elapsed_s: seconds from its first request to its last answer.
        num_requests: parallel requests, failed ones included; 0 for a stage without a model.
        num_failed: requests that gave no answer.
        prompt_tokens, cached_tokens, output_tokens: sums over its answers.
        num_late: requests that were not awaited: enough of their siblings agreed, or the
            deadline passed.
    """

    stage: str
    elapsed_s: float
    num_requests: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    num_late: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One attempt at the query, as it stands after its last revision.

    Attributes:
        strategy: which prompt it came from.
        execution: of its last SQL; None when the model wrote none.
        num_revisions: rounds of correction it went through.
        checks_passed: checks that the model said its result passes.
    """

    strategy: str
    execution: Execution | None
    num_revisions: int = 0
    checks_passed: int = 0

    @property
    def is_valid(self) -> bool:
        """Whether its SQL ran."""
        return self.execution is not None and self.execution.ran

    @property
    def has_rows(self) -> bool:
        """Whether its SQL ran and gave rows."""
        return self.execution is not None and self.execution.outcome is SqlOutcome.ROWS


@dataclass(frozen=True, slots=True)
class Answer:
    """The agent's answer to one question.

    Attributes:
        question: as asked.
        outcome: how it ended; `sql`, `columns` and `rows` go with it.
        sql: the query chosen, or the last wrong one when none could be run; None: none.
        message: for an outcome without rows: what went wrong, in one line.
        truncated: the sandbox's limits cut rows off.
        workflow_id: under which the coordinator knows it; None on another backend.
        deadline_s, elapsed_s: seconds allowed (None: no deadline) and seconds taken.
        met_deadline: None without a deadline.
        linked_tables: what schema linking found.
        checks: unit tests that the model wrote for the result.
        candidates: all attempts that were awaited.
        stages: in the order in which they ran; a stage that ran twice is there twice.
        skipped: stages left out altogether for the deadline.
        dropped: what was done less of for the deadline, and why.
        failures: requests that failed and SQL that did not run, one line each.
    """

    question: Question
    outcome: AnswerOutcome
    sql: str | None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    truncated: bool = False
    message: str = ""
    workflow_id: str | None = None
    deadline_s: float | None = None
    elapsed_s: float = 0.0
    met_deadline: bool | None = None
    linked_tables: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    stages: tuple[StageCost, ...] = ()
    skipped: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    failures: tuple[str, ...] = ()
