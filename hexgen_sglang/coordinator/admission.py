"""Admission: may this request be served at all, and if so, what is known of it.

Everything that can refuse a request without touching a worker is here or in `incoming`; after
`admit` returns, the request is entered everywhere and waits in the central queue.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hexgen_sglang.coordinator.attempt_io import AttemptIO
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.deadline_gate import DeadlineGate
from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.http_errors import ApiError, unknown_model
from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker_client import WorkerClient
from hexgen_sglang.coordinator.workers import WorkerDirectory
from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow, WorkflowTracker
from hexgen_sglang.core.request import RequestView

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.prefix_keeper import PrefixKeeper


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a coordinator that a request passes."""

    config: CoordinatorConfig
    queue: CentralQueue
    dispatcher: Dispatcher
    directory: WorkerDirectory
    tracker: WorkflowTracker
    estimates: Estimates
    metrics: Metrics
    client: WorkerClient
    attempts: AttemptIO
    keeper: PrefixKeeper
    gate: DeadlineGate
    clock: Callable[[], float] = time.monotonic


def admit(parts: Parts, incoming: IncomingRequest) -> LiveRequest:
    """Check that the request can be served, enter it, queue it.

    Raises:
        ApiError: 404 for a model that nobody serves, 400 when the choice of model is open, 429 for
            a new workflow that would be late, or make others late.
        AdmissionRejected: the queue or the workflow tracker is full. Nothing was kept.
    """
    lane = _lane(parts.directory.models(), incoming.model)
    if parts.queue.is_full:
        parts.dispatcher.run_pass()  # some of it may be leaving in this turn of the loop
    parts.queue.check_room((incoming.tag and incoming.tag.tenant) or incoming.caller.tenant or "")
    request_id = uuid.uuid4().hex
    now_s, tag = parts.clock(), incoming.tag_for(request_id)
    is_new = parts.tracker.get(tag.workflow_id) is None
    if is_new:
        parts.gate.check(tag, lane, parts.tracker.budget_s(tag), now_s)
    workflow, record = parts.tracker.accept(tag, request_id, now_s)
    if is_new:
        parts.gate.admitted(workflow, record.stage, lane, now_s)
    loop = asyncio.get_running_loop()
    request = LiveRequest(
        incoming=incoming,
        view=request_view(parts.estimates, incoming, workflow, record, lane),
        workflow=workflow,
        record=record,
        lane=lane,
        placed=loop.create_future(),
        cancelled=loop.create_future(),
    )
    parts.queue.push(request)
    parts.dispatcher.kick()
    return request


def no_worker(parts: Parts) -> ApiError:
    """503: a request waited for a worker for as long as it may."""
    return ApiError(
        503,
        f"no worker could start the request within {parts.config.queue_timeout_s:g} s; "
        f"{len(parts.directory.ready())} of {len(parts.directory.workers)} workers are ready",
        kind="server_error",
        code="no_worker",
        retry_after_s=parts.dispatcher.retry_after_s(),
    )


_ANY_MODEL = "default"


def _lane(known: dict[str, dict[str, object]], model: str | None) -> str:
    """Which served model is meant: its name, or "" for whatever the first worker serves.

    "default" means the same as no name, as it does in SGLang's own examples.
    """
    if model is None or (model == _ANY_MODEL and model not in known):
        if len(known) <= 1:
            return next(iter(known), "")
        listing = ", ".join(sorted(known))
        raise ApiError(400, f"model: must be one of {listing}", param="model")
    if not known or model in known:
        return model
    base = model.partition(":")[0]  # SGLang's "base:adapter"
    if base in known:
        return base
    raise unknown_model(model, known)


def request_view(
    estimates: Estimates,
    incoming: IncomingRequest,
    workflow: Workflow,
    record: RequestRecord,
    lane: str,
) -> RequestView:
    """What policies may know of the request."""
    kind, stage = workflow.workflow_type, record.stage
    return RequestView(
        request_id=record.request_id,
        workflow_id=workflow.workflow_id,
        arrival_s=record.accepted_s,
        workflow_type=kind,
        stage=stage,
        deadline_s=workflow.deadline_s,
        budget_s=None if workflow.deadline_s is None else workflow.deadline_s - workflow.started_s,
        predicted_remaining_s=estimates.predicted_remaining_s(
            kind, stage, workflow.num_visits(stage)
        )
        or 0.0,
        predicted_stage_s=estimates.predicted_stage_s(kind, stage) or 0.0,
        num_prompt_tokens=estimates.num_prompt_tokens(lane, incoming.shape),
        expected_output_tokens=estimates.expected_output_tokens(kind, stage, incoming),
        siblings=record.siblings,
        sibling_index=record.sibling_index,
        tenant=workflow.tenant,
        predicted_alone_s=estimates.alone_s(kind, stage) or 0.0,
    )
