"""Prometheus metrics of the coordinator, in a registry of their own.

Label values come from closed sets or from the first few workflow types and worker ids (the
rest counts as "other"), so that nobody can grow them without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Outcome, Workflow
from hexgen_sglang.core.worker import WorkerState
from hexgen_sglang.policies.estimators import EstimateErrors

_MAX_TYPES = 64
_MAX_WORKERS = 4_096
_MAX_TENANTS = 256
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_DECISION_SECONDS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)


_Metric = TypeVar("_Metric", Counter, Histogram)


class Metrics:
    """What is counted, and how it is told."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._types: set[str] = set()
        self._workers: set[str] = set()
        self._tenants: set[str] = set()
        self._totals: dict[Counter, int] = {}
        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram] = {}
        registry = self._registry
        self.requests = Counter(
            "hexgen_requests",
            "Requests that ended, by route and outcome; refused ones never began.",
            ["route", "outcome"],
            registry=registry,
        )
        self.refused = Counter(
            "hexgen_requests_refused",
            "Requests that were not accepted, by HTTP status.",
            ["status"],
            registry=registry,
        )
        self.tenant_attained = Gauge(
            "hexgen_tenant_attained_tokens",
            "Service that a tenant was given lately, in prompt tokens, halved every half-life.",
            ["tenant"],
            registry=registry,
        )
        self.peers_alive = Gauge(
            "hexgen_peers_alive", "Other coordinators that answer.", registry=registry
        )
        self.forwarded = Counter(
            "hexgen_requests_forwarded",
            "Requests that belonged to another coordinator: passed_on, or taken_over from it.",
            ["coordinator_id", "outcome"],
            registry=registry,
        )
        self.tenant_limited = Counter(
            "hexgen_tenant_limited",
            "Requests refused because a tenant was at a limit; without keys the tenant is empty.",
            ["tenant", "limit"],
            registry=registry,
        )
        self.api_keys_stale = Gauge(
            "hexgen_api_keys_stale",
            "1 while the API key file cannot be used and the keys read before stay in force.",
            registry=registry,
        )
        self.templates = Counter(
            "hexgen_templates",
            "Templates that workers computed ahead when they became ready: warmed or failed.",
            ["worker_id", "outcome"],
            registry=registry,
        )
        self.kv_gaps = Counter(
            "hexgen_kv_event_gaps",
            "Gaps in a worker's KV events, by how they were closed: replayed or rebuilt.",
            ["worker_id", "outcome"],
            registry=registry,
        )
        self.kv_whole = Gauge(
            "hexgen_kv_index_whole",
            "1 while all that a worker's prefix cache holds is known from its KV events.",
            ["worker_id"],
            registry=registry,
        )
        self.retries = Counter(
            "hexgen_retries",
            "Attempts that failed at a worker, by reason.",
            ["worker_id", "reason"],
            registry=registry,
        )
        self.moves = Counter(
            "hexgen_requests_moved",
            "Requests taken back from a worker before they began there: drain or slow.",
            ["worker_id", "reason"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "hexgen_prompt_tokens",
            "Prompt tokens of completed requests.",
            ["worker_id"],
            registry=registry,
        )
        self.cached_tokens = Counter(
            "hexgen_cached_tokens",
            "Those prompt tokens of completed requests that were in the worker's prefix cache.",
            ["worker_id"],
            registry=registry,
        )
        self.generation_tokens = Counter(
            "hexgen_generation_tokens",
            "Output tokens of completed requests.",
            ["worker_id"],
            registry=registry,
        )
        self.decisions = Counter(
            "hexgen_dispatch_decisions",
            "Dispatch decisions: placed, or wait.",
            ["policy", "decision"],
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "hexgen_dispatch_decision_seconds",
            "Time of one dispatch decision.",
            buckets=_DECISION_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "hexgen_queue_time_seconds",
            "Acceptance to the first dispatch of a request.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.ttft_seconds = Histogram(
            "hexgen_time_to_first_token_seconds",
            "Acceptance to first event of streamed answers.",
            ["workflow_type"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.e2e_seconds = Histogram(
            "hexgen_e2e_request_latency_seconds",
            "Acceptance to end of completed requests.",
            ["workflow_type"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tuning = Counter(
            "hexgen_tuning",
            "What the tuner said: keep, advice, apply, return or failed.",
            ["kind"],
            registry=registry,
        )
        self.tuning_setting = Gauge(
            "hexgen_tuning_setting",
            "Value in force of each setting that the tuner knows.",
            ["setting"],
            registry=registry,
        )
        self.tuning_engines = Gauge(
            "hexgen_tuning_engines",
            "Workers by what became of tuned ordering settings: applied, sent, refused, unreached, "
            "unlinked or other.",
            ["standing"],
            registry=registry,
        )
        self.workflows = Counter(
            "hexgen_workflows",
            "Workflows that ended: met, missed, best_effort or cancelled.",
            ["workflow_type", "outcome"],
            registry=registry,
        )
        self.workflow_seconds = Histogram(
            "hexgen_workflow_latency_seconds",
            "First request accepted to end of the workflow.",
            ["workflow_type"],
            buckets=(*_SECONDS, 1_000, 2_500),
            registry=registry,
        )
        self.queued = Gauge(
            "hexgen_num_queue_reqs", "Requests in the central queue.", registry=registry
        )
        self.lasting = Gauge(
            "hexgen_num_workflows", "Workflows that have not ended.", registry=registry
        )
        self.placement_ends = Counter(
            "hexgen_placement_ends",
            "Ends of requests that their clients carried to the workers, by who told of them.",
            ["teller"],
            registry=registry,
        )
        self.workflows_refused = Counter(
            "hexgen_workflows_refused",
            "New workflows refused for their deadline: hopeless, late or harm.",
            ["workflow_type", "reason"],
            registry=registry,
        )
        self.demoted = Counter(
            "hexgen_workflows_demoted",
            "Workflows that stood back since they could not meet their deadline.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "hexgen_num_running_reqs",
            "Requests sent to a worker and not ended.",
            ["worker_id"],
            registry=registry,
        )
        self.worker_queued = Gauge(
            "hexgen_worker_num_queue_reqs",
            "Requests in a worker's own queue, as it last reported.",
            ["worker_id"],
            registry=registry,
        )
        self.worker_kv_usage = Gauge(
            "hexgen_worker_kv_usage_ratio",
            "Share of a worker's KV cache that requests hold, as it last reported.",
            ["worker_id"],
            registry=registry,
        )
        self.worker_state = Gauge(
            "hexgen_worker_state",
            "1 for the state a worker is in.",
            ["worker_id", "state"],
            registry=registry,
        )
        self.worker_linked = Gauge(
            "hexgen_worker_linked",
            "1 while the worker's plugin is connected.",
            ["worker_id"],
            registry=registry,
        )

        self.estimate_error = Gauge(
            "hexgen_estimate_error_ratio",
            "Mean absolute error of an estimate over the mean of what came.",
            ["estimate", "workflow_type"],
            registry=registry,
        )
        self.estimate_bias = Gauge(
            "hexgen_estimate_bias_ratio",
            "Mean of predicted minus actual over the mean of what came.",
            ["estimate", "workflow_type"],
            registry=registry,
        )
        self.reports_refused = Counter(
            "hexgen_worker_reports_refused",
            "Reports of ended requests that were not the worker's, or told times that cannot be.",
            registry=registry,
        )

    def type_label(self, workflow_type: str) -> str:
        """The type itself while there are few, else "other"; untagged: ""."""
        return _capped(workflow_type, self._types, _MAX_TYPES)

    def worker_label(self, worker_id: str) -> str:
        """The id itself while few were ever registered, else "other"."""
        return _capped(worker_id, self._workers, _MAX_WORKERS)

    def set_tenants(self, attained: Mapping[str, float]) -> None:
        """Show what each tenant attained lately."""
        rows: dict[str, float] = {}
        for tenant, amount in attained.items():
            label = _capped(tenant, self._tenants, _MAX_TENANTS)
            rows[label] = rows.get(label, 0.0) + amount
        for label, amount in rows.items():
            self.tenant_attained.labels(label).set(amount)

    def limited(self, tenant: str | None, limit: str) -> None:
        """Count a request refused by the named limit of its tenant."""
        self.tenant_limited.labels(_capped(tenant or "", self._tenants, _MAX_TENANTS), limit).inc()

    def template_ended(self, worker_id: str, outcome: str) -> None:
        """Count a template that a worker computed ahead, or did not."""
        self.templates.labels(self.worker_label(worker_id), outcome).inc()

    def workflow_refused(self, workflow_type: str, reason: str) -> None:
        """Count a new workflow that was refused for its deadline."""
        self.workflows_refused.labels(self.type_label(workflow_type), reason).inc()

    def decided(self, policy: str, picked: str | None, seconds: float) -> None:
        """Count one dispatch decision."""
        self._of(self.decisions, policy, "wait" if picked is None else "placed").inc()
        self.decision_seconds.observe(seconds)

    def request_ended(self, request: LiveRequest) -> None:
        """Count an accepted request that ended; its record says how."""
        record = request.record
        self._of(self.requests, request.incoming.route, record.outcome.value).inc()
        if record.outcome is not Outcome.COMPLETED or record.finished_s is None:
            return
        kind = self.type_label(request.workflow.workflow_type)
        self._of(self.e2e_seconds, kind).observe(record.finished_s - record.accepted_s)
        if record.first_byte_s is not None:
            self._of(self.ttft_seconds, kind).observe(record.first_byte_s - record.accepted_s)
        worker = self.worker_label(record.worker_id)
        self._of(self.prompt_tokens, worker).inc(record.prompt_tokens or 0)
        self._of(self.cached_tokens, worker).inc(record.cached_tokens or 0)
        self._of(self.generation_tokens, worker).inc(record.output_tokens or 0)

    def workflow_ended(self, workflow: Workflow, ended_s: float) -> None:
        """Count a workflow that ended at `ended_s`."""
        kind = self.type_label(workflow.workflow_type)
        met = workflow.met_deadline(ended_s)
        outcome = "best_effort" if met is None else ("met" if met else "missed")
        self._of(self.workflows, kind, "cancelled" if workflow.is_cancelled else outcome).inc()
        if not workflow.is_cancelled:
            self._of(self.workflow_seconds, kind).observe(ended_s - workflow.started_s)

    def set_estimates(self, errors: EstimateErrors, num_refused_reports: int) -> None:
        """Bring the errors of the estimates up to date, for the first few workflow types."""
        for estimate, workflow_type, error in errors.rows():
            if self.type_label(workflow_type) == workflow_type:
                self.estimate_error.labels(estimate, workflow_type).set(error.absolute_frac)
                self.estimate_bias.labels(estimate, workflow_type).set(error.bias_frac)
        self._bring_up(self.reports_refused, num_refused_reports)

    def set_tuning(self, settings: Mapping[str, float], standings: Mapping[str, int]) -> None:
        """Show the settings in force, and how many engines stand where."""
        for name, value in settings.items():
            self.tuning_setting.labels(name).set(value)
        for standing, count in standings.items():
            self.tuning_engines.labels(standing).set(count)

    def set_demoted(self, num_demoted: int) -> None:
        """Bring the number of workflows that stood back up to date."""
        self._bring_up(self.demoted, num_demoted)

    def set_worker(self, worker: Worker) -> None:
        """Bring a worker's gauges up to date."""
        worker_id = self.worker_label(worker.worker_id)
        for known in WorkerState:
            self.worker_state.labels(worker_id, known.value).set(known is worker.state)
        self.worker_linked.labels(worker_id).set(worker.linked)
        self.in_flight.labels(worker_id).set(len(worker.in_flight))
        if worker.kv_index is not None:
            self.kv_whole.labels(worker_id).set(worker.kv_index.is_whole)
        load, capacity = worker.load, worker.kv_capacity_tokens
        if load is None:  # no series: a sum over workers stays a number
            self.worker_queued.remove_by_labels({"worker_id": worker_id})
            self.worker_kv_usage.remove_by_labels({"worker_id": worker_id})
            return
        self.worker_queued.labels(worker_id).set(load.num_waiting)
        if capacity:
            self.worker_kv_usage.labels(worker_id).set(load.num_kv_tokens_used / capacity)

    def drop_worker(self, worker_id: str) -> None:
        """Forget the gauges of a removed worker; its counters stay."""
        for known in WorkerState:
            self.worker_state.remove_by_labels({"worker_id": worker_id, "state": known.value})
        for gauge in (
            self.worker_linked,
            self.in_flight,
            self.worker_queued,
            self.worker_kv_usage,
            self.kv_whole,
        ):
            gauge.remove_by_labels({"worker_id": worker_id})

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)

    def _of(self, metric: _Metric, *labels: str) -> _Metric:
        """As `metric.labels(...)`, quicker: for what is counted with every request."""
        found = self._children.get((metric, labels))
        if found is None:
            found = self._children[metric, labels] = metric.labels(*labels)
        return cast(_Metric, found)

    def _bring_up(self, counter: Counter, total: int) -> None:
        """Count what somebody else has counted up to `total`."""
        known = self._totals.get(counter, 0)
        self._totals[counter] = total
        counter.inc(max(0, total - known))


def _capped(value: str, seen: set[str], most: int) -> str:
    """The value while at most so many were seen, else "other"."""
    if value in seen or len(seen) < most:
        seen.add(value)
        return value
    return "other"
