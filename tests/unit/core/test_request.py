"""Slack arithmetic."""

from __future__ import annotations

import dataclasses

import pytest

from hexgen_sglang.core.request import RequestView


def request(**fields):
    return RequestView(request_id="r", workflow_id="w", arrival_s=100.0, **fields)


@pytest.mark.parametrize(
    ("deadline_s", "predicted_remaining_s", "latest_start_s"),
    [(110.0, 0.0, 110.0), (110.0, 4.0, 106.0), (110.0, 25.0, 85.0), (-5.0, 1.0, -6.0)],
)
def test_the_latest_start_is_the_deadline_less_what_remains(
    deadline_s, predicted_remaining_s, latest_start_s
):
    view = request(deadline_s=deadline_s, predicted_remaining_s=predicted_remaining_s)
    assert view.latest_start_s == latest_start_s


@pytest.mark.parametrize(
    ("now_s", "slack_s"), [(100.0, 6.0), (105.0, 1.0), (106.0, 0.0), (108.5, -2.5)]
)
def test_slack_runs_out_as_time_passes_and_may_be_negative(now_s, slack_s):
    assert request(deadline_s=110.0, predicted_remaining_s=4.0).slack_s(now_s) == slack_s


def test_best_effort_has_neither_slack_nor_a_latest_start():
    view = request(predicted_remaining_s=4.0)
    assert view.latest_start_s is None
    assert view.slack_s(105.0) is None


def test_an_untagged_request_is_a_workflow_of_one_request():
    view = RequestView(request_id="r", workflow_id="r", arrival_s=0.0)
    assert (view.siblings, view.sibling_index) == (1, 0)
    assert view.deadline_s is None


def test_a_view_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        request().deadline_s = 1.0
