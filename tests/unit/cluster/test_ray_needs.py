"""What the Ray launcher takes of a node for a worker, and what it refuses before it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hexgen_sglang.cluster.config import RayNeeds, cluster_as_toml, load_cluster
from hexgen_sglang.cluster.ray_running import RayCluster
from hexgen_sglang.cluster.ray_worker import needs_of
from hexgen_sglang.core.errors import ConfigError


def rows(tmp_path: Path, text: str) -> dict:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return {row.name: row for row in load_cluster(path).workers}


def test_without_a_table_a_worker_needs_its_hardware(tmp_path: Path) -> None:
    (tmp_path / "a100.toml").write_text("")
    found = rows(
        tmp_path,
        '[[workers]]\nname = "emulated"\nprofile = "a100.toml"\n'
        '[[workers]]\nname = "named"\nhardware = "cpu"\n[[workers]]\nname = "any"\n',
    )
    assert needs_of(found["emulated"]) == RayNeeds(resources={"a100": 1.0})
    assert needs_of(found["named"]) == RayNeeds(resources={"cpu": 1.0})
    assert needs_of(found["any"]) == RayNeeds()


def test_a_table_says_it_all_and_survives_printing(tmp_path: Path) -> None:
    text = (
        '[[workers]]\nname = "a100"\nplatform = "cuda"\nmodel_path = "m"\nhardware = "a100"\n'
        '[workers.ray]\nnum_gpus = 4\nresources = {"accelerator_type:A100" = 0.001}\n'
        '[workers.env]\nNCCL_DEBUG = "INFO"\n'
    )
    row = rows(tmp_path, text)["a100"]
    wanted = RayNeeds(num_gpus=4, resources={"accelerator_type:A100": 0.001})
    assert needs_of(row) == wanted
    config = load_cluster(tmp_path / "cluster.toml")
    (tmp_path / "printed.toml").write_text(cluster_as_toml(config))
    assert load_cluster(tmp_path / "printed.toml") == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('platform = "cuda"', "num_gpus: must be at least 1"),
        ('schedule_policy = "lpm"', "schedule_policy='lpm': must be 'hexgen'"),
    ],
)
def test_what_ray_cannot_place_is_refused(tmp_path: Path, fields: str, message: str) -> None:
    row = rows(tmp_path, f'[[workers]]\nname = "w"\nmodel_path = "m"\n{fields}\n')["w"]
    with pytest.raises(ConfigError, match=message):
        needs_of(row)


def test_a_needed_resource_is_above_zero(tmp_path: Path) -> None:
    text = '[[workers]]\nname = "w"\n[workers.ray]\nresources = {a100 = 0}\n'
    with pytest.raises(ConfigError, match="resources"):
        rows(tmp_path, text)


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('[[workers]]\nname = "w"\n')
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'hexgen-sglang\[ray\]'"):
        RayCluster(load_cluster(path), address="auto", link=None, say=print)
