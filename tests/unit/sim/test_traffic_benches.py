"""The benches of mixed traffic, late workflows and waiting prefills, on small runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from hexgen_sglang.sim.testbed import Testbed

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "launch" / "configs" / "clusters" / "hetero-1.toml"


def script(name: str) -> ModuleType:
    """A bench as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bed() -> Testbed:
    return Testbed.of(CLUSTER, "synthetic:20:3")


def test_half_of_the_workflows_are_unknown_to_the_coordinator(bed: Testbed) -> None:
    """What a client without tags gets is counted by workflow all the same."""
    mixed = script("mixed_traffic")
    workload = bed.workload("80%", 20, seed=0)
    found = mixed.seconds_of(bed, "hexgen", workload)
    measured = [one for one in workload.workflows if not one.warmup]
    odd = [one for one in measured if one.index % 2]
    assert len(found["untagged workflows"]) == len(odd)
    assert len(found["tagged workflows"]) == len(measured) - len(odd)
    of_odd = sum(len(stage.requests) for one in odd for stage in one.workflow.stages)
    assert len(found["untagged requests"]) == of_odd
    all_tagged = [one.e2e_s for one in bed.run("hexgen", workload).run.measured()]
    assert sorted(found["untagged workflows"] + found["tagged workflows"]) != sorted(all_tagged)
    rows = mixed.rows_of(bed, "80%", workflows=12, seeds=2)
    assert [row["kind"] for row in rows] == sorted(found)
    for row in rows:
        least, largest = row["least_load_p95_ratio_of_a_seed"]
        assert 0 < least <= largest


def test_the_time_of_a_workflow_is_told_whole(bed: Testbed) -> None:
    late = script("late_workflows")
    run = bed.run("hexgen", bed.workload("90%", 20, seed=0)).run
    rows = late.rows_of_run(run)
    assert len(rows) == len(run.measured())
    for row in rows:
        parts = row["first_s"] + row["prefill_s"] + row["decode_s"]
        assert parts == pytest.approx(row["latency_s"], abs=1e-6)
    found = late.summary(rows)
    assert found["late"]["latency_s"] > found["all"]["latency_s"]
    assert sum(size["share_of_late"] for size in found["by_size"]) == pytest.approx(1.0)


def test_prefills_wait_only_with_patience(bed: Testbed) -> None:
    waits = script("prefill_waits")
    rows = waits.rows_of(bed, "80%", 20, 1)
    assert [row["patience"] for row in rows] == 2 * list(waits.PATIENCES)
    p95_s = [row["p95_s"] for row in rows if row["deadlines"] == "4"]
    plain = waits.figures(bed.run("hexgen", bed.workload("80%", 20, seed=0)))
    assert p95_s[0] == plain["p95_s"]
    assert len(set(p95_s)) > 1


def test_two_scales_take_turns(bed: Testbed) -> None:
    waits = script("prefill_waits")
    usual = bed.workload("80%", 4, seed=0)
    scales = [
        one.budget_s / one.unloaded_s for one in waits.two_scales(usual).workflows if one.budget_s
    ]
    assert scales == pytest.approx([8.0, 2.5, 8.0, 2.5])
