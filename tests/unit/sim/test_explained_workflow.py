"""A late workflow of a simulated run, explained from the coordinator's own records."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.coordinator.explain import explanation
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.sim.coordinator_front import CoordinatorFront
from hexgen_sglang.sim.run import DEFAULT_SETTINGS, _Simulation
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

ACCELERATORS = Path(__file__).parents[3] / "launch" / "configs" / "accelerators"
_PARTS = ("coordinator_queue_s", "engine_queue_s", "prefill_s", "decode_s", "before_s")


@pytest.mark.parametrize("system", ["hexgen", "paper"])
def test_the_parts_of_every_late_workflow_add_up(system: str) -> None:
    profiles = [
        profile_from_toml((ACCELERATORS / f"{name}.toml").read_text("utf-8"), name)
        for name in ("a100", "a6000")
    ]
    settings = WorkloadSettings(rate_per_s=0.6, num_workflows=15, seed=5, deadline_scale=1.0)
    workload = build_workload(load_trace("synthetic:40:3"), settings, profiles)
    simulation = _Simulation(parse_system(system), workload, profiles, DEFAULT_SETTINGS)
    simulation.run()
    front = simulation._front
    assert isinstance(front, CoordinatorFront)
    now_s = simulation._events.now_s
    stories = [
        explanation(workflow, front._dispatcher.price_terms, now_s)
        for workflow in front._tracker.newest(1_000)
    ]
    late = [story for story in stories if story["late"] is not None]
    assert late, "at this load some must be late"
    assert any(story["late"]["causes"] for story in late)
    for story in stories:
        placed = [row for row in story["decisions"] if row["picked"] is not None]
        assert len(placed) == sum(row["num_requests"] for row in story["passes"])
        for row in story["passes"]:
            parts = row["slowest"]
            spent = sum(parts[name] for name in _PARTS)
            assert spent == pytest.approx(row["elapsed_s"], abs=1e-6)
        # Passes and the client's own work between them cover the whole workflow.
        total = sum(row["elapsed_s"] + row["gap_before_s"] for row in story["passes"])
        assert total >= story["e2e_s"] - 1e-6
