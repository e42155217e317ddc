"""How a request's tag and instant of arrival become what a policy sees."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.plugin.request_view import (
    ARRIVAL_FIELD,
    TagReader,
    check_tag,
    requests_in,
    stamp_arrival,
    view_of,
)


def test_every_field_of_the_tag_reaches_the_view(request_of) -> None:
    tag = {
        "workflow_id": "w",
        "workflow_type": "text2sql",
        "stage": "generate_candidate",
        "budget_ms": 1500,
        "siblings": 4,
        "sibling_index": 2,
        "tenant": "t",
        "expected_output_tokens": 90,
        "predicted_remaining_ms": 400,
        "predicted_stage_ms": 100,
    }
    view = view_of(request_of("r", 10.0, tag, num_prompt=7), TagReader())
    assert (view.request_id, view.workflow_id, view.workflow_type) == ("r", "w", "text2sql")
    assert (view.stage, view.tenant) == ("generate_candidate", "t")
    assert view.deadline_s == pytest.approx(11.5)
    assert view.predicted_remaining_s == pytest.approx(0.4)
    assert view.predicted_stage_s == pytest.approx(0.1)
    assert view.slack_s(10.0) == pytest.approx(1.1)
    assert (view.siblings, view.sibling_index) == (4, 2)
    assert (view.num_prompt_tokens, view.expected_output_tokens) == (7, 90)


def test_an_untagged_request_is_a_workflow_of_its_own(request_of) -> None:
    view = view_of(request_of("r", 10.0), TagReader())
    assert (view.workflow_id, view.arrival_s, view.deadline_s) == ("r", 10.0, None)


def test_a_malformed_tag_is_best_effort_counted_and_logged_once(request_of, caplog) -> None:
    tags = TagReader()
    with caplog.at_level(logging.WARNING):
        views = [
            view_of(request_of(f"r{n}", 10.0, {"workflow_id": "w", "budget_ms": -n}), tags)
            for n in (1, 2, 3)
        ]
    assert [view.deadline_s for view in views] == [None] * 3
    assert [view.workflow_id for view in views] == ["r1", "r2", "r3"]
    assert tags.num_malformed == 3
    assert len(caplog.records) == 1
    assert "budget_ms" in caplog.text


def test_the_arrival_is_stamped_over_what_a_caller_sent(request_of) -> None:
    request = request_of("r", None, {"workflow_id": "w"})
    request.sampling_params.custom_params[ARRIVAL_FIELD] = -1e9
    own = request.sampling_params.custom_params
    stamp_arrival(request, 12.0)
    assert view_of(request, TagReader()).arrival_s == 12.0
    assert own[ARRIVAL_FIELD] == -1e9, "the caller's dictionary may be shared"


def test_a_request_without_custom_params_is_stamped_too() -> None:
    request = SimpleNamespace(sampling_params=SimpleNamespace(custom_params=None))
    stamp_arrival(request, 12.0)
    assert request.sampling_params.custom_params == {ARRIVAL_FIELD: 12.0}


def test_requests_are_found_alone_and_in_batches_and_not_in_control_messages(request_of) -> None:
    one, two = request_of("1"), request_of("2")
    assert requests_in(one) == (one,)
    assert requests_in(SimpleNamespace(batch=[one, two])) == (one, two)
    assert requests_in(SimpleNamespace(rid="abort")) == ()


@pytest.mark.parametrize("params", [None, {}, {"custom_params": None}, {"custom_params": {"x": 1}}])
def test_requests_without_a_tag_pass_the_edge(params) -> None:
    check_tag(params)


def test_a_malformed_tag_is_refused_at_the_edge() -> None:
    with pytest.raises(ProtocolError, match="budget_ms='0'"):
        check_tag({"custom_params": {"hexgen": {"workflow_id": "w", "budget_ms": 0}}})
