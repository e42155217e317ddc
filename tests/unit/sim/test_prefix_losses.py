"""The bench of lost prefixes counts what engines compute again, on a small crowded cluster."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]
BENCH = ROOT / "launch" / "bench" / "prefix_losses.py"
spec = importlib.util.spec_from_file_location("prefix_losses", BENCH)
assert spec is not None
assert spec.loader is not None
losses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(losses)


def test_what_is_lost_and_what_a_perfect_prewarm_would_find() -> None:
    cluster = ROOT / "launch" / "configs" / "clusters" / "hetero-1.toml"
    cell = losses.measure(cluster, "synthetic:20:3", "90%", seed=0, workflows=12, share=0.5)
    for way in (losses.OFF, "retain=0.5", losses.FREE):
        found = cell[way]
        shares = [found[f"{name}_frac"] for name in ("hit", "evicted", "elsewhere")]
        assert all(share >= 0 for share in shares)
        assert 0 < sum(shares) < 1
        assert 0 < found["mean_s"] <= found["p95_s"]
    assert cell[losses.OFF]["kept_used_frac"] is None
    assert 0 <= cell["retain=0.5"]["kept_used_frac"] + cell["retain=0.5"]["kept_wasted_frac"] <= 1
    assert cell[losses.OFF]["elsewhere_frac"] > 0.01  # a small run: every worker begins cold
    assert cell[losses.FREE]["elsewhere_frac"] < 0.001
    assert cell[losses.FREE]["hit_frac"] > cell[losses.OFF]["hit_frac"]
