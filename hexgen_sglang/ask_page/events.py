"""What the page is told while a question is worked on: server-sent events, plain JSON. Pure.

`opening`, `started`, `stage_started`, `stage_finished`, `answer`; an error ends the stream as an
event without a name, in the coordinator's usual form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from hexgen_sglang.text2sql.answer import Answer, Candidate, StageCost
from hexgen_sglang.text2sql.events import AgentEvent, EventKind
from hexgen_sglang.text2sql.execution import Cell

_ANSWER = "answer"
# What JavaScript's numbers hold exactly.
_MAX_SAFE_INTEGER = 2**53 - 1


def encoded(name: str, data: dict[str, Any]) -> bytes:
    """One event on the wire."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def event_of(event: AgentEvent, workers_of: Callable[[str], list[str]]) -> bytes:
    """The agent's event on the wire; `workers_of` a stage are those that its requests went to."""
    if event.answer is not None:
        return encoded(_ANSWER, answer_row(event.answer))
    data: dict[str, Any] = {"at_s": event.elapsed_s}
    if event.kind is EventKind.STARTED:
        data["workflow_id"] = event.workflow_id
    else:
        data |= {"stage": event.stage, "num_requests": event.num_requests}
    if event.cost is not None:
        data |= _cost_row(event.cost) | {"workers": workers_of(event.stage)}
    return encoded(event.kind.value, data)


def answer_row(answer: Answer) -> dict[str, Any]:
    """An answer as the page shows it."""
    return {
        "outcome": answer.outcome.value,
        "sql": answer.sql,
        "columns": answer.columns,
        "rows": [[_cell(cell) for cell in row] for row in answer.rows],
        "truncated": answer.truncated,
        "message": answer.message,
        "workflow_id": answer.workflow_id,
        "deadline_s": answer.deadline_s,
        "elapsed_s": answer.elapsed_s,
        "met_deadline": answer.met_deadline,
        "linked_tables": answer.linked_tables,
        "checks": answer.checks,
        "candidates": [_candidate_row(one) for one in answer.candidates],
        "skipped": answer.skipped,
        "dropped": [str(one) for one in answer.dropped],
        "failures": answer.failures,
    }


def _cost_row(cost: StageCost) -> dict[str, Any]:
    return {
        "elapsed_s": cost.elapsed_s,
        "num_failed": cost.num_failed,
        "num_late": cost.num_late,
        "prompt_tokens": cost.prompt_tokens,
        "cached_tokens": cost.cached_tokens,
        "output_tokens": cost.output_tokens,
    }


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    execution = candidate.execution
    return {
        "strategy": candidate.strategy,
        "sql": None if execution is None else execution.sql,
        "outcome": "no_sql" if execution is None else execution.outcome.value,
        "message": "" if execution is None else execution.message,
        "num_rows": 0 if execution is None else len(execution.rows),
        "num_revisions": candidate.num_revisions,
        "checks_passed": candidate.checks_passed,
    }


def _cell(cell: Cell) -> Cell:
    """The cell, as text where JSON or JavaScript would change its value."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)
    if isinstance(cell, int) and abs(cell) > _MAX_SAFE_INTEGER:
        return str(cell)
    return cell
