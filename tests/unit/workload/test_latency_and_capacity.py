"""Unloaded latency and the capacity bound, worked by hand and against another solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.capacity import WorkerCapacity, capacity_per_s, least_makespan
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


@dataclass(frozen=True)
class Linear:
    """A cost model simple enough to work with by hand."""

    prefill_token_s: float = 0.001
    step_s: float = 0.1
    context_s: float = 0.0

    def prefill_s(self, num_new_tokens: int, num_context_tokens: int) -> float:
        return self.prefill_token_s * num_new_tokens

    def decode_s(self, num_requests: int, num_context_tokens: int) -> float:
        return self.step_s + self.context_s * num_context_tokens


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


def test_request_is_one_prefill_and_the_other_tokens() -> None:
    assert request_s(Linear(), 1000, 400, 11) == pytest.approx(0.6 + 10 * 0.1)
    assert request_s(Linear(), 1000, 1000, 1) == pytest.approx(0.001)


def test_growing_context_is_summed_exactly() -> None:
    model = Linear(context_s=0.01)
    by_hand = 0.5 + sum(model.decode_s(1, 500 + made) for made in range(1, 40))
    assert request_s(model, 500, 0, 40) == pytest.approx(by_hand)


def test_unloaded_latency_is_the_critical_path() -> None:
    """plan 0.5 + 1.0; left behind 2 s of tools 0.1 + 0.5; join 0.1: the right side is shorter."""
    assert unloaded_s(FORK, [Linear()]) == pytest.approx(1.5 + 2.0 + 0.6 + 0.1)


def test_without_reuse_every_prompt_is_computed() -> None:
    assert unloaded_s(FORK, [Linear()], Reuse.NONE) == pytest.approx(2.0 + 2.0 + 1.3 + 0.6)


def test_several_workers_count_with_their_mean() -> None:
    fast, slow = Linear(0.001, 0.1), Linear(0.003, 0.3)
    mean = unloaded_s(FORK, [Linear(0.002, 0.2)])
    assert unloaded_s(FORK, [fast, slow]) == pytest.approx(mean)
    with pytest.raises(ConfigError):
        unloaded_s(FORK, [])


def test_capacity_of_equal_workers_by_hand() -> None:
    """One request a workflow: 0.1 s of prefill and 9 tokens at a tenth of a 0.2 s step."""
    request = TraceRequest(100, 10, ())
    workflow = TraceWorkflow("q", "agent", (TraceStage("only", (request,)),))
    trace = Trace("t", "t", "jsonl", (workflow,))
    worker = WorkerCapacity(Linear(0.001, 0.2), kv_tokens=1050)  # 10 requests of 105 tokens
    assert capacity_per_s(trace, [worker]) == pytest.approx(1 / (0.1 + 9 * 0.02))
    assert capacity_per_s(trace, [worker] * 3) == pytest.approx(3 / (0.1 + 9 * 0.02))


def test_capacity_grows_with_workers_and_speed() -> None:
    trace = load_trace("synthetic:30")
    slow = WorkerCapacity(Linear(0.001, 0.06), 60_000)
    fast = WorkerCapacity(Linear(0.0003, 0.03), 120_000)
    one = capacity_per_s(trace, [fast])
    both = capacity_per_s(trace, [fast, slow])
    assert one < both < 2 * one
    assert both >= one + capacity_per_s(trace, [slow]) - 1e-9


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
