"""New workflows wait while the contexts of those in progress fill the workers' memory."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING

CAPACITY = 10_000


def workflow(name: str, **changes: object) -> Workflow:
    made = Workflow(name, "sql", "", True, 0.0, num_open=1)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def learned(limit: float, tokens: int = 4_000) -> WorkingSet:
    """A set that has seen one workflow of the type end with a context of `tokens`."""
    working_set = WorkingSet(limit)
    ended = workflow("ended")
    working_set.note_placed(ended, "m", tokens)
    ended.ended_s = 1.0
    assert working_set.admits(workflow("first"), "m", CAPACITY, 2.0)
    return working_set


def begin(working_set: WorkingSet, name: str, tokens: int) -> Workflow:
    begun = workflow(name)
    working_set.note_placed(begun, "m", tokens)
    return begun


def test_a_workflow_begins_only_where_its_usual_context_still_fits() -> None:
    working_set = learned(limit=1.0)
    begin(working_set, "a", 4_000)
    assert working_set.admits(workflow("n"), "m", CAPACITY, 3.0)
    begin(working_set, "b", 4_000)
    assert not working_set.admits(workflow("n"), "m", CAPACITY, 4.0)
    assert working_set.admits(workflow("n"), "m", 3 * CAPACITY, 5.0)
    assert working_set.admits(workflow("n"), "another model", CAPACITY, 6.0)


def test_a_small_beginning_counts_as_what_it_will_grow_to() -> None:
    working_set = learned(limit=1.0)
    begin(working_set, "a", 300)
    begin(working_set, "b", 300)
    assert not working_set.admits(workflow("n"), "m", CAPACITY, 3.0)


def test_whoever_has_begun_and_untagged_requests_never_wait() -> None:
    working_set = learned(limit=1.0)
    begun = begin(working_set, "a", 50_000)
    assert working_set.admits(begun, "m", CAPACITY, 3.0)
    assert working_set.admits(workflow("r", is_tagged=False), "m", CAPACITY, 3.0)
    assert not working_set.admits(workflow("n"), "m", CAPACITY, 3.0)


def test_the_ended_and_the_abandoned_make_room() -> None:
    working_set = learned(limit=1.0)
    first, second = begin(working_set, "a", 5_000), begin(working_set, "b", 5_000)
    assert not working_set.admits(workflow("n"), "m", CAPACITY, 3.0)
    first.ended_s = 4.0
    assert working_set.admits(workflow("n"), "m", CAPACITY, 4.0)
    assert not first.has_begun  # reopened, it would begin again
    begin(working_set, "c", 5_000)
    assert not working_set.admits(workflow("n"), "m", CAPACITY, 5.0)
    second.num_open, second.last_active_s = 0, 5.0
    assert not working_set.admits(workflow("n"), "m", CAPACITY, 6.0)  # its database may be at work
    assert working_set.admits(workflow("n"), "m", CAPACITY, 16.0)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_without_limit_or_knowledge_nobody_waits(limit: float) -> None:
    working_set = WorkingSet(limit)
    for name in "abcdef":
        begin(working_set, name, 9_000)
    assert working_set.admits(workflow("n"), "m", CAPACITY, 1.0)
    assert learned(limit).admits(workflow("n"), "m", None, 3.0)


def test_the_limit_is_checked() -> None:
    with pytest.raises(Exception, match="working_set"):
        _config(-1.0)
    assert _config(0.0).working_set == 0.0


def _config(limit: float) -> CoordinatorConfig:
    return msgspec.convert({"working_set": limit}, CoordinatorConfig)


def test_the_dispatcher_lets_begun_workflows_pass_those_that_have_to_wait(
    make_request: Callable[..., LiveRequest], make_worker: Callable[..., Worker]
) -> None:
    """The new workflow has the earlier deadline and waits all the same, until a worker idles."""
    worker = make_worker("a", max_in_flight=9)
    worker.kv_capacity_tokens = 1_000_000
    working_set = WorkingSet(0.001)  # room for 1,000 tokens
    dispatcher = Dispatcher(
        DISPATCH.create("least_requests"),
        "least_requests",
        lambda: [worker],
        Estimates(),
        RoomRules(0, 1_000_000, 9, 3.0),
        Metrics(),
        working_set,
        clock=lambda: 5.0,
        soon=lambda action: action(),
    )
    queue = CentralQueue(ORDERING.create("least_slack"), 99, 99_999, dispatcher.retry_after_s)
    dispatcher.serve(queue)
    first, new, later = (
        make_request(name, deadline_s=due) for name, due in (("x", 50.0), ("n", 9.0), ("y", 90.0))
    )
    for request in (first, new, later):
        request.workflow.is_tagged = True
    ended = workflow("ended", workflow_type=new.workflow.workflow_type)
    working_set.note_placed(ended, new.lane, 2_000)
    ended.ended_s = 1.0
    first.workflow.num_open = 1
    queue.push(first)
    assert dispatcher.run_pass() == 1  # the worker was idle
    later.workflow = first.workflow
    queue.push(new)
    queue.push(later)
    assert dispatcher.run_pass() == 1
    assert later.is_placed
    assert not new.is_placed
    assert first.attempt is not None
    assert later.attempt is not None
    dispatcher.release(first.attempt)
    assert not new.is_placed
    dispatcher.release(later.attempt)
    assert new.is_placed
