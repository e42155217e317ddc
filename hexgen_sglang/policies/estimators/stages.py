"""What the stages of each workflow type cost: output tokens, seconds, and what comes after.

Learned by (type, stage) over all workers and by (worker, type, stage). Untagged requests are
the stage "" of the type "".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hexgen_sglang.policies.estimators.averages import BoundedTable, RunningMean


@dataclass(frozen=True, slots=True)
class StageVisit:
    """One pass of a workflow through a stage, all its siblings together.

    Attributes:
        stage: name.
        start_s, end_s: first request accepted; last request ended.
        service_s: the longest stay of one of its requests at a worker.
    """

    stage: str
    start_s: float
    end_s: float
    service_s: float


@dataclass(slots=True)
class _RequestCost:
    """Means over single requests."""

    output_tokens: RunningMean = field(default_factory=RunningMean)
    seconds: RunningMean = field(default_factory=RunningMean)


@dataclass(slots=True)
class _VisitCost:
    """Means over visits of a stage."""

    seconds: RunningMean = field(default_factory=RunningMean)
    remaining_s: RunningMean = field(default_factory=RunningMean)


class StageEstimates:
    """Costs by (type, stage), with and without the worker.

    Args:
        max_entries: of each table; the longest unused goes first.
    """

    def __init__(self, max_entries: int = 4_096) -> None:
        self._by_stage: BoundedTable[tuple[str, str], _RequestCost] = BoundedTable(
            _RequestCost, max_entries
        )
        self._by_worker: BoundedTable[tuple[str, str, str], _RequestCost] = BoundedTable(
            _RequestCost, max_entries
        )
        self._visits: BoundedTable[tuple[str, str], _VisitCost] = BoundedTable(
            _VisitCost, max_entries
        )

    def note_request(
        self, worker_id: str, workflow_type: str, stage: str, output_tokens: float, seconds: float
    ) -> None:
        """A request ended.

        `output_tokens` of each of its answers; `seconds` at the worker, its queue included.
        """
        for cost in (
            self._by_stage.at((workflow_type, stage)),
            self._by_worker.at((worker_id, workflow_type, stage)),
        ):
            cost.output_tokens.add(output_tokens)
            cost.seconds.add(seconds)

    def note_workflow(self, workflow_type: str, visits: Sequence[StageVisit]) -> None:
        """A workflow ended in order; `visits` by start.

        What remains after a visit is the sum of the later visits' service and of the gaps
        between them (tool time), so that waiting in a queue of ours does not count as work;
        visits that overlap cannot make it longer than the time that really passed.
        """
        if not visits:
            return
        remaining_s = 0.0
        workflow_end_s = max(visit.end_s for visit in visits)
        for visit, later in zip(reversed(visits), [None, *reversed(visits)], strict=False):
            if later is not None:
                gap_s = max(0.0, later.start_s - visit.end_s)
                remaining_s += later.service_s + gap_s
                remaining_s = min(remaining_s, max(0.0, workflow_end_s - visit.end_s))
            cost = self._visits.at((workflow_type, visit.stage))
            cost.seconds.add(visit.service_s)
            cost.remaining_s.add(remaining_s)

    def output_tokens(
        self, workflow_type: str, stage: str, worker_id: str | None = None
    ) -> float | None:
        """Expected output length on that worker, else over all; None when never seen."""
        cost = self._cost(workflow_type, stage, worker_id)
        return cost.output_tokens.mean if cost else None

    def request_s(
        self, workflow_type: str, stage: str, worker_id: str | None = None
    ) -> float | None:
        """Expected seconds of one request on that worker, else over all; None when unseen."""
        cost = self._cost(workflow_type, stage, worker_id)
        return cost.seconds.mean if cost else None

    def stage_s(self, workflow_type: str, stage: str) -> float | None:
        """Expected seconds of a visit of the stage; a single request's when no workflow that
        passed it has ended yet; None when unseen.
        """
        visits = self._visits.get((workflow_type, stage))
        return visits.seconds.mean if visits else self.request_s(workflow_type, stage)

    def remaining_after_s(self, workflow_type: str, stage: str) -> float | None:
        """Expected seconds a workflow needs after leaving the stage; None when unseen."""
        visits = self._visits.get((workflow_type, stage))
        return visits.remaining_s.mean if visits else None

    def forget_worker(self, worker_id: str) -> None:
        """Drop what was learned of one worker."""
        self._by_worker.drop(lambda key: key[0] == worker_id)

    def _cost(self, workflow_type: str, stage: str, worker_id: str | None) -> _RequestCost | None:
        """The most special means with a sample, or None."""
        if worker_id is not None:
            cost = self._by_worker.get((worker_id, workflow_type, stage))
            if cost is not None:
                return cost
        return self._by_stage.get((workflow_type, stage))
