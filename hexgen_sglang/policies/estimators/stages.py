"""What the stages of each workflow type cost: output tokens, seconds, and what comes after.

Learned by (type, stage) over all workers and by (worker, type, stage). Untagged requests are
the stage "" of the type "".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hexgen_sglang.policies.estimators.alone import AlonePaths
from hexgen_sglang.policies.estimators.averages import BoundedTable, RunningMean
from hexgen_sglang.policies.estimators.chain import Remaining, StageChains, Step
from hexgen_sglang.policies.estimators.errors import EstimateErrors
from hexgen_sglang.policies.estimators.quantiles import Quantiles

# How the work that remains after a stage is told: see `StageEstimates`.
RemainingWork = Literal["means", "chain", "p90"]
_HIGH = 0.9
_MS = 1_000.0  # quantiles tell nothing apart below 1
# Requests with one sibling index before their own mean is told.
_MIN_SIBLINGS = 4


@dataclass(frozen=True, slots=True)
class StageVisit:
    """One pass of a workflow through a stage, all its siblings together.

    Attributes:
        stage: name.
        start_s, end_s: first request accepted; last request ended.
        service_s: the longest stay of one of its requests at a worker.
        num_requests, num_tokens: of it, and the output tokens of those.
        num_path_tokens, num_path_uncached: most output tokens, and most uncached prompt tokens,
            of one of its requests.
    """

    stage: str
    start_s: float
    end_s: float
    service_s: float
    num_requests: int = 0
    num_tokens: int = 0
    num_path_tokens: int = 0
    num_path_uncached: int = 0


@dataclass(slots=True)
class _RequestCost:
    """Means over single requests."""

    output_tokens: RunningMean = field(default_factory=RunningMean)
    seconds: RunningMean = field(default_factory=RunningMean)
    output_quantiles: Quantiles = field(default_factory=Quantiles)


@dataclass(slots=True)
class _VisitCost:
    """Means over visits of a stage; quantiles, in milliseconds, only where they are asked for."""

    seconds: RunningMean = field(default_factory=RunningMean)
    remaining_s: RunningMean = field(default_factory=RunningMean)
    remaining_ms: Quantiles = field(default_factory=Quantiles)


class StageEstimates:
    """Costs by (type, stage), with and without the worker.

    Args:
        max_entries: of each table; the longest unused goes first.
        remaining: `remaining_after_s` is the mean over ended workflows ("means"), what nine of ten
            of them did not exceed ("p90"), or the chain's answer ("chain").

    Attributes:
        errors: of its predictions. Output tokens are told to it by the coordinator.
        alone: what workflows would need with the cluster to themselves.
    """

    def __init__(self, max_entries: int = 4_096, *, remaining: RemainingWork = "means") -> None:
        self._remaining = remaining
        self._chains = StageChains()
        self.errors = EstimateErrors()
        self.alone = AlonePaths(max_entries)
        self._by_stage: BoundedTable[tuple[str, str], _RequestCost] = BoundedTable(
            _RequestCost, max_entries
        )
        self._by_worker: BoundedTable[tuple[str, str, str], _RequestCost] = BoundedTable(
            _RequestCost, max_entries
        )
        self._by_sibling: BoundedTable[tuple[str, str, int], RunningMean] = BoundedTable(
            RunningMean, max_entries
        )
        self._visits: BoundedTable[tuple[str, str], _VisitCost] = BoundedTable(
            _VisitCost, max_entries
        )

    def note_request(
        self,
        worker_id: str,
        workflow_type: str,
        stage: str,
        output_tokens: float,
        seconds: float,
        *,
        sibling: int = 0,
    ) -> None:
        """A request ended.

        Args:
            worker_id: where.
            workflow_type: its workflow's.
            stage: its stage's name.
            output_tokens: of each of its answers.
            seconds: at the worker, its queue included.
            sibling: which of its stage's requests it was.
        """
        self._by_sibling.at((workflow_type, stage, sibling)).add(output_tokens)
        for cost in (
            self._by_stage.at((workflow_type, stage)),
            self._by_worker.at((worker_id, workflow_type, stage)),
        ):
            cost.output_tokens.add(output_tokens)
            cost.seconds.add(seconds)
        by_stage = self._by_stage.at((workflow_type, stage))
        by_stage.output_quantiles.add(output_tokens)

    def note_workflow(self, workflow_type: str, visits: Sequence[StageVisit]) -> None:
        """A workflow ended in order; `visits` by start.

        What remains after a visit is the sum of the later visits' service and of the gaps
        between them (tool time), so that waiting in a queue of ours does not count as work;
        visits that overlap cannot make it longer than the time that really passed.
        """
        if not visits:
            return
        self._note_errors(workflow_type, visits)
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
            if self._remaining == "p90":
                cost.remaining_ms.add(_MS * remaining_s)
        self._chains.note(workflow_type, list(_steps(visits)))
        self.alone.note(workflow_type, visits)

    def output_tokens(
        self, workflow_type: str, stage: str, worker_id: str | None = None
    ) -> float | None:
        """Expected output length on that worker, else over all; None when never seen."""
        cost = self._cost(workflow_type, stage, worker_id)
        return cost.output_tokens.mean if cost else None

    def sibling_tokens(self, workflow_type: str, stage: str, sibling: int) -> float | None:
        """Expected output length of the stage's request with this index; None when seldom seen.

        Siblings often differ by design, in one order: the first has the longer template.
        """
        known = self._by_sibling.get((workflow_type, stage, sibling))
        return known.mean if known is not None and known.count >= _MIN_SIBLINGS else None

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

    def output_quantile(self, workflow_type: str, stage: str, share: float) -> float | None:
        """The output length that `share` (0 to 1) of the stage's requests do not exceed."""
        cost = self._by_stage.get((workflow_type, stage))
        return None if cost is None else cost.output_quantiles.at(share)

    def remaining_after_s(self, workflow_type: str, stage: str, visit: int = 1) -> float | None:
        """Seconds that a workflow is taken to need after its `visit`-th visit of the stage.

        None when unseen.
        """
        if self._remaining == "chain":
            remaining = self._chains.remaining(workflow_type, stage, visit)
            return None if remaining is None else remaining.seconds
        visits = self._visits.get((workflow_type, stage))
        if visits is None:
            return None
        high_ms = visits.remaining_ms.at(_HIGH)
        return visits.remaining_s.mean if high_ms is None else high_ms / _MS

    def remaining_work(self, workflow_type: str, stage: str, visit: int = 1) -> Remaining | None:
        """Requests, tokens and seconds still to come, by the chain; None when unseen."""
        return self._chains.remaining(workflow_type, stage, visit)

    def gap_s(self, workflow_type: str, stage: str) -> float | None:
        """Expected tool time between the stage and the next one; None when unseen."""
        return self._chains.gap_s(workflow_type, stage)

    def forget_worker(self, worker_id: str) -> None:
        """Drop what was learned of one worker."""
        self._by_worker.drop(lambda key: key[0] == worker_id)

    def _note_errors(self, workflow_type: str, visits: Sequence[StageVisit]) -> None:
        """What was predicted of a workflow that has ended, against what came."""
        steps = list(_steps(visits))
        numbers = Counter(step.stage for step in steps)
        note = self.errors.note
        left_s = 0.0
        left_requests = 0.0
        for at in range(len(steps) - 1, -1, -1):
            step = steps[at]
            if at + 1 < len(steps):
                left_s += steps[at + 1].service_s + step.gap_s
                left_requests += steps[at + 1].num_requests
                note("gap_s", workflow_type, self.gap_s(workflow_type, step.stage), step.gap_s)
            known = self._visits.get((workflow_type, step.stage))
            if known is not None:
                note("stage_s", workflow_type, known.seconds.mean, visits[at].service_s)
                note("remaining_s", workflow_type, known.remaining_s.mean, left_s)
            chain = self._chains.remaining(workflow_type, step.stage, numbers[step.stage])
            numbers[step.stage] -= 1
            if chain is not None:
                note("remaining_chain_s", workflow_type, chain.seconds, left_s)
                note("remaining_requests", workflow_type, chain.num_requests, left_requests)

    def _cost(self, workflow_type: str, stage: str, worker_id: str | None) -> _RequestCost | None:
        """The most special means with a sample, or None."""
        if worker_id is not None:
            cost = self._by_worker.get((worker_id, workflow_type, stage))
            if cost is not None:
                return cost
        return self._by_stage.get((workflow_type, stage))


def _steps(visits: Sequence[StageVisit]) -> Iterator[Step]:
    """Visits by start as a path: of visits that overlap, only the time until the next begins."""
    for visit, later in zip(visits, [*visits[1:], None], strict=True):
        service_s, gap_s = visit.service_s, 0.0
        if later is not None:
            gap_s = max(0.0, later.start_s - visit.end_s)
            if later.start_s < visit.end_s:
                service_s = min(service_s, max(0.0, later.start_s - visit.start_s))
        yield Step(visit.stage, visit.num_requests, visit.num_tokens, service_s, gap_s)
