"""The link between real processes, over TCP and CURVE, with peers killed and stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hexgen_sglang.plugin.agent import WorkerAgent
from hexgen_sglang.plugin.registration import LinkState, Patience
from hexgen_sglang.protocol.messages import Cancel, Load, StageFinished
from hexgen_sglang.transport.zmq_link import ZmqWorkerEnd, load_worker_keys, make_keys

HERE = Path(__file__).parent
IMPATIENT = Patience(
    first_hello_s=0.05, longest_hello_s=0.5, rejected_s=0.2, missed_heartbeats=5, reopen_s=2.0
)


def until(condition, timeout_s=90.0):
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        time.sleep(0.01)
    return value


def stage(number):
    return StageFinished(
        workflow_id="flow", stage="draft", num_requests=number, siblings=1, e2e_ms=1.0
    )


class Process:
    """A script of this folder; its output lines as parsed JSON in `events`."""

    def __init__(self, script, *arguments):
        self.popen = subprocess.Popen(
            [sys.executable, str(HERE / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.events = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.popen.stdout:
            self.events.append(json.loads(line))

    def told(self, kind):
        return [event[1:] for event in list(self.events) if event[0] == kind]

    def signal(self, number):
        self.popen.send_signal(number)

    def kill(self):
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
        self.popen.wait(60)
        self._reader.join(60)
        self.popen.stdin.close()
        self.popen.stdout.close()


@pytest.fixture
def run():
    processes = []

    def start(script, *arguments):
        processes.append(Process(script, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def keys(tmp_path):
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def coordinator(run, free_endpoint, keys):
    """Starts a coordinator process on the one port of this test, and waits until it listens."""

    def start():
        process = run("coordinator_process.py", free_endpoint, keys)
        until(lambda: process.told("ready"))
        return process

    return start


@pytest.fixture
def agent(hello, free_endpoint, keys):
    """Starts an agent in this process, as it runs in SGLang's."""
    agents = []

    def start(key_folder=keys, **settings):
        agent = WorkerAgent(
            lambda: ZmqWorkerEnd(free_endpoint, load_worker_keys(key_folder)),
            hello,
            patience=IMPATIENT,
            **settings,
        )
        agents.append(agent)
        agent.start()
        return agent

    yield start
    for agent in agents:
        agent.stop("the test is over", 30.0)


def in_state(agent, state):
    return lambda: agent.status().state is state


def test_a_killed_and_restarted_coordinator_is_found_again(coordinator, agent):
    first = coordinator()
    worker = agent()
    worker.report(stage(1))
    until(lambda: first.told("stage") == [[1]])
    commands = []
    until(lambda: commands.extend(worker.take_commands()) or commands)
    assert commands == [Cancel(workflow_id="flow", request_id=None)]

    first.kill()
    until(in_state(worker, LinkState.SEEKING))
    for number in range(2, 12):
        worker.report(stage(number))
    worker.report_load(
        Load(num_running=77, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)
    )

    second = coordinator()
    until(lambda: second.told("stage") == [[number] for number in range(2, 12)])
    until(lambda: [77] in second.told("load"))
    assert second.told("hello")[0] == ["w1", "first"]
    commands = []
    until(lambda: commands.extend(worker.take_commands()) or len(commands) == 10)
    status = worker.status()
    assert (status.num_dropped, status.num_errors) == (0, 0)


def test_a_stopped_coordinator_never_holds_the_scheduler_thread(coordinator, agent):
    process = coordinator()
    worker = agent(max_queued=64)
    worker.report(stage(0))
    until(lambda: process.told("stage"))
    process.signal(signal.SIGSTOP)

    # Not noticed yet: the connection swallows what its buffers hold, the rest is dropped.
    for number in range(1, 100_001):
        worker.report(stage(number))
        worker.report_load(
            Load(num_running=number, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)
        )
        worker.take_commands()
    assert worker.status().num_queued <= 65

    # Noticed: nothing is sent any more, the newest wait.
    until(in_state(worker, LinkState.SEEKING))
    before = worker.status()
    for number in range(100_001, 105_001):
        worker.report(stage(number))
        worker.take_commands()
    after = worker.status()
    assert after.num_queued <= 65
    assert after.num_dropped - before.num_dropped >= 5000 - 64
    assert after.num_sent == before.num_sent
    assert after.num_reported == after.num_sent + after.num_dropped + after.num_queued

    process.signal(signal.SIGCONT)
    until(lambda: process.told("stage")[-1] == [105_000])
    arrived = [number for (number,) in process.told("stage")]
    assert arrived == sorted(set(arrived))
    assert arrived[-64:] == list(range(104_937, 105_001))
    assert worker.status().state is LinkState.WELCOMED


@pytest.mark.timeout(240)
def test_a_wrong_key_is_refused_until_it_is_allowed(coordinator, agent, keys, tmp_path):
    process = coordinator()
    make_keys(tmp_path / "other")
    shutil.copy(keys / "coordinator.public", tmp_path / "other" / "coordinator.public")
    worker = agent(tmp_path / "other")
    worker.report(stage(1))
    until(lambda: worker.status().num_unanswered >= 2)
    assert worker.status().state is LinkState.SEEKING
    assert process.events == [["ready"]]

    shutil.copy(tmp_path / "other" / "worker.public", keys / "allowed" / "other.public")
    process.kill()
    process = coordinator()
    until(lambda: process.told("stage") == [[1]])
    assert process.told("hello")[0] == ["w1", "first"]


def test_a_killed_worker_is_lost_and_its_successor_takes_its_place(
    coordinator, run, free_endpoint, keys
):
    process = coordinator()
    before = run("worker_process.py", free_endpoint, "first", "stay", keys)
    until(lambda: process.told("load"))
    before.kill()
    after = run("worker_process.py", free_endpoint, "second", "stay", keys)
    until(lambda: ["w1", "second"] in process.told("hello"))
    assert process.told("restart") == [["w1"]] or process.told("lost") == [["w1"]]
    after.popen.stdin.close()
    assert after.popen.wait(60) == 0
    until(lambda: process.told("goodbye") == [["w1", "stdin ended"]])


def test_a_silent_worker_is_lost(coordinator, run, free_endpoint, keys):
    process = coordinator()
    worker = run("worker_process.py", free_endpoint, "first", "stay", keys)
    until(lambda: process.told("load"))
    worker.signal(signal.SIGSTOP)
    until(lambda: process.told("lost") == [["w1"]])
    worker.signal(signal.SIGCONT)
    until(lambda: process.told("hello") == [["w1", "first"]] * 2)
    assert process.told("restart") == []


@pytest.mark.parametrize("coordinator_state", ["healthy", "stopped"])
def test_a_process_with_a_running_agent_ends_without_being_held(
    coordinator, run, free_endpoint, keys, coordinator_state
):
    process = coordinator()
    mode = "leave" if coordinator_state == "healthy" else "stay"
    worker = run("worker_process.py", free_endpoint, "first", mode, keys)
    if mode == "stay":
        until(lambda: process.told("load"))
        process.signal(signal.SIGSTOP)
        worker.popen.stdin.close()
    assert worker.popen.wait(60) == 0
