"""`hexgen-sglang tune`: what it prints is a system that the other commands take."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cli.tune import command
from hexgen_sglang.tuner.space import known_settings

CLUSTER = Path(__file__).resolve().parents[2] / "launch/configs/clusters/hetero-1.toml"
APP = typer.Typer()
APP.command()(command)


def test_the_winner_is_printed_as_a_system_with_all_that_was_searched(tmp_path: Path) -> None:
    """Everything waits behind one workflow at a time in the present system; nothing is worse."""
    out = tmp_path / "tune.json"
    options = {
        "--cluster": CLUSTER,
        "--system": "coordinator:marginal_cost[working_set=0.001]+hexgen[best_effort_slack_s=5]",
        "--trace": "synthetic:8:1",
        "--rate": "60%",
        "--workflows": 12,
        "--seeds": 2,
        "--candidates": 3,
        "--jobs": 1,
        "--objective": "mean",
        "--json": out,
    }
    arguments = [str(part) for pair in options.items() for part in pair]
    wanted = ("caution=1:3", "working_set=1:2", "ordering.best_effort_slack_s")
    arguments += [part for name in wanted for part in ("--search", name)]
    done = CliRunner().invoke(APP, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_bytes())
    assert result["space"] == {
        "caution": "1:3",
        "working_set": "1:2",
        "ordering.best_effort_slack_s": "1.25:20:log",
    }
    best = result["ranking"][0]["settings"]
    assert best["working_set"] >= 1.0
    [line] = [line for line in done.output.splitlines() if line.startswith("system ")]
    system = parse_system(line.split(None, 1)[1])
    assert system.name == result["best_system"]
    assert {name: known_settings(system)[name] for name in best} == best
