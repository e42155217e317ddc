"""From candidates to the answer: which one is chosen, and what is said when there is none. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hexgen_sglang.text2sql.answer import Answer, AnswerOutcome, Candidate, Question
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.selection import choose
from hexgen_sglang.text2sql.wording import EMPTY_RESULT, error_line


def conclude(
    question: Question,
    candidates: Sequence[Candidate],
    checks: tuple[str, ...],
    num_replies: int,
    failures: tuple[str, ...],
) -> Answer:
    """The answer as far as the candidates tell it.

    `num_replies` counts the requests for a candidate that were answered; when it is 0 the model
    failed, and the last of `failures` is the message.
    """
    answer = Answer(
        question=question,
        outcome=AnswerOutcome.NO_SQL,
        sql=None,
        message="the model wrote no SQL",
        checks=checks,
        candidates=tuple(candidates),
        failures=failures,
    )
    chosen = choose(candidates, len(checks))
    if chosen is not None:
        execution = candidates[chosen].execution
        assert execution is not None
        found = execution.outcome is SqlOutcome.ROWS
        return replace(
            answer,
            outcome=AnswerOutcome.ROWS if found else AnswerOutcome.EMPTY,
            sql=execution.sql,
            columns=execution.columns,
            rows=execution.rows,
            truncated=execution.truncated,
            message="" if found else EMPTY_RESULT,
        )
    if num_replies == 0:
        message = failures[-1] if failures else "no request was answered"
        return replace(answer, outcome=AnswerOutcome.MODEL_FAILED, message=message)
    wrong = without_rows(candidates)
    if wrong:
        return replace(
            answer,
            outcome=AnswerOutcome.NO_VALID_SQL,
            sql=wrong[0].sql,
            message=error_line(wrong[0]),
        )
    return answer


def without_rows(candidates: Sequence[Candidate]) -> list[Execution]:
    """Different executions that gave no rows, in order."""
    found = {
        candidate.execution.sql: candidate.execution
        for candidate in candidates
        if candidate.execution is not None and not candidate.has_rows
    }
    return list(found.values())


def revised(
    candidate: Candidate, new_sql: dict[str, str | None], executions: dict[str, Execution]
) -> Candidate:
    """The candidate with its new SQL, unless that is worse than an empty result.

    `new_sql` is by the SQL that was to be revised (candidates with other SQL stay as they are),
    `executions` are of the new SQL, by statement.
    """
    old = candidate.execution
    if old is None or old.sql not in new_sql:
        return candidate
    num_revisions = candidate.num_revisions + 1
    new = executions.get(new_sql[old.sql] or "")
    if new is None or (old.ran and not new.ran):
        return replace(candidate, num_revisions=num_revisions)
    return replace(candidate, execution=new, num_revisions=num_revisions)
