"""The workflow tracker: deadlines, stages, ends, bounds."""

from __future__ import annotations

import pytest

from hexgen_sglang.coordinator.reports import workflow_report
from hexgen_sglang.coordinator.workflows import Outcome, RequestRecord, Workflow, WorkflowTracker
from hexgen_sglang.core.errors import AdmissionRejected
from hexgen_sglang.policies.estimators import StageEstimates
from hexgen_sglang.protocol.tag import WorkflowTag


class Tracked:
    """A tracker with a clock that the test sets."""

    def __init__(self, **settings: object) -> None:
        self.ended: list[Workflow] = []
        self.stages = StageEstimates()
        self.tracker = WorkflowTracker(
            self.stages,
            max_workflows=settings.get("max_workflows", 100),  # type: ignore[arg-type]
            idle_s=settings.get("idle_s", 60.0),  # type: ignore[arg-type]
            default_budget_ms=settings.get("default_budget_ms", {}),  # type: ignore[arg-type]
            on_end=self.ended.append,
        )
        self.number = 0

    def accept(
        self, now_s: float, workflow_id: str | None = "wf", **fields: object
    ) -> tuple[Workflow, RequestRecord]:
        self.number += 1
        tag = None
        if workflow_id is not None:
            tag = WorkflowTag(workflow_id=workflow_id, **fields)  # type: ignore[arg-type]
        return self.tracker.accept(tag, f"r{self.number}", now_s)

    def run(
        self, start_s: float, end_s: float, outcome: Outcome = Outcome.COMPLETED, **fields: object
    ) -> tuple[Workflow, RequestRecord]:
        """A request that is dispatched at once."""
        workflow, record = self.accept(start_s, **fields)  # type: ignore[arg-type]
        record.dispatched_s = start_s
        self.tracker.close(workflow, record, outcome, end_s)
        return workflow, record


def test_the_first_budget_fixes_the_deadline() -> None:
    tracked = Tracked()
    workflow, _ = tracked.accept(10.0)
    assert workflow.deadline_s is None
    tracked.accept(12.0, budget_ms=5_000)
    tracked.accept(13.0, budget_ms=60_000)
    assert workflow.deadline_s == pytest.approx(17.0)
    assert workflow_report(workflow, 14.0)["budget_s"] == pytest.approx(7.0)


def test_a_stated_budget_replaces_the_types_default() -> None:
    tracked = Tracked(default_budget_ms={"sql": 30_000})
    workflow, _ = tracked.accept(0.0, workflow_type="sql")
    assert workflow.deadline_s == pytest.approx(30.0)
    tracked.accept(1.0, budget_ms=4_000)
    assert workflow.deadline_s == pytest.approx(5.0)


def test_changing_the_budget_counts_from_now_and_null_is_best_effort() -> None:
    tracked = Tracked()
    workflow, _ = tracked.accept(0.0, budget_ms=1_000)
    tracked.tracker.set_budget(workflow, 9_000, 4.0)
    assert workflow.deadline_s == pytest.approx(13.0)
    tracked.tracker.set_budget(workflow, None, 5.0)
    assert workflow.deadline_s is None
    tracked.accept(6.0, budget_ms=1_000)
    assert workflow.deadline_s is None


def test_an_untagged_request_is_a_workflow_that_ends_with_it() -> None:
    tracked = Tracked()
    workflow, record = tracked.accept(1.0, workflow_id=None)
    assert workflow.workflow_id == record.request_id
    tracked.tracker.close(workflow, record, Outcome.COMPLETED, 3.0)
    assert workflow.ended_s == 3.0
    assert tracked.ended == [workflow]
    assert tracked.stages.stage_s("", "") is None  # nothing asks for it


def test_final_ends_the_workflow_once_nothing_is_open() -> None:
    tracked = Tracked()
    workflow, sibling = tracked.accept(0.0, budget_ms=10_000)
    _, final = tracked.accept(1.0, final=True)
    tracked.tracker.close(workflow, final, Outcome.COMPLETED, 2.0)
    assert workflow.ended_s is None
    tracked.tracker.close(workflow, sibling, Outcome.CANCELLED, 4.0)
    assert (workflow.ended_s, workflow.met_deadline(99.0)) == (4.0, True)
    tracked.tracker.close(workflow, sibling, Outcome.COMPLETED, 50.0)  # again: nothing
    assert (workflow.ended_s, workflow.num_open) == (4.0, 0)


@pytest.mark.parametrize(("end_s", "met"), [(10.0, True), (10.001, False)])
def test_the_deadline_itself_is_met(end_s: float, met: bool) -> None:
    tracked = Tracked()
    workflow, _ = tracked.run(0.0, end_s, budget_ms=10_000, final=True)
    assert workflow.met_deadline(end_s) is met


def test_a_deadline_passed_is_missed_before_the_end() -> None:
    tracked = Tracked()
    workflow, _ = tracked.accept(0.0, budget_ms=1_000)
    assert workflow.met_deadline(0.5) is None
    assert workflow.met_deadline(1.5) is False


def test_the_client_ends_a_workflow_with_its_own_time() -> None:
    tracked = Tracked()
    workflow, _ = tracked.run(0.0, 2.0)
    tracked.tracker.end(workflow, 5.0)
    report = workflow_report(workflow, 99.0)
    assert (report["ended"], report["e2e_s"], report["elapsed_s"]) == (True, 5.0, 5.0)
    tracked.tracker.end(workflow, 8.0)
    assert workflow.ended_s == 5.0
    assert len(tracked.ended) == 1


def test_a_request_after_the_end_opens_the_workflow_again_and_is_counted_once() -> None:
    tracked = Tracked()
    workflow, _ = tracked.run(0.0, 1.0, budget_ms=9_000, final=True)
    again, record = tracked.accept(3.0)
    assert again is workflow
    assert (workflow.ended_s, workflow.deadline_s) == (None, 9.0)
    tracked.tracker.close(workflow, record, Outcome.COMPLETED, 4.0)
    assert workflow.ended_s is None  # that one was not final
    tracked.run(5.0, 6.0, final=True)
    assert workflow.ended_s == 6.0
    assert len(tracked.ended) == 1


def test_idle_workflows_end_with_their_last_change() -> None:
    tracked = Tracked(idle_s=60.0)
    idle, _ = tracked.run(0.0, 2.0, workflow_id="idle")
    busy, _ = tracked.accept(0.0, workflow_id="busy")
    recent, _ = tracked.run(30.0, 40.0, workflow_id="recent")
    tracked.tracker.sweep(65.0)
    assert idle.ended_s == 2.0
    assert busy.ended_s is None
    assert recent.ended_s is None


def test_siblings_are_one_visit_and_a_loop_is_several() -> None:
    tracked = Tracked()
    workflow, _ = tracked.run(0.0, 1.0, stage="draft", siblings=2, sibling_index=0)
    tracked.run(2.0, 4.0, stage="draft", siblings=2, sibling_index=1)  # late, but announced
    tracked.run(5.0, 6.0, stage="fix")
    tracked.run(7.0, 9.0, stage="fix")
    rows = {row["stage"]: row for row in workflow_report(workflow, 10.0)["stages"]}
    assert (rows["draft"]["num_visits"], rows["draft"]["num_requests"]) == (1, 2)
    assert rows["draft"]["elapsed_s"] == pytest.approx(4.0)
    assert (rows["fix"]["num_visits"], rows["fix"]["elapsed_s"]) == (2, pytest.approx(3.0))


def test_stage_budgets_come_from_what_earlier_workflows_took() -> None:
    tracked = Tracked()
    for start_s in (0.0, 100.0):
        workflow, _ = tracked.run(
            start_s, start_s + 2.0, workflow_id=f"w{start_s}", workflow_type="sql", stage="draft"
        )
        tracked.run(start_s + 2.0, start_s + 6.0, workflow_id=f"w{start_s}", stage="check")
        tracked.tracker.end(workflow, start_s + 6.0)
    late, _ = tracked.accept(
        200.0, workflow_id="new", workflow_type="sql", stage="draft", budget_ms=12_000
    )
    assert late.visits[0].budget_s == pytest.approx(12.0 * 2.0 / (2.0 + 4.0))
    tracked.accept(203.0, workflow_id="new", stage="check")
    assert late.visits[1].budget_s == pytest.approx(9.0)


def test_cancelled_workflows_teach_nothing_and_are_neither_met_nor_missed() -> None:
    tracked = Tracked()
    workflow, _ = tracked.run(0.0, 2.0, workflow_type="sql", stage="draft", budget_ms=9_000)
    tracked.tracker.end(workflow, 3.0, cancelled=True)
    assert tracked.stages.remaining_after_s("sql", "draft") is None
    assert workflow.met_deadline(99.0) is None


def test_memory_is_bounded_ended_ones_go_first() -> None:
    tracked = Tracked(max_workflows=2)
    tracked.run(0.0, 1.0, workflow_id="ended", final=True)
    tracked.accept(1.0, workflow_id="busy")
    tracked.accept(2.0, workflow_id="next")
    assert tracked.tracker.get("ended") is None
    assert tracked.tracker.get("busy") is not None
    with pytest.raises(AdmissionRejected, match="2 workflows have open requests: at most 2"):
        tracked.accept(3.0, workflow_id="one too many")
    tracked.accept(3.0, workflow_id="busy")  # no new workflow: welcome


def test_idle_ones_are_forgotten_before_busy_ones() -> None:
    tracked = Tracked(max_workflows=2)
    tracked.accept(0.0, workflow_id="busy")
    tracked.run(1.0, 2.0, workflow_id="idle")
    tracked.accept(3.0, workflow_id="new")
    assert tracked.tracker.get("idle") is None
    assert tracked.tracker.get("busy") is not None


def test_a_flood_of_untagged_requests_does_not_push_out_tagged_ones() -> None:
    tracked = Tracked(max_workflows=5_000)
    tracked.run(0.0, 1.0, workflow_id="tagged", final=True)
    for _ in range(1_500):
        tracked.run(2.0, 3.0, workflow_id=None)
    assert tracked.tracker.get("tagged") is not None
    assert tracked.tracker.get("r2") is None
    assert len(tracked.tracker.newest(5_000)) == 1_001


def test_instants_are_told_from_the_workflows_start() -> None:
    tracked = Tracked()
    workflow, record = tracked.accept(100.0, stage="s")
    record.dispatched_s, record.first_byte_s = 101.0, 102.0
    tracked.tracker.close(workflow, record, Outcome.COMPLETED, 103.5)
    row = workflow_report(workflow, 104.0)["requests"][0]
    times = [row[name] for name in ("accepted_s", "dispatched_s", "first_byte_s", "finished_s")]
    assert times == [0.0, 1.0, 2.0, 3.5]
