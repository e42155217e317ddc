"""A cluster file and a trace, made ready for runs that keep the laws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.sim.testbed import Latency, Testbed

CLUSTER = Path(__file__).parents[3] / "launch" / "configs" / "clusters" / "hetero-1.toml"


def test_runs_are_those_of_the_cluster_at_the_load_that_was_asked_for() -> None:
    bed = Testbed.of(CLUSTER, "synthetic:20:3")
    assert bed.worker_names == ("a100-0", "a100-1", "a6000", "l40s")
    assert bed.rate_per_s("50%") == pytest.approx(0.5 * bed.capacity_per_s)
    workload = bed.workload("50%", 8, seed=3, deadline_scale=None)
    assert all(one.budget_s is None for one in workload.workflows)
    facts = bed.run("coordinator:least_load+lpm", workload)
    assert {request.worker for request in facts.run.requests} <= set(bed.worker_names)
    assert len(facts.run.workflows) == 8
    slower = replace(bed, profiles=bed.profiles[2:], worker_names=bed.worker_names[2:])
    fewer = slower.run("coordinator:least_load+lpm", workload)
    seconds = [[one.e2e_s for one in run.run.workflows] for run in (facts, fewer)]
    assert Latency.of(seconds[1]).over(Latency.of(seconds[0]))["mean_ratio"] > 1.5


def test_a_load_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate='-5%'"):
        Testbed.of(CLUSTER, "synthetic:4").rate_per_s("-5%")
