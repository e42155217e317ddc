"""What the first ordering policies put in front; the laws of all of them are in tests/laws."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.ordering import ORDERING, total_order_key


def request(request_id, arrival_s, deadline_s=None, remaining_s=0.0):
    return RequestView(
        request_id=request_id,
        workflow_id=request_id,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
        predicted_remaining_s=remaining_s,
    )


def order(name, requests, **settings):
    policy = ORDERING.create(name, **settings)
    ranked = sorted(requests, key=lambda view: total_order_key(policy, view))
    return [view.request_id for view in ranked]


def test_fcfs_ignores_deadlines():
    queue = [request("late", 2.0, deadline_s=3.0), request("early", 1.0, deadline_s=99.0)]
    assert order("fcfs", queue) == ["early", "late"]


def test_the_id_decides_between_requests_of_one_instant():
    queue = [request("b", 1.0), request("a", 1.0), request("c", 1.0)]
    for name in ("fcfs", "least_slack"):
        assert order(name, queue) == ["a", "b", "c"]


def test_a_tight_deadline_overtakes_a_slack_one_that_came_first():
    queue = [request("slack", 0.0, deadline_s=60.0), request("tight", 5.0, deadline_s=10.0)]
    assert order("least_slack", queue) == ["tight", "slack"]


def test_what_remains_of_the_workflow_counts_not_the_deadline_alone():
    queue = [
        request("deadline soon, nearly done", 0.0, deadline_s=20.0, remaining_s=1.0),
        request("deadline later, much to do", 0.0, deadline_s=30.0, remaining_s=25.0),
    ]
    assert order("least_slack", queue)[0] == "deadline later, much to do"


def test_the_longest_prompt_goes_first_among_siblings_but_not_before_other_workflows():
    def sibling(name, prompt_tokens, later_s=0.0):
        view = request(name, 1.0 + later_s, deadline_s=20.0 + later_s, remaining_s=5.0)
        return replace(view, num_prompt_tokens=prompt_tokens)

    queue = [
        sibling("short", 5_000),
        sibling("long, 3 ms later", 9_000, later_s=0.003),
        sibling("longer, of a later workflow", 99_000, later_s=2.0),
        request("tighter and tiny", 1.0, deadline_s=10.0),
    ]
    assert order("least_slack", queue) == [
        "tighter and tiny",
        "long, 3 ms later",
        "short",
        "longer, of a later workflow",
    ]


def test_best_effort_requests_keep_their_order_of_arrival():
    queue = [request(name, arrival) for name, arrival in (("c", 3.0), ("a", 1.0), ("b", 2.0))]
    assert order("least_slack", queue) == ["a", "b", "c"]


def test_best_effort_ranks_as_if_it_had_the_configured_slack_at_arrival():
    queue = [
        request("slack 20 s", 0.0, deadline_s=20.0),
        request("best effort", 0.0),
        request("slack 40 s", 0.0, deadline_s=40.0),
    ]
    assert order("least_slack", queue) == ["slack 20 s", "best effort", "slack 40 s"]
    patient = order("least_slack", queue, best_effort_slack_s=50.0)
    assert patient == ["slack 20 s", "slack 40 s", "best effort"]
    urgent = order("least_slack", queue, best_effort_slack_s=0.0)
    assert urgent == ["best effort", "slack 20 s", "slack 40 s"]


def test_best_effort_does_not_starve():
    """Tight requests that keep coming overtake it only until its assumed slack is used up."""
    waiting = request("best effort", 0.0)
    stream = [request(f"tight {second}", second, deadline_s=second + 5.0) for second in range(60)]
    ranked = order("least_slack", [waiting, *stream])
    assert ranked.index("best effort") == 25  # those with a deadline before 30 s


def test_hopeless_workflows_stay_in_front():
    queue = [request("feasible", 0.0, deadline_s=10.0), request("hopeless", 1.0, deadline_s=-50.0)]
    assert order("least_slack", queue) == ["hopeless", "feasible"]


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_a_setting_out_of_range_is_named_with_its_value(wrong):
    with pytest.raises(ConfigError, match=rf"best_effort_slack_s={wrong}: must be a finite"):
        ORDERING.create("least_slack", best_effort_slack_s=wrong)
