"""A workload: fair draws, the same prompts for all, deadlines as multiples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

TRACE = load_trace("synthetic:7")


Make = Callable[..., AcceleratorProfile]
SETTINGS = WorkloadSettings(rate_per_s=2.0, num_workflows=20, seed=3)


def test_every_workflow_is_drawn_as_often_as_any_other(linear_profile: Make) -> None:
    workload = build_workload(TRACE, SETTINGS, [linear_profile()])
    counts = Counter(planned.workflow.workflow_id for planned in workload.workflows)
    assert len(counts) == 7
    assert set(counts.values()) == {2, 3}
    assert [planned.index for planned in workload.workflows] == list(range(20))
    arrivals = [planned.arrival_s for planned in workload.workflows]
    assert arrivals == sorted(arrivals)


def test_only_the_arrivals_depend_on_the_rate(linear_profile: Make) -> None:
    slow = build_workload(TRACE, SETTINGS, [linear_profile()])
    fast = build_workload(TRACE, replace(SETTINGS, rate_per_s=4.0), [linear_profile()])
    for left, right in zip(slow.workflows, fast.workflows, strict=True):
        assert left.arrival_s == pytest.approx(2 * right.arrival_s)
        assert replace(left, arrival_s=0.0) == replace(right, arrival_s=0.0)


def test_deadline_is_a_multiple_of_the_unloaded_latency(linear_profile: Make) -> None:
    workload = build_workload(TRACE, replace(SETTINGS, deadline_scale=2.5), [linear_profile()])
    for planned in workload.workflows:
        assert planned.budget_s == pytest.approx(2.5 * planned.unloaded_s)
    none = build_workload(TRACE, replace(SETTINGS, deadline_scale=None), [linear_profile()])
    assert all(planned.budget_s is None for planned in none.workflows)


def test_first_share_of_arrivals_is_warm_up(linear_profile: Make) -> None:
    workload = build_workload(TRACE, replace(SETTINGS, warmup_frac=0.15), [linear_profile()])
    assert [planned.warmup for planned in workload.workflows] == [True] * 3 + [False] * 17


def test_contexts_are_shared_only_when_wanted(linear_profile: Make) -> None:
    def contexts(share: bool) -> set[str]:
        settings = replace(SETTINGS, share_repeated_queries=share)
        return {
            segment.key
            for planned in build_workload(TRACE, settings, [linear_profile()]).workflows
            for stage in planned.prompts
            for prompt in stage
            for segment in prompt
            if segment.key.startswith("workflow/")
        }

    assert len(contexts(share=False)) == 20
    assert len(contexts(share=True)) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"rate_per_s": 0.0},
        {"num_workflows": 0},
        {"seed": -1},
        {"deadline_scale": 0.0},
        {"warmup_frac": 1.0},
    ],
)
def test_settings_out_of_range_name_field_and_value(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must be"):
        replace(SETTINGS, **change)  # type: ignore[arg-type]
