"""Both transports behind one face, so that one suite holds them to one contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from hexgen_sglang.protocol.messages import (
    Cancel,
    Goodbye,
    Heartbeat,
    Hello,
    HelloWanted,
    Load,
    OrderingSet,
    PolicySettings,
    Rejected,
    Reprioritise,
    RequestFinished,
    StageFinished,
    Welcome,
)
from hexgen_sglang.transport.interface import CoordinatorEnd, WorkerEnd
from hexgen_sglang.transport.memory import MemoryLink
from hexgen_sglang.transport.zmq_link import ZmqCoordinatorEnd, ZmqWorkerEnd


class MemoryWorld:
    """Ends that meet in memory."""

    def __init__(self) -> None:
        self._link = MemoryLink(max_queued=200)
        self.ends: list[Any] = []

    def worker(self) -> WorkerEnd:
        return self._opened(self._link.worker_end())

    def coordinator(self) -> CoordinatorEnd:
        return self._opened(self._link.coordinator_end())

    def _opened(self, end: Any) -> Any:
        self.ends.append(end)
        return end


class ZmqWorld(MemoryWorld):
    """Ends that meet on a loopback port, which stays the same when the coordinator restarts."""

    def __init__(self, free_endpoint: str) -> None:
        super().__init__()
        self.endpoint = free_endpoint

    def worker(self) -> WorkerEnd:
        return self._opened(ZmqWorkerEnd(self.endpoint, max_queued=200))

    def coordinator(self) -> CoordinatorEnd:
        return self._opened(ZmqCoordinatorEnd(self.endpoint, max_queued=200))


@pytest.fixture
def free_endpoint(free_port: int) -> str:
    return f"tcp://127.0.0.1:{free_port}"


@pytest.fixture
def free_port() -> int:
    """A port below the ephemeral range, so that no outgoing connection takes it meanwhile."""
    import random
    import socket

    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@pytest.fixture(params=["memory", "zmq"])
def world(request: pytest.FixtureRequest, free_endpoint: str) -> Iterator[MemoryWorld]:
    world = MemoryWorld() if request.param == "memory" else ZmqWorld(free_endpoint)
    yield world
    for end in world.ends:
        end.close()


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    """Wait until a condition (plain or async) gives a true value, and return it."""

    async def wait(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {condition}"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def hello() -> Hello:
    return Hello(
        link_version=1,
        worker_id="w1",
        incarnation="first",
        url="http://127.0.0.1:30000",
        model="tiny",
        hardware="cpu",
        sglang_version="0.5.23",
        plugin_version="0.1.0",
        max_running_requests=8,
        kv_capacity_tokens=4096,
        ordering="least_slack",
    )


@pytest.fixture
def worker_messages(hello: Hello) -> list[Any]:
    """One of each kind that a worker sends."""
    return [
        hello,
        Load(num_running=1, num_waiting=2, num_waiting_tokens=3, num_kv_tokens_used=2**40),
        RequestFinished(
            request_id="r 1",
            workflow_id="flow",
            stage="draft",
            prompt_tokens=100,
            cached_tokens=64,
            output_tokens=7,
            queue_ms=0.0,
            ttft_ms=12.5,
            e2e_ms=80.25,
            aborted=False,
        ),
        StageFinished(workflow_id="flow", stage="draft", num_requests=3, siblings=4, e2e_ms=1.0),
        OrderingSet("least_slack", {"best_effort_slack_s": 12.0}, "no"),
        Goodbye(reason="maintenance, naïve"),
    ]


@pytest.fixture
def coordinator_messages() -> list[Any]:
    """One of each kind that a coordinator sends."""
    return [
        Welcome(link_version=1, coordinator_id="c1", heartbeat_ms=500),
        Heartbeat(),
        HelloWanted(),
        Rejected(reason="no"),
        Reprioritise(workflow_id="flow", budget_ms=None, predicted_remaining_ms=1.5),
        Cancel(workflow_id="flow", request_id=None),
        Cancel(workflow_id=None, request_id="r1"),
        PolicySettings(ordering="least_slack", settings={"best_effort_slack_s": 12.0}),
    ]
