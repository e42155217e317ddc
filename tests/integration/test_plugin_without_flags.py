"""A server without our flags is SGLang as it was, and one with only a link keeps its order.

Compared with the same server in which SGLang does not load our plugin at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.cluster.process import ChildProcess, stop_all, wait_ready
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.plugin.config import ENVIRONMENT_VARIABLE, PluginConfig

pytestmark = pytest.mark.timeout(300)
START_TIMEOUT_S = 300.0
LONG = 400  # tokens; some seconds on a CPU
ONE_AT_A_TIME = ("--max-running-requests", "1")
OF_ANOTHER_SERVER = (
    '{"ordering":"least_slack","coordinators":["tcp://127.0.0.1:9"],"worker_id":"w"}'
)


class Server:
    """A running server, and what the kernel says of its processes."""

    def __init__(self, spec: WorkerSpec, process: ChildProcess) -> None:
        self.spec = spec
        self.process = process
        self.processes = {spec.name: process}

    def names_of_threads(self) -> Counter[str]:
        """Name of each thread of each process; names that hold a number lose it."""
        names: Counter[str] = Counter()
        for pid in self.process.members():
            for thread in Path(f"/proc/{pid}/task").iterdir():
                name = (thread / "comm").read_text().strip()
                names[name.rstrip("0123456789").rstrip("-_")] += 1
        return names

    def num_tcp_sockets(self) -> Counter[str]:
        """TCP sockets of all its processes by state, leaving out connections to its HTTP port."""
        inodes = set()
        for pid in self.process.members():
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                link = os.readlink(handle)
                if link.startswith("socket:["):
                    inodes.add(link[8:-1])
        states: Counter[str] = Counter()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                is_http = int(local.rpartition(":")[2], 16) == self.spec.port
                if rest[5] in inodes and not (is_http and state != LISTENING):
                    states[state] += 1
        return states

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.spec.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def load(self, name: str) -> int:
        with urllib.request.urlopen(f"{self.spec.url}/v1/loads", timeout=10) as answer:
            return sum(row[name] for row in json.load(answer)["loads"])


LISTENING = "0A"


@pytest.fixture(scope="module")
def servers(tiny_model: str, logs_folder: Path) -> Iterator[dict[str, Server]]:
    """`plain`: our plugin installed, none of its flags; `bare`: SGLang does not load it."""
    specs = [
        WorkerSpec(
            name="plain",
            model_path=tiny_model,
            core=0,
            flags=ONE_AT_A_TIME,
            env={ENVIRONMENT_VARIABLE: OF_ANOTHER_SERVER},
        ),
        WorkerSpec(
            name="bare",
            model_path=tiny_model,
            core=1,
            flags=ONE_AT_A_TIME,
            env={"SGLANG_PLUGINS": "hexgen_torch_cpu"},
        ),
    ]
    running = [Server(spec, spec.process(logs_folder)) for spec in specs]
    try:
        for server in running:
            server.process.start()
        wait_ready(
            [(server.process, server.spec.is_ready) for server in running],
            timeout_s=START_TIMEOUT_S,
        )
        yield {server.spec.name: server for server in running}
    finally:
        stop_all([server.process for server in running], 3.0)


def test_the_settings_in_its_environment_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next tests would prove nothing about ignoring them."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, OF_ANOTHER_SERVER)
    assert PluginConfig.from_environment() is not None


def test_the_bare_server_has_no_plugin_of_ours(servers: dict[str, Server]) -> None:
    """With its environment SGLang does not know our flags."""
    code = (
        "import argparse\n"
        "from sglang.srt.plugins import load_plugins\n"
        "load_plugins()\n"
        "from sglang.srt.server_args import ServerArgs\n"
        "parser = argparse.ArgumentParser()\n"
        "ServerArgs.add_cli_args(parser)\n"
        "assert '--schedule-policy' in parser._option_string_actions\n"
        "assert '--hexgen-ordering' not in parser._option_string_actions\n"
    )
    env = servers["bare"].spec.environment()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


def test_no_thread_and_no_socket_is_ours(servers: dict[str, Server]) -> None:
    for server in servers.values():
        server.post("/generate", {"text": "warm up", "sampling_params": {"max_new_tokens": 2}})
    plain, bare = servers["plain"], servers["bare"]
    assert plain.num_tcp_sockets() == bare.num_tcp_sockets()
    assert not [name for name in plain.names_of_threads() if "hexgen" in name]
    assert plain.names_of_threads() == bare.names_of_threads()


@pytest.mark.parametrize("name", ["plain", "bare"])
def test_requests_end_in_the_order_in_which_they_came(
    servers: dict[str, Server], name: str
) -> None:
    server = servers[name]
    ended: list[str] = []

    def ask(rid: str, tag: dict[str, Any], num_tokens: int) -> None:
        params = {
            "max_new_tokens": num_tokens,
            "ignore_eos": True,
            "custom_params": {"hexgen": tag},
        }
        server.post("/generate", {"text": rid, "rid": rid, "sampling_params": params})
        ended.append(rid)

    budgets_ms = {"slack": 600_000, "tight": 1_000, "malformed": -5}
    threads = [threading.Thread(target=ask, args=("running", {"workflow_id": "w"}, LONG))]
    threads[0].start()
    while not server.load("num_running_reqs"):
        assert threads[0].is_alive(), "the first request ended before it was seen running"
    for number, (rid, budget_ms) in enumerate(budgets_ms.items(), start=1):
        tag = {"workflow_id": rid, "budget_ms": budget_ms}
        threads.append(threading.Thread(target=ask, args=(rid, tag, 4)))
        threads[-1].start()
        while server.load("num_waiting_reqs") < number:
            assert threads[0].is_alive(), "the first request ended before the others waited"
    for thread in threads:
        thread.join()
    assert ended == ["running", *budgets_ms]
