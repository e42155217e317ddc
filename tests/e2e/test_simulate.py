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
from hexgen_sglang.cli.bench import command as bench_command
from hexgen_sglang.cli.simulate import command
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.errors import ConfigError
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


def test_host_times_come_from_a_benchs_file(tmp_path: Path) -> None:
    def run(host: Path | None, out: Path) -> BenchResult:
        options = {
            "--cluster": CLUSTER,
            "--trace": "synthetic:8:1",
            "--workflows": 4,
            "--rate": "0.1",
            "--systems": "fcfs+round_robin",
            "--jobs": 1,
            "--json": out,
        }
        if host is not None:
            options["--host"] = host
        arguments = [str(part) for pair in options.items() for part in pair]
        done = CliRunner().invoke(APP, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return msgspec.json.decode(out.read_bytes(), type=BenchResult)

    plain = run(None, tmp_path / "plain.json")
    host = plain.systems["fcfs+round_robin"].host
    assert host is not None
    assert (host.to_engine_s, host.back_s) == (0, 0)

    slow = msgspec.structs.replace(host, to_engine_s=0.5, back_s=0.25)
    bench = json.loads((tmp_path / "plain.json").read_bytes())
    for load in bench["loads"]:
        load["systems"]["fcfs+round_robin"]["host"] = msgspec.to_builtins(slow)
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    slower = run(tmp_path / "bench.json", tmp_path / "slower.json").systems["fcfs+round_robin"]
    assert slower.host is not None
    assert slower.host.to_engine_s == pytest.approx(0.5)
    assert slower.host.back_s == pytest.approx(0.25)
    assert (slower.mean_s or 0) > (plain.systems["fcfs+round_robin"].mean_s or 0) + 2

    with pytest.raises(ConfigError, match=r"absent\.json"):
        run(tmp_path / "absent.json", tmp_path / "no.json")


def test_only_simulations_take_a_hosts_times_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--host"):
        bench_command(cluster=CLUSTER, host=tmp_path / "bench.json")
