"""From records to the result: pooled seeds, ratios, goodput, and a file that reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from hexgen_sglang.bench.assemble import bench_result, write_json
from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Facts, Plan
from hexgen_sglang.bench.systems import parse_systems
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.results.figures import load_result, with_goodput
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import BenchResult, RunFacts
from hexgen_sglang.results.table import table
from hexgen_sglang.workload.plan import Workload

Serve = Callable[..., RunRecord]


def facts(run: RunRecord, busy_s: float = 10.0) -> RunFacts:
    row = {"busy_s": busy_s, "steps": 5.0, "overhead_s": 0.5}
    row |= {"overhead_frac": 0.5 / busy_s, "drift_frac": 0.001}
    return RunFacts(run, emulation={"w0": row, "w1": row}, wall_s=3.0, machine_busy_frac=0.5)


@pytest.fixture
def runs(workload: Workload, serve: Serve) -> dict[str, list[RunFacts]]:
    """Two systems, two seeds each; the second is twice as fast."""
    return {
        "slow": [facts(serve(workload, 2.0, "slow")), facts(serve(workload, 4.0, "slow"))],
        "fast": [facts(serve(workload, 1.0, "fast")), facts(serve(workload, 2.0, "fast"))],
    }


def test_figures_of_a_load(runs: dict[str, list[RunFacts]]) -> None:
    load = load_result("60%", 0.5, runs, "slow", usd_per_hour=7.2)
    slow, fast = load.systems["slow"], load.systems["fast"]
    assert load.valid
    assert fast.num_workflows == 18
    assert fast.prefix_hit_frac == pytest.approx(0.5, abs=0.001)
    assert slow.mean_s == pytest.approx(2 * (fast.mean_s or 0))
    for figure in ("mean", "p50", "p95", "p99"):
        ratio = fast.ratios[figure]
        assert ratio.value == pytest.approx(2.0)
        assert ratio.low == pytest.approx(2.0)
        assert slow.ratios[figure].value == 1.0
    assert fast.ttft_mean_s is not None
    assert fast.queue_mean_s is None
    span = sum(one.run.span_s for one in runs["fast"])
    assert fast.usd_per_1000_workflows == pytest.approx(1000 * span / 3600 * 7.2 / 20)
    assert fast.utilisation["w0"] == pytest.approx(
        sum(10.0 / one.run.span_s for one in runs["fast"]) / 2
    )
    assert load.overhead_frac == pytest.approx(0.05)
    assert list(fast.attainment.values()) == sorted(fast.attainment.values())


def test_broken_law_makes_the_load_invalid(runs: dict[str, list[RunFacts]]) -> None:
    runs["fast"][1] = replace(runs["fast"][1], broken=("conservation: 1 request",))
    load = load_result("60%", 0.5, runs, "slow", 1.0)
    assert not load.valid
    assert load.invalid_because == ("fast, 60%, seed 1: conservation: 1 request",)


def test_system_that_lost_a_workflow_has_no_mean(runs: dict[str, list[RunFacts]]) -> None:
    one = runs["fast"][0]
    lost = replace(one.run.workflows[-1], completed=False)
    run = replace(one.run, workflows=(*one.run.workflows[:-1], lost))
    runs["fast"][0] = replace(one, run=run)
    figures = load_result("60%", 0.5, runs, "slow", 1.0).systems["fast"]
    assert figures.mean_s is None
    assert figures.p50_s is not None
    assert figures.attainment["50"] == pytest.approx(17 / 18)


def test_goodput_needs_two_loads_and_compares_with_the_baseline(
    workload: Workload, serve: Serve
) -> None:
    """At 1/s all meet their deadlines; at 2/s none of `slow` does and all of `fast` do."""
    loads, runs = [], []
    for rate, seconds in ((1.0, {"slow": 0.1, "fast": 0.1}), (2.0, {"slow": 500.0, "fast": 0.1})):
        some = {name: [facts(serve(workload, s, name))] for name, s in seconds.items()}
        runs.append(some)
        loads.append(load_result(f"{rate}", rate, some, "slow", 1.0))
    assert with_goodput(loads[:1], runs[:1], "slow") == loads[:1]
    (first, second) = with_goodput(loads, runs, "slow")
    slow, fast = first.systems["slow"], first.systems["fast"]
    assert slow.goodput_at_95_per_s == pytest.approx(1.05)  # 1 + (1.0 - 0.95) / (1.0 - 0.0)
    assert not slow.goodput_is_bound
    assert (fast.goodput_at_95_per_s, fast.goodput_is_bound) == (2.0, True)
    assert fast.ratios["goodput"].value == pytest.approx(2 / 1.05)
    assert second.systems["fast"].goodput_at_95_per_s == 2.0


def test_without_goodput_there_is_no_ratio(workload: Workload, serve: Serve) -> None:
    """Whoever misses the deadlines at every load has a goodput below them, of unknown size."""
    runs = [{"slow": [facts(serve(workload, 500.0, "slow"))]} for _ in range(2)]
    loads = [
        load_result(f"{rate}", rate, some, "slow", 1.0)
        for rate, some in zip((1.0, 2.0), runs, strict=True)
    ]
    (first, _) = with_goodput(loads, runs, "slow")
    assert first.systems["slow"].goodput_at_95_per_s is None
    assert "goodput" not in first.systems["slow"].ratios


@pytest.fixture
def plan(
    workload: Workload, linear_profile: Callable[..., AcceleratorProfile], tmp_path: Path
) -> Plan:
    return Plan(
        cluster=ClusterConfig(workers=(WorkerRow(name="w", count=2),)),
        profiles=(linear_profile(), linear_profile()),
        trace=workload.trace,
        loads=(Load("60%", 0.5),),
        seeds=(1, 2),
        systems=tuple(parse_systems("fcfs+round_robin,hexgen")),
        workload=workload.settings,
        time_scale=4.0,
        folder=tmp_path,
    )


@pytest.fixture
def plan_facts(plan: Plan, workload: Workload, serve: Serve) -> Facts:
    return {
        ("60%", "fcfs+round_robin"): [facts(serve(workload, 2.0)) for _ in plan.seeds],
        ("60%", "hexgen"): [facts(serve(workload, 1.0)) for _ in plan.seeds],
    }


def test_result_has_the_documented_fields_and_reads_back(
    plan: Plan, plan_facts: Facts, tmp_path: Path
) -> None:
    result = bench_result(plan, plan_facts, "fcfs+round_robin", 0.8, ["hexgen-sglang", "bench"], 9)
    path = tmp_path / "out" / "result.json"
    write_json(result, path)
    assert msgspec.json.decode(path.read_bytes(), type=BenchResult) == result
    plain = json.loads(path.read_text())
    assert plain["valid"] is True
    assert plain["seeds"] == [1, 2]
    assert set(plain) >= {"cluster", "trace", "rate", "overhead_frac", "systems"}
    assert set(plain["systems"]["hexgen"]) >= {
        "mean_s",
        "p50_s",
        "p95_s",
        "p99_s",
        "attainment",
        "scale_at_95",
        "scale_at_99",
        "prefix_hit_frac",
        "num_workflows",
        "num_requests",
    }
    assert plain["settings"]["systems"]["hexgen"]["dispatch"] == "marginal_cost"
    lines = table(result, result.loads[0]).splitlines()
    assert len(lines) == 4
    assert "2.00 [2.00, 2.00]" in lines[3]


def test_void_run_shows_at_the_top(plan: Plan, plan_facts: Facts) -> None:
    some = plan_facts["60%", "hexgen"]
    some[0] = replace(some[0], broken=("driver: too late",))
    result = bench_result(plan, plan_facts, "hexgen", 0.8, [], 9)
    assert not result.valid
    assert "driver: too late" in result.invalid_because[0]


def test_plan_prices_every_worker(plan: Plan) -> None:
    assert plan.usd_per_hour == 2.0
    assert replaced(plan, profiles=plan.profiles[:1]).usd_per_hour == 1.0
