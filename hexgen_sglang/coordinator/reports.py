"""JSON shapes of `GET /workers`, `/workflows` and `/health`. Plain data, no decisions.

Instants are seconds since the workflow's first request was accepted.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hexgen_sglang.coordinator.access import ANYBODY, Caller
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow
from hexgen_sglang.core.worker import WorkerState

MAX_LISTED_WORKFLOWS = 1_000


def worker_row(worker: Worker, estimates: Estimates, now_s: float) -> dict[str, Any]:
    """One worker, as `GET /workers` lists it."""
    load = worker.load
    rates = estimates.rates.of(worker.worker_id)
    return {
        "worker_id": worker.worker_id,
        "url": worker.url,
        "model": worker.models[0] if worker.models else None,
        "models": list(worker.models),
        "hardware": worker.hardware,
        "state": worker.state.value,
        "origin": worker.origin,
        "linked": worker.linked,
        "sglang_version": worker.sglang_version,
        "ordering": worker.ordering,
        "num_in_flight": len(worker.in_flight),
        "num_in_flight_tokens": worker.num_in_flight_tokens,
        "max_running_requests": worker.max_running_requests,
        "kv_capacity_tokens": worker.kv_capacity_tokens,
        "prefill_tokens_per_s": rates.prefill_tokens_per_s,
        "decode_tokens_per_s": rates.decode_tokens_per_s,
        "last_error": worker.last_error or None,
        "load": None
        if load is None
        else {
            "num_running": load.num_running,
            "num_waiting": load.num_waiting,
            "num_waiting_tokens": load.num_waiting_tokens,
            "num_kv_tokens_used": load.num_kv_tokens_used,
            "age_s": now_s - worker.load_at_s,
        },
    }


def workflow_row(workflow: Workflow, now_s: float, caller: Caller = ANYBODY) -> dict[str, Any]:
    """A workflow without its requests, as `GET /workflows` lists it to `caller`."""
    started_s, ended_s = workflow.started_s, workflow.ended_s
    return {
        "workflow_id": caller.shown_id(workflow.workflow_id),
        "workflow_type": workflow.workflow_type or None,
        "tenant": workflow.tenant or None,
        "budget_s": None if workflow.deadline_s is None else workflow.deadline_s - started_s,
        "elapsed_s": (ended_s if ended_s is not None else now_s) - started_s,
        "ended": ended_s is not None,
        "cancelled": workflow.is_cancelled,
        "met_deadline": workflow.met_deadline(now_s),
        "e2e_s": None if ended_s is None else ended_s - started_s,
    }


def workflow_report(workflow: Workflow, now_s: float, caller: Caller = ANYBODY) -> dict[str, Any]:
    """A workflow with its stages and requests, as `GET /workflows/{id}` tells it."""
    return {
        **workflow_row(workflow, now_s, caller),
        "stages": _stage_rows(workflow, now_s),
        "requests": [_request_row(r, workflow.started_s) for r in workflow.records.values()],
    }


def health(
    workers: list[Worker],
    *,
    num_queued: int,
    is_draining: bool,
    has_link: bool,
    tuner_is_down: bool = False,
    keys_are_stale: bool = False,
    peers_are_lost: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Status and body of `GET /health`: 200 while requests can be served.

    `degraded` names each thing that does not work as configured; the status stays "ok" only
    while there is none.
    """
    counts = {state.value: 0 for state in WorkerState}
    for worker in workers:
        counts[worker.state.value] += 1
    degraded = []
    if counts["unreachable"]:
        degraded.append("workers_unreachable")
    if has_link and any(worker.incarnation and not worker.linked for worker in workers):
        degraded.append("links_lost")
    if tuner_is_down:
        degraded.append("tuner_down")
    if peers_are_lost:
        degraded.append("peers_lost")
    if keys_are_stale:
        degraded.append("api_keys_stale")
    status = "degraded" if degraded else "ok"
    if not counts["ready"]:
        status = "no_worker"
    if is_draining:
        status = "draining"
    body = {
        "status": status,
        "degraded": degraded,
        "workers": counts,
        "num_queued": num_queued,
    }
    return (200 if status in ("ok", "degraded") else 503), body


def as_json(value: object) -> bytes:
    """Encode a report."""
    return msgspec.json.encode(value)


def _stage_rows(workflow: Workflow, now_s: float) -> list[dict[str, Any]]:
    """Stages in order of first visit; a stage visited again adds up.

    `stage_budget_s` is the latest visit's.
    """
    rows: dict[str, dict[str, Any]] = {}
    for visit in workflow.visits:
        row = rows.setdefault(
            visit.stage,
            {"stage": visit.stage, "num_visits": 0, "num_requests": 0, "elapsed_s": 0.0},
        )
        row["num_visits"] += 1
        row["num_requests"] += visit.num_requests
        row["elapsed_s"] += (now_s if visit.num_open else visit.end_s) - visit.start_s
        row["stage_budget_s"] = visit.budget_s
    return list(rows.values())


def _request_row(record: RequestRecord, started_s: float) -> dict[str, Any]:
    def since(instant_s: float | None) -> float | None:
        return None if instant_s is None else instant_s - started_s

    return {
        "request_id": record.request_id,
        "stage": record.stage,
        "sibling_index": record.sibling_index,
        "siblings": record.siblings,
        "worker_id": record.worker_id or None,
        "accepted_s": since(record.accepted_s),
        "dispatched_s": since(record.dispatched_s),
        "first_byte_s": since(record.first_byte_s),
        "finished_s": since(record.finished_s),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "outcome": record.outcome.value,
        "retries": record.retries,
    }
