"""The order of the queue, its keys, and re-prioritisation. The laws are in tests/laws."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin import ordering
from hexgen_sglang.plugin.ordering import QueueOrder


def tagged(request_of, name: str, arrival_s: float, budget_ms: int | None):
    tag = {"workflow_id": name}
    if budget_ms is not None:
        tag["budget_ms"] = budget_ms
    return request_of(name, arrival_s, tag)


def names(queue) -> list[str]:
    return [request.rid for request in queue]


def test_a_tight_deadline_overtakes_and_best_effort_keeps_its_place_in_time(request_of) -> None:
    order = QueueOrder("least_slack", {"best_effort_slack_s": 30.0})
    queue = [
        tagged(request_of, "late", 0.0, 90_000),
        request_of("untagged-1", 1.0),
        request_of("untagged-2", 2.0),
        tagged(request_of, "soon", 3.0, 1_000),
        tagged(request_of, "between", 3.0, 28_500),
    ]
    order.sort(queue)
    assert names(queue) == ["soon", "untagged-1", "between", "untagged-2", "late"]


def test_a_deep_queue_is_ordered_like_a_shallow_one(request_of) -> None:
    order = QueueOrder("least_slack", {})
    queue = [tagged(request_of, f"w{n:04}", 0.0, 1_000 + n) for n in range(1_000)]
    expected = names(queue)
    queue.reverse()
    order.sort(queue)
    assert names(queue) == expected


def test_a_request_that_comes_back_after_running_finds_its_place_again(request_of) -> None:
    order = QueueOrder("least_slack", {})
    first, second, third = (tagged(request_of, name, 0.0, len(name)) for name in ("a", "bb", "ccc"))
    queue = [third, second, first]
    order.sort(queue)
    running = queue.pop(0)  # admitted
    order.sort(queue)
    queue.append(running)  # retracted
    order.sort(queue)
    assert queue == [first, second, third]


def test_a_deadline_that_changed_while_a_request_ran_holds_when_it_comes_back(request_of) -> None:
    order = QueueOrder("least_slack", {})
    first, second = (tagged(request_of, n, 0.0, b) for n, b in (("a", 1_000), ("b", 2_000)))
    queue = [first, second]
    order.sort(queue)
    running = queue.pop(0)
    order.reprioritise("a", 100.0, 0.0, changed_s=0.5)
    order.sort(queue)
    queue.append(running)
    order.sort(queue)
    assert queue == [second, first]


def test_a_new_deadline_holds_for_requests_before_it_and_later_ones_bring_their_own(
    request_of,
) -> None:
    order = QueueOrder("least_slack", {})
    order.reprioritise("w", deadline_s=50.0, predicted_remaining_s=2.0, changed_s=10.0)
    unseen = request_of("unseen", 9.0, {"workflow_id": "w", "budget_ms": 1_000})
    later = request_of("later", 11.0, {"workflow_id": "w", "budget_ms": 1_000})
    assert order.view(unseen).latest_start_s == 48.0
    assert order.view(later).deadline_s == 12.0


def test_the_memory_of_new_deadlines_is_bounded(request_of, monkeypatch) -> None:
    monkeypatch.setattr(ordering, "MAX_KEPT_DEADLINES", 2)
    order = QueueOrder("least_slack", {})
    for number in range(3):
        order.reprioritise(f"w{number}", 1.0, 0.0, changed_s=10.0)
    views = [order.view(tagged(request_of, f"w{n}", 0.0, 60_000)) for n in range(3)]
    assert [view.deadline_s for view in views] == [60.0, 1.0, 1.0]


def test_an_aborted_request_in_the_middle_does_not_disturb_the_rest(request_of) -> None:
    order = QueueOrder("least_slack", {})
    queue = [tagged(request_of, f"w{n}", 0.0, 1_000 * (n + 1)) for n in range(5)]
    order.sort(queue)
    del queue[2]
    queue.append(tagged(request_of, "new", 0.0, 2_500))
    order.sort(queue)
    assert names(queue) == ["w0", "w1", "new", "w3", "w4"]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        QueueOrder("nonsense", {})
    with pytest.raises(ConfigError, match="best_effort_slack_s"):
        QueueOrder("least_slack", {"best_effort_slack_s": -1.0})
