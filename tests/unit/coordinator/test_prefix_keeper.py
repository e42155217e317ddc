"""Whom the coordinator tells about a workflow between two stages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hexgen_sglang.coordinator.prefix_keeper import PrefixKeeper
from hexgen_sglang.coordinator.workflows import (
    Outcome,
    RequestRecord,
    Workflow,
    WorkflowTracker,
)
from hexgen_sglang.policies.estimators import StageEstimates
from hexgen_sglang.protocol.messages import Release, Retain
from hexgen_sglang.protocol.tag import WorkflowTag


def sent(workflow: Workflow, record: RequestRecord) -> Any:
    """As much of a placed request as the keeper reads."""
    return SimpleNamespace(workflow=workflow, record=record, lane="")


class Scene:
    """A tracker and a keeper over two workers that keep prefixes and one that does not."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Retain | Release]] = []
        self.keeper = PrefixKeeper(
            lambda worker_id, message: self.told.append((worker_id, message)),
            {"w1", "w2"}.__contains__,
        )
        self.tracker = WorkflowTracker(StageEstimates(), 100, 60.0, {}, self.keeper.over)
        self.num = 0

    def run(self, stage: str, worker_id: str, start_s: float, end_s: float, **tag) -> Workflow:
        """One request of workflow "flow", placed and ended."""
        self.num += 1
        found = WorkflowTag(workflow_id="flow", workflow_type="sql", stage=stage, **tag)
        workflow, record = self.tracker.accept(found, f"r{self.num}", start_s)
        self.keeper.placed(sent(workflow, record), worker_id, start_s)
        self.tracker.close(workflow, record, Outcome.COMPLETED, end_s)
        self.keeper.ended(workflow, stage, end_s)
        return workflow


def test_every_worker_that_has_prefixes_hears_of_the_gap_and_of_the_end() -> None:
    scene = Scene()
    scene.run("draft", "w1", 0.0, 1.0)
    assert scene.told == [("w1", Retain("flow", 30_000.0))]
    scene.told.clear()
    scene.run("revise", "w2", 3.0, 4.0)
    assert [(name, type(message)) for name, message in scene.told] == [
        ("w1", Retain),
        ("w2", Retain),
    ]
    scene.told.clear()
    scene.run("vote", "w1", 5.0, 6.0, final=True)
    assert scene.told == [("w1", Release("flow")), ("w2", Release("flow"))]


def test_the_time_to_live_is_learned_from_the_gap_after_the_stage() -> None:
    scene = Scene()
    for start_s in (0.0, 5.0, 10.0):
        scene.run("draft", "w1", start_s, start_s + 1.0)
    (_, first), _, (_, third) = scene.told
    assert isinstance(first, Retain)
    assert isinstance(third, Retain)
    assert first.ttl_ms == 30_000.0
    assert 7_500 < third.ttl_ms < 8_500  # twice the gap of 4 s, within a quantile's error


def test_siblings_that_still_run_keep_a_stage_open() -> None:
    scene = Scene()
    tag = WorkflowTag(workflow_id="flow", workflow_type="sql", stage="draft", siblings=2)
    placed = []
    for request_id in ("r1", "r2"):
        placed.append(scene.tracker.accept(tag, request_id, 0.0))
        scene.keeper.placed(sent(*placed[-1]), "w1", 0.0)
    for number, (workflow, record) in enumerate(placed):
        scene.tracker.close(workflow, record, Outcome.COMPLETED, 1.0)
        scene.keeper.ended(workflow, "draft", 1.0)
        assert len(scene.told) == number


def test_a_workflow_that_missed_its_deadline_is_given_up() -> None:
    scene = Scene()
    scene.run("draft", "w1", 0.0, 1.0, budget_ms=500)
    assert scene.told == [("w1", Release("flow"))]


def test_a_workflow_that_cannot_meet_its_deadline_any_more_is_given_up() -> None:
    scene = Scene()
    workflow = scene.run("draft", "w1", 0.0, 1.0, budget_ms=60_000)
    assert isinstance(scene.told[-1][1], Retain)
    workflow.demoted_s = 1.5
    scene.run("revise", "w1", 2.0, 3.0)
    assert scene.told[-1] == ("w1", Release("flow"))


def test_a_cancelled_workflow_is_given_up_once() -> None:
    scene = Scene()
    workflow = scene.run("draft", "w1", 0.0, 1.0)
    scene.told.clear()
    scene.tracker.end(workflow, 2.0, cancelled=True)
    scene.keeper.over(workflow)
    assert scene.told == [("w1", Release("flow"))]


def test_workers_that_keep_nothing_and_requests_without_a_workflow_are_left_alone() -> None:
    scene = Scene()
    scene.run("draft", "plain", 0.0, 1.0)
    workflow, record = scene.tracker.accept(None, "alone", 0.0)
    scene.keeper.placed(sent(workflow, record), "w1", 0.0)
    scene.tracker.close(workflow, record, Outcome.COMPLETED, 1.0)
    scene.keeper.ended(workflow, "", 1.0)
    assert scene.told == []
