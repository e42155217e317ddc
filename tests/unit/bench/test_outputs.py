"""Report and trace: complete, self-contained, escaped, and consistent with the records."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from hexgen_sglang.bench import perfetto, plots
from hexgen_sglang.bench.assemble import bench_result
from hexgen_sglang.bench.loads import Load
from hexgen_sglang.bench.plan import Facts, Plan
from hexgen_sglang.bench.report import render, write_report
from hexgen_sglang.bench.systems import parse_systems
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import BenchResult, RunFacts
from hexgen_sglang.workload.plan import Workload

Serve = Callable[..., RunRecord]


@pytest.fixture
def compared(
    workload: Workload,
    serve: Serve,
    linear_profile: Callable[..., AcceleratorProfile],
    tmp_path: Path,
) -> tuple[BenchResult, Facts]:
    plan = Plan(
        cluster=ClusterConfig(workers=(WorkerRow(name="w"),)),
        profiles=(linear_profile(name="gpu-x"),),
        trace=workload.trace,
        loads=(Load("60%", 0.5),),
        seeds=(1,),
        systems=tuple(parse_systems("fcfs+round_robin,hexgen")),
        workload=workload.settings,
        time_scale=4.0,
        folder=tmp_path,
    )
    facts: Facts = {
        ("60%", "fcfs+round_robin"): [RunFacts(serve(workload, 2.0))],
        ("60%", "hexgen"): [RunFacts(serve(workload, 1.0))],
    }
    command = ["hexgen-sglang", "bench", "--trace", "<b>&'x'"]
    return bench_result(plan, facts, "fcfs+round_robin", 0.8, command, 60.0), facts


def test_report_needs_no_network_and_states_what_it_rests_on(
    compared: tuple[BenchResult, Facts], tmp_path: Path
) -> None:
    result, facts = compared
    path = tmp_path / "deep" / "report.html"
    write_report(result, facts, path)
    html = path.read_text()
    addresses = set(re.findall(r"""(?:src|href)=["']([^"'#][^"']*)""", html))
    assert addresses == set()
    assert not re.search(r"<script|@import|url\((?!#)", html)
    assert html.count("<svg") == 4
    for stated in ("synthetic:6:0", "gpu-x", "made up", "0.8000", "every law held", "seeds"):
        assert stated in html
    assert "--trace &#39;&lt;b&gt;&amp;" in html
    assert "<b>" not in html


def test_invalid_result_is_marked(compared: tuple[BenchResult, Facts]) -> None:
    result, facts = compared
    html = render(replace(result, valid=False, invalid_because=("causality: <1>",)), facts)
    assert "Invalid: do not use these figures" in html
    assert "causality: &lt;1&gt;" in html


def test_plots_of_equal_input_are_equal(compared: tuple[BenchResult, Facts]) -> None:
    _, facts = compared
    runs = {name: some for (_, name), some in facts.items()}
    assert plots.latency_cdf(runs) == plots.latency_cdf(runs)


def test_in_flight_is_time_weighted(served: RunRecord) -> None:
    """Requests times seconds in the bins are those of the records."""
    edges = np.linspace(0.0, served.span_s, 50)
    for worker in ("w0", "w1"):
        held = plots.in_flight(served, worker, edges)
        spent = sum(r.end_s - r.sent_s for r in served.requests if r.worker == worker)
        assert float((held * np.diff(edges)).sum()) == pytest.approx(spent)


def test_trace_has_one_slice_a_request_and_no_overlap_on_a_thread(
    served: RunRecord, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    perfetto.write_trace({("60%", "perfect"): [RunFacts(served)]}, path)
    events = json.loads(path.read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X" and e["name"] != "decode"]
    assert {e["args"]["request"] for e in slices} == {r.request_id for r in served.requests}
    assert len(slices) == len(served.requests)
    by_thread: dict[int, list[tuple[float, float]]] = {}
    for event in slices:
        by_thread.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_thread.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    counters = [e for e in events if e["ph"] == "C"]
    assert counters[-1]["args"]["requests"] == 0
    assert {
        e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"
    } == {"perfect, 60%, seed 1"}


def test_a_simulated_result_says_so(compared: tuple[BenchResult, Facts]) -> None:
    result, facts = compared
    html = render(replace(result, settings={**result.settings, "engine": "sim"}), facts)
    assert "simulated</h1>" in html
    assert "the host&#39;s time and the network&#39;s are 0 unless measured ones were given" in html
    assert "real SGLang" not in html
