"""`launch/ray` on a Ray cluster of two nodes: emulated workers are where their accelerator is,
come back when they or their node die, and are all gone afterwards.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
[cluster]
name = "rayed"
logs = "{folder}/logs"
[coordinator]
port = 0
health_interval_s = 1.0
[[workers]]
name = "big"
profile = "{profiles}/a100.toml"
[[workers]]
name = "small"
profile = "{profiles}/l40s.toml"
"""


class Program:
    """A program whose lines are read as they come."""

    def __init__(self, command: list[Any], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
            )

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def line(self, pattern: str, *, after: int = 0, timeout_s: float = 100.0) -> str:
        """The first line behind the first `after` ones that begins so (a regular expression)."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for line in self.lines()[after:]:
                if re.match(pattern, line):
                    return line
            assert time.monotonic() < deadline_s, (pattern, self.lines())
            assert self.popen.poll() is None, self.lines()
            time.sleep(0.1)

    def tell(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n".encode())
        self.popen.stdin.flush()

    def close(self, timeout_s: float) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


@pytest.fixture
def nodes(tmp_path: Path, descendants: Any) -> Iterator[Program]:
    env = {**descendants.env, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, Path(__file__).with_name("ray_nodes.py")]
    program = Program(command, env, tmp_path / "nodes.log")
    yield program
    program.close(30)
    assert descendants.left_after(10) == {}


@pytest.fixture
def launch(tmp_path: Path, descendants: Any, nodes: Program) -> Iterator[Program]:
    config = tmp_path / "cluster.toml"
    profiles = ROOT / "launch" / "configs" / "accelerators"
    config.write_text(CONFIG.format(folder=tmp_path, profiles=profiles))
    address = nodes.line(r"[\d.]+:\d+$", timeout_s=200)
    command = [ROOT / "launch" / "ray", config, "--ray-address", address]
    program = Program(command, descendants.env, tmp_path / "launch.log")
    yield program
    program.close(0)


@pytest.fixture
def server(descendants: Any) -> Callable[[str], list[int]]:
    """Ids of the processes that are a worker's server itself."""

    def find(name: str) -> list[int]:
        mark = f"--hexgen-worker-id {name} "
        return [pid for pid, text in descendants.alive().items() if mark in text + " "]

    return find


def wait_for(url: str, states: dict[str, str], timeout_s: float = 60.0) -> None:
    """Wait until the coordinator sees its workers so."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with urllib.request.urlopen(f"{url}/workers", timeout=30) as answer:
            seen = {row["worker_id"]: row["state"] for row in json.load(answer)["workers"]}
        if seen == states:
            return
        assert time.monotonic() < deadline_s, seen
        time.sleep(0.1)


@pytest.mark.timeout(900)  # three starts of a server beside whatever else the machine does
def test_workers_are_placed_by_accelerator_restarted_and_stopped(
    nodes: Program, launch: Program, server: Callable[[str], list[int]]
) -> None:
    url = launch.line("ready: ", timeout_s=300).split()[1]
    both = {"big": "ready", "small": "ready"}
    wait_for(url, both)
    [big], [small] = server("big"), server("small")

    seen = len(launch.lines())
    os.kill(big, signal.SIGKILL)
    launch.line("big: ended with status -9", after=seen)
    launch.line("big: ready at ", after=seen, timeout_s=200)
    wait_for(url, both)
    assert server("big") != [big]

    # Its node is gone: there is no other with an A100, and the L40S is not taken for one.
    seen = len(launch.lines())
    nodes.tell("remove the node with an A100")
    launch.line("big: is gone", after=seen)
    launch.line(r"big: no answer yet; needs a node with .*'a100': 1", after=seen)
    wait_for(url, {"big": "unreachable", "small": "ready"})
    assert (server("big"), server("small")) == ([], [small])

    launch.popen.send_signal(signal.SIGTERM)
    assert launch.popen.wait(60) == 143
    assert server("big") == server("small") == []
