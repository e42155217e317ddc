"""Unloaded latency and the capacity bound, worked by hand and against another solver."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s
from hexgen_sglang.core.accelerator import request_s as whole_request_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.capacity import capacity_per_s, least_makespan
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.latency import Reuse, request_s, unloaded_s
from hexgen_sglang.workload.trace import (
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

Make = Callable[..., AcceleratorProfile]

SYSTEM = PrefixPart(PrefixScope.TEMPLATE, "system", 500)
TALK = PrefixPart(PrefixScope.WORKFLOW, "talk", 200)
FORK = TraceWorkflow(
    "fork",
    "agent",
    (
        TraceStage("plan", (TraceRequest(1000, 11, (SYSTEM, TALK)),)),
        TraceStage("left", (TraceRequest(800, 6, (SYSTEM, TALK)),), after=(0,), tool_s=2.0),
        TraceStage("right", (TraceRequest(100, 2, ()), TraceRequest(100, 3, ())), after=(0,)),
        TraceStage("join", (TraceRequest(600, 1, (SYSTEM,)),), after=(1, 2)),
    ),
)


def test_request_is_one_prefill_and_the_other_tokens(linear_profile: Make) -> None:
    assert request_s(linear_profile(), 1000, 400, 11) == pytest.approx(0.6 + 10 * 0.1)
    assert request_s(linear_profile(), 1000, 1000, 1) == pytest.approx(0.001)


def test_growing_context_is_summed_exactly(linear_profile: Make) -> None:
    profile = linear_profile(context_1k_s=10.0)
    by_hand = 0.5 + sum(decode_s(profile, 1, 500 + made) for made in range(1, 40))
    assert request_s(profile, 500, 0, 40) == pytest.approx(by_hand)


def test_uncached_request_is_that_of_the_profile(linear_profile: Make) -> None:
    profile = linear_profile(context_1k_s=0.5, chunk_tokens=300)
    assert request_s(profile, 1000, 0, 40) == pytest.approx(whole_request_s(profile, 1000, 40))


def test_unloaded_latency_is_the_critical_path(linear_profile: Make) -> None:
    """plan 0.5 + 1.0; left behind 2 s of tools 0.1 + 0.5; join 0.1: the right side is shorter."""
    assert unloaded_s(FORK, [linear_profile()]) == pytest.approx(1.5 + 2.0 + 0.6 + 0.1)


def test_without_reuse_every_prompt_is_computed(linear_profile: Make) -> None:
    cold = unloaded_s(FORK, [linear_profile()], Reuse.NONE)
    assert cold == pytest.approx(2.0 + 2.0 + 1.3 + 0.6)


def test_several_workers_count_with_their_mean(linear_profile: Make) -> None:
    fast, slow = linear_profile(0.001, 0.1), linear_profile(0.003, 0.3)
    mean = unloaded_s(FORK, [linear_profile(0.002, 0.2)])
    assert unloaded_s(FORK, [fast, slow]) == pytest.approx(mean)
    with pytest.raises(ConfigError):
        unloaded_s(FORK, [])


def test_capacity_of_equal_workers_by_hand(linear_profile: Make) -> None:
    """One request a workflow: 0.1 s of prefill and 9 tokens at a tenth of a 0.2 s step."""
    request = TraceRequest(100, 10, ())
    workflow = TraceWorkflow("q", "agent", (TraceStage("only", (request,)),))
    trace = Trace("t", "t", "jsonl", (workflow,))
    worker = linear_profile(0.001, 0.2, kv_tokens=1050)  # 10 requests of 105 tokens
    assert capacity_per_s(trace, [worker]) == pytest.approx(1 / (0.1 + 9 * 0.02))
    assert capacity_per_s(trace, [worker] * 3) == pytest.approx(3 / (0.1 + 9 * 0.02))


def test_capacity_grows_with_workers_and_speed(linear_profile: Make) -> None:
    trace = load_trace("synthetic:30")
    slow = linear_profile(0.001, 0.06, kv_tokens=60_000)
    fast = linear_profile(0.0003, 0.03, kv_tokens=120_000)
    one = capacity_per_s(trace, [fast])
    both = capacity_per_s(trace, [fast, slow])
    assert one < both < 2 * one
    assert both >= one + capacity_per_s(trace, [slow]) - 1e-9
    with pytest.raises(ConfigError):
        capacity_per_s(trace, [])


def test_makespan_uses_what_each_worker_is_good_at() -> None:
    """Job 0 on worker 0 (1 s), job 1 on worker 1 (1 s); any other split takes longer."""
    assert least_makespan(np.array([[1.0, 10.0], [10.0, 1.0]])) == pytest.approx(1.0)
    assert least_makespan(np.array([[2.0, 2.0]])) == pytest.approx(1.0)


def test_makespan_agrees_with_another_solver() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    generator = np.random.default_rng(4)
    for _ in range(30):
        jobs, workers = generator.integers(1, 8, size=2)
        seconds = generator.uniform(0.01, 20.0, size=(jobs, workers))
        assert least_makespan(seconds) == pytest.approx(oracle(optimize, seconds), rel=1e-7)


def oracle(optimize: object, seconds: np.ndarray) -> float:
    """The primal problem in scipy's form: fractions x[job][worker], then T."""
    jobs, workers = seconds.shape
    costs = np.zeros(jobs * workers + 1)
    costs[-1] = 1.0
    whole = np.zeros((jobs, costs.size))
    busy = np.zeros((workers, costs.size))
    for job in range(jobs):
        whole[job, job * workers : (job + 1) * workers] = 1.0
        for worker in range(workers):
            busy[worker, job * workers + worker] = seconds[job, worker]
    busy[:, -1] = -1.0
    result = optimize.linprog(  # type: ignore[attr-defined]
        costs, busy, np.zeros(workers), whole, np.ones(jobs)
    )
    return float(result.fun)


@pytest.mark.parametrize("entry", [0.0, float("inf"), -1.0])
def test_makespan_refuses_what_costs_nothing(entry: float) -> None:
    with pytest.raises(ConfigError):
        least_makespan(np.array([[1.0, entry]]))
