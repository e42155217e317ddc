"""`hexgen-sglang simulate` on two processes: the bench's files, with one process's figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_systems
from hexgen_sglang.cli.simulate import command
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.results.schema import BenchResult
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

CLUSTER = Path(__file__).resolve().parents[2] / "launch/configs/clusters/hetero-1.toml"
SYSTEMS = "fcfs+round_robin,hexgen"
APP = typer.Typer()
APP.command()(command)


def test_simulate_writes_what_the_bench_writes(tmp_path: Path) -> None:
    result_path, trace_path = tmp_path / "result.json", tmp_path / "trace.json"
    options = {
        "--cluster": CLUSTER,
        "--trace": "synthetic:8:1",
        "--workflows": 6,
        "--rate": "0.1",
        "--seeds": 2,
        "--systems": SYSTEMS,
        "--time-scale": 8,
        "--jobs": 2,
        "--json": result_path,
        "--perfetto": trace_path,
        "--folder": tmp_path / "no-such-folder",
    }
    done = CliRunner().invoke(APP, [str(part) for pair in options.items() for part in pair])
    assert done.exit_code == 0, done.output
    result = msgspec.json.decode(result_path.read_bytes(), type=BenchResult)
    assert result.valid
    assert (result.time_scale, result.settings["engine"], result.overhead_frac) == (1, "sim", 0)
    assert "[4/4, " in done.output
    assert not (tmp_path / "no-such-folder").exists()
    assert json.loads(trace_path.read_bytes())["traceEvents"]

    profiles = cluster_profiles(load_cluster(CLUSTER), None)
    settings = WorkloadSettings(rate_per_s=0.1, num_workflows=6)
    for system in parse_systems(SYSTEMS):
        figures = result.systems[system.name]
        assert set(figures.utilisation) == {"a100-0", "a100-1", "a6000", "l40s"}
        ends = []
        for seed in (0, 1):
            workload = build_workload(
                load_trace("synthetic:8:1"), replace(settings, seed=seed), profiles
            )
            run = simulate(system, workload, profiles).run
            ends += [workflow.e2e_s for workflow in run.measured()]
        assert figures.num_workflows == len(ends)
        assert figures.mean_s == pytest.approx(sum(ends) / len(ends))


def test_the_engine_is_not_an_option() -> None:
    done = CliRunner().invoke(APP, ["--cluster", str(CLUSTER), "--engine", "live"])
    assert done.exit_code == 2
    assert "--engine" in done.output
