"""What a demo run leaves behind, built from recorded facts: the structure of `report.json`.

Pure: facts in, report out. Who records them is `demo.run`; the page made of it is `demo.page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from msgspec import Struct

REPORT_VERSION = 1
FAILED_OUTCOMES = ("model_failed",)


class RequestEntry(Struct, frozen=True):
    """One LLM request. It is called a stage in the report, since it has one worker.

    Instants are seconds since the run's first question was asked; `e2e_s` is acceptance by the
    coordinator to the end, queueing included. Token counts are None for a request that never
    got an answer.
    """

    stage: str
    worker: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    e2e_s: float
    request_id: str
    sibling_index: int
    siblings: int
    start_s: float
    dispatched_s: float | None
    first_byte_s: float | None
    end_s: float
    outcome: str
    retries: int


class WorkflowEntry(Struct, frozen=True):
    """One question: when it was asked, what came of it, and every request it took.

    Attributes:
        outcome: "rows", "empty" (the SQL ran), "no_valid_sql" (the database took none of
            it), "no_sql" (the model wrote none) or "model_failed" (no request for a candidate was
            answered); only the last makes the run a failure.
        detail: for an outcome without rows: what went wrong, in one line; else "".
        is_right: whether the rows equal those of the gold SQL; None when not compared.
        skipped: stages that the agent left out altogether for the deadline.
        notes: SQL that did not run and requests that were not answered, one line each.
    """

    workflow_id: str
    question: str
    start_s: float
    deadline_s: float | None
    met_deadline: bool | None
    e2e_s: float | None
    sql: str | None
    outcome: str
    detail: str
    num_rows: int | None
    is_right: bool | None
    skipped: list[str]
    notes: list[str]
    stages: list[RequestEntry]

    def total(self, field: str) -> int:
        """Sum of a token count over the requests, unknown ones left out."""
        return sum(getattr(request, field) or 0 for request in self.stages)


class WorkerEntry(Struct, frozen=True):
    """One worker, and its share of the run.

    `busy_s`: seconds with at least one request; `model`: last part of its name or folder.
    """

    worker_id: str
    url: str
    hardware: str
    model: str
    sglang_version: str
    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    busy_s: float


class Report(Struct, frozen=True):
    """The whole run; `report.json` is this as JSON.

    `failures`: reasons for which the run counts as failed, for people; empty when it is good.
    """

    workers: list[WorkerEntry]
    workflows: list[WorkflowEntry]
    duration_s: float
    failures: list[str]
    made_by: dict[str, str]
    version: int = REPORT_VERSION


@dataclass(frozen=True)
class WorkflowFacts:
    """What was recorded of one question.

    Attributes:
        started_s: when the coordinator accepted its first request (or, without any, when it
            was asked), seconds since the run's first question.
        record: the coordinator's answer to GET /workflows/{id}; None when it knows nothing.
        others: as in `WorkflowEntry`.
    """

    workflow_id: str
    question: str
    started_s: float
    deadline_s: float | None
    sql: str | None
    outcome: str
    detail: str
    num_rows: int | None
    is_right: bool | None
    skipped: Sequence[str]
    notes: Sequence[str]
    record: Mapping[str, Any] | None


def build_report(
    workflows: Sequence[WorkflowFacts],
    workers: Sequence[Mapping[str, Any]],
    duration_s: float,
    made_by: Mapping[str, str],
) -> Report:
    """The report of a run.

    Args:
        workflows: in the order asked.
        workers: the rows of GET /workers.
        duration_s: first question asked to last answer.
        made_by: versions, model and machine, for people.
    """
    entries = [_workflow_entry(facts) for facts in workflows]
    requests = [request for entry in entries for request in entry.stages]
    rows = sorted(workers, key=lambda row: str(row["worker_id"]))
    worker_entries = [_worker_entry(row, requests) for row in rows]
    return Report(
        workers=worker_entries,
        workflows=entries,
        duration_s=round(duration_s, 3),
        failures=_failures(entries, worker_entries),
        made_by=dict(made_by),
    )


def _workflow_entry(facts: WorkflowFacts) -> WorkflowEntry:
    record = facts.record or {"requests": [], "met_deadline": None, "e2e_s": None}
    requests = [_request_entry(row, facts.started_s) for row in record["requests"]]
    return WorkflowEntry(
        workflow_id=facts.workflow_id,
        question=facts.question,
        start_s=round(facts.started_s, 3),
        deadline_s=facts.deadline_s,
        met_deadline=record["met_deadline"],
        e2e_s=_rounded(record["e2e_s"]),
        sql=facts.sql,
        outcome=facts.outcome,
        detail=facts.detail,
        num_rows=facts.num_rows,
        is_right=facts.is_right,
        skipped=list(facts.skipped),
        notes=list(facts.notes),
        stages=sorted(requests, key=lambda request: (request.start_s, request.sibling_index)),
    )


def _request_entry(row: Mapping[str, Any], started_s: float) -> RequestEntry:
    """One request of the coordinator's record, its instants moved to the run's beginning."""

    def instant(name: str) -> float | None:
        return None if row[name] is None else round(started_s + row[name], 3)

    accepted_s = started_s + row["accepted_s"]
    finished_s = accepted_s if row["finished_s"] is None else started_s + row["finished_s"]
    return RequestEntry(
        stage=row["stage"] or "unnamed",
        worker=row["worker_id"] or None,
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        e2e_s=round(finished_s - accepted_s, 3),
        request_id=row["request_id"],
        sibling_index=row["sibling_index"],
        siblings=row["siblings"],
        start_s=round(accepted_s, 3),
        dispatched_s=instant("dispatched_s"),
        first_byte_s=instant("first_byte_s"),
        end_s=round(finished_s, 3),
        outcome=row["outcome"],
        retries=row["retries"],
    )


def _worker_entry(row: Mapping[str, Any], requests: Sequence[RequestEntry]) -> WorkerEntry:
    mine = [request for request in requests if request.worker == row["worker_id"]]
    return WorkerEntry(
        worker_id=row["worker_id"],
        url=row["url"],
        hardware=row["hardware"],
        model=PurePath(row["model"] or "").name,
        sglang_version=row["sglang_version"],
        num_requests=len(mine),
        prompt_tokens=sum(request.prompt_tokens or 0 for request in mine),
        cached_tokens=sum(request.cached_tokens or 0 for request in mine),
        output_tokens=sum(request.output_tokens or 0 for request in mine),
        busy_s=round(_union_s(mine), 3),
    )


def _union_s(requests: Sequence[RequestEntry]) -> float:
    """Seconds in which at least one of the requests was at its worker."""
    total_s, reached_s = 0.0, float("-inf")
    spans = [(r.dispatched_s, r.end_s) for r in requests if r.dispatched_s is not None]
    for begin_s, end_s in sorted(spans):
        total_s += max(0.0, end_s - max(begin_s, reached_s))
        reached_s = max(reached_s, end_s)
    return total_s


def _failures(workflows: Sequence[WorkflowEntry], workers: Sequence[WorkerEntry]) -> list[str]:
    """Why the run is not good: an unhandled error, a lost workflow, an idle worker."""
    failures = []
    if not workflows:
        failures.append("no question was asked")
    if not workers:
        failures.append("the coordinator knows no worker")
    for entry in workflows:
        if entry.outcome in FAILED_OUTCOMES:
            failures.append(f"workflow {entry.workflow_id}: {entry.detail or entry.outcome}")
        elif not entry.stages:
            failures.append(f"workflow {entry.workflow_id}: the coordinator saw no request of it")
    failures += [
        f"worker {worker.worker_id} was not used" for worker in workers if not worker.num_requests
    ]
    return failures


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
