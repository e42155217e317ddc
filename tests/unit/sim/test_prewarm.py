"""Prefixes computed ahead in the simulator: by the same rules, and only where tools take time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.prefix_cache import beginning
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

ACCELERATORS = Path(__file__).parents[3] / "launch" / "configs" / "accelerators"


def run(setting: str, tool_s: float) -> RunFacts:
    """Workflows on three unequal workers, with time for their tools between all stages."""
    crew = [
        profile_from_toml((ACCELERATORS / f"{name}.toml").read_text("utf-8"), name)
        for name in ("a100", "a6000", "l40s")
    ]
    trace = load_trace("synthetic:20:3")
    workflows = tuple(
        dataclasses.replace(
            workflow,
            stages=tuple(
                dataclasses.replace(stage, tool_s=tool_s if stage.after else 0.0)
                for stage in workflow.stages
            ),
        )
        for workflow in trace.workflows
    )
    workload = build_workload(
        dataclasses.replace(trace, workflows=workflows),
        WorkloadSettings(rate_per_s=0.25, num_workflows=30, seed=1),
        crew,
    )
    facts = simulate(parse_system(f"coordinator:marginal_cost+hexgen{setting}"), workload, crew)
    assert facts.broken == ()
    return facts


def test_what_is_computed_ahead_is_saved_or_wasted_and_counted() -> None:
    found = run("[prewarm=0.5]", 3.0).prefixes
    assert found["prewarmed_computed"] > 0
    assert found["prewarmed_saved"] > 0
    # Every workflow has ended, so nothing is left open.
    assert found["prewarmed_saved"] + found["prewarmed_wasted"] == found["prewarmed_computed"]
    assert not any(name.startswith("retained") for name in found)


@pytest.mark.parametrize(("setting", "tool_s"), [("", 3.0), ("[prewarm=0.5]", 0.0)])
def test_nothing_is_computed_ahead_unasked_or_without_time_for_it(
    setting: str, tool_s: float
) -> None:
    assert run(setting, tool_s).prefixes.get("prewarmed_computed", 0) == 0


def test_both_rules_go_together() -> None:
    found = run("[retain=0.5;prewarm=0.5]", 3.0).prefixes
    assert found["retained_kept"] >= found["retained_used"] > 0
    assert found["prewarmed_computed"] >= found["prewarmed_saved"]


def test_the_beginning_of_a_prompt_ends_inside_a_segment() -> None:
    prompt = (("t", 100), ("c", 50), ("own", 10))
    assert beginning(prompt, 120) == (("t", 100), ("c", 20))
    assert beginning(prompt, 100) == (("t", 100),)
    assert beginning(prompt, 0) == ()
