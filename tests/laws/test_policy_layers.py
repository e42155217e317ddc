"""The policy's cells and their summary (launch/bench/policy_layers.py), on a small real run."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(ROOT)
    script = ROOT / "launch" / "bench" / "policy_layers.py"
    spec = importlib.util.spec_from_file_location("policy_layers", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_small_layer_runs_is_summed_up_and_not_run_again(
    layers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["policy_layers", "widened", "--traces", "synthetic:20:1", "--folder", str(tmp_path)]
    given += ["--clusters", "hetero-2", "--arrivals", "gamma:3", "--loads", "90%", "60%"]
    given += ["--systems", "fcfs+round_robin", "coordinator:least_load+lpm", "hexgen"]
    monkeypatch.setattr(sys, "argv", [*given, "--workflows", "8", "--seeds", "1", "--jobs", "1"])
    assert layers.main() == 0
    names = {load: f"hetero-2-synthetic201-gamma3-{load}.json" for load in (60, 90)}
    files = [tmp_path / "widened" / names[load] for load in (60, 90)]
    results = [json.loads(path.read_text("utf-8")) for path in files]
    assert all(result["valid"] for result in results)
    found = json.loads((tmp_path / "widened" / "summary.json").read_text("utf-8"))
    assert [row["load"] for row in found["cells"]] == ["60%", "90%"]
    assert len(found["goodput"]) == len(layers.GOODPUT_SCALES)
    for row, load in zip(found["cells"], [one["loads"][0] for one in results], strict=True):
        systems = load["systems"]
        papers = [row["p95_s"] for name, row in systems.items() if ":paper[" in name]
        assert len(papers) == len(layers.ALPHAS)
        assert row["p95_vs_paper"] == min(papers) / systems["hexgen"]["p95_s"]
        assert "hexgen" not in row["best_baseline"]
        assert row["mean_vs_lower_bound"] >= row["mean_vs_fluid_bound"] > 0.0
        assert row["lower_bound_p95_s"] > row["lower_bound_mean_s"]
        assert found["p95_vs_paper"][row["load"]] == pytest.approx(row["p95_vs_paper"])
    made_ns = [path.stat().st_mtime_ns for path in files]
    assert layers.main() == 0
    assert [path.stat().st_mtime_ns for path in files] == made_ns


def test_means_of_ratios_are_geometric_and_leave_out_what_is_unknown(layers: Any) -> None:
    assert layers.mean_of([0.5, 2.0, None]) == pytest.approx(1.0)
    assert layers.mean_of([None]) is None


def test_goodput_without_any_attainment_gives_no_ratio(layers: Any) -> None:
    def load(rate: float, ours: float, paper: float) -> dict[str, Any]:
        names = {layers.OURS: ours, layers.paper(0.4): paper, "fcfs+round_robin": 0.0}
        systems = {name: {"attainment": {"3": met, "4": met}} for name, met in names.items()}
        return {"rate": rate, "systems": systems}

    result = {
        "cluster": "c",
        "trace": "t",
        "settings": {"arrivals": "poisson"},
        "loads": [load(1.0, 1.0, 0.97), load(2.0, 0.96, 0.93)],
    }
    row = layers.goodput_rows(result)[0]
    assert row["vs_fcfs_round_robin"] is None
    assert row["vs_best_baseline"] is None
    assert row["vs_paper"] == pytest.approx(2.0 / 1.5)
    assert not math.isnan(row["goodput_per_s"])


def test_goodput_of_paper_is_that_of_the_best_alpha_at_each_load(layers: Any) -> None:
    def load(rate: float, alpha: float, met: float) -> dict[str, Any]:
        names = {layers.OURS: 1.0, layers.paper(alpha): met, "fcfs+round_robin": 1.0}
        systems = {name: {"attainment": {"3": met, "4": met}} for name, met in names.items()}
        return {"rate": rate, "systems": systems}

    loads = [load(1.0, 0.4, 0.97), load(2.0, 0.8, 0.93)]  # each alpha ran at one of them
    identity = {"cluster": "c", "trace": "t", "settings": {"arrivals": "poisson"}}
    row = layers.goodput_rows({**identity, "loads": loads})[0]
    assert row["vs_paper"] == pytest.approx(2.0 / 1.5)


def test_a_folder_without_traces_is_named(layers: Any, tmp_path: Path) -> None:
    with pytest.raises(layers.ConfigError, match=r"no trace files"):
        layers.traces([str(tmp_path)])
