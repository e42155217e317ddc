"""The benchmark of a scheduler step runs against the installed SGLang and writes its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "launch" / "bench" / "scheduler_step.py"


@pytest.mark.timeout(300)
def test_it_measures_every_policy_and_every_coordinator(tmp_path: Path) -> None:
    env = dict(os.environ)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # with it SGLang is compiled anew
    figures_file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH), "--waiting", "300", "--steps", "20"]
    done = subprocess.run(
        [*command, "--json", str(figures_file)],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(figures_file.read_text())
    assert report["waiting"] == 300
    for key in ("policies", "policies_at_128"):
        assert {"fcfs", "lpm", "hexgen"} <= set(report[key])
        assert all(figures["median_us"] > 0 for figures in report[key].values())
    linked = report["hexgen_with_link"]
    assert set(linked) == {"no_link", "answering", "stalled", "absent"}
    assert all(figures["median_us"] > 0 for figures in linked.values())
