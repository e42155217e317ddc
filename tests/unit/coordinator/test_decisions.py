"""What is kept of decisions, and the story that is told from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexgen_sglang.coordinator.decisions import MAX_DECISIONS, DecisionLog
from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.explain import explanation
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.workflows import Outcome, Workflow, WorkflowTracker
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.dispatch import DISPATCH, Price
from hexgen_sglang.policies.estimators import StageEstimates
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.tag import WorkflowTag

VIEW = RequestView("r", "w", 0.0)
BUSY, OTHER = Price("busy", False, 0, 9, (1.0,)), Price("other", True, 0, 0, (2.0,))


def test_waiting_for_one_worker_is_one_row_however_often_it_was_decided() -> None:
    log = DecisionLog()
    last = None
    for now_s in range(1_000):
        last = log.add(last, VIEW, None, float(now_s), 2, (BUSY, OTHER))
    last = log.add(last, VIEW, None, 1_000.0, 2, (OTHER, BUSY))
    log.add(last, VIEW, "other", 1_001.0, 2, (OTHER, BUSY))
    assert [(row.waits_for(), row.picked, row.num_times) for row in log] == [
        ("busy", None, 1_000),
        ("other", None, 1),
        (None, "other", 1),
    ]
    first = next(iter(log))
    assert (first.first_s, first.last_s) == (0.0, 999.0)


def test_the_log_is_bounded_and_says_what_it_forgot() -> None:
    log = DecisionLog()
    for number in range(MAX_DECISIONS + 7):
        log.add(None, VIEW, "other", float(number), 2, (OTHER,))
    assert (len(log), log.num_forgotten) == (MAX_DECISIONS, 7)
    assert next(iter(log)).first_s == 7.0


def test_the_dispatcher_tells_winner_and_runner_up(
    make_request: Callable[..., LiveRequest], make_worker: Callable[..., Worker]
) -> None:
    fast, slow = make_worker("fast", hardware="f", max_in_flight=1), make_worker("slow")
    estimates = Estimates()
    estimates.costs.note("fast", StepCosts(0.0, 1e-4, 0.0, 0.01, 0.0, 0.0))
    estimates.costs.note("slow", StepCosts(0.0, 1e-1, 0.0, 0.50, 0.0, 0.0))
    dispatcher = Dispatcher(
        DISPATCH.create("marginal_cost"),
        "marginal_cost",
        lambda: [fast, slow],
        estimates,
        RoomRules(0, 10_000, 2, 3.0),
        Metrics(),
        clock=lambda: 5.0,
    )
    queue = CentralQueue(ORDERING.create("fcfs"), 9, 9_999, dispatcher.retry_after_s)
    dispatcher.serve(queue)
    first, second = make_request("first"), make_request("second")
    queue.push(first)
    queue.push(second)
    dispatcher.run_pass()
    dispatcher.run_pass()
    terms = dispatcher.price_terms
    (placed,) = explanation(first.workflow, terms, 5.0)["decisions"]
    assert (placed["picked"], placed["num_times"]) == ("fast", 1)
    won, lost = placed["winner"], placed["runner_up"]
    assert (won["worker_id"], lost["worker_id"]) == ("fast", "slow")
    assert won["terms"]["cost"] < lost["terms"]["cost"]
    spent = ("wait_s", "prefill_s", "decode_s")
    assert sum(lost["terms"][name] for name in spent) == pytest.approx(lost["terms"]["end_s"])
    (waiting,) = explanation(second.workflow, terms, 5.0)["decisions"]
    assert (waiting["picked"], waiting["waits_for"], waiting["num_times"]) == (None, "fast", 2)
    assert not waiting["winner"]["has_room"]


@pytest.fixture
def late() -> Workflow:
    """10 s of budget; `schema` is in time, `draft` waits for 6 s and ends the job 4 s late."""
    stages = StageEstimates()
    for stage in ("schema", "draft"):
        stages.note_request("w", "sql", stage, 10.0, 2.0)
    tracker = WorkflowTracker(stages, 9, 60.0, {}, lambda workflow: None)

    def accept(name: str, now_s: float, stage: str, **fields: object) -> tuple[object, ...]:
        tag = WorkflowTag(
            workflow_id="wf", workflow_type="sql", stage=stage, budget_ms=10_000, **fields
        )  # type: ignore[arg-type]
        return tracker.accept(tag, name, now_s)

    workflow, record = accept("a", 100.0, "schema")
    record.dispatched_s, record.worker_id = 100.5, "w0"
    record.engine_queue_s, record.prefill_s, record.decode_s = 0.25, 0.5, 0.75
    tracker.close(workflow, record, Outcome.COMPLETED, 102.0)
    pair = [
        accept(name, 103.0, "draft", siblings=2, sibling_index=i, final=True)
        for i, name in enumerate("bc")
    ]
    for (_, sibling), (sent_s, first_s, end_s) in zip(
        pair, [(103.0, 104.0, 105.0), (109.0, 110.5, 114.0)], strict=True
    ):
        sibling.dispatched_s, sibling.first_byte_s, sibling.worker_id = sent_s, first_s, "w1"
        tracker.close(workflow, sibling, Outcome.COMPLETED, end_s)
    return workflow


def test_a_late_workflow_is_explained_by_the_stage_that_overran_and_on_what(
    late: Workflow,
) -> None:
    story = explanation(late, (), 200.0)
    schema, draft = story["passes"]
    assert (schema["elapsed_s"], schema["gap_before_s"]) == (2.0, 0.0)
    assert (draft["start_s"], draft["gap_before_s"], draft["elapsed_s"]) == (3.0, 1.0, 11.0)
    assert draft["budget_s"] == pytest.approx(7.0)  # nothing is known to follow it
    slowest = draft["slowest"]
    assert (slowest["request_id"], slowest["worker_id"]) == ("c", "w1")
    assert (slowest["coordinator_queue_s"], slowest["prefill_s"], slowest["decode_s"]) == (
        6.0,
        1.5,
        3.5,
    )
    assert slowest["engine_queue_s"] is None  # nobody told
    assert schema["slowest"]["engine_queue_s"] == 0.25
    assert story["late"]["by_s"] == pytest.approx(4.0)
    assert story["late"]["gaps_s"] == pytest.approx(1.0)
    (cause,) = story["late"]["causes"]
    assert (cause["stage"], cause["queueing_s"]) == ("draft", 6.0)
    assert cause["overrun_s"] == pytest.approx(4.0)


def test_a_workflow_in_time_is_not_late(late: Workflow) -> None:
    assert late.deadline_s is not None
    late.deadline_s += 100.0
    assert explanation(late, (), 200.0)["late"] is None


def test_a_second_visit_of_a_stage_has_its_own_requests() -> None:
    tracker = WorkflowTracker(StageEstimates(), 9, 60.0, {}, lambda workflow: None)
    for number, start_s in enumerate((0.0, 5.0, 20.0)):
        tag = WorkflowTag(workflow_id="wf", stage="revise")
        workflow, record = tracker.accept(tag, f"r{number}", start_s)
        record.dispatched_s = start_s
        tracker.close(workflow, record, Outcome.COMPLETED, start_s + 3.0)
    rows = explanation(workflow, (), 30.0)["passes"]
    assert [(row["visit"], row["slowest"]["request_id"]) for row in rows] == [
        (1, "r0"),
        (2, "r1"),
        (3, "r2"),
    ]
    assert [row["gap_before_s"] for row in rows] == [0.0, 2.0, 12.0]
