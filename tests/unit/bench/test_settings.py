"""Loads, time-scaled settings, and what each system makes of the coordinator's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.bench.dispatchers import coordinator_config
from hexgen_sglang.bench.engines import Engines, Reading, emulation_between, totals_between
from hexgen_sglang.bench.loads import Load, parse_loads
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.scaling import scaled_settings
from hexgen_sglang.bench.store import read_record
from hexgen_sglang.bench.systems import Engine, parse_system
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.results.laws import EngineTotals


def test_loads_are_rates_or_shares_of_the_capacity() -> None:
    assert parse_loads("0.5, 60%", 0.2) == [
        Load("0.5", 0.5),
        Load("60%", pytest.approx(0.12)),
    ]


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan%", "0.1,50%"])
def test_bad_loads_name_the_value(text: str) -> None:
    with pytest.raises(ConfigError, match="rate="):
        parse_loads(text, 0.2)


def test_durations_shrink_and_rates_grow_with_the_time_scale() -> None:
    settings = scaled_settings(DISPATCH, "least_load", {"barrier_s": 2.0}, 4.0)
    assert settings["barrier_s"] == 0.5
    assert (
        settings["default_tokens_per_s"]
        == 4 * DISPATCH.defaults("least_load")["default_tokens_per_s"]
    )
    completion = scaled_settings(DISPATCH, "earliest_completion", {}, 4.0)
    assert completion["prefix_trust"] == DISPATCH.defaults("earliest_completion")["prefix_trust"]


@pytest.mark.parametrize("name", list(DISPATCH))
def test_every_dispatch_policy_can_be_made_with_its_scaled_settings(name: str) -> None:
    DISPATCH.create(name, **scaled_settings(DISPATCH, name, {}, 4.0))


def test_systems_decide_the_coordinators_policies() -> None:
    base = CoordinatorConfig(look_ahead=7, dispatch="round_robin")
    early = coordinator_config(parse_system("coordinator:least_load+lpm"), "", base, 5.0)
    assert (early.dispatch, early.binding, early.ordering) == ("least_load", "early", "fcfs")
    assert early.look_ahead == 7
    late = coordinator_config(parse_system("hexgen"), "tcp://127.0.0.1:5000", base, 5.0)
    assert (late.binding, late.ordering, late.link) == (
        "late",
        "least_slack",
        "tcp://127.0.0.1:5000",
    )
    assert not late.trust_output_limits
    assert late.ordering_settings == {"best_effort_slack_s": 6.0}
    eager = parse_system("coordinator:marginal_cost+hexgen[best_effort_slack_s=12]")
    config = coordinator_config(eager, "tcp://127.0.0.1:5000", base, 5.0)
    assert config.ordering_settings == {"best_effort_slack_s": 2.4}
    assert late.heartbeat_ms == 200


PROFILE = Path(__file__).resolve().parents[3] / "launch/configs/accelerators/a100.toml"


def row(name: str = "w", **fields: object) -> WorkerRow:
    return WorkerRow(name=name, profile=str(PROFILE), **fields)  # type: ignore[arg-type]


def test_workers_get_the_flags_of_the_comparison(tmp_path: Path) -> None:
    config = ClusterConfig(workers=(row(count=2, schedule_policy="lpm"),))
    engines = Engines(config, Engine("hexgen", "urgency"), 5.0, linked=True, folder=tmp_path)
    command = " ".join(engines.specs["w-1"].command())
    for flags in (
        "--schedule-policy hexgen",
        "--hexgen-ordering urgency",
        "--hexgen-time-scale 5.0",
        f"--hexgen-coordinator {engines.link}",
        "--hexgen-worker-id w-1",
        "--weight-version w-1",
        "--hexgen-best-effort-slack 6.0",
        "--enable-metrics",
    ):
        assert flags in command
    eager = Engine("hexgen", "least_slack", ordering_settings=(("best_effort_slack_s", 12.0),))
    given = Engines(config, eager, 5.0, linked=True, folder=tmp_path)
    assert "--hexgen-best-effort-slack 2.4" in " ".join(given.specs["w-0"].command())
    stock = Engines(config, Engine("priority"), 5.0, linked=False, folder=tmp_path)
    command = " ".join(stock.specs["w-0"].command())
    assert "--schedule-policy fcfs" in command
    assert "--enable-priority-scheduling" in command
    assert "--hexgen-coordinator" not in command
    assert "--hexgen-ordering" not in command


def test_time_scale_needs_emulated_workers(tmp_path: Path) -> None:
    config = ClusterConfig(workers=(row("a"), WorkerRow(name="b")))
    with pytest.raises(ConfigError, match=r"time_scale=2\.0: must be 1 .* b"):
        Engines(config, Engine("fcfs"), 2.0, linked=False, folder=tmp_path)


def test_profiles_follow_the_cluster_files_order() -> None:
    config = ClusterConfig(workers=(row("a", count=2), WorkerRow(name="b")))
    with pytest.raises(ConfigError, match="--reference"):
        cluster_profiles(config, None)
    profiles = cluster_profiles(config, PROFILE)
    assert [profile.name for profile in profiles] == ["a100"] * 3


def test_unreadable_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"x\.json"):
        read_record(tmp_path / "x.json")


def reading(requests: int, busy: float, overhead: float, drift: float) -> Reading:
    summary = {
        "predicted_s": {"prefill": busy / 2, "decode": busy / 2, "mixed": 0.0},
        "num_steps": {"prefill": 1, "decode": int(busy), "mixed": 0},
        "overhead_s": overhead,
        "drift_s": drift,
    }
    totals = {name: EngineTotals(requests, 10 * requests, requests) for name in ("a", "b")}
    return Reading(totals, {"a": summary})


def test_a_run_is_the_difference_of_two_readings() -> None:
    before, after = reading(5, 10.0, 1.0, 0.5), reading(8, 30.0, 2.0, 0.4)
    assert totals_between(before, after) == EngineTotals(6, 60, 6)
    (one,) = emulation_between(before, after).values()
    assert one["busy_s"] == 20.0
    assert one["overhead_frac"] == pytest.approx(0.05)
    assert one["drift_frac"] == pytest.approx(-0.005)
    (idle,) = emulation_between(before, before).values()
    assert (idle["busy_s"], idle["overhead_frac"], idle["drift_frac"]) == (0.0, 0.0, 0.0)
