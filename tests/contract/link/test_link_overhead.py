"""The benchmark of the link runs, and its settings are what they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "launch" / "bench" / "link_overhead.py"


def test_the_benchmark_measures_what_it_says(tmp_path):
    figures = tmp_path / "figures.json"
    options = ["--steps", "400", "--rounds", "1", "--step-us", "500", "--idle-s", "0.1"]
    subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--json", str(figures)], check=True, timeout=110
    )
    peers = json.loads(figures.read_text())["peers"]
    assert list(peers) == ["none", "healthy", "absent", "stopped"]
    for measured in peers.values():
        assert measured["num_reported"] == 400
        assert measured["num_dropped"] == 0
        for call in ("report_load", "report", "take_commands"):
            assert 0 < measured["calls"][call]["median_us"] <= measured["calls"][call]["max_us"]
    assert peers["none"]["num_sent"] == peers["absent"]["num_sent"] == 0
    assert 0 < peers["healthy"]["num_sent"] <= 400
