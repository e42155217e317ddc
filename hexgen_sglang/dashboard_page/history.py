"""What the page shows of the past: the last half hour, in bounded memory.

Told of each workflow that ends, and looked after once a second; no viewer adds to its cost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Workflow

BUCKET_S = 30.0
NUM_BUCKETS = 60
# Tenants told apart in one bucket; without keys a tag may name any, which all see everything.
_MAX_TENANTS = 64
_MAX_POINTS = 512
# Weight of the last second: a worker's figures follow it within about 20 seconds.
_NEW = 0.05

# How many workflows met their deadline, missed it, had none, were cancelled.
Counts = list[int]


@dataclass(slots=True)
class Bucket:
    """Half a minute.

    Attributes:
        number: since the coordinator's clock began.
        counts: of workflows that ended in it, by tenant.
        most_queued, most_running: the most requests that waited here, and that were at workers.
    """

    number: int
    counts: dict[str, Counts] = field(default_factory=dict)
    most_queued: int = 0
    most_running: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A workflow that ended: what was predicted when it began to be dispatched, and what came."""

    workflow_id: str
    tenant: str
    predicted_s: float
    actual_s: float
    met: bool | None


@dataclass(slots=True)
class Recently:
    """A worker over about the last 20 seconds.

    Attributes:
        busy_frac: of the time it had a request.
        prefix_hit_frac: of its answers' prompt tokens were cached; None before the first.
    """

    busy_frac: float = 0.0
    prefix_hit_frac: float | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class History:
    """Rings of the past.

    Args:
        clock: monotonic seconds.

    Attributes:
        points: newest last.
        workers: by id.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: deque[Bucket] = deque(maxlen=NUM_BUCKETS)
        self.points: deque[Point] = deque(maxlen=_MAX_POINTS)
        self.workers: dict[str, Recently] = {}

    def workflow_ended(self, workflow: Workflow) -> None:
        """Count a workflow that ended."""
        ended_s = self._clock() if workflow.ended_s is None else workflow.ended_s
        met = workflow.met_deadline(ended_s)
        bucket = self._bucket()
        tenant = workflow.tenant if len(bucket.counts) < _MAX_TENANTS else ""
        counts = bucket.counts.setdefault(tenant, [0, 0, 0, 0])
        outcome = 2 if met is None else (0 if met else 1)
        counts[3 if workflow.is_cancelled else outcome] += 1
        predicted_s = _predicted_s(workflow)
        if predicted_s is not None and not workflow.is_cancelled:
            actual_s = ended_s - workflow.started_s
            self.points.append(
                Point(workflow.workflow_id, workflow.tenant, predicted_s, actual_s, met)
            )

    def look(self, workers: Iterable[Worker], num_queued: int) -> None:
        """Once a second: how busy everything is."""
        bucket, num_running, known = self._bucket(), 0, {}
        for worker in workers:
            row = self.workers.get(worker.worker_id) or Recently()
            known[worker.worker_id] = row
            num_running += len(worker.in_flight)
            row.busy_frac += _NEW * (bool(worker.in_flight) - row.busy_frac)
            prompt = worker.num_prompt_tokens - row.num_prompt_tokens
            if prompt > 0:
                hit = (worker.num_cached_tokens - row.num_cached_tokens) / prompt
                old = hit if row.prefix_hit_frac is None else row.prefix_hit_frac
                row.prefix_hit_frac = old + _NEW * (hit - old)
            row.num_prompt_tokens = worker.num_prompt_tokens
            row.num_cached_tokens = worker.num_cached_tokens
        self.workers = known
        bucket.most_queued = max(bucket.most_queued, num_queued)
        bucket.most_running = max(bucket.most_running, num_running)

    def buckets(self) -> list[Bucket | None]:
        """The last half hour, oldest first; None where nothing was seen. The last one is now's."""
        by_number = {bucket.number: bucket for bucket in self._buckets}
        last = self._number()
        return [by_number.get(last - back) for back in reversed(range(NUM_BUCKETS))]

    def _bucket(self) -> Bucket:
        number = self._number()
        if not self._buckets or self._buckets[-1].number != number:
            self._buckets.append(Bucket(number))
        return self._buckets[-1]

    def _number(self) -> int:
        return math.floor(self._clock() / BUCKET_S)


def _predicted_s(workflow: Workflow) -> float | None:
    """Start to end, as its first remembered decision saw it; None when nothing was known then."""
    for decision in workflow.decisions:
        view = decision.view
        if view.predicted_remaining_s > 0:
            return view.arrival_s - workflow.started_s + view.predicted_remaining_s
    return None
