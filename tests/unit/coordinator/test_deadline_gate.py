"""Admission by deadline: who is refused, for what, and with which way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexgen_sglang.coordinator.deadline_gate import DeadlineGate
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Outcome, RequestRecord, Workflow, WorkflowTracker
from hexgen_sglang.protocol.tag import WorkflowTag

MakeWorker = Callable[..., Worker]
# A workflow of the tests: 1,000 prompt tokens and 100 of output, about 3 s alone.
PROMPT, OUTPUT = 1_000, 100


class Door:
    """A gate with tracker and estimates as in a coordinator, at instants of our choice."""

    def __init__(self, attainment: float | None, *workers: Worker) -> None:
        self.now_s = 0.0
        self.refusals: list[tuple[str, str]] = []
        self.estimates = Estimates()
        for worker in workers:
            self.estimates.rates.state(worker.worker_id, 1_000.0, 50.0)
        self.gate = DeadlineGate(
            attainment,
            self.estimates,
            lambda: workers,
            4,
            lambda kind, why: self.refusals.append((kind, why)),
        )
        self.tracker = WorkflowTracker(self.estimates.stages, 100, 600.0, {}, self.gate.ended)
        self.count = 0

    def ask(
        self, budget_s: float | None, workflow_id: str | None = None
    ) -> tuple[Workflow, RequestRecord]:
        """The first request of a workflow comes."""
        self.count += 1
        tag = WorkflowTag(
            workflow_id=workflow_id or f"wf{self.count}",
            workflow_type="sql",
            stage="draft",
            budget_ms=None if budget_s is None else round(budget_s * 1_000),
            final=True,
        )
        self.gate.check(tag, "m", self.tracker.budget_s(tag), self.now_s)
        workflow, record = self.tracker.accept(tag, f"r{self.count}", self.now_s)
        self.gate.admitted(workflow, "draft", "m", self.now_s)
        return workflow, record

    def end(self, asked: tuple[Workflow, RequestRecord], seconds: float) -> None:
        """It is answered after so long."""
        workflow, record = asked
        record.dispatched_s = record.accepted_s
        record.prompt_tokens, record.cached_tokens, record.output_tokens = PROMPT, 0, OUTPUT
        self.now_s = record.accepted_s + seconds
        self.tracker.close(workflow, record, Outcome.COMPLETED, self.now_s)

    def learn(self, budget_s: float | None = 60.0, seconds: float = 3.2, count: int = 20) -> None:
        for _ in range(count):
            self.end(self.ask(budget_s), seconds)

    def fill(self, budget_s: float) -> tuple[list[tuple[Workflow, RequestRecord]], ApiError]:
        """Workflows come until one is refused: those that were not, and the refusal."""
        admitted: list[tuple[Workflow, RequestRecord]] = []
        while len(admitted) < 90:
            try:
                admitted.append(self.ask(budget_s))
            except ApiError as error:
                return admitted, error
        raise AssertionError("nothing was refused")

    def refusal(self, budget_s: float, workflow_id: str | None = None) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.ask(budget_s, workflow_id)
        return caught.value


def test_nothing_is_refused_unless_an_attainment_is_stated(make_worker: MakeWorker) -> None:
    door = Door(None, make_worker("w"))
    door.learn(0.001)
    for _ in range(50):
        door.ask(0.001)
    assert door.refusals == []


def test_nothing_is_refused_before_its_type_and_the_workers_are_known(
    make_worker: MakeWorker,
) -> None:
    door = Door(0.95, make_worker("w"))
    for _ in range(7):
        door.end(door.ask(0.001), 3.0)
    door.ask(0.001)
    nobody = Door(0.95)
    nobody.learn()
    nobody.ask(0.001)
    assert door.refusals == nobody.refusals == []


def test_a_hopeless_budget_gets_the_least_that_is_possible(make_worker: MakeWorker) -> None:
    door = Door(0.95, make_worker("w"))
    door.learn()
    refusal = door.refusal(1.0)
    assert (refusal.status, refusal.param) == (429, "budget_ms")
    earliest_ms = refusal.extra["earliest_feasible_ms"]
    assert 2_500 < earliest_ms < 4_500
    assert refusal.retry_after_s == pytest.approx(earliest_ms / 1_000 - 1.0, abs=0.01)
    assert b'"earliest_feasible_ms":' in refusal.body()
    assert door.refusals == [("sql", "hopeless")]
    door.now_s += 2.0
    door.ask(earliest_ms / 1_000)


def test_with_work_in_progress_later_deadlines_are_wanted(make_worker: MakeWorker) -> None:
    door = Door(0.95, make_worker("w"))
    door.learn()
    alone_ms = door.refusal(1.0).extra["earliest_feasible_ms"]
    door.fill(30.0)
    door.fill(5.0)  # go before those, until too many of them would be late
    num_refused = len(door.refusals)
    refusal = door.refusal(5.0, "tight")
    assert refusal.extra["earliest_feasible_ms"] > alone_ms
    assert door.refusals[-1][1] in ("late", "harm")
    # What it says can be kept is accepted at once, siblings that came beside it are not.
    assert door.refusal(5.0, "tight").extra["earliest_feasible_ms"] == pytest.approx(
        refusal.extra["earliest_feasible_ms"], abs=2
    )
    assert len(door.refusals) == num_refused + 1
    door.ask(refusal.extra["earliest_feasible_ms"] / 1_000, "tight")


def test_a_flood_is_refused_once_the_budget_is_full_and_let_in_as_work_ends(
    make_worker: MakeWorker,
) -> None:
    door = Door(0.9, make_worker("w"))
    door.learn()
    admitted, first = door.fill(20.0)
    assert len(admitted) > 3
    door.now_s += 2.0
    for asked in admitted[: len(admitted) // 2]:
        door.end(asked, 2.0)
    door.ask(20.0)
    assert first.retry_after_s is not None
    assert first.retry_after_s > 0


def test_later_stages_and_best_effort_are_never_asked_about(make_worker: MakeWorker) -> None:
    door = Door(0.95, make_worker("w"))
    door.learn()
    for _ in range(60):
        door.ask(None)
    assert door.refusals == []
    door.ask(5.0)  # goes before them
    assert door.refusal(40.0).code == "deadline_infeasible"  # behind them


def test_when_nobody_can_be_harmed_a_bad_past_keeps_nobody_out(make_worker: MakeWorker) -> None:
    door = Door(0.95, make_worker("w"))
    door.learn(budget_s=60.0, seconds=50.0)  # took 15 times what it would alone
    door.end(door.ask(5.0), 3.0)
    assert door.refusals == []


def test_predictions_that_were_too_short_make_it_careful(make_worker: MakeWorker) -> None:
    honest, misled = Door(0.95, make_worker("w")), Door(0.95, make_worker("w"))
    honest.learn(seconds=3.2)
    misled.learn(seconds=9.6)
    for door in (honest, misled):
        door.ask(60.0)
    honest.ask(9.0)
    assert misled.refusal(9.0).extra["earliest_feasible_ms"] > 9_000
    error = misled.estimates.stages.errors.of("admission_s", "sql")
    assert error is not None
    assert error.bias_frac < 0
