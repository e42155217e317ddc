"""What every transport promises, over memory and over ZMQ on loopback."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.messages import Goodbye, Heartbeat, Load, Rejected, StageFinished
from hexgen_sglang.transport.interface import PeerId


def load(number: int) -> Load:
    return Load(num_running=number, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)


def wordy(number: int) -> Goodbye:
    return Goodbye(reason=f"{number:06d}" + "x" * 500)


async def receive(end, count: int = 1):
    return [await asyncio.wait_for(end.receive(), 60) for _ in range(count)]


async def take(worker, count: int = 1):
    return [await asyncio.to_thread(worker.receive, 60.0) for _ in range(count)]


async def meet(world, eventually):
    """A coordinator and a worker that have heard of each other."""
    coordinator, worker = world.coordinator(), world.worker()
    await eventually(lambda: worker.send(load(0)))
    ((peer, message),) = await receive(coordinator)
    assert message == load(0)
    return coordinator, worker, peer


async def test_every_worker_message_arrives_as_it_was_sent(world, eventually, worker_messages):
    coordinator, worker, peer = await meet(world, eventually)
    for message in worker_messages:
        assert worker.send(message)
    assert await receive(coordinator, len(worker_messages)) == [(peer, m) for m in worker_messages]


async def test_every_coordinator_message_arrives_as_it_was_sent(
    world, eventually, coordinator_messages
):
    coordinator, worker, peer = await meet(world, eventually)
    for message in coordinator_messages:
        assert await coordinator.send(peer, message)
    assert await take(worker, len(coordinator_messages)) == coordinator_messages


async def test_order_is_kept_in_both_directions(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)

    async def pump(send):
        for number in range(1, 1001):
            await eventually(lambda number=number: send(number))

    async def send_up(number):
        return worker.send(load(number))

    async def send_down(number):
        return await coordinator.send(peer, Rejected(reason=str(number)))

    pumping = asyncio.create_task(pump(send_up))
    got = [message.num_running for _, message in await receive(coordinator, 1000)]
    await pumping
    assert got == list(range(1, 1001))

    pumping = asyncio.create_task(pump(send_down))
    reasons = [message.reason for message in await take(worker, 1000)]
    await pumping
    assert reasons == [str(number) for number in range(1, 1001)]


async def test_a_slow_coordinator_bounds_what_a_worker_queues(world, eventually):
    coordinator, worker, _ = await meet(world, eventually)
    sent = 0
    while worker.send(wordy(sent)):
        sent += 1
        assert sent < 200_000, "send never reported a full queue"
    got = [message for _, message in await receive(coordinator, sent)]
    assert got == [wordy(number) for number in range(sent)]
    await eventually(lambda: worker.send(load(7)))
    # A refused message must not turn up later:
    assert [message for _, message in await receive(coordinator)] == [load(7)]


async def test_a_slow_worker_bounds_what_the_coordinator_queues(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)
    sent = 0
    while await coordinator.send(peer, Rejected(reason=f"{sent:06d}" + "x" * 500)):
        sent += 1
        assert sent < 200_000, "send never reported a full queue"
    got = await take(worker, sent)
    assert [message.reason[:6] for message in got] == [f"{number:06d}" for number in range(sent)]


async def test_a_worker_without_a_coordinator_is_told_so(world):
    worker = world.worker()
    assert not any(worker.send(load(number)) for number in range(100))
    assert worker.receive(0.0) is None


async def test_a_worker_whose_coordinator_left_is_told_so(world, eventually):
    coordinator, worker, _ = await meet(world, eventually)
    coordinator.close()
    await eventually(lambda: not worker.send(load(1)))


async def test_unknown_and_departed_peers_are_reported(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)
    assert not await coordinator.send(PeerId(b"w" + bytes(16)), Heartbeat())
    worker.close()

    async def is_gone():
        return not await coordinator.send(peer, Heartbeat())

    await eventually(is_gone)


async def test_a_restarted_worker_is_a_new_peer(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)
    worker.close()
    successor = world.worker()
    await eventually(lambda: successor.send(load(5)))
    ((new_peer, message),) = await receive(coordinator)
    assert message == load(5)
    assert new_peer != peer
    assert await coordinator.send(new_peer, Heartbeat())
    assert await take(successor) == [Heartbeat()]


async def test_workers_get_only_their_own_messages(world, eventually):
    coordinator, first, first_peer = await meet(world, eventually)
    second = world.worker()
    await eventually(lambda: second.send(load(2)))
    ((second_peer, _),) = await receive(coordinator)
    assert await coordinator.send(second_peer, Rejected(reason="second"))
    assert await coordinator.send(first_peer, Rejected(reason="first"))
    assert await take(first) == [Rejected(reason="first")]
    assert await take(second) == [Rejected(reason="second")]
    assert first.receive(0.0) is None
    assert second.receive(0.0) is None


async def test_a_restarted_coordinator_is_found_again(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)
    coordinator.close()
    await eventually(lambda: not worker.send(load(1)))
    successor = world.coordinator()
    await eventually(lambda: worker.send(load(9)))
    assert await receive(successor) == [(peer, load(9))]
    assert await successor.send(peer, Heartbeat())
    assert await take(worker) == [Heartbeat()]
    assert not await coordinator.send(peer, Heartbeat())


async def test_close_can_be_repeated_and_ends_everything(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)
    for _ in range(2):
        worker.close()
        coordinator.close()
    assert not worker.send(load(1))
    assert worker.receive(5.0) is None
    assert not await coordinator.send(peer, Heartbeat())
    with pytest.raises(RuntimeError, match="after close"):
        await coordinator.receive()


async def test_a_message_out_of_range_is_refused_by_its_sender(world, eventually):
    coordinator, worker, peer = await meet(world, eventually)
    with pytest.raises(ProtocolError, match="num_running"):
        worker.send(load(-1))
    with pytest.raises(ProtocolError, match="reason"):
        await coordinator.send(peer, Rejected(reason="x" * 513))
    with pytest.raises(ProtocolError, match="e2e_ms"):
        worker.send(StageFinished("flow", "draft", 1, 1, float("nan")))
    assert worker.send(load(3))
    assert await receive(coordinator) == [(peer, load(3))]


async def test_a_worker_of_another_link_version_is_told_why(world, eventually, hello):
    coordinator, worker, peer = await meet(world, eventually)
    assert worker.send(msgspec.structs.replace(hello, link_version=2))
    assert worker.send(load(1))
    assert await receive(coordinator) == [(peer, load(1))]
    (answer,) = await take(worker)
    assert isinstance(answer, Rejected)
    assert "link_version=2" in answer.reason
    assert "version 1" in answer.reason
    assert coordinator.malformed.count == 1


async def test_a_welcome_of_another_link_version_is_skipped(
    world, eventually, coordinator_messages
):
    coordinator, worker, peer = await meet(world, eventually)
    welcome = coordinator_messages[0]
    assert await coordinator.send(peer, msgspec.structs.replace(welcome, link_version=3))
    assert await coordinator.send(peer, welcome)
    assert await take(worker) == [welcome]
    assert worker.malformed.count == 1


async def test_a_noisy_worker_does_not_stop_the_event_loop(world, eventually):
    """Messages that wait already are received without a pause: others must get a turn too."""
    coordinator, worker, _ = await meet(world, eventually)
    sent = 0
    while sent < 2000 and worker.send(load(sent)):
        sent += 1
    turns = 0

    async def bystander():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    watching = asyncio.create_task(bystander())
    received_in_turn: Counter[int] = Counter()
    for _ in range(sent):
        await coordinator.receive()
        received_in_turn[turns] += 1
    watching.cancel()
    assert sent >= 100
    assert max(received_in_turn.values()) <= 64
