"""What the page shows at one instant, as JSON. Plain data, of bounded size.

Durations are seconds; a workflow's instants count from its own start.
"""

from __future__ import annotations

import itertools
from typing import Any

from hexgen_sglang.coordinator import reports
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.dashboard_page.history import BUCKET_S, Bucket, Counts, History

_MAX_WORKFLOWS = 40
_MAX_LASTING = 24
_MAX_PASSES = 48
# Of each kind looked through for those that the caller may see.
_MAX_SEARCHED = 1_000
_MAX_ESTIMATES = 64


def snapshot(coordinator: Coordinator, history: History, caller: Caller) -> dict[str, Any]:
    """What `caller` may see: workers, totals and estimates are for operators."""
    parts = coordinator.parts
    is_operator = caller.tenant is None or Role.OPERATOR in caller.roles
    now_s = parts.clock()
    buckets = history.buckets()
    tenant = None if is_operator else caller.tenant
    answer: dict[str, Any] = {
        "tenant": tenant,
        "workers": None,
        "totals": None,
        "estimates": None,
        "workflows": [_workflow_row(row, now_s, caller) for row in _newest(coordinator, caller)],
        "attainment": {
            "bucket_s": BUCKET_S,
            "counts": [
                _counts(bucket, None if is_operator else caller.tenant) for bucket in buckets
            ],
        },
        "predictions": [
            [caller.shown_id(point.workflow_id), point.predicted_s, point.actual_s, point.met]
            for point in history.points
            if caller.sees(point.tenant)
        ],
    }
    if is_operator:
        answer |= _for_operators(coordinator, history, buckets, now_s)
    return answer


def _newest(coordinator: Coordinator, caller: Caller) -> list[Workflow]:
    """The latest changed: first those that last, then those that ended, of either some."""
    lasting: list[Workflow] = []
    ended: list[Workflow] = []
    for row in coordinator.parts.tracker.recent(_MAX_SEARCHED):
        if caller.sees(row.tenant):
            (lasting if row.ended_s is None else ended).append(row)
            if len(ended) == _MAX_WORKFLOWS:
                break
    num_lasting = max(_MAX_LASTING, _MAX_WORKFLOWS - len(ended))
    return [*lasting[:num_lasting], *ended][:_MAX_WORKFLOWS]


def _for_operators(
    coordinator: Coordinator, history: History, buckets: list[Bucket | None], now_s: float
) -> dict[str, Any]:
    parts = coordinator.parts
    workers = list(parts.directory.workers.values())
    errors = itertools.islice(parts.estimates.stages.errors.rows(), _MAX_ESTIMATES)
    rows = []
    for worker in workers:
        row = reports.worker_row(worker, parts.estimates, now_s)
        recently = history.workers.get(worker.worker_id)
        row["busy_frac"] = None if recently is None else recently.busy_frac
        row["prefix_hit_frac"] = None if recently is None else recently.prefix_hit_frac
        row["slots"] = worker.slots
        rows.append(row)
    return {
        "workers": rows,
        "totals": {
            "status": coordinator.health()[1]["status"],
            "num_queued": len(parts.queue),
            "num_running": sum(len(worker.in_flight) for worker in workers),
            "num_workflows": parts.tracker.num_lasting,
            "most_queued": [0 if row is None else row.most_queued for row in buckets],
            "most_running": [0 if row is None else row.most_running for row in buckets],
        },
        "estimates": [
            {
                "estimate": estimate,
                "workflow_type": workflow_type,
                "error_frac": error.absolute_frac,
                "bias_frac": error.bias_frac,
            }
            for estimate, workflow_type, error in errors
        ],
    }


def _workflow_row(workflow: Workflow, now_s: float, caller: Caller) -> dict[str, Any]:
    """A workflow with its passes: [stage, start, end, requests, open ones]."""
    started_s = workflow.started_s
    passes = workflow.visits[-_MAX_PASSES:]
    return {
        **reports.workflow_row(workflow, now_s, caller),
        "age_s": now_s - started_s,
        "passes": [
            [
                visit.stage,
                visit.start_s - started_s,
                (now_s if visit.num_open else visit.end_s) - started_s,
                visit.num_requests,
                visit.num_open,
            ]
            for visit in passes
        ],
    }


def _counts(bucket: Bucket | None, tenant: str | None) -> Counts:
    """Of one tenant, or of all."""
    if bucket is None:
        return [0, 0, 0, 0]
    if tenant is not None:
        return bucket.counts.get(tenant, [0, 0, 0, 0])
    return [sum(column) for column in zip(*bucket.counts.values(), strict=True)] or [0, 0, 0, 0]
