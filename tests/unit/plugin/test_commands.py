"""The coordinator's commands: what each rank does with them."""

from __future__ import annotations

import logging
import pickle

import pytest

from hexgen_sglang.plugin.commands import (
    CommandCounter,
    QueueCommand,
    SetDeadline,
    SetOrdering,
    queue_command,
)
from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.protocol.messages import PolicySettings, Reprioritise


def test_a_budget_becomes_an_instant_when_the_command_comes() -> None:
    command = queue_command(Reprioritise("w", 1500, 250.0), now_s=100.0)
    assert command == SetDeadline("w", 101.5, 0.25, 100.0)
    best_effort = queue_command(Reprioritise("w", None, 0.0), now_s=100.0)
    assert best_effort == SetDeadline("w", None, 0.0, 100.0)


@pytest.mark.parametrize(
    "message", [Reprioritise("w", 5, 0.0), PolicySettings("least_slack", {"a": 1.0})]
)
def test_commands_survive_the_way_between_ranks(message) -> None:
    command = queue_command(message, 1.0)
    assert isinstance(command, QueueCommand)
    assert pickle.loads(pickle.dumps(command)) == command


def test_a_deadline_changes_the_order(request_of) -> None:
    order = QueueOrder("least_slack", {})
    tight, slack = (
        request_of(name, 0.0, {"workflow_id": name, "budget_ms": budget_ms})
        for name, budget_ms in (("tight", 1_000), ("slack", 60_000))
    )
    queue = [slack, tight]
    order.sort(queue)
    assert queue == [tight, slack]
    counter = CommandCounter()
    counter.apply(SetDeadline("slack", 0.5, 0.0, 0.1), order)
    order.sort(queue)
    assert queue == [slack, tight]
    assert order.view(slack).deadline_s == 0.5
    assert counter.num_applied == 1


def test_a_policy_can_be_switched_and_a_wrong_one_changes_nothing(request_of, caplog) -> None:
    order = QueueOrder("least_slack", {})
    first = request_of("first", 0.0, {"workflow_id": "a", "budget_ms": 60_000})
    second = request_of("second", 1.0, {"workflow_id": "b", "budget_ms": 1_000})
    queue = [first, second]
    order.sort(queue)
    assert queue == [second, first]
    counter = CommandCounter()
    counter.apply(SetOrdering("fcfs", ()), order)
    order.sort(queue)
    assert (queue, order.ordering) == ([first, second], "fcfs")
    assert counter.apply(SetOrdering("fcfs", ()), order) == ""
    with caplog.at_level(logging.WARNING):
        assert "nonsense" in counter.apply(SetOrdering("nonsense", ()), order)
        wrong = SetOrdering("least_slack", (("best_effort_slack_s", -1.0),))
        assert "best_effort_slack_s=-1.0" in counter.apply(wrong, order)
    order.sort(queue)
    assert (queue, order.ordering) == ([first, second], "fcfs")
    assert (counter.num_applied, counter.num_refused) == (2, 2)
    assert "nonsense" in caplog.text
    assert "best_effort_slack_s" in caplog.text


def test_where_sglang_orders_the_queue_commands_are_refused_and_counted() -> None:
    counter = CommandCounter()
    counter.apply(SetDeadline("w", 1.0, 0.0, 0.0), None)
    assert (counter.num_applied, counter.num_refused) == (0, 1)
