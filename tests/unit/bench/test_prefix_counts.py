"""What the bench reads of kept and prewarmed prefixes, and traces that get time for tools."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hexgen_sglang.bench.engines import Reading, _prefixes, prefixes_between
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.formats.jsonl import write

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location(
    "tool_time", ROOT / "launch" / "bench" / "tool_time.py"
)
assert spec is not None
assert spec.loader is not None
tool_time = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool_time)

FIRST = """\
# TYPE hexgen_prewarmed_prefix_tokens_total counter
hexgen_prewarmed_prefix_tokens_total{outcome="computed"} 1500.0
hexgen_prewarmed_prefix_tokens_total{outcome="saved"} 1.2e+03
hexgen_retained_prefix_tokens_total{outcome="kept",pid="7"} 40.0
hexgen_prewarms_left_total{reason="refused"} 3.0
sglang:prompt_tokens_total{model_name="m"} 9.0
"""
SECOND = 'hexgen_prewarmed_prefix_tokens_total{outcome="computed"} 500.0\n'


def test_prefix_counts_are_summed_over_workers_and_compared_between_readings() -> None:
    before = Reading({}, {}, _prefixes([FIRST]))
    after = Reading({}, {}, _prefixes([FIRST, SECOND]))
    assert before.prefixes == {
        "prewarmed_computed": 1_500.0,
        "prewarmed_saved": 1_200.0,
        "retained_kept": 40.0,
    }
    assert prefixes_between(before, after) == {
        "prewarmed_computed": 500.0,
        "prewarmed_saved": 0.0,
        "retained_kept": 0.0,
    }
    assert prefixes_between(Reading({}, {}), after) == after.prefixes


def test_only_stages_behind_a_database_get_time_for_it(tmp_path: Path) -> None:
    trace = load_trace("synthetic:200:1")
    changed = tool_time.with_tool_time(trace, 2.0)
    waits: list[float] = []
    for before, after in zip(trace.workflows, changed.workflows, strict=True):
        for one, other in zip(before.stages, after.stages, strict=True):
            assert (one.name, one.requests, one.after) == (other.name, other.requests, other.after)
            if one.name in tool_time.BEHIND_A_DATABASE:
                waits.append(other.tool_s)
            else:
                assert other.tool_s == 0
    assert sum(waits) / len(waits) == pytest.approx(2.0, rel=0.1)
    path = tmp_path / "trace.jsonl"
    write(changed, path)
    assert load_trace(str(path)).workflows == changed.workflows
