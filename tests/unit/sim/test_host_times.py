"""The host's times in the simulator: what they add to a run, and which a bench's file gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Plan, cluster_profiles
from hexgen_sglang.bench.systems import parse_system, parse_systems
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.figures import load_result
from hexgen_sglang.results.host import host_costs
from hexgen_sglang.results.schema import BenchResult, HostCosts
from hexgen_sglang.sim.comparison import PlannedSimulation, measured_hosts, planned_runs
from hexgen_sglang.sim.host import HostTimes
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

CLUSTER = Path(__file__).resolve().parents[3] / "launch/configs/clusters/hetero-1.toml"
CONFIG = load_cluster(CLUSTER)
PROFILES = cluster_profiles(CONFIG, None)
NAMES = tuple(name for row in CONFIG.workers for name in row.names())
TRACE = load_trace("synthetic:10:1")


@pytest.mark.parametrize(
    "system", ["fcfs+round_robin", "sglang-router:round_robin+fcfs", "coordinator:round_robin+fcfs"]
)
def test_a_workflow_alone_is_later_by_its_ways_and_nothing_else(system: str) -> None:
    settings = WorkloadSettings(rate_per_s=0.0005, num_workflows=4, warmup_frac=0.0)
    load = build_workload(TRACE, settings, PROFILES)
    host = HostTimes(to_engine_s=0.3, back_s=0.2)
    quick = simulate(parse_system(system), load, PROFILES)
    slow = simulate(parse_system(system), load, PROFILES, SimSettings(host=host))
    assert slow.broken == ()
    for planned, one, other in zip(
        load.workflows, quick.run.workflows, slow.run.workflows, strict=True
    ):
        depth = [0] * len(planned.workflow.stages)
        for index, stage in enumerate(planned.workflow.stages):
            depth[index] = 1 + max((depth[before] for before in stage.after), default=0)
        assert other.e2e_s - one.e2e_s == pytest.approx(0.5 * max(depth), abs=0.05 * max(depth))
    costs = host_costs([slow])
    assert costs is not None
    assert costs.to_engine_s == pytest.approx(0.3)
    assert costs.back_s == pytest.approx(0.2)


def test_a_step_takes_its_standstill_longer() -> None:
    settings = WorkloadSettings(rate_per_s=0.0005, num_workflows=3)
    load = build_workload(TRACE, settings, PROFILES)
    system = parse_system("fcfs+round_robin")
    host = HostTimes(step_s={NAMES[0]: 0.01})
    facts = simulate(system, load, PROFILES, SimSettings(host=host, worker_names=NAMES))
    rows = facts.emulation
    assert rows[NAMES[0]]["overhead_s"] == pytest.approx(0.01 * rows[NAMES[0]]["steps"])
    assert rows[NAMES[1]]["overhead_s"] == 0.0


@pytest.mark.parametrize("field", ["to_engine_s", "back_s", "send_s"])
def test_times_below_zero_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=-1"):
        HostTimes(**{field: -1.0})
    with pytest.raises(ConfigError, match=r"step_s\[a\]=inf"):
        HostTimes(step_s={"a": float("inf")})


def plan(systems: str) -> Plan:
    return Plan(
        cluster=CONFIG,
        profiles=PROFILES,
        trace=TRACE,
        loads=(Load("low", 0.05),),
        seeds=(0,),
        systems=tuple(parse_systems(systems)),
        workload=WorkloadSettings(rate_per_s=1.0, num_workflows=5),
        time_scale=1.0,
        folder=Path("unused"),
    )


def bench_of(systems: str, host: HostTimes) -> BenchResult:
    """A bench's file, from simulated runs under given host times."""
    wanted = plan(systems)
    simulation = PlannedSimulation(wanted, SimSettings(host=host))
    runs = {run.system.name: [simulation(run)] for run in planned_runs(wanted)}
    load = load_result("low", 0.05, runs, next(iter(runs)), 1.0)
    return msgspec.convert(
        {
            **dict.fromkeys(BenchResult.__struct_fields__),
            **{"valid": True, "cluster": "c", "trace": "t", "rate": 0.05, "seeds": [0]},
            **{"systems": {}, "invalid_because": [], "baseline": "", "capacity_per_s": 1.0},
            **{"time_scale": 1.0, "loads": [msgspec.to_builtins(load)], "settings": {}},
            **{"versions": {}, "profiles": {}, "machine": {}, "command": [], "wall_s": 0.0},
        },
        BenchResult,
    )


def test_a_system_takes_its_own_times_and_another_those_of_its_place() -> None:
    host = HostTimes(0.3, 0.2, 0.01, dict.fromkeys(NAMES, 0.002))
    bench = bench_of("coordinator:least_load+lpm,fcfs+round_robin", host)
    found = measured_hosts(plan("hexgen,fcfs+round_robin"), bench)
    for name in ("hexgen", "fcfs+round_robin"):
        times = found["low", name]
        assert times.to_engine_s == pytest.approx(0.3, rel=0.01)
        assert times.back_s == pytest.approx(0.2)
        assert times.step_s == pytest.approx(dict.fromkeys(NAMES, 0.002))
    slower = PlannedSimulation(plan("hexgen"), hosts=found)
    plain = PlannedSimulation(plan("hexgen"))
    (run,) = planned_runs(plan("hexgen"))
    assert slower(run).run.span_s > plain(run).run.span_s


def test_times_that_do_not_fit_are_refused() -> None:
    host = HostTimes(0.3, 0.2, 0.01, dict.fromkeys(NAMES, 0.002))
    bench = bench_of("fcfs+round_robin", host)
    with pytest.raises(ConfigError, match="host times for 'hexgen'"):
        measured_hosts(plan("hexgen"), bench)
    others = replace(plan("fcfs+round_robin"), cluster=_renamed())
    with pytest.raises(ConfigError, match="must be those of the cluster"):
        measured_hosts(others, bench)


def _renamed() -> object:
    rows = tuple(msgspec.structs.replace(row, name=f"x{row.name}") for row in CONFIG.workers)
    return msgspec.structs.replace(CONFIG, workers=rows)


def test_reports_of_an_emulated_host_are_late_by_its_time_scale() -> None:
    times = HostTimes.measured(HostCosts(4.0, 0.0, 0.1, 0.1, {}))
    assert times.delays.report_s == pytest.approx(4 * HostTimes().delays.report_s)
    assert times.delays.min_interval_s == pytest.approx(4 * HostTimes().delays.min_interval_s)
    assert times.delays.costs_interval_s == pytest.approx(4 * HostTimes().delays.costs_interval_s)
