"""What only a socket can get wrong: hostile bytes, foreign peers, keys, addresses."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import random

import pytest
import zmq
import zmq.asyncio

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.codec import MAX_MESSAGE_BYTES, encode
from hexgen_sglang.protocol.messages import Goodbye, Heartbeat, Load
from hexgen_sglang.transport.zmq_link import (
    ZmqCoordinatorEnd,
    ZmqWorkerEnd,
    load_coordinator_keys,
    load_worker_keys,
    make_keys,
)

LOAD = Load(num_running=1, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)


@pytest.fixture
def opened():
    """Register an end to be closed when the test is over."""
    ends = []

    def keep(end):
        ends.append(end)
        return end

    yield keep
    for end in ends:
        end.close()


@pytest.fixture
def raw_peer():
    """A plain ZMQ DEALER, which can send anything to a coordinator end."""
    context = zmq.Context()
    sockets = []

    def connect(endpoint):
        socket = context.socket(zmq.DEALER)
        sockets.append(socket)
        socket.connect(endpoint)
        return socket

    yield connect
    context.destroy(linger=0)


class Exploit:
    """Would run a command if anyone unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


async def test_hostile_bytes_are_skipped_and_what_follows_is_received(
    opened, raw_peer, tmp_path, caplog
):
    coordinator = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0"))
    peer = raw_peer(coordinator.endpoint)
    exploit = pickle.dumps(Exploit(tmp_path / "broken-in"))
    chance = random.Random(7)
    hostile = [b"", exploit, b"\x93" * 9000, chance.randbytes(MAX_MESSAGE_BYTES)]
    hostile += [chance.randbytes(chance.randrange(60)) for _ in range(300)]
    hostile += [encode(Heartbeat()), encode(LOAD)[:-1], encode(LOAD) + b"\x00"]
    with caplog.at_level(logging.WARNING):
        for data in hostile:
            peer.send(data)
        peer.send_multipart([encode(LOAD), encode(LOAD)])
        peer.send(encode(Goodbye(reason="end")))
        _, message = await asyncio.wait_for(coordinator.receive(), 60)
    assert message == Goodbye(reason="end")
    assert coordinator.malformed.count == len(hostile) + 1
    assert not (tmp_path / "broken-in").exists()
    assert len([r for r in caplog.records if "malformed" in r.message]) == 1


async def test_an_oversized_frame_ends_only_its_senders_connection(opened, raw_peer, eventually):
    coordinator = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0"))
    worker = opened(ZmqWorkerEnd(coordinator.endpoint))
    await eventually(lambda: worker.send(LOAD))
    worker_peer, _ = await asyncio.wait_for(coordinator.receive(), 60)
    hostile = raw_peer(coordinator.endpoint)
    hostile.send(b"x" * 10_000_000)
    await asyncio.to_thread(hostile.send, encode(LOAD))  # sent by ZMQ after it has reconnected
    peer, message = await asyncio.wait_for(coordinator.receive(), 60)
    assert message == LOAD
    assert peer != worker_peer
    assert worker.send(Goodbye(reason="still here"))
    assert await asyncio.wait_for(coordinator.receive(), 60) == (
        worker_peer,
        Goodbye(reason="still here"),
    )
    assert coordinator.malformed.count == 0


async def test_a_worker_skips_hostile_bytes_from_its_coordinator(
    opened, free_endpoint, eventually, caplog
):
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.bind(free_endpoint)
        worker = opened(ZmqWorkerEnd(free_endpoint))
        await eventually(lambda: worker.send(LOAD))
        peer, _ = await asyncio.to_thread(router.recv_multipart)
        hostile = [b"", b"\xc1", encode(LOAD), os.urandom(200)]
        with caplog.at_level(logging.WARNING):
            for data in hostile:
                router.send_multipart([peer, data])
            router.send_multipart([peer, encode(Heartbeat()), b"more"])
            router.send_multipart([peer, encode(Heartbeat())])
            assert await asyncio.to_thread(worker.receive, 60.0) == Heartbeat()
        assert worker.malformed.count == len(hostile) + 1
        assert len([r for r in caplog.records if "malformed" in r.message]) == 1
    finally:
        context.destroy(linger=0)


async def test_a_flood_of_hostile_bytes_does_not_hold_a_worker_past_its_timeout(
    opened, free_endpoint, eventually
):
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.bind(free_endpoint)
        worker = opened(ZmqWorkerEnd(free_endpoint))
        await eventually(lambda: worker.send(LOAD))
        peer, _ = await asyncio.to_thread(router.recv_multipart)
        for _ in range(500):
            router.send_multipart([peer, b"\xc1"])
        await eventually(lambda: worker.malformed.count or worker.receive(0.0))
        assert worker.malformed.count == 1  # a call with no time left looks at one message
    finally:
        context.destroy(linger=0)


@pytest.fixture
def key_folder(tmp_path):
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


async def test_keys_let_both_sides_talk(opened, key_folder, eventually):
    coordinator = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0", load_coordinator_keys(key_folder)))
    worker = opened(ZmqWorkerEnd(coordinator.endpoint, load_worker_keys(key_folder)))
    await eventually(lambda: worker.send(LOAD))
    peer, message = await asyncio.wait_for(coordinator.receive(), 60)
    assert message == LOAD
    assert await coordinator.send(peer, Heartbeat())
    assert await asyncio.to_thread(worker.receive, 60.0) == Heartbeat()


async def test_a_full_size_message_fits_through_encryption(opened, key_folder, raw_peer):
    """The bound on frames must leave room for what CURVE adds to the largest message."""
    keys = load_coordinator_keys(key_folder)
    coordinator = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0", keys))
    mine = load_worker_keys(key_folder)
    context = zmq.Context()
    try:
        peer = context.socket(zmq.DEALER)
        peer.curve_serverkey = mine.coordinator_public
        peer.curve_publickey, peer.curve_secretkey = mine.own.public, mine.own.secret
        peer.connect(coordinator.endpoint)
        peer.send(b"\xc1" * MAX_MESSAGE_BYTES)
        peer.send(encode(LOAD))
        _, message = await asyncio.wait_for(coordinator.receive(), 60)
    finally:
        context.destroy(linger=0)
    assert message == LOAD
    assert coordinator.malformed.count == 1


async def refuse(coordinator, intruder, legitimate, eventually):
    """The intruder gets nothing through in the time in which a legitimate worker does."""
    await eventually(lambda: intruder.send(LOAD) or legitimate.send(Goodbye(reason="mine")))
    _, message = await asyncio.wait_for(coordinator.receive(), 60)
    assert message == Goodbye(reason="mine")
    assert not intruder.send(LOAD)
    assert intruder.receive(0.0) is None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(coordinator.receive(), 0.5)


async def test_a_worker_with_a_key_that_is_not_allowed_is_refused(
    opened, key_folder, tmp_path, eventually, caplog
):
    coordinator = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0", load_coordinator_keys(key_folder)))
    make_keys(tmp_path / "other")
    (tmp_path / "other" / "coordinator.public").write_bytes(
        (key_folder / "coordinator.public").read_bytes()
    )
    intruder = opened(ZmqWorkerEnd(coordinator.endpoint, load_worker_keys(tmp_path / "other")))
    with caplog.at_level(logging.WARNING):
        await eventually(lambda: coordinator.num_refused)
    legitimate = opened(ZmqWorkerEnd(coordinator.endpoint, load_worker_keys(key_folder)))
    await refuse(coordinator, intruder, legitimate, eventually)
    assert "allowed folder" in caplog.text
    assert (tmp_path / "other" / "worker.secret").read_text().strip() not in caplog.text


async def test_a_client_without_keys_gets_nothing(opened, key_folder, eventually):
    coordinator = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0", load_coordinator_keys(key_folder)))
    intruder = opened(ZmqWorkerEnd(coordinator.endpoint))
    legitimate = opened(ZmqWorkerEnd(coordinator.endpoint, load_worker_keys(key_folder)))
    await refuse(coordinator, intruder, legitimate, eventually)


async def test_a_worker_does_not_talk_to_an_impostor(
    opened, key_folder, tmp_path, free_endpoint, eventually
):
    """Whoever holds the address but not the coordinator's secret hears nothing."""
    make_keys(tmp_path / "impostor")
    impostor_keys = load_coordinator_keys(tmp_path / "impostor")
    worker_keys = load_worker_keys(key_folder)
    welcoming = type(impostor_keys)(impostor_keys.own, frozenset({worker_keys.own.public}))
    impostor = opened(ZmqCoordinatorEnd(free_endpoint, welcoming))
    worker = opened(ZmqWorkerEnd(free_endpoint, worker_keys))
    own_worker = opened(
        ZmqWorkerEnd(
            free_endpoint,
            type(worker_keys)(worker_keys.own, impostor_keys.own.public),
        )
    )
    await refuse(impostor, worker, own_worker, eventually)


async def test_no_end_opens_off_loopback_without_keys(key_folder, opened):
    for endpoint in ("tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://[::]:5555", "tcp://10.0.0.1:5"):
        with pytest.raises(ConfigError, match="CURVE keys are required") as caught:
            ZmqCoordinatorEnd(endpoint)
        assert endpoint in str(caught.value)
    with pytest.raises(ConfigError, match="CURVE keys are required"):
        ZmqWorkerEnd("tcp://coordinator.example:5555")
    opened(ZmqWorkerEnd("tcp://coordinator.example:5555", load_worker_keys(key_folder)))
    opened(ZmqCoordinatorEnd("tcp://*:0", load_coordinator_keys(key_folder)))


@pytest.mark.parametrize("name", ["tcp://localhost:0", "tcp://127.0.0.9:0", "tcp://[::1]:0", "ipc"])
async def test_every_kind_of_loopback_works_without_keys(name, opened, tmp_path, eventually):
    bind = f"ipc://{tmp_path}/link" if name == "ipc" else name
    try:
        coordinator = opened(ZmqCoordinatorEnd(bind))
    except ConfigError as error:
        if name != "tcp://[::1]:0" or "cannot bind" not in str(error):
            raise
        pytest.skip("this machine has no IPv6 loopback")
    worker = opened(ZmqWorkerEnd(coordinator.endpoint))
    await eventually(lambda: worker.send(LOAD))
    peer, _ = await asyncio.wait_for(coordinator.receive(), 60)
    assert await coordinator.send(peer, Heartbeat())
    assert await asyncio.to_thread(worker.receive, 60.0) == Heartbeat()


async def test_a_taken_port_is_named(opened):
    first = opened(ZmqCoordinatorEnd("tcp://127.0.0.1:0"))
    with pytest.raises(ConfigError, match="cannot bind") as caught:
        ZmqCoordinatorEnd(first.endpoint)
    assert first.endpoint in str(caught.value)


async def test_a_key_that_is_none_is_refused(key_folder):
    keys = load_worker_keys(key_folder)
    with pytest.raises(ConfigError, match="cannot connect"):
        ZmqWorkerEnd("tcp://127.0.0.1:5555", type(keys)(keys.own, b"short"))
