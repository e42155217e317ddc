"""What the dashboard remembers: the last half hour, whatever happens, in bounded memory."""

from __future__ import annotations

from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.dashboard_page.history import BUCKET_S, NUM_BUCKETS, History


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def ended(
    clock: Clock, tenant: str = "", budget_s: float | None = 1.0, cancelled: bool = False
) -> Workflow:
    """A workflow that took two seconds up to now."""
    row = Workflow("wf", "sql", tenant, True, clock() - 2.0)
    row.deadline_s = None if budget_s is None else row.started_s + budget_s
    row.ended_s, row.is_cancelled = clock(), cancelled
    return row


def counts(history: History) -> list[list[int]]:
    """Of all tenants, for the buckets that saw anything."""
    return [
        [sum(column) for column in zip(*bucket.counts.values(), strict=True)]
        for bucket in history.buckets()
        if bucket is not None
    ]


def test_each_end_counts_once_under_its_outcome_and_half_minute() -> None:
    clock = Clock()
    history = History(clock)
    history.workflow_ended(ended(clock, budget_s=3.0))
    history.workflow_ended(ended(clock, budget_s=1.0))
    clock.now_s += BUCKET_S
    history.workflow_ended(ended(clock, budget_s=None))
    history.workflow_ended(ended(clock, cancelled=True))
    assert counts(history) == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert len(history.buckets()) == NUM_BUCKETS


def test_what_is_older_than_half_an_hour_is_gone_even_when_nothing_happened_since() -> None:
    clock = Clock()
    history = History(clock)
    history.workflow_ended(ended(clock))
    clock.now_s += BUCKET_S * (NUM_BUCKETS - 1)
    assert history.buckets()[0] is not None
    clock.now_s += BUCKET_S
    assert history.buckets() == [None] * NUM_BUCKETS


def test_invented_tenants_do_not_grow_it_and_none_is_lost_from_the_sum() -> None:
    clock = Clock()
    history = History(clock)
    for number in range(1_000):
        history.workflow_ended(ended(clock, tenant=f"tenant-{number}"))
    (bucket,) = [row for row in history.buckets() if row is not None]
    assert len(bucket.counts) <= 65
    assert counts(history) == [[0, 1_000, 0, 0]]


def test_workers_that_are_gone_are_forgotten() -> None:
    history = History(Clock())
    worker = Worker("w0", "http://127.0.0.1:1", "config")
    worker.take_usage(100, 25)
    history.look([worker], num_queued=3)
    assert history.workers["w0"].prefix_hit_frac == 0.25
    assert history.workers["w0"].busy_frac == 0.0
    history.look([], num_queued=1)
    assert history.workers == {}
    (bucket,) = [row for row in history.buckets() if row is not None]
    assert (bucket.most_queued, bucket.most_running) == (3, 0)
