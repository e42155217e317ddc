"""`tune` and `plan` as a user runs them, on the real simulator, with answers that are known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cli.main import main
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.results.statistics import latencies, quantile
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

CONFIGS = Path(__file__).parents[2] / "launch/configs"
CLUSTER = CONFIGS / "clusters/hetero-1.toml"
TRACE = "synthetic:15"

# With alpha = 1 `paper` sends everything to the fastest worker: under twice the capacity
# anything else is much better.
TUNE = [
    *("tune", "--cluster", str(CLUSTER), "--system", "coordinator:paper[alpha=1.0]+fcfs"),
    *("--trace", TRACE, "--rate", "200%", "--workflows", "10", "--search", "alpha=0:0.9"),
    *("--candidates", "3"),
]
PLAN = [
    *("plan", "--trace", TRACE, "--system", "paper", "--workflows", "10", "--seeds", "3"),
    *("--accelerators", str(CONFIGS / "accelerators"), "--jobs", "1"),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    def call(*arguments: str) -> tuple[int, str, str, Any]:
        """Exit status, output, errors and the JSON result of a command."""
        path = tmp_path / "result.json"
        path.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["hexgen-sglang", *arguments, "--json", str(path)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        result = json.loads(path.read_text()) if path.exists() else None
        return int(left.value.code or 0), said.out, said.err, result

    return call


def test_tune_finds_a_better_setting_and_its_figures_are_the_simulators(run: Any) -> None:
    status, out, err, result = run(*TUNE, "--seeds", "3", "--jobs", "1")
    assert status == 0, err
    best = result["ranking"][0]
    assert best["settings"] in ({"alpha": 0.0}, {"alpha": 0.9})
    assert result["gain_is_sure"]
    assert best["gain"]["low"] > 1
    assert result["default"] == {"alpha": 1.0}
    assert result["num_runs"] == 9
    assert result["best_system"] in out
    assert "default" in out
    assert "runner-up" in out
    profiles = cluster_profiles(load_cluster(CLUSTER), None)
    trace = load_trace(TRACE)
    settings = WorkloadSettings(2 * capacity_per_s(trace, profiles), 10)
    workload = build_workload(trace, replace(settings, seed=2), profiles)
    facts = simulate(parse_system(result["best_system"]), workload, profiles)
    assert quantile(latencies(facts.run), 0.95) == best["values"][2]


def test_tune_gives_the_same_answer_in_two_processes(run: Any) -> None:
    arguments = [*TUNE, "--seeds", "2", "--objective", "attainment", "--workflows", "4"]
    results = [run(*arguments, "--jobs", jobs)[3] for jobs in ("1", "2")]
    for result in results:
        del result["wall_s"], result["command"]
    assert results[0] == results[1]


def test_plan_names_the_cheapest_mix_that_holds(run: Any) -> None:
    status, out, err, result = run(
        *PLAN, "--slo", "150s", "--rate", "0.2", "--attainment", "0.8", "--gpus", "a100:1-3"
    )
    assert status == 0, err
    assert result["best"]["counts"] == {"a100": 2}
    assert result["best"]["verdict"] == "holds"
    assert result["best"]["attainment"]["low"] >= 0.8
    # One cannot serve the rate, whatever is done.
    assert [(one["counts"], one["verdict"]) for one in result["cheaper"]] == [
        ({"a100": 1}, "too small")
    ]
    assert "2 a100, 12.80 USD/h: holds" in out
    assert "margin" in out
    profile = profile_from_toml((CONFIGS / "accelerators/a100.toml").read_text("utf-8"), "a100")
    settings = WorkloadSettings(0.2, 10, deadline_scale=None)
    shares = []
    for seed in range(result["best"]["num_seeds"]):
        trace = load_trace(TRACE)
        workload = build_workload(trace, replace(settings, seed=seed), [profile] * 2)
        due = tuple(replace(one, budget_s=150.0) for one in workload.workflows)
        facts = simulate(parse_system("paper"), replace(workload, workflows=due), [profile] * 2)
        measured = facts.run.measured()
        shares.append(sum(one.e2e_s <= 150 for one in measured) / len(measured))
    assert sum(shares) / len(shares) == pytest.approx(result["best"]["attainment"]["value"])


def test_plan_follows_the_prices_it_is_told(run: Any) -> None:
    arguments = [*PLAN, "--slo", "2m", "--rate", "0.02", "--gpus", "a100:0-1,h100:0-1"]
    assert run(*arguments)[3]["best"]["counts"] == {"a100": 1, "h100": 0}
    _, out, _, result = run(*arguments, "--price", "h100=1")
    assert result["best"]["counts"] == {"a100": 0, "h100": 1}
    assert "1 h100, 1.00 USD/h: holds" in out


def test_plan_says_when_nothing_holds(run: Any) -> None:
    status, out, _, result = run(*PLAN, "--slo", "1s", "--rate", "0.01", "--gpus", "a100:1")
    assert (status, result["best"], result["num_runs"]) == (1, None, 0)
    assert "No mix of 1 holds 95.0% within 1 s" in out
    assert "1 a100, 6.40 USD/h: too slow" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TUNE, "--objective", "speed"], "objective='speed': must be one of p95"),
        ([*TUNE, "--rate", "50%,90%"], "must be one rate"),
        ([*TUNE, "--search", "beta"], "'beta'"),
        ([*TUNE, "--system", "lpm+round_robin"], "only a coordinator"),
        ([*PLAN, "--slo", "soon", "--rate", "1", "--gpus", "a100:1"], "slo='soon'"),
        ([*PLAN, "--slo", "1s", "--rate", "0", "--gpus", "a100:1"], "rate=0.0"),
        ([*PLAN, "--slo", "1s", "--rate", "1", "--gpus", "b200:1"], "'b200': must be one of a100"),
        ([*PLAN, "--slo", "1s", "--rate", "1", "--gpus", "a100:1", "--price", "a100"], "dollars"),
    ],
)
def test_wrong_use_ends_with_one_line(run: Any, arguments: list[str], message: str) -> None:
    status, _, err, result = run(*arguments)
    assert (status, result) == (2, None)
    assert message in err
    assert "Traceback" not in err
