"""The command and environment of a worker, and the shape of a cluster; nothing is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hexgen_sglang.cluster import ports
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig, load_config
from hexgen_sglang.core.errors import ConfigError


def value_of(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_a_stock_worker_has_no_flag_of_ours() -> None:
    command = WorkerSpec(name="w", model_path="m").command()
    assert not [word for word in command if "hexgen" in word]
    assert "--schedule-policy" not in command
    assert value_of(command, "--max-total-tokens") == "16384"
    assert "--sleep-on-idle" in command


def test_a_gpu_worker_gets_sglangs_own_platform() -> None:
    spec = WorkerSpec(name="w", model_path="m", platform="cuda", schedule_policy="hexgen")
    assert value_of(spec.command(), "--schedule-policy") == "hexgen"
    assert not {"--device", "--max-total-tokens", "--sleep-on-idle"} & set(spec.command())
    assert "SGLANG_PLATFORM" not in spec.environment()


def test_a_linked_worker_says_who_it_is(tmp_path: Path) -> None:
    spec = WorkerSpec(
        name="a100-0",
        model_path="m",
        schedule_policy="hexgen",
        coordinator_link="tcp://127.0.0.1:5600",
        hardware="a100",
        emulate=tmp_path / "a100.toml",
        keys=tmp_path,
        ordering="least_slack",
        port=25001,
    )
    command = spec.command()
    assert value_of(command, "--hexgen-coordinator") == "tcp://127.0.0.1:5600"
    assert value_of(command, "--hexgen-worker-id") == "a100-0"
    assert value_of(command, "--hexgen-advertise-url") == "http://127.0.0.1:25001" == spec.url
    assert value_of(command, "--hexgen-hardware") == "a100"
    assert value_of(command, "--hexgen-emulate") == str(tmp_path / "a100.toml")
    assert value_of(command, "--hexgen-keys") == str(tmp_path)
    assert value_of(command, "--hexgen-ordering") == "least_slack"
    assert "--max-total-tokens" not in command, "the profile says how much KV there is"


def test_further_flags_come_last() -> None:
    spec = WorkerSpec(name="w", model_path="m", flags=("--max-total-tokens", "99"))
    assert spec.command()[-2:] == ["--max-total-tokens", "99"]


def test_a_pinned_worker_uses_a_core_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    for core in range(2 * len(allowed)):
        env = WorkerSpec(name="w", model_path="m", core=core).environment()
        assert int(env["SGLANG_CPU_OMP_THREADS_BIND"]) in allowed
        assert env["OMP_NUM_THREADS"] == "1"


def test_servers_cache_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    env = WorkerSpec(name="w", model_path="m", env={"X": "1"}).environment()
    assert "PYTHONDONTWRITEBYTECODE" not in env
    assert env["X"] == "1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"platform": "tpu"}, "platform='tpu'"),
        ({"platform": "cuda", "emulate": Path("x")}, "needs platform torch_cpu"),
        ({"coordinator_link": "tcp://127.0.0.1:1"}, "schedule_policy=None"),
    ],
)
def test_a_contradiction_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorkerSpec(name="w", model_path="m", **fields)


def test_a_port_is_no_other_processs_until_the_one_that_has_it_ends() -> None:
    code = (
        "import sys\n"
        "from hexgen_sglang.cluster import ports\n"
        "if sys.argv[1:]:\n"
        "    ports.FIRST_PORT = ports.LAST_PORT = int(sys.argv[1])\n"
        "print(ports.free_port(), flush=True)\n"
        "input()\n"
    )

    def started(*port: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, *port]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    with started() as first:
        assert first.stdout is not None
        port = first.stdout.readline().strip()
        with started(port) as second:
            out, told = second.communicate("\n", timeout=60)
            assert (out, second.returncode) == ("", 1)
            assert "no free TCP port found" in told
        first.communicate("\n", timeout=60)
    with started(port) as third:
        assert third.communicate("\n", timeout=60)[0].strip() == port


def test_ports_are_never_handed_out_twice() -> None:
    given = [ports.free_port() for _ in range(200)]
    assert len(set(given)) == 200
    assert all(ports.FIRST_PORT <= port <= ports.LAST_PORT for port in given)


def test_hexgen_workers_get_the_link_and_others_are_listed(tmp_path: Path) -> None:
    ours = WorkerSpec(name="ours", model_path="m", schedule_policy="hexgen")
    stock = WorkerSpec(name="stock", model_path="m", schedule_policy="lpm", hardware="a40")
    cluster = Cluster(CoordinatorConfig(port=0), [ours, stock], tmp_path)
    config = cluster.coordinator.config
    assert config.port > 0
    assert cluster.url == f"http://127.0.0.1:{config.port}"
    assert cluster.workers["ours"].coordinator_link == config.link
    assert cluster.workers["stock"] == stock
    assert cluster.coordinator.process(tmp_path).command[-1] == str(tmp_path / "coordinator.toml")
    written = load_config(tmp_path / "coordinator.toml")
    assert written.coordinator == config
    assert [(row.worker_id, row.url, row.hardware) for row in written.workers] == [
        ("stock", stock.url, "a40")
    ]


def test_a_link_bound_to_every_interface_is_reached_over_loopback(tmp_path: Path) -> None:
    spec = WorkerSpec(name="w", model_path="m", schedule_policy="hexgen")
    config = CoordinatorConfig(link="tcp://0.0.0.0:5600", keys=str(tmp_path))
    linked = Cluster(config, [spec], tmp_path).workers["w"]
    assert linked.coordinator_link == "tcp://127.0.0.1:5600"
    assert linked.keys == tmp_path, "a link with keys takes no worker without them"


@pytest.mark.parametrize("names", [("w", "w"), ("coordinator",)])
def test_names_are_unique(tmp_path: Path, names: tuple[str, ...]) -> None:
    specs = [WorkerSpec(name=name, model_path="m") for name in names]
    with pytest.raises(ConfigError, match="must be unique"):
        Cluster(CoordinatorConfig(), specs, tmp_path)
