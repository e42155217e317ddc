"""From what a coordinator can see back to a trace: shapes, prefixes, rates, bounds."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.observed import ObservedRequest, ObservedWorkflow
from hexgen_sglang.tuner.window import Observed, RecentWorkflows
from hexgen_sglang.workload.arrivals import ArrivalProcess, Arrivals
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.streams import Subsystem, stream
from hexgen_sglang.workload.trace import PrefixScope, TraceRequest, TraceStage, TraceWorkflow


def executed(workflow: TraceWorkflow, arrival_s: float = 0.0) -> ObservedWorkflow:
    """What is seen when every request takes a second and 10 ms for each output token."""
    starts, ends = schedule(workflow.stages)
    requests = tuple(
        ObservedRequest(
            stage=workflow.stages[stage].name,
            start_s=starts[stage],
            end_s=starts[stage] + seconds(request),
            input_tokens=request.num_input_tokens,
            output_tokens=request.num_output_tokens,
            siblings=len(workflow.stages[stage].requests),
            sibling_index=sibling,
        )
        for stage, sibling, request in workflow.requests()
    )
    return ObservedWorkflow(workflow.workflow_type, arrival_s, requests, 4 * max(ends), True)


def seconds(request: TraceRequest) -> float:
    return 1 + request.num_output_tokens / 100


def schedule(stages: tuple[TraceStage, ...]) -> tuple[list[float], list[float]]:
    """Start and end of every stage with nothing in the way."""
    starts: list[float] = []
    ends: list[float] = []
    for stage in stages:
        starts.append(max((ends[before] for before in stage.after), default=0.0) + stage.tool_s)
        ends.append(starts[-1] + max(seconds(request) for request in stage.requests))
    return starts, ends


def observe(*workflows: ObservedWorkflow) -> Observed:
    window = RecentWorkflows()
    for workflow in workflows:
        window.add(workflow)
    return window.observed()


def test_chains_come_back_as_they_were() -> None:
    trace = load_trace("synthetic:20")
    seen = observe(*(executed(w, 10.0 * index) for index, w in enumerate(trace.workflows)))
    for before, after in zip(trace.workflows, seen.trace.workflows, strict=True):
        assert [stage.name for stage in after.stages] == [stage.name for stage in before.stages]
        assert [stage.after for stage in after.stages] == [stage.after for stage in before.stages]
        assert list(after.requests()) == list(before.requests())
        assert all(stage.tool_s < 1e-6 for stage in after.stages)


@st.composite
def graphs(draw: st.DrawFn) -> TraceWorkflow:
    """Workflows with branches, joins, loops, fan-out and tool time."""
    stages = []
    for index in range(draw(st.integers(1, 7))):
        after = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        requests = draw(
            st.lists(
                st.builds(TraceRequest, st.integers(1, 5_000), st.integers(1, 900)),
                min_size=1,
                max_size=4,
            )
        )
        tool_s = draw(st.sampled_from([0.0, 0.25, 3.0]))
        name = f"stage{draw(st.integers(0, 2))}-{index}"
        stages.append(TraceStage(name, tuple(requests), tuple(sorted(after)), tool_s))
    return TraceWorkflow("w", "any", tuple(stages))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_what_was_seen_would_run_again_as_it_was_seen(workflow: TraceWorkflow) -> None:
    seen = observe(executed(workflow), executed(workflow, 1.0)).trace.workflows[0]
    starts, ends = schedule(workflow.stages)
    again_starts, again_ends = schedule(seen.stages)
    assert sorted(again_starts) == pytest.approx(sorted(starts), abs=0.01)
    assert sorted(again_ends) == pytest.approx(sorted(ends), abs=0.01)
    for stage in seen.stages:
        assert not any(
            before in seen.stages[other].after for before in stage.after for other in stage.after
        )


def request(
    start_s: float, end_s: float, stage: str | None = "a", cached: int | None = None, **more: int
) -> ObservedRequest:
    return ObservedRequest(stage, start_s, end_s, 1_000, 10, cached, **more)


def stages_of(*requests: ObservedRequest) -> tuple[TraceStage, ...]:
    one = ObservedWorkflow("t", 0.0, requests)
    return observe(one, msgspec.structs.replace(one, arrival_s=5.0)).trace.workflows[0].stages


def test_overlap_and_announced_siblings_are_one_stage_and_a_later_pass_another() -> None:
    overlapping = stages_of(request(0, 2), request(1, 3), request(3.5, 4))
    assert [len(stage.requests) for stage in overlapping] == [2, 1]
    announced = stages_of(
        request(0, 1, siblings=2, sibling_index=0), request(2, 3, siblings=2, sibling_index=1)
    )
    assert [len(stage.requests) for stage in announced] == [2]


def test_branches_that_overlap_do_not_wait_for_each_other() -> None:
    stages = stages_of(
        request(0, 1, "root"), request(1, 4, "left"), request(1, 2, "right"), request(4, 5, "join")
    )
    after = {stage.name: {stages[index].name for index in stage.after} for stage in stages}
    assert after == {
        "root": set(),
        "left": {"root"},
        "right": {"root"},
        "join": {"left", "right"},
    }


def test_tool_time_is_what_passed_before_a_stage() -> None:
    stages = stages_of(request(0.5, 1, "a"), request(3, 4, "b"))
    assert [stage.tool_s for stage in stages] == pytest.approx([0.5, 2.0])


def test_prefixes_are_what_was_usually_cached() -> None:
    def loops(arrival_s: float, first: int) -> ObservedWorkflow:
        return ObservedWorkflow(
            "t", arrival_s, (request(0, 1, cached=first), request(2, 3, cached=700))
        )

    seen = observe(*(loops(float(index), 0 if index == 0 else 400) for index in range(20)))
    prefix = seen.trace.workflows[3].stages[1].requests[0].prefix
    assert prefix is not None
    assert [(part.scope, part.num_tokens) for part in prefix] == [
        (PrefixScope.TEMPLATE, 400),
        (PrefixScope.WORKFLOW, 300),
    ]
    untold = stages_of(request(0, 1))[0].requests[0]
    assert untold.prefix is None


def test_untagged_requests_have_a_name_of_their_own() -> None:
    one = ObservedWorkflow(None, 0.0, (request(0, 1, None),))
    seen = observe(one, msgspec.structs.replace(one, arrival_s=2.0))
    assert seen.trace.workflows[0].workflow_type == "untagged"
    assert seen.trace.workflows[0].stages[0].name == "untagged"


def test_rate_variation_and_deadlines_are_those_seen() -> None:
    bursty = Arrivals(ArrivalProcess.GAMMA, 3.0)
    instants = bursty.instants_s(0.5, 2_000, stream(1, Subsystem.ARRIVALS))
    window = RecentWorkflows(5_000, 5_000)
    for number, instant in enumerate(instants):
        window.add(ObservedWorkflow("t", float(instant), (request(0, 1),), 10.0 + number))
    seen = window.observed()
    assert seen.rate_per_s == pytest.approx(0.5, rel=0.2)
    assert seen.arrivals.cv == pytest.approx(3.0, rel=0.2)
    assert list(seen.budgets_s.values())[:3] == [10.0, 11.0, 12.0]
    assert seen.settings(50).rate_per_s == seen.rate_per_s


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(2, 20), st.integers(1, 40))
def test_window_keeps_the_newest_within_both_limits(
    sizes: list[int], max_workflows: int, max_requests: int
) -> None:
    window = RecentWorkflows(max_workflows, max_requests)
    for number, size in enumerate(sizes):
        window.add(ObservedWorkflow("t", float(number), tuple(request(0, 1) for _ in range(size))))
    kept = sizes[-len(window) :]
    assert window.num_requests == sum(kept)
    assert len(kept) <= max_workflows
    assert sum(kept) <= max_requests or len(kept) == 1
    if len(kept) < len(sizes):
        more = sizes[-len(window) - 1 :]
        assert len(more) > max_workflows or sum(more) > max_requests


def test_traffic_of_before_a_change_is_forgotten_in_time() -> None:
    window = RecentWorkflows(max_age_s=100.0)
    for second in range(0, 1_000, 10):
        window.add(ObservedWorkflow("t", float(second), (request(0, 1),)))
    for half_second in range(2_000, 2_400):
        window.add(ObservedWorkflow("t", half_second / 2, (request(0, 1),)))
    seen = window.observed()
    assert seen.rate_per_s == pytest.approx(2.0)
    assert len(window) == window.num_requests == 201
    with pytest.raises(ConfigError, match="above 0"):
        RecentWorkflows(max_age_s=0.0)


def test_too_little_traffic_is_no_workload() -> None:
    window = RecentWorkflows()
    with pytest.raises(ConfigError, match="no rate"):
        window.observed()
    for _ in range(2):
        window.add(ObservedWorkflow("t", 1.0, (request(0, 1),)))
    with pytest.raises(ConfigError, match="no rate"):
        window.observed()
    with pytest.raises(ConfigError, match="at least"):
        RecentWorkflows(1, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "with space"},
        {"input_tokens": 0},
        {"end_s": 0.5},
        {"start_s": -1.0},
        {"text": "SELECT 1"},
    ],
)
def test_observation_is_strict_and_has_no_place_for_text(wrong: dict[str, object]) -> None:
    fields = {"stage": "a", "start_s": 1.0, "end_s": 2.0, "input_tokens": 5, "output_tokens": 5}
    msgspec.convert(fields, ObservedRequest)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**fields, **wrong}, ObservedRequest)
