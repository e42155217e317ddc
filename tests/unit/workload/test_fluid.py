"""The fluid bound: worked by hand, and below every simulated schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.fluid import fluid_mean_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.latency import unloaded_s
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import Trace, TraceRequest, TraceStage, TraceWorkflow

Make = Callable[..., AcceleratorProfile]
ACCELERATORS = Path(__file__).parents[3] / "launch" / "configs" / "accelerators"
CLUSTER = [
    profile_from_toml((ACCELERATORS / f"{name}.toml").read_text("utf-8"), name)
    for name in ("a100", "a100", "a6000", "l40s")
]


def of_stages(*stages: TraceStage) -> Trace:
    """A trace of one workflow."""
    return Trace("t", "t", "jsonl", (TraceWorkflow("q", "agent", stages),))


def alone_s(trace: Trace, profiles: list[AcceleratorProfile]) -> float:
    """Mean latency of workflows that each have the fastest worker to themselves."""
    least = [min(unloaded_s(one, [kind]) for kind in profiles) for one in trace.workflows]
    return sum(least) / len(least)


def test_batch_is_as_large_as_the_rate_needs(linear_profile: Make) -> None:
    """0.1 s of prefill, then 10 steps of 0.1 s and 0.010055 s for each context of 1,005.5 tokens.

    A workflow may take 1 / rate of the worker's time; with 4 requests in each step it takes
    0.1 + 10 x (0.1 / 4 + 0.010055), and each of them waits for steps of 0.1 + 4 x 0.010055.
    """
    profile = linear_profile(0.0001, 0.1, context_1k_s=0.01)
    trace = of_stages(TraceStage("only", (TraceRequest(1_000, 11, ()),)))
    rate = 1 / (0.1 + 10 * (0.1 / 4 + 0.010055))
    by_hand = 0.1 + 10 * (0.1 + 4 * 0.010055)
    assert fluid_mean_s(trace, [profile], rate) == pytest.approx(by_hand, rel=1e-3)
    assert fluid_mean_s(trace, [profile] * 2, 2 * rate) == pytest.approx(by_hand, rel=1e-3)


def test_without_load_it_is_each_workflow_alone_on_the_fastest_worker() -> None:
    trace = load_trace("synthetic:12:5")
    assert fluid_mean_s(trace, CLUSTER, 1e-6) == pytest.approx(alone_s(trace, CLUSTER), rel=1e-3)


def test_tools_count_and_only_the_longest_chain_does(linear_profile: Make) -> None:
    """1 s, then 2 s of tools and 0.5 s, beside 1 s of another stage."""
    trace = of_stages(
        TraceStage("plan", (TraceRequest(1_000, 1, ()),)),
        TraceStage("tool", (TraceRequest(500, 1, ()),), after=(0,), tool_s=2.0),
        TraceStage("beside", (TraceRequest(1_000, 1, ()),), after=(0,)),
    )
    assert fluid_mean_s(trace, [linear_profile()], 1e-6) == pytest.approx(3.5, rel=1e-3)


def test_it_grows_with_the_rate_and_falls_with_workers() -> None:
    trace = load_trace("synthetic:12:5")
    capacity = capacity_per_s(trace, CLUSTER)
    bounds = [fluid_mean_s(trace, CLUSTER, share * capacity) for share in (0.2, 0.5, 0.8, 1.1)]
    assert bounds == sorted(bounds)
    assert bounds[3] > 1.2 * bounds[0]
    assert fluid_mean_s(trace, CLUSTER * 2, 0.8 * capacity) < bounds[2]


@pytest.mark.parametrize(("system", "share"), [("hexgen", 0.3), ("hexgen", 0.9), ("paper", 0.7)])
def test_no_simulated_run_is_faster(system: str, share: float) -> None:
    """For the very workflows of the run, at the rate at which they came and ended."""
    trace = load_trace("synthetic:30:2")
    rate = share * capacity_per_s(trace, CLUSTER)
    workload = build_workload(trace, WorkloadSettings(rate, 60), CLUSTER)
    facts = simulate(parse_system(system), workload, CLUSTER)
    drawn = replace(trace, workflows=tuple(one.workflow for one in workload.workflows))
    span_s = max(one.end_s for one in facts.run.workflows) - workload.workflows[0].arrival_s
    mean_s = sum(one.e2e_s for one in facts.run.workflows) / len(facts.run.workflows)
    bound_s = fluid_mean_s(drawn, CLUSTER, len(workload.workflows) / span_s)
    assert alone_s(drawn, CLUSTER) <= 1.001 * bound_s
    assert bound_s < mean_s


def test_bad_input_is_named(linear_profile: Make) -> None:
    trace = of_stages(TraceStage("only", (TraceRequest(10, 2, ()),)))
    with pytest.raises(ConfigError, match="profiles"):
        fluid_mean_s(trace, [], 1.0)
    with pytest.raises(ConfigError, match="rate_per_s"):
        fluid_mean_s(trace, [linear_profile()], 0.0)
