"""What a worker is taken to cost before it has been measured, and what takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.coordinator.cold_start import stated_costs
from hexgen_sglang.coordinator.config import CoordinatorConfig, CoordinatorFile, WorkerConfig
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core import accelerator
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.worker import StepCosts

ACCELERATORS = Path(__file__).parents[3] / "launch" / "configs" / "accelerators"
MEASURED = StepCosts(0.01, 1e-4, 0.0, 0.02, 1e-4, 0.0)


@pytest.mark.parametrize("path", sorted(ACCELERATORS.glob("*.toml")), ids=lambda path: path.stem)
def test_stated_costs_are_the_seconds_of_the_profile(path: Path) -> None:
    profile = profile_from_toml(path.read_text("utf-8"), path.stem)
    costs = stated_costs(ACCELERATORS)[profile.name]
    assert costs.prefill_s(900, 300) == pytest.approx(
        accelerator.prefill_s(profile, [(900, 300)]), rel=1e-3
    )
    assert costs.decode_s(7, 9_000) == pytest.approx(accelerator.decode_s(profile, 7, 9_000))
    faster = stated_costs(ACCELERATORS, time_scale=5.0)[profile.name]
    assert faster.decode_s(7, 9_000) == pytest.approx(costs.decode_s(7, 9_000) / 5)


async def test_a_coordinator_knows_unmeasured_workers_by_their_hardware() -> None:
    settings = CoordinatorFile(CoordinatorConfig(accelerators=str(ACCELERATORS)))
    told, untold = Coordinator(settings), Coordinator(CoordinatorFile())
    estimates = told.parts.estimates
    fast, slow = estimates.step_costs("w0", "a100"), estimates.step_costs("w1", "a6000")
    assert fast is not None
    assert slow is not None
    assert fast.decode_base_s < slow.decode_base_s
    assert estimates.step_costs("w2", "toaster") is None
    assert untold.parts.estimates.step_costs("w0", "a100") is None
    for coordinator in (told, untold):
        await coordinator.parts.client.close()


def test_what_a_worker_measures_takes_over() -> None:
    estimates = Estimates()
    estimates.state_costs(stated_costs(ACCELERATORS))
    estimates.costs.note("w0", MEASURED)
    assert estimates.step_costs("w0", "a100") == MEASURED
    assert estimates.step_costs("w1", "a100") == stated_costs(ACCELERATORS)["a100"]


def test_rates_of_ended_requests_take_over_where_no_steps_are_measured() -> None:
    estimates = Estimates()
    estimates.state_costs(stated_costs(ACCELERATORS))
    for _ in range(7):
        estimates.rates.note_prefill("w0", 1_000, 1.0)
        estimates.rates.note_decode("w0", 100, 1.0, 4)
    assert estimates.step_costs("w0", "a100") is not None
    estimates.rates.note_prefill("w0", 1_000, 1.0)
    estimates.rates.note_decode("w0", 100, 1.0, 4)
    assert estimates.step_costs("w0", "a100") is None
    assert estimates.step_costs("w1", "a100") is not None


def test_a_folder_without_profiles_is_refused_by_name(tmp_path: Path) -> None:
    config = CoordinatorConfig(accelerators=str(tmp_path))
    with pytest.raises(ConfigError, match=f"accelerators='{tmp_path}': must be a folder with"):
        Coordinator(CoordinatorFile(config, (WorkerConfig(url="http://127.0.0.1:1"),)))
    (tmp_path / "a.toml").write_text("name = 1")
    with pytest.raises(ConfigError, match=r"a\.toml"):
        stated_costs(tmp_path)


def test_a_cluster_file_names_the_folder_relative_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(
        '[coordinator]\naccelerators = "profiles"\n[[workers]]\nname = "w"\n'
        'platform = "torch_cpu"\n'
    )
    assert load_cluster(path).coordinator.accelerators == str(tmp_path / "profiles")
