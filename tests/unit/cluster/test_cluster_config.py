"""The cluster file: every file we ship loads, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.cluster.config import cluster_as_toml, load_cluster, worker_specs
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "launch" / "configs"
SHIPPED = sorted((CONFIGS / "clusters").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_the_named_clusters_are_shipped() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {"demo", "hetero-1", "hetero-2", "mixed-8", "homogeneous-4"}


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_shipped_file_loads(path: Path) -> None:
    if path.parent.name == "accelerators":
        assert profile_from_toml(path.read_text(), str(path)).name == path.stem
    else:
        assert load_cluster(path).cluster.name == path.stem


@pytest.mark.parametrize(
    ("name", "hardware"),
    [
        ("hetero-1", ["a100", "a100", "a6000", "l40s"]),
        ("hetero-2", ["a100", "a100", "a6000", "a6000"]),
        ("homogeneous-4", ["a100"] * 4),
    ],
)
def test_the_evaluated_clusters_have_their_accelerators(name: str, hardware: list[str]) -> None:
    config = load_cluster(CONFIGS / "clusters" / f"{name}.toml")
    assert [row.hardware for row in config.workers for _ in row.names()] == hardware


def test_rows_become_workers(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").touch()
    path = write(
        tmp_path,
        """
        [[workers]]
        name = "cpu"
        count = 2
        port = 21000
        model_path = "some/model"
        flags = ["--random-seed", "1"]
        env = {SGLANG_LOG = "1"}
        [[workers]]
        name = "slow"
        profile = "slow.toml"
        model_path = "some/model"
        schedule_policy = "fcfs"
        """,
    )
    first, second, slow = worker_specs(load_cluster(path))
    assert [spec.name for spec in (first, second, slow)] == ["cpu-0", "cpu-1", "slow"]
    assert [first.port, second.port] == [21000, 21001]
    assert [first.core, second.core, slow.core] == [0, 1, None]
    assert len({first.nccl_port, second.nccl_port, slow.nccl_port, slow.port}) == 4
    assert first.flags == ("--random-seed", "1")
    assert first.environment()["SGLANG_LOG"] == "1"
    assert slow.emulate == tmp_path / "slow.toml"
    assert slow.hardware == "slow"
    assert slow.schedule_policy == "fcfs"


def test_printed_settings_are_read_back(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [cluster]
        name = "east"
        [coordinator]
        dispatch = "round_robin"
        [[workers]]
        name = "cpu"
        flags = ["--max-running-requests", "4"]
        env = {A = "quote \\" and \\\\"}
        """,
    )
    config = load_cluster(path)
    again = write(tmp_path, cluster_as_toml(config))
    assert load_cluster(again) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cluster]\n", "workers"),
        ("[[workers]]\nname = 'a'\ncount = 0\n", r"count.*value '?0"),
        ("[[workers]]\nname = 'a'\ncount = 65\n", r"count.*value '?65"),
        ("[[workers]]\nname = 'a'\ncolour = 'red'\n", "colour"),
        ("[[workers]]\nname = 'a'\nplatform = 'tpu'\n", "tpu"),
        ("[[workers]]\nname = 'a'\n[[workers]]\nname = 'a'\n", "'a': must be unique"),
        ("[[workers]]\nname = 'a-0'\n[[workers]]\nname = 'a'\ncount = 2\n", "'a-0': must be"),
        ("[[workers]]\nname = 'coordinator'\n", "'coordinator': must be unique"),
        ("[[workers]]\nname = 'a'\nprofile = 'gone.toml'\n", "'gone.toml': no such file"),
        ("[[workers]]\nname = 'a'\nprofile = 'x'\nplatform = 'cuda'\n", "needs platform"),
        (
            "[[workers]]\nname = 'a'\nschedule_policy = 'lpm'\nordering = 'least_slack'\n",
            "ordering='least_slack'",
        ),
        ("[coordinator]\ndispatch = 'luck'\n[[workers]]\nname = 'a'\n", "'luck' is unknown"),
        ("not toml", "cluster.toml"),
    ],
)
def test_a_wrong_file_is_refused_with_field_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_cluster(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_cluster(tmp_path / "absent.toml")
