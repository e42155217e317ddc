"""The bench of shared reads: the less a repeated token costs, the sooner workflows end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location(
    "shared_reads", ROOT / "launch" / "bench" / "shared_reads.py"
)
assert spec is not None
assert spec.loader is not None
shared_reads = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared_reads)

CLUSTER = ROOT / "launch" / "configs" / "clusters" / "hetero-1.toml"


def test_a_share_of_one_changes_nothing_and_none_is_best() -> None:
    cell = shared_reads.measure(CLUSTER, "synthetic:20:3", "70%", 0, 12, [1.0, 0.0])
    assert cell["1"] == cell["read again"]
    assert cell["0"]["mean_s"] < cell["read again"]["mean_s"]


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"frac=1\.5: must be 0 to 1"):
        shared_reads.sharing([], 1.5)
