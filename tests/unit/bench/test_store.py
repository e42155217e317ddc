"""Records of earlier runs: taken over only when everything that decides a run is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Plan
from hexgen_sglang.bench.run import run_all
from hexgen_sglang.bench.store import RecordStore
from hexgen_sglang.bench.systems import parse_system, parse_systems
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload

LOAD = Load("60%", 0.5)
SYSTEM = parse_system("coordinator:least_load[barrier_s=2]+lpm")


@pytest.fixture
def plan(
    workload: Workload, linear_profile: Callable[..., AcceleratorProfile], tmp_path: Path
) -> Plan:
    return Plan(
        cluster=ClusterConfig(workers=(WorkerRow(name="w"),)),
        profiles=(linear_profile(),),
        trace=workload.trace,
        loads=(LOAD,),
        seeds=(1, 2),
        systems=tuple(parse_systems("fcfs+round_robin,fcfs[]+round_robin")),
        workload=workload.settings,
        time_scale=4.0,
        folder=tmp_path,
    )


def test_a_run_of_an_equal_plan_is_found(plan: Plan, served: RunRecord) -> None:
    facts = RunFacts(served, wall_s=2.0)
    RecordStore(plan).write(LOAD, 1, SYSTEM, facts)
    again = replace(plan, trace=load_trace("synthetic:6"))
    assert RecordStore(again).read(LOAD, 1, SYSTEM) == facts
    assert RecordStore(plan).read(LOAD, 2, SYSTEM) is None


def test_where_the_files_of_profiles_lie_is_no_matter(plan: Plan, served: RunRecord) -> None:
    here, there = (
        replace(plan, cluster=ClusterConfig(workers=(WorkerRow(name="w", profile=path),)))
        for path in ("/here/a100.toml", "/there/a100.toml")
    )
    facts = RunFacts(served, wall_s=2.0)
    RecordStore(here).write(LOAD, 1, SYSTEM, facts)
    assert RecordStore(there).read(LOAD, 1, SYSTEM) == facts


@pytest.mark.parametrize(
    "change",
    [
        {"time_scale": 2.0},
        {"trace": load_trace("synthetic:6:1")},
        {"num_token_ids": 1000},
        {"profiles": ()},
        {"cluster": ClusterConfig(workers=(WorkerRow(name="w", count=2),))},
    ],
)
def test_a_run_of_another_plan_is_not(
    plan: Plan, served: RunRecord, change: dict[str, Any]
) -> None:
    RecordStore(plan).write(LOAD, 1, SYSTEM, RunFacts(served))
    assert RecordStore(replace(plan, **change)).read(LOAD, 1, SYSTEM) is None


def test_other_settings_of_a_system_or_another_rate_are_another_run(
    plan: Plan, served: RunRecord
) -> None:
    store = RecordStore(plan)
    store.write(LOAD, 1, SYSTEM, RunFacts(served))
    other = replace(SYSTEM, settings={"barrier_s": 3.0})
    assert store.read(LOAD, 1, other) is None
    assert store.read(Load("60%", 0.6), 1, SYSTEM) is None


def test_a_void_run_is_done_again(plan: Plan, served: RunRecord) -> None:
    store = RecordStore(plan)
    store.write(LOAD, 1, SYSTEM, RunFacts(served, broken=("causality",)))
    assert store.read(LOAD, 1, SYSTEM) is None


def test_resuming_a_finished_plan_starts_nothing(plan: Plan, served: RunRecord) -> None:
    store = RecordStore(plan)
    for system in plan.systems:
        for seed in plan.seeds:
            run = msgspec.structs.replace(served, system=system.name, seed=seed)
            store.write(LOAD, seed, system, RunFacts(run))
    said: list[str] = []
    facts = run_all(plan, said.append, resume=True)
    assert said == []
    assert {key: [one.run.seed for one in some] for key, some in facts.items()} == {
        ("60%", "fcfs+round_robin"): [1, 2],
        ("60%", "fcfs[]+round_robin"): [1, 2],
    }
