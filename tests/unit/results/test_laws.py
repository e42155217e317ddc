"""Each law: holds for a perfect run, and is found broken when it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from hexgen_sglang.results.laws import (
    EngineTotals,
    broken_deadlines,
    broken_emulation,
    broken_engine_totals,
    broken_laws,
)
from hexgen_sglang.results.records import RequestRecord, RunRecord
from hexgen_sglang.workload.plan import Workload


def test_perfect_run_breaks_no_law(workload: Workload, served: RunRecord) -> None:
    assert broken_laws(workload, served) == []
    assert broken_laws(workload, replace(served, requests=served.requests[::-1])) == []


def with_request(run: RunRecord, **changes: object) -> RunRecord:
    """The run with its sixth request changed."""
    requests = list(run.requests)
    requests[5] = replace(requests[5], **changes)
    return replace(run, requests=tuple(requests))


Break = Callable[[RunRecord], RunRecord]


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda run: replace(run, requests=run.requests[1:]), "1 requests never ended"),
        (
            lambda run: replace(run, requests=(*run.requests, run.requests[0])),
            "1 requests ended more than once",
        ),
        (lambda run: with_request(run, request_id="other"), "1 requests were not planned"),
        (lambda run: with_request(run, outcome="status 500: no"), "1 requests did not complete"),
        (lambda run: with_request(run, sent_s=run.requests[5].due_s - 1), "causality: 1"),
        (lambda run: with_request(run, first_byte_s=run.requests[5].end_s + 1), "causality: 1"),
        (lambda run: with_request(run, due_s=0.0), "causality: 1"),
        (lambda run: replace(run, workflows=run.workflows[1:]), "9 of 10 workflows"),
        (
            lambda run: replace(
                run, workflows=(replace(run.workflows[0], budget_s=1.0), *run.workflows[1:])
            ),
            "deadlines: 1 workflows changed",
        ),
        (lambda run: replace(run, connection_waits=2), "2 requests waited"),
    ],
)
def test_broken_law_is_found(workload: Workload, served: RunRecord, spoil: Break, law: str) -> None:
    sentences = broken_laws(workload, spoil(served))
    assert any(law in sentence for sentence in sentences), sentences


def test_late_driver_is_found(workload: Workload, served: RunRecord) -> None:
    def late(request: RequestRecord) -> RequestRecord:
        return replace(request, sent_s=request.due_s + 0.1)

    run = replace(served, requests=tuple(late(request) for request in served.requests))
    (sentence,) = broken_laws(workload, run)
    assert sentence.startswith("driver: its lateness is")


def test_engines_must_count_what_the_driver_counted(served: RunRecord) -> None:
    totals = EngineTotals(
        requests=len(served.requests),
        input_tokens=sum(request.input_tokens for request in served.requests),
        output_tokens=sum(request.output_tokens for request in served.requests),
    )
    assert broken_engine_totals(served, totals) == []
    more = EngineTotals(totals.requests + 1, totals.input_tokens, totals.output_tokens - 3)
    assert len(broken_engine_totals(served, more)) == 2


def test_coordinator_must_hold_the_deadlines_sent(served: RunRecord) -> None:
    scaled = replace(served, time_scale=4.0)
    held: dict[str, float | None] = {
        workflow.workflow_id: (workflow.budget_s or 0.0) / 4.0 - 0.01
        for workflow in scaled.workflows
    }
    assert broken_deadlines(scaled, held) == []
    first, second, third = (workflow.workflow_id for workflow in scaled.workflows[:3])
    held[first] = None
    held[second] = 1e6
    del held[third]
    (sentence,) = broken_deadlines(scaled, held)
    assert "for 3" in sentence


def test_a_late_driver_sends_what_is_left_of_a_budget(served: RunRecord) -> None:
    workflow = served.workflows[0]
    assert workflow.budget_s is not None
    late = tuple(
        replace(request, sent_s=max(request.sent_s, workflow.arrival_s + 6.0))
        if request.workflow == workflow.index
        else request
        for request in served.requests
    )
    held: dict[str, float | None] = {one.workflow_id: one.budget_s for one in served.workflows}
    (sentence,) = broken_deadlines(replace(served, requests=late), held)
    assert "for 1" in sentence
    held[workflow.workflow_id] = workflow.budget_s - 6.0
    assert broken_deadlines(replace(served, requests=late), held) == []


def test_emulation_must_keep_time() -> None:
    good = {"w": {"busy_s": 90.0, "overhead_frac": 0.05, "drift_frac": -0.005}}
    assert broken_emulation(good) == []
    bad = {"w": {"busy_s": 90.0, "overhead_frac": 0.11, "drift_frac": -0.02}}
    assert len(broken_emulation(bad)) == 2
    hardly_used = {"w": {"busy_s": 4.0, "overhead_frac": 0.5, "drift_frac": 0.0}}
    assert broken_emulation(hardly_used) == []
