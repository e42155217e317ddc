"""Admission by deadline on a simulated cluster that is asked for more than it can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload

ACCELERATORS = Path(__file__).parents[3] / "launch" / "configs" / "accelerators"
PROFILES = [
    profile_from_toml((ACCELERATORS / f"{name}.toml").read_text("utf-8"), name)
    for name in ("a100", "a6000")
]


@pytest.fixture(scope="module")
def overload() -> Workload:
    trace = load_trace("synthetic:40:3")
    rate_per_s = 1.2 * capacity_per_s(trace, PROFILES)
    return build_workload(trace, WorkloadSettings(rate_per_s, 160, seed=1), PROFILES)


def run(workload: Workload, attainment: float | None) -> RunFacts:
    settings = SimSettings(coordinator=CoordinatorConfig(admission_attainment=attainment))
    return simulate(parse_system("hexgen"), workload, PROFILES, settings)


def test_once_it_knows_the_type_those_admitted_are_in_time(overload: Workload) -> None:
    in_time: dict[float | None, list[bool]] = {}
    for attainment in (None, 0.9):
        facts = run(overload, attainment)
        begun = {request.workflow for request in facts.run.requests}
        rows = [row for row in facts.run.workflows if row.index in begun]
        # Whoever was let in got all of its stages.
        assert all(row.completed for row in rows)
        in_time[attainment] = [
            row.end_s <= row.arrival_s + (row.budget_s or 0.0) for row in rows if row.index >= 80
        ]
    assert len(in_time[None]) == 80
    assert sum(in_time[None]) < 10
    assert len(in_time[0.9]) > 30
    assert sum(in_time[0.9]) > 0.9 * len(in_time[0.9])
