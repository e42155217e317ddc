"""The command line: what it announces, and what it refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hexgen_sglang.bench.plan import EngineKind, engine_kind
from hexgen_sglang.cli import simulate
from hexgen_sglang.cli.bench import DEFAULT_SYSTEMS, command
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow
from hexgen_sglang.core.errors import ConfigError

CLUSTERS = Path(__file__).resolve().parents[3] / "launch/configs/clusters"
APP = typer.Typer()
APP.command()(command)


def invoke(*arguments: str) -> str:
    """Output of a dry run; errors of ours are raised."""
    cluster = ["--cluster", str(CLUSTERS / "hetero-1.toml"), "--dry-run"]
    done = CliRunner().invoke(APP, [*cluster, *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_dry_run_tells_capacity_loads_and_time() -> None:
    text = invoke("--trace", "synthetic:20", "--rate", "60%,90%", "--seeds", "2")
    assert "hetero-1: 4 workers; trace synthetic, 20 workflows; capacity bound 0." in text
    rates = [float(line.split(": ")[1].split()[0]) for line in text.splitlines() if "load" in line]
    assert rates[1] == pytest.approx(1.5 * rates[0], rel=1e-3)
    runs = 2 * 2 * len(DEFAULT_SYSTEMS.split(","))
    assert f"{runs} runs" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--systems", "best"), "ENGINE+round_robin"),
        (("--baseline", "hexgen", "--systems", "fcfs+round_robin"), "--baseline=hexgen"),
        (("--rate", "0"), "rate='0'"),
        (("--time-scale", "0"), "--time-scale=0.0"),
        (("--trace", "nowhere.json"), "nowhere.json"),
        (("--arrivals", "never"), "arrivals='never'"),
        (("--warmup-frac", "1"), "warmup_frac=1.0"),
        (("--engine", "live"), "engine=live"),
        (("--engine", "sim", "--resume"), "--resume"),
        (("--jobs", "2"), "--jobs=2"),
    ],
)
def test_wrong_arguments_name_themselves(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        invoke(*arguments)
    assert message in str(caught.value)


def test_deadlines_can_be_left_out() -> None:
    assert "runs" in invoke("--trace", "synthetic:5", "--deadline-scale", "0")


def test_simulate_takes_the_options_of_the_bench_but_the_engine() -> None:
    options = {}
    for name, function in (("bench", command), ("simulate", simulate.command)):
        app = typer.Typer()
        app.command()(function)
        options[name] = {option.name for option in typer.main.get_command(app).params}
    assert options["bench"] - options["simulate"] == {"engine"}


def test_the_cluster_file_decides_what_serves_unless_the_user_does() -> None:
    emulated, real = WorkerRow(name="a", profile="a100.toml"), WorkerRow(name="b")
    serves = {
        "emulated": ClusterConfig(workers=(emulated,)),
        "live": ClusterConfig(workers=(real,)),
        None: ClusterConfig(workers=(emulated, real)),
    }
    for kind, cluster in serves.items():
        assert engine_kind(cluster, None) == kind
        assert engine_kind(cluster, EngineKind.SIM) is EngineKind.SIM
    with pytest.raises(ConfigError, match="engine=emulated: workers without a profile: b"):
        engine_kind(serves[None], EngineKind.EMULATED)
