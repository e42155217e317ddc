"""The generator: reproducible, well formed, and near the public traces in its means."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.synthetic import MAX_REVISIONS, SyntheticSettings, synthetic_trace
from hexgen_sglang.workload.trace import Trace

SHARED = Path(__file__).resolve().parents[4] / "shared" / "traces"


def means(trace: Trace) -> dict[str, tuple[float, float, float]]:
    """step -> (requests a workflow, mean input tokens, mean output tokens)."""
    lengths: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for workflow in trace.workflows:
        for stage, _, request in workflow.requests():
            lengths[workflow.stages[stage].name].append(
                (request.num_input_tokens, request.num_output_tokens)
            )
    return {
        name: (
            len(rows) / len(trace.workflows),
            sum(row[0] for row in rows) / len(rows),
            sum(row[1] for row in rows) / len(rows),
        )
        for name, rows in lengths.items()
    }


def test_equal_settings_give_equal_traces() -> None:
    assert load_trace("synthetic:20:3") == load_trace("synthetic:20:3")
    assert load_trace("synthetic:20:3").workflows != load_trace("synthetic:20:4").workflows
    assert len(load_trace("synthetic").workflows) == 100


def test_shape_is_the_published_one() -> None:
    trace = synthetic_trace(SyntheticSettings(num_workflows=500, seed=1))
    revisions = set()
    for workflow in trace.workflows:
        names = [stage.name for stage in workflow.stages]
        fan_outs = {stage.name: len(stage.requests) for stage in workflow.stages}
        revisions.add(names.count("revise"))
        assert names[0] == "information_retriever"
        assert fan_outs["generate_candidate"] == 2
        assert names[-1] == "unit_tester"
        assert ("evaluate" in fan_outs) == ("generate_unit_test" in fan_outs)
        assert 9 <= workflow.num_requests <= 30
    assert min(revisions) == 0
    assert max(revisions) == MAX_REVISIONS


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public traces are not beside the checkout")
@pytest.mark.parametrize(("name", "hard_frac"), [("trace1", 1.0), ("financial", 0.0)])
def test_means_are_near_those_of_the_public_traces(name: str, hard_frac: float) -> None:
    public = means(load_trace(SHARED / f"{name}.json"))
    made = means(synthetic_trace(SyntheticSettings(4000, 0, hard_frac)))
    assert set(made) == set(public)
    for step, (count, num_input, num_output) in public.items():
        assert made[step][0] == pytest.approx(count, rel=0.12), step
        assert made[step][1] == pytest.approx(num_input, rel=0.05), step
        assert made[step][2] == pytest.approx(num_output, rel=0.12), step


@pytest.mark.parametrize(
    "arguments", [{"num_workflows": 0}, {"seed": -1}, {"hard_frac": 1.5}, {"hard_frac": -0.1}]
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SyntheticSettings(**arguments)  # type: ignore[arg-type]
