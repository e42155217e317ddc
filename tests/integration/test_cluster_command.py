"""`launch/cluster up`: what it starts it also ends, on Ctrl-C, SIGTERM and when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch" / "cluster"
CONFIG = """
[cluster]
name = "test"
logs = "{folder}/logs"
[coordinator]
port = 0
[[workers]]
name = "only"
model_path = "tiny"
"""


class Command:
    """A running `launch/cluster up` and the lines that it has printed."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        config = folder / "cluster.toml"
        config.write_text(CONFIG.format(folder=folder))
        self.popen = subprocess.Popen(
            [LAUNCH, "up", config],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def line_with(self, text: str, timeout_s: float) -> str:
        def find() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._news:
            assert self._news.wait_for(lambda: find() is not None, timeout_s), self.lines
            found = find()
        assert found is not None
        return found

    def end(self, timeout_s: float) -> int:
        """Exit status, after which every line has been read."""
        status = self.popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reader.join()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@pytest.fixture
def up(tmp_path: Path, descendants) -> Iterator[Callable[[], Command]]:
    started: list[Command] = []

    def start() -> Command:
        started.append(Command(tmp_path, descendants.env))
        return started[-1]

    yield start
    for command in started:
        command.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_starting_stops_what_was_started(up, descendants, signum, status) -> None:
    command = up()
    command.line_with("only: starting", timeout_s=90)
    assert len(descendants.alive()) >= 3, "the command, its guard, a worker or the coordinator"
    command.popen.send_signal(signum)
    assert command.end(timeout_s=60) == status, command.lines
    assert descendants.left_after(10) == {}


@pytest.mark.timeout(400)
def test_a_ready_cluster_serves_and_ends_with_its_worker(up, descendants, tmp_path) -> None:
    command = up()
    url = command.line_with("ready: ", timeout_s=330).split()[1]
    with urllib.request.urlopen(f"{url}/workers", timeout=30) as answer:
        (row,) = json.load(answer)["workers"]
    assert (row["worker_id"], row["state"]) == ("only", "ready")

    # The server itself, found by its command; its sub-processes are its own to end.
    servers = [pid for pid, text in descendants.alive().items() if "sglang.launch_server" in text]
    os.kill(min(servers), signal.SIGKILL)
    assert command.end(timeout_s=60) == 2
    assert any("only: ended with status -9" in line for line in command.lines), command.lines
    assert descendants.left_after(10) == {}
    assert (tmp_path / "logs" / "only.log").stat().st_size > 0
