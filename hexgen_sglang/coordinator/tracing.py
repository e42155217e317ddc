"""OpenTelemetry spans of workflows, requests, their waits and their tries at workers.

Runs in the coordinator's event loop; loaded only where traces are asked for. Spans hold names and
numbers, never a prompt or an answer, and are exported by a thread of OpenTelemetry's; when a
collector is slow or gone, spans are dropped and requests go on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hexgen_sglang import __version__
from hexgen_sglang.core.errors import ConfigError

try:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import (
        Link,
        Span,
        SpanKind,
        Status,
        StatusCode,
        get_current_span,
        set_span_in_context,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise ConfigError(
        f"tracing.endpoint: needs pip install 'hexgen-sglang[otel]' ({missing})"
    ) from missing

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.http_errors import ApiError
    from hexgen_sglang.coordinator.live_request import Attempt, AttemptFailed, LiveRequest
    from hexgen_sglang.coordinator.tracing_config import TracingConfig
    from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow

# Workflows whose span is open; the oldest of more is ended early.
_MAX_WORKFLOWS = 20_000
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_SUCCESSES = ("completed", "cancelled", "disconnected")
_PROPAGATOR = TraceContextTextMapPropagator()

Attributes = dict[str, str | bool | int | float]


def exporting(config: TracingConfig) -> Tracing:
    """Tracing to the collector that the configuration names.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise ConfigError(
            f"tracing.endpoint: needs pip install 'hexgen-sglang[otel]' ({missing})"
        ) from missing
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": config.service_name}),
        sampler=ParentBased(TraceIdRatioBased(config.sample_frac)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(config.endpoint)))
    return Tracing(provider)


class Tracing:
    """Where a coordinator's spans begin.

    Args:
        provider: exports them; `close` shuts it down.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self.tracer = provider.get_tracer("hexgen_sglang.coordinator", __version__)
        self._workflows: OrderedDict[str, Span] = OrderedDict()

    def request(self, route: str, headers: Mapping[str, str]) -> RequestTrace:
        """A request came, before anything of it is believed."""
        return RequestTrace(self, route, _PROPAGATOR.extract(dict(headers)))

    def workflow_span(self, workflow: Workflow, context: Context) -> Span | None:
        """The span of a tagged workflow, begun if it is not; below its first request's client's."""
        span = self._workflows.get(workflow.workflow_id)
        if span is not None or not workflow.is_tagged or workflow.was_counted:
            return span
        span = self.tracer.start_span("workflow", context, attributes=_of_workflow(workflow))
        self._workflows[workflow.workflow_id] = span
        while len(self._workflows) > _MAX_WORKFLOWS:
            self._workflows.popitem(last=False)[1].end()
        return span

    def workflow_ended(self, workflow: Workflow, now_s: float) -> None:
        """End its span, as of the workflow's own end."""
        span = self._workflows.pop(workflow.workflow_id, None)
        if span is None:
            return
        ended_s = now_s if workflow.ended_s is None else workflow.ended_s
        attributes = _of_workflow(workflow)
        attributes |= {
            "hexgen.workflow.cancelled": workflow.is_cancelled,
            "hexgen.workflow.num_requests": len(workflow.records),
        }
        met = workflow.met_deadline(ended_s)
        if met is not None:
            attributes["hexgen.workflow.met_deadline"] = met
        span.set_attributes(attributes)
        span.end(time.time_ns() - round((now_s - ended_s) * 1e9))

    def close(self) -> None:
        """End what is open and export what is left; takes bounded time."""
        while self._workflows:
            self._workflows.popitem()[1].end()
        self._provider.shutdown()


class RequestTrace:
    """The spans of one request: itself, its admission, each wait and each try.

    Args:
        context: the client's, empty when it sent none.
    """

    def __init__(self, tracing: Tracing, route: str, context: Context) -> None:
        self._tracing = tracing
        self._route = route
        self._client = context
        self._arrived_ns = time.time_ns()
        self._waits_since_ns = self._arrived_ns
        self._span: Span | None = None
        self._attempt: Span | None = None

    def refused(self, error: ApiError) -> None:
        """It was not accepted; a request that was has ended by itself."""
        if self._span is None:
            span = self._begin(self._client, {"http.response.status_code": error.status}, ())
            span.set_status(Status(StatusCode.ERROR if error.status >= 500 else StatusCode.UNSET))
            span.set_attribute("error.type", error.code or str(error.status))
            span.end()

    def accepted(self, request: LiveRequest) -> None:
        """It waits in the central queue from now on."""
        record, workflow = request.record, request.workflow
        parent, links = self._client, list[Link]()
        over = self._tracing.workflow_span(workflow, self._client)
        if over is not None:
            if get_current_span(self._client).get_span_context().is_valid:
                links.append(Link(over.get_span_context()))
            else:
                parent = set_span_in_context(over)
        attributes = _of_workflow(workflow) | {
            "hexgen.request.id": record.request_id,
            "hexgen.stage": record.stage,
            "hexgen.sibling_index": record.sibling_index,
            "gen_ai.operation.name": _OPERATIONS.get(self._route, "generate_content"),
        }
        if request.lane:
            attributes["gen_ai.request.model"] = request.lane
        if request.incoming.max_output_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = request.incoming.max_output_tokens
        self._span = self._begin(parent, attributes, links)
        self._waits_since_ns = time.time_ns()
        admission = self._child("admit", self._arrived_ns)
        admission.end(self._waits_since_ns)

    def placed(self, request: LiveRequest, attempt: Attempt) -> None:
        """A worker was found, and the try begins."""
        queued = self._child("queue", self._waits_since_ns)
        decision, view = request.decision, request.view
        if decision is not None:
            queued.set_attribute("hexgen.decision.num_candidates", decision.num_candidates)
        if view.deadline_s is not None:
            queued.set_attribute("hexgen.slack_s", view.slack_s(attempt.dispatched_s))
        now_ns = time.time_ns()
        queued.end(now_ns)
        url = urlsplit(attempt.worker.url)
        self._attempt = self._child("attempt", now_ns, SpanKind.CLIENT)
        self._attempt.set_attributes(
            {
                "hexgen.worker.id": attempt.worker.worker_id,
                "hexgen.worker.hardware": attempt.worker.hardware,
                "hexgen.attempt.number": request.num_attempts,
                "hexgen.predicted_stage_s": view.predicted_stage_s,
                "hexgen.predicted_remaining_s": view.predicted_remaining_s,
                "server.address": url.hostname or "",
                "server.port": url.port or 0,
            }
        )

    def headers(self) -> dict[str, str]:
        """What tells the worker that its spans belong below the present try."""
        carrier: dict[str, str] = {}
        if self._attempt is not None:
            _PROPAGATOR.inject(carrier, set_span_in_context(self._attempt))
        return carrier

    def failed(self, failure: AttemptFailed) -> None:
        """The try failed; the request waits again, or is about to end."""
        if self._attempt is not None:
            # Not the message: it may hold what the worker said.
            self._attempt.set_status(Status(StatusCode.ERROR, failure.reason))
            self._attempt.set_attribute("error.type", failure.reason)
            self._attempt.end()
            self._attempt = None
        self._waits_since_ns = time.time_ns()

    def ended(self, record: RequestRecord, now_s: float) -> None:
        """The request is over, as its record says."""
        span = self._span
        if span is None:
            return
        now_ns = time.time_ns()
        outcome: str = record.outcome.value
        is_good = outcome in _SUCCESSES or outcome == "rejected"
        status = Status(StatusCode.UNSET if is_good else StatusCode.ERROR)
        attributes: Attributes = {"hexgen.outcome": outcome, "hexgen.retries": record.retries}
        if outcome not in _SUCCESSES:
            attributes["error.type"] = outcome
        for name, count in (
            ("gen_ai.usage.input_tokens", record.prompt_tokens),
            ("gen_ai.usage.cache_read.input_tokens", record.cached_tokens),
            ("gen_ai.usage.output_tokens", record.output_tokens),
        ):
            if count is not None:
                attributes[name] = count
        if self._attempt is not None:
            if record.first_byte_s is not None:
                at_ns = now_ns - round((now_s - record.first_byte_s) * 1e9)
                self._attempt.add_event("first token", timestamp=at_ns)
            self._attempt.set_attributes(attributes)
            self._attempt.set_status(status)
            self._attempt.end(now_ns)
        span.set_attributes(attributes)
        span.set_status(status)
        span.end(now_ns)

    def _begin(
        self, parent: Context, attributes: Attributes, links: list[Link] | tuple[()]
    ) -> Span:
        attributes = {"http.request.method": "POST", "http.route": self._route, **attributes}
        return self._tracing.tracer.start_span(
            f"POST {self._route}",
            parent,
            SpanKind.SERVER,
            attributes,
            links,
            self._arrived_ns,
        )

    def _child(self, name: str, begins_ns: int, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        if self._span is None:
            raise AssertionError("a part of a request that was not accepted")
        context = set_span_in_context(self._span)
        return self._tracing.tracer.start_span(name, context, kind, start_time=begins_ns)


def _of_workflow(workflow: Workflow) -> Attributes:
    """What is known of a workflow at any time."""
    attributes: Attributes = {"hexgen.workflow.id": workflow.workflow_id}
    if workflow.workflow_type:
        attributes["hexgen.workflow.type"] = workflow.workflow_type
    if workflow.tenant:
        attributes["hexgen.tenant"] = workflow.tenant
    if workflow.deadline_s is not None:
        attributes["hexgen.workflow.budget_s"] = workflow.deadline_s - workflow.started_s
    return attributes
