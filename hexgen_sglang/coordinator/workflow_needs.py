"""What workflows of a type take, and how fast a lane's workers get through it.

Learned from the records of ended workflows; priced with the step costs of the workers of the
moment, at the largest batches that their memory and slots allow. For `deadline_gate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Outcome, Workflow
from hexgen_sglang.core.worker import StepCosts, WorkerView
from hexgen_sglang.policies.dispatch.marginal_cost import step_costs
from hexgen_sglang.policies.estimators import PathWork, Quantiles, RunningMean

_MILLI = 1_000
# Of latencies: a bad hour must not shut the door for long.
_KEEP = 0.96


@dataclass(slots=True)
class Usual:
    """What ended workflows of one type took; means over workflows.

    Attributes:
        num_requests, num_uncached, num_output: of all requests of a workflow together; tokens.
        num_cached, num_context: of one request; tokens.
        factors: real over predicted latency, in thousandths.
    """

    num_requests: RunningMean = field(default_factory=RunningMean)
    num_uncached: RunningMean = field(default_factory=RunningMean)
    num_output: RunningMean = field(default_factory=RunningMean)
    num_cached: RunningMean = field(default_factory=RunningMean)
    num_context: RunningMean = field(default_factory=RunningMean)
    factors: Quantiles = field(default_factory=lambda: Quantiles(_KEEP))

    def take(self, workflow: Workflow) -> None:
        """A workflow ended in order."""
        records = [r for r in workflow.records.values() if r.outcome is Outcome.COMPLETED]
        if not records:
            return
        prompt = sum(record.prompt_tokens or 0 for record in records)
        cached = sum(record.cached_tokens or 0 for record in records)
        output = sum(record.output_tokens or 0 for record in records)
        count = len(records)
        self.num_requests.add(count)
        self.num_uncached.add(max(0, prompt - cached))
        self.num_output.add(output)
        self.num_cached.add(cached / count)
        self.num_context.add((prompt + output) / count)

    def take_latency(self, predicted_s: float, took_s: float) -> None:
        """Such a workflow was said to take `predicted_s`, above 0."""
        self.factors.add(_MILLI * took_s / predicted_s)

    def factor(self, share: float) -> float:
        """What `share` of the real latencies do not exceed, in predicted ones."""
        return (self.factors.at(share) or _MILLI) / _MILLI


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of a lane.

    Attributes:
        workers: for each what its steps cost, its KV memory in tokens (None: unknown) and the
            requests of a batch at most.
    """

    workers: Sequence[tuple[StepCosts, int | None, int]]

    def work_s(self, usual: Usual) -> float:
        """Seconds of all of them together for one workflow, with full batches."""
        count = max(1.0, usual.num_requests.mean)
        output, context = usual.num_output.mean, max(1.0, usual.num_context.mean)
        per_s = 0.0
        for costs, kv_tokens, slots in self.workers:
            fits = slots if kv_tokens is None else min(slots, int(kv_tokens / context))
            batch = max(1, fits)
            step_s = costs.decode_s(batch, batch * context) / batch
            prefill_s = costs.prefill_s(usual.num_uncached.mean / count, usual.num_cached.mean)
            per_s += 1.0 / max(1e-9, count * prefill_s + output * step_s)
        return 1.0 / per_s

    def alone_s(self, path: PathWork) -> float:
        """Seconds of a path of stages on the best of them."""
        return min(path.seconds(costs) for costs, _, _ in self.workers)


def crew_of(workers: Sequence[Worker], estimates: Estimates, default_slots: int) -> Crew | None:
    """These workers; one of which nothing is known is taken for the slowest that is known.

    None when nothing is known of any.

    Args:
        workers: that serve the lane.
        estimates: of their speed.
        default_slots: batch limit of a worker that tells none.
    """
    known: list[tuple[Worker, StepCosts]] = []
    unknown: list[Worker] = []
    for worker in workers:
        costs = estimates.step_costs(worker.worker_id, worker.hardware)
        rates = estimates.rates.of(worker.worker_id)
        if costs is None and rates.decode_tokens_per_s is None:
            unknown.append(worker)
            continue
        view = WorkerView(
            worker.worker_id,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
            decode_tokens_per_s=rates.decode_tokens_per_s,
            usual_batch=rates.usual_batch,
            costs=costs,
        )
        known.append((worker, step_costs(view)))
    if not known:
        return None
    slowest = max((costs for _, costs in known), key=lambda costs: costs.decode_s(8, 16_000))
    known += [(worker, slowest) for worker in unknown]
    return Crew([(c, w.kv_capacity_tokens, w.slots or default_slots) for w, c in known])
