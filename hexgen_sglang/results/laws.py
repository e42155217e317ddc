"""What must hold for a run to count: each broken law is a sentence, and makes the run void.

Pure. The counters of engines and the deadlines a coordinator held are read elsewhere.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hexgen_sglang.results.records import COMPLETED, RequestRecord, RunRecord
from hexgen_sglang.results.statistics import driver_lag_frac
from hexgen_sglang.workload.plan import Workload

MAX_DRIVER_LAG_FRAC = 0.02
MAX_OVERHEAD_FRAC = 0.10
MAX_DRIFT_FRAC = 0.01
# Two clocks' reading of one instant: the event loop's timer may fire that much early.
_CLOCK_S = 0.002
# A budget is sent in whole milliseconds and reaches the coordinator some time later.
_BUDGET_SLACK_S = 0.25
_JUDGED_FROM_S = 5.0
_QUOTED = 3


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """What the engines themselves counted over a run, summed over workers.

    Attributes:
        requests: finished ones.
        input_tokens, output_tokens: of those.
    """

    requests: int
    input_tokens: int
    output_tokens: int


def broken_laws(workload: Workload, run: RunRecord) -> list[str]:
    """Sentences about the laws that the records break; empty when all hold."""
    return [
        *_conservation(workload, run),
        *_outcomes(run),
        *_causality(workload, run),
        *_unchanged(workload, run),
        *_driver(run),
    ]


def _conservation(workload: Workload, run: RunRecord) -> list[str]:
    """Every planned request ended exactly once, and nothing else did."""
    wanted = {
        f"{planned.workflow_id}-{stage}-{sibling}"
        for planned in workload.workflows
        for stage, sibling, _ in planned.workflow.requests()
    }
    seen = Counter(request.request_id for request in run.requests)
    broken = []
    missing = sorted(wanted - set(seen))
    if missing:
        broken.append(f"conservation: {len(missing)} requests never ended{_quote(missing)}")
    strange = sorted(set(seen) - wanted)
    if strange:
        broken.append(f"conservation: {len(strange)} requests were not planned{_quote(strange)}")
    twice = sorted(name for name, count in seen.items() if count > 1)
    if twice:
        broken.append(f"conservation: {len(twice)} requests ended more than once{_quote(twice)}")
    return broken


def _outcomes(run: RunRecord) -> list[str]:
    """Every request completed with the exact lengths of the trace."""
    failed = [request for request in run.requests if request.outcome != COMPLETED]
    if not failed:
        return []
    quoted = [f"{request.request_id}: {request.outcome}" for request in failed]
    return [f"outcomes: {len(failed)} requests did not complete{_quote(quoted)}"]


def _causality(workload: Workload, run: RunRecord) -> list[str]:
    """Nothing is sent before it is due, answered before it is sent, or due before its causes."""
    slack_s = _CLOCK_S * run.time_scale
    ends: dict[tuple[int, int], float] = {}
    for request in run.requests:
        key = (request.workflow, request.stage)
        ends[key] = max(ends.get(key, request.end_s), request.end_s)
    early = []
    for request in run.requests:
        planned = workload.workflows[request.workflow]
        stage = planned.workflow.stages[request.stage]
        causes = [ends.get((request.workflow, before)) for before in stage.after]
        known = [cause for cause in causes if cause is not None]
        earliest = max(known, default=planned.arrival_s) + stage.tool_s
        if request.due_s < earliest - slack_s or not _ordered(request, slack_s):
            early.append(request.request_id)
    return [f"causality: {len(early)} requests{_quote(sorted(early))}"] if early else []


def _ordered(request: RequestRecord, slack_s: float) -> bool:
    """In this order: due <= sent <= first byte <= end."""
    first = request.end_s if request.first_byte_s is None else request.first_byte_s
    instants = (request.due_s, request.sent_s, first, request.end_s)
    return all(b >= a - slack_s for a, b in itertools.pairwise(instants))


def _unchanged(workload: Workload, run: RunRecord) -> list[str]:
    """Arrivals, deadlines and unloaded latencies are those of the workload."""
    changed = [
        planned.workflow_id
        for planned, seen in zip(workload.workflows, run.workflows, strict=False)
        if (planned.workflow_id, planned.arrival_s, planned.budget_s, planned.unloaded_s)
        != (seen.workflow_id, seen.arrival_s, seen.budget_s, seen.unloaded_s)
    ]
    if len(workload.workflows) != len(run.workflows):
        return [f"conservation: {len(run.workflows)} of {len(workload.workflows)} workflows"]
    return [f"deadlines: {len(changed)} workflows changed{_quote(changed)}"] if changed else []


def _driver(run: RunRecord) -> list[str]:
    """The driver itself was not the bottleneck."""
    broken = []
    if run.connection_waits:
        broken.append(f"driver: {run.connection_waits} requests waited for a connection")
    lag = driver_lag_frac(run)
    if lag > MAX_DRIVER_LAG_FRAC:
        broken.append(
            f"driver: its lateness is {lag:.1%} of the latency, at most "
            f"{MAX_DRIVER_LAG_FRAC:.0%} is allowed; the machine is too slow for this time scale"
        )
    return broken


def broken_engine_totals(run: RunRecord, totals: EngineTotals) -> list[str]:
    """The engines counted what the driver counted: nothing was computed twice or dropped."""
    seen = EngineTotals(
        requests=len(run.requests),
        input_tokens=sum(request.input_tokens for request in run.requests),
        output_tokens=sum(request.output_tokens for request in run.requests),
    )
    return [
        f"engines: {field}={getattr(totals, field)}: the driver counted {getattr(seen, field)}"
        for field in ("requests", "input_tokens", "output_tokens")
        if getattr(totals, field) != getattr(seen, field)
    ]


def broken_deadlines(run: RunRecord, held_s: Mapping[str, float | None]) -> list[str]:
    """The coordinator held the deadlines that were sent.

    `held_s` maps workflow id to the budget that it held, in real seconds from the workflow's
    first request: what a late driver had left of it when it sent that one.
    """
    first_sent_s: dict[int, float] = {}
    for request in run.requests:
        earliest_s = first_sent_s.get(request.workflow, request.sent_s)
        first_sent_s[request.workflow] = min(earliest_s, request.sent_s)
    changed = []
    for workflow in run.workflows:
        held = held_s.get(workflow.workflow_id)
        if workflow.budget_s is None:
            wrong = held is not None
        else:
            late_s = first_sent_s.get(workflow.index, workflow.arrival_s) - workflow.arrival_s
            sent_s = max(0.0, workflow.budget_s - late_s) / run.time_scale
            wrong = held is None or abs(held - sent_s) > _BUDGET_SLACK_S
        if wrong:
            changed.append(f"{workflow.workflow_id}: {held}")
    if not changed:
        return []
    return [f"deadlines: the coordinator held others for {len(changed)}{_quote(changed)}"]


def broken_emulation(summaries: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The emulated accelerators kept time: `overhead_frac` and `drift_frac` by worker.

    A worker with less than 5 emulated seconds of steps is not judged: one hiccup would decide.
    """
    broken = []
    for worker, summary in sorted(summaries.items()):
        if summary["busy_s"] < _JUDGED_FROM_S:
            continue
        for field, limit in (
            ("overhead_frac", MAX_OVERHEAD_FRAC),
            ("drift_frac", MAX_DRIFT_FRAC),
        ):
            if abs(summary[field]) > limit:
                broken.append(
                    f"emulation: {worker} {field}={summary[field]:.4f}: must be at most {limit}"
                )
    return broken


def _quote(names: Sequence[str]) -> str:
    """`: a, b, c, ...`, cut after a few."""
    more = ", ..." if len(names) > _QUOTED else ""
    return ": " + ", ".join(names[:_QUOTED]) + more
