"""The bench on real SGLang schedulers: two emulated workers, ten workflows, three systems.

About two minutes on two free cores: the engines are started twice, since the systems need two
queue orders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.bench.store import read_record
from hexgen_sglang.core.strict import convert
from hexgen_sglang.results.records import COMPLETED
from hexgen_sglang.results.schema import BenchResult
from hexgen_sglang.workload.formats import jsonl
from hexgen_sglang.workload.prefixes import CONTEXT
from hexgen_sglang.workload.trace import (
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

PROFILES = Path(__file__).resolve().parents[2] / "launch/configs/accelerators"
SYSTEMS = ("fcfs+round_robin", "sglang-router:cache_aware+fcfs", "hexgen")
WORKFLOWS = 10
REQUESTS_EACH = 7
# The only laws that a busy machine may break; every other one is about our own code.
ABOUT_THE_MACHINE = ("emulation: ", "driver: its lateness")


def request(name: str, output: int, own: int) -> TraceRequest:
    """900 tokens that all workflows share, 600 of the workflow, the rest its own."""
    template = PrefixPart(PrefixScope.TEMPLATE, name, 900)
    context = PrefixPart(PrefixScope.WORKFLOW, CONTEXT, 600)
    return TraceRequest(1500 + own, output, (template, context))


def small_trace() -> Trace:
    """Five workflows with a fan-out, a revision, tools and a vote."""
    workflows = []
    for number in range(5):
        stages = (
            TraceStage("plan", (request("plan", 5, 40),)),
            TraceStage(
                "draft", (request("draft", 30 + number, 50), request("draft", 12, 60)), after=(0,)
            ),
            TraceStage("revise", (request("draft", 20, 80),), after=(1,), tool_s=0.4),
            TraceStage("vote", tuple(request("vote", 6, own) for own in (30, 35, 40)), after=(2,)),
        )
        workflows.append(TraceWorkflow(f"q{number}", "text2sql", stages))
    return Trace("small", "small", "jsonl", tuple(workflows))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the command: its folder, result and output."""
    folder = tmp_path_factory.mktemp("bench")
    jsonl.write(small_trace(), folder / "small.jsonl")
    rows = [
        f'[[workers]]\nname = "{name}"\nprofile = "{PROFILES / name}.toml"'
        for name in ("a100", "a6000")
    ]
    (folder / "pair.toml").write_text('[cluster]\nname = "pair"\n' + "\n".join(rows) + "\n")
    command = [
        *(sys.executable, "-P", "-m", "hexgen_sglang", "bench"),
        *("--cluster", "pair.toml", "--trace", "small.jsonl", "--rate", "50%"),
        *("--workflows", str(WORKFLOWS), "--systems", ",".join(SYSTEMS)),
        *("--time-scale", "2", "--warmup-frac", "0", "--folder", "runs"),
        *("--json", "out.json", "--report", "out.html", "--perfetto", "trace.json"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=560)
    output = done.stdout + done.stderr
    assert done.returncode in (0, 1), output
    result = convert(json.loads((folder / "out.json").read_text()), BenchResult, "out.json")
    assert done.returncode == (0 if result.valid else 1), output
    return {"folder": folder, "result": result, "output": output}


@pytest.mark.timeout(600)
def test_every_law_holds(bench: dict[str, Any]) -> None:
    broken = [
        sentence
        for sentence in bench["result"].invalid_because
        if not sentence.split(": ", 1)[1].startswith(ABOUT_THE_MACHINE)
    ]
    assert broken == [], bench["output"]


def test_every_system_served_the_same_work(bench: dict[str, Any]) -> None:
    systems = bench["result"].systems
    assert tuple(systems) == SYSTEMS
    for figures in systems.values():
        assert figures.num_workflows == WORKFLOWS
        assert figures.num_requests == WORKFLOWS * REQUESTS_EACH
        assert figures.p95_s is not None
        assert figures.p95_s >= figures.p50_s > 0
    mixes = [f.tokens_per_s["input"] / f.tokens_per_s["output"] for f in systems.values()]
    assert mixes == pytest.approx([mixes[0]] * len(SYSTEMS), rel=1e-9)
    assert systems["fcfs+round_robin"].ratios["p95"].value == 1.0


def test_prefixes_of_templates_and_workflows_were_reused(bench: dict[str, Any]) -> None:
    """900 of about 1,545 prompt tokens are a template's, 600 the workflow's."""
    for name, figures in bench["result"].systems.items():
        assert 0.3 < figures.prefix_hit_frac < 0.98, name


def test_records_tell_who_served_what_and_when(bench: dict[str, Any]) -> None:
    paths = sorted((bench["folder"] / "runs/records").glob("*.json"))
    assert len(paths) == len(SYSTEMS)
    for path in paths:
        facts = read_record(path).facts
        workers = {request.worker for request in facts.run.requests}
        if facts.run.system == "hexgen":  # may leave the slow worker idle
            assert workers <= {"a100", "a6000"}
        else:
            assert workers == {"a100", "a6000"}, facts.run.system
        assert all(request.outcome == COMPLETED for request in facts.run.requests)
        assert all(request.queue_s is not None for request in facts.run.requests)
        assert all(request.ttft_s is not None for request in facts.run.requests)
        assert sum(row["steps"] for row in facts.emulation.values()) > 100
        # Emulated prefill and decode cannot be faster than the profile allows.
        assert min(workflow.e2e_s for workflow in facts.run.workflows) > 1.0


def test_report_and_trace_are_there(bench: dict[str, Any]) -> None:
    html = (bench["folder"] / "out.html").read_text()
    assert html.count("<svg") == 2 + len(SYSTEMS)
    events = json.loads((bench["folder"] / "trace.json").read_text())["traceEvents"]
    assert (
        sum(event["ph"] == "X" for event in events) == 2 * len(SYSTEMS) * WORKFLOWS * REQUESTS_EACH
    )


def test_nothing_was_left_running(bench: dict[str, Any]) -> None:
    folder = str(bench["folder"]).encode()
    assert [line for line in command_lines() if folder in line] == []


def command_lines() -> list[bytes]:
    """Of every process now; those that end while we look do not count."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines


@pytest.mark.timeout(300)
def test_the_worst_workflow_of_a_run_is_explained(bench: dict[str, Any]) -> None:
    script = Path(__file__).resolve().parents[2] / "launch/bench/explain_late.py"
    command = [
        *(sys.executable, "-P", str(script), "--cluster", "pair.toml", "--trace", "small.jsonl"),
        *("--load", "60%", "--workflows", "6", "--time-scale", "2", "--json", "late.json"),
    ]
    folder = bench["folder"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((folder / "late.json").read_text())
    assert [one for one in found["broken"] if not one.startswith(ABOUT_THE_MACHINE)] == []
    story = found["story"]
    assert [row["stage"] for row in story["passes"]] == ["plan", "draft", "revise", "vote"]
    assert len(story["decisions"]) >= REQUESTS_EACH
    text = (folder / "late.txt").read_text()
    assert f"workflow {story['workflow_id']} (text2sql) took" in text
    assert text.count("runner-up:") >= REQUESTS_EACH
