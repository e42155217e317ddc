"""The worker's agent with its real thread, against a coordinator link in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import msgspec
import pytest

from hexgen_sglang.coordinator.link import CoordinatorLink
from hexgen_sglang.core.errors import ConfigError, ProtocolError
from hexgen_sglang.plugin.agent import WorkerAgent
from hexgen_sglang.plugin.registration import LinkState, Patience
from hexgen_sglang.protocol.messages import (
    Cancel,
    Features,
    Heartbeat,
    Load,
    PolicySettings,
    Prewarm,
    Rejected,
    Release,
    Reprioritise,
    Retain,
    StageFinished,
    Welcome,
)
from hexgen_sglang.transport.memory import MemoryLink

WELCOME = Welcome(link_version=1, coordinator_id="c1", heartbeat_ms=200)
CANCEL = Cancel(workflow_id="flow", request_id=None)


def load(number):
    return Load(num_running=number, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)


def stage(number):
    return StageFinished(
        workflow_id="flow", stage="draft", num_requests=number, siblings=1, e2e_ms=1.0
    )


class Recorder:
    """Observer: what came, in order, and what to answer."""

    def __init__(self):
        self.answer = WELCOME
        self.hellos, self.loads, self.stages, self.ends = [], [], [], []
        self.features = []

    def on_hello(self, hello):
        self.hellos.append(hello)
        return self.answer

    def on_restart(self, worker_id):
        self.ends.append("restart")

    def on_load(self, worker_id, message):
        self.loads.append(message.num_running)

    def on_request_finished(self, worker_id, message):
        raise AssertionError("none is sent here")

    def on_step_times(self, worker_id, message):
        pass

    def on_stage_finished(self, worker_id, message):
        self.stages.append(message.num_requests)

    def on_features(self, worker_id, message):
        self.features.append(message)

    def on_ordering_set(self, worker_id, message):
        raise AssertionError("none is sent here")

    def on_goodbye(self, worker_id, reason):
        self.ends.append(f"goodbye: {reason}")

    def on_lost(self, worker_id):
        self.ends.append("lost")


class Stage:
    """A memory link, coordinators that come and go, and agents."""

    def __init__(self):
        self.memory = MemoryLink()
        self.agents = []
        self.observer = Recorder()
        self._running = None

    def start_coordinator(self):
        self.end = self.memory.coordinator_end()
        self.link = CoordinatorLink(self.end, self.observer, missed_heartbeats=5, tick_s=0.02)
        self._running = asyncio.create_task(self.link.run())

    async def stop_coordinator(self):
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self.end.close()
            self._running = None

    def start_agent(self, hello, connect=None, **settings):
        patience = Patience(first_hello_s=0.02, longest_hello_s=0.1, rejected_s=0.1, reopen_s=0.5)
        agent = WorkerAgent(connect or self.memory.worker_end, hello, patience=patience, **settings)
        self.agents.append(agent)
        agent.start()
        return agent


@pytest.fixture
async def scene():
    scene = Stage()
    yield scene
    for agent in scene.agents:
        await asyncio.to_thread(agent.stop, "the test is over", 30.0)
    await scene.stop_coordinator()


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (threads change what is looked at)
            await asyncio.sleep(0.005)


async def test_it_registers_reports_in_order_and_brings_commands(scene, hello):
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    for number in range(1, 1001):
        agent.report(stage(number))
    await until(lambda: len(scene.observer.stages) == 1000)
    assert scene.observer.stages == list(range(1, 1001))
    assert scene.observer.hellos[0] == hello
    assert agent.take_commands() == []
    commands = [
        Reprioritise(workflow_id="flow", budget_ms=5, predicted_remaining_ms=1.0),
        CANCEL,
        PolicySettings(ordering="fcfs", settings={}),
        Retain(workflow_id="flow", ttl_ms=500.0),
        Release(workflow_id="flow"),
        Prewarm("flow", "revise", 500.0, 2, 0, b"\1\0\0\0\2\0\0\0"),
    ]
    for command in commands:
        assert await scene.link.send_to("w1", command)
    taken = []
    await until(lambda: taken.extend(agent.take_commands()) or len(taken) == len(commands))
    assert taken == commands
    status = agent.status()
    assert status.state is LinkState.WELCOMED
    assert (status.num_reported, status.num_sent, status.num_dropped) == (1000, 1000, 0)


async def test_what_it_does_beyond_the_first_version_is_said_after_every_welcome(scene, hello):
    scene.start_coordinator()
    features = Features(keeps_prefixes=True, prewarms=True)
    scene.start_agent(hello, features=features)
    await until(lambda: scene.observer.features == [features])
    await scene.stop_coordinator()
    scene.start_coordinator()
    await until(lambda: len(scene.observer.features) > 1)
    plain = Recorder()
    await scene.stop_coordinator()
    for agent in scene.agents:
        await asyncio.to_thread(agent.stop, "another follows", 30.0)
    scene.observer = plain
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    agent.report(stage(1))
    await until(lambda: plain.stages == [1])
    assert plain.features == []


async def test_heartbeats_and_welcomes_are_no_commands(scene, hello):
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    await until(lambda: scene.link.worker_ids)
    assert await scene.link.send_to("w1", Heartbeat())
    assert await scene.link.send_to("w1", CANCEL)
    taken = []
    await until(lambda: taken.extend(agent.take_commands()) or taken)
    assert taken == [CANCEL]


async def test_only_the_newest_load_is_sent_and_the_last_one_always(scene, hello):
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    await until(lambda: scene.link.worker_ids)
    for number in range(1, 20_001):
        agent.report_load(load(number))
    await until(lambda: scene.observer.loads and scene.observer.loads[-1] == 20_000)
    assert len(scene.observer.loads) < 2_000
    assert scene.observer.loads == sorted(scene.observer.loads)


async def test_an_idle_worker_keeps_sending_heartbeats_and_stays_registered(scene, hello):
    scene.start_coordinator()
    scene.start_agent(hello)
    await until(lambda: len(scene.observer.loads) >= 15)
    assert scene.observer.ends == []
    assert len(scene.observer.hellos) == 1


async def test_reports_wait_for_a_coordinator_that_comes_later(scene, hello):
    agent = scene.start_agent(hello)
    for number in range(10):
        agent.report(stage(number))
    agent.report_load(load(3))
    await until(lambda: agent.status().state is LinkState.SEEKING)
    scene.start_coordinator()
    await until(lambda: scene.observer.stages == list(range(10)))
    await until(lambda: 3 in scene.observer.loads)


async def test_reports_survive_a_restart_of_the_coordinator(scene, hello):
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    agent.report(stage(1))
    await until(lambda: scene.observer.stages == [1])
    await scene.stop_coordinator()
    for number in range(2, 6):
        agent.report(stage(number))
    await until(lambda: agent.status().state is LinkState.SEEKING)
    assert scene.observer.stages == [1]
    scene.start_coordinator()
    await until(lambda: scene.observer.stages == [1, 2, 3, 4, 5])
    assert {hello.incarnation for hello in scene.observer.hellos} == {"first"}
    assert agent.status().num_dropped == 0


async def test_a_coordinator_that_forgot_the_worker_gets_a_hello(scene, hello):
    scene.start_coordinator()
    scene.start_agent(hello)
    await until(lambda: scene.link.worker_ids)
    scene.link._by_worker.clear()
    scene.link._by_peer.clear()
    await until(lambda: scene.link.worker_ids)


async def test_what_does_not_fit_is_dropped_oldest_first_and_counted(scene, hello):
    agent = scene.start_agent(hello, max_queued=16)
    for number in range(100):
        agent.report(stage(number))
    status = agent.status()
    assert (status.num_reported, status.num_queued, status.num_dropped) == (100, 16, 84)
    scene.start_coordinator()
    await until(lambda: scene.observer.stages == list(range(84, 100)))
    status = agent.status()
    assert (status.num_sent, status.num_queued, status.num_dropped) == (16, 0, 84)


async def test_commands_that_nobody_takes_are_bounded_and_counted(scene, hello):
    scene.start_coordinator()
    agent = scene.start_agent(hello, max_queued=8)
    await until(lambda: scene.link.worker_ids)
    for number in range(20):
        await scene.link.send_to("w1", Cancel(workflow_id=f"flow-{number}", request_id=None))
    await until(lambda: agent.status().num_commands_dropped == 12)
    assert [command.workflow_id for command in agent.take_commands()] == [
        f"flow-{number}" for number in range(12, 20)
    ]


async def test_a_rejected_worker_says_why_and_keeps_asking(scene, hello, caplog):
    scene.observer.answer = Rejected(reason="this coordinator serves another model")
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    await until(lambda: len(scene.observer.hellos) >= 3)
    status = agent.status()
    assert status.state is LinkState.REJECTED
    assert status.rejection == "this coordinator serves another model"
    told = [r for r in caplog.records if r.name.endswith("plugin.agent")]
    assert len([r for r in told if "another model" in r.message]) == 1
    scene.observer.answer = WELCOME
    await until(lambda: agent.status().state is LinkState.WELCOMED)


async def test_stop_says_goodbye_after_the_last_report(scene, hello):
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    await until(lambda: scene.link.worker_ids)
    agent.report(stage(1))
    await asyncio.to_thread(agent.stop, "maintenance", 30.0)
    await until(lambda: scene.observer.ends)
    assert scene.observer.stages == [1]
    assert scene.observer.ends == ["goodbye: maintenance"]
    assert agent.status().state is LinkState.STOPPED
    agent.stop("again")


async def test_stop_without_a_coordinator_returns_and_closes_the_connection(scene, hello):
    agent = scene.start_agent(hello)
    await asyncio.to_thread(agent.stop, "nobody listens", 30.0)
    assert agent.status().state is LinkState.STOPPED
    assert scene.memory._workers == {}


async def test_an_unanswered_connection_is_replaced(scene, hello):
    ends = []

    def connect():
        ends.append(scene.memory.worker_end())
        return ends[-1]

    agent = scene.start_agent(hello, connect=connect)
    await until(lambda: len(ends) >= 3)
    assert list(scene.memory._workers) in ([ends[-1].peer], [])
    assert agent.status().num_unanswered >= 2
    scene.start_coordinator()
    await until(lambda: scene.link.worker_ids)


async def test_a_broken_connection_object_is_logged_counted_and_replaced(scene, hello, caplog):
    class Broken:
        def send(self, message):
            raise OSError("cable cut")

        def receive(self, timeout_s):
            return None

        def close(self):
            pass

    ends = [Broken()]
    scene.start_coordinator()
    agent = scene.start_agent(
        hello, connect=lambda: ends.pop() if ends else scene.memory.worker_end()
    )
    await until(lambda: scene.link.worker_ids)
    assert agent.status().num_errors == 1
    assert "cable cut" in caplog.text


async def test_a_message_that_cannot_be_sent_does_not_stop_the_others(scene, hello, caplog):
    scene.start_coordinator()
    agent = scene.start_agent(hello)
    agent.report(stage(1))
    agent.report(stage(-1))
    agent.report(stage(2))
    await until(lambda: scene.observer.stages == [1, 2])
    assert agent.status().num_invalid == 1
    assert "num_requests" in caplog.text


def test_a_bad_hello_or_endpoint_is_told_to_the_caller(hello):
    with pytest.raises(ProtocolError, match="worker_id"):
        WorkerAgent(MemoryLink().worker_end, msgspec.structs.replace(hello, worker_id="a b"))

    def connect():
        raise ConfigError("endpoint 'x': wrong")

    with pytest.raises(ConfigError, match="endpoint 'x'"):
        WorkerAgent(connect, hello).start()


def test_an_agent_that_was_never_started_is_harmless(hello):
    agent = WorkerAgent(MemoryLink().worker_end, hello, max_queued=4)
    for number in range(10):
        agent.report(stage(number))
    agent.report_load(load(1))
    assert agent.take_commands() == []
    agent.stop("never started")
    status = agent.status()
    assert status.state is LinkState.STOPPED
    assert (status.num_queued, status.num_dropped) == (4, 6)


def test_the_scheduler_thread_never_waits_for_a_connection_that_blocks(hello):
    """A connection whose calls hang must not hang the three calls of the scheduler thread."""
    release = threading.Event()

    class Hanging:
        def send(self, message):
            release.wait(60)
            return False

        def receive(self, timeout_s):
            return None

        def close(self):
            pass

    agent = WorkerAgent(Hanging, hello, max_queued=16)
    agent.start()
    try:
        for number in range(1000):
            agent.report(stage(number))
            agent.report_load(load(number))
            assert agent.take_commands() == []
        assert not release.is_set()
        assert agent.status().num_dropped == 984
    finally:
        release.set()
        agent.stop("over", 30.0)


def test_importing_the_agent_loads_neither_engine_nor_sockets():
    code = (
        "import sys, hexgen_sglang.plugin.agent\n"
        "heavy = {'sglang', 'torch', 'zmq', 'asyncio', 'numpy'} & set(sys.modules)\n"
        "print(', '.join(sorted(heavy)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
