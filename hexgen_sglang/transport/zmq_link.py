"""The link over ZMQ: DEALER in each worker, ROUTER in the coordinator. The only user of zmq.

msgpack through the strict codec, never pickle; CURVE in both directions when keys are given,
and keys are required off loopback. A connection is probed with ZMTP heartbeats, and a message
is queued only for a live connection, so that `send` tells the truth.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from hexgen_sglang.core.errors import ConfigError, ProtocolError
from hexgen_sglang.protocol.codec import (
    MAX_MESSAGE_BYTES,
    LinkVersionError,
    decode_coordinator_message,
    decode_worker_message,
    encode,
)
from hexgen_sglang.protocol.messages import CoordinatorMessage, Rejected, WorkerMessage
from hexgen_sglang.transport.endpoints import checked_endpoint
from hexgen_sglang.transport.incidents import IncidentCounter
from hexgen_sglang.transport.interface import PeerId
from hexgen_sglang.transport.keys import (
    CoordinatorKeys,
    CurvePair,
    WorkerKeys,
    load_coordinator_keys,
    load_worker_keys,
    write_keys,
)

__all__ = [
    "CoordinatorKeys",
    "WorkerKeys",
    "ZmqCoordinatorEnd",
    "ZmqWorkerEnd",
    "load_coordinator_keys",
    "load_worker_keys",
    "make_keys",
]

log = logging.getLogger(__name__)

MAX_QUEUED_MESSAGES = 1000  # for each peer and direction, on top of the kernel's buffers
_ZAP_DOMAIN = "hexgen"
_CURVE_OVERHEAD_BYTES = 256  # encryption makes a frame longer; generous
_YIELD_EVERY = 64  # received messages


def make_keys(folder: Path | str) -> None:
    """Make a coordinator pair and a worker pair in a new key folder (see transport.keys).

    Raises:
        ConfigError: keys are there already, or the folder cannot be written.
    """
    pairs = [CurvePair(*zmq.curve_keypair()) for _ in range(2)]
    write_keys(Path(folder), coordinator=pairs[0], worker=pairs[1])


class ZmqWorkerEnd:
    """A worker's end, see `WorkerEnd`. Connects in the background and reconnects by itself.

    Its identity is random: another end, in this process or the next, is another peer.

    Args:
        endpoint: the coordinator's `tcp://host:port` or `ipc://path`.
        keys: required when the endpoint is off loopback.
        max_queued: messages kept for a slow coordinator before `send` says False.

    Attributes:
        malformed: counts received messages that were skipped.

    Raises:
        ConfigError: a malformed endpoint, missing keys, or keys that are none.
    """

    def __init__(
        self,
        endpoint: str,
        keys: WorkerKeys | None = None,
        *,
        max_queued: int = MAX_QUEUED_MESSAGES,
    ) -> None:
        address = checked_endpoint(endpoint, has_keys=keys is not None, bind=False)
        self.malformed = IncidentCounter(log, "skipped a malformed message")
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        try:
            _set_common_options(self._socket, address, max_queued)
            # The leading byte must not be zero: libzmq keeps such identities for itself.
            self._socket.routing_id = b"w" + secrets.token_bytes(16)
            self._socket.immediate = True  # no queueing before the connection stands
            self._socket.reconnect_ivl = 100
            self._socket.reconnect_ivl_max = 2_000
            if keys is not None:
                _set_pair(self._socket, keys.own)
                self._socket.curve_serverkey = keys.coordinator_public
            self._socket.connect(address)
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"endpoint {endpoint!r}: cannot connect: {error}") from error

    def send(self, message: WorkerMessage) -> bool:
        """See `WorkerEnd`. Raises ProtocolError when the message itself is out of range."""
        data = encode(message)
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.ZMQError:  # Again: no live connection, or its queue is full; or closed
            return False
        return True

    def receive(self, timeout_s: float) -> CoordinatorMessage | None:
        """See `WorkerEnd`. None at once after `close`."""
        deadline_s = time.monotonic() + timeout_s
        remaining_s = timeout_s
        while not self._socket.closed and self._poller.poll(max(0, round(1000 * remaining_s))):
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"link message: {len(frames)} frames; allowed: 1")
                return decode_coordinator_message(frames[0])
            except ProtocolError as error:
                self.malformed.add(self._endpoint, error)
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                break
        return None

    def close(self) -> None:
        """See `WorkerEnd`. May be called again."""
        self._context.destroy(linger=0)


class ZmqCoordinatorEnd:
    """The coordinator's end, see `CoordinatorEnd`. Make it inside the running event loop.

    A `Hello` of another link version is answered with `Rejected` here, since it cannot be
    decoded; everything else malformed is counted and skipped.

    Args:
        bind: `tcp://host:port` (port 0 or `*`: any free one) or `ipc://path`.
        keys: required when others than this machine can reach it.
        max_queued: messages kept for a slow worker before `send` says False.

    Attributes:
        endpoint: where workers connect to, with the port that was bound.
        malformed: counts received messages that were skipped.
        num_refused: connections refused because their key is not allowed.

    Raises:
        ConfigError: a malformed endpoint, missing keys, keys that are none, or an address
            that cannot be bound.
    """

    def __init__(
        self,
        bind: str,
        keys: CoordinatorKeys | None = None,
        *,
        max_queued: int = MAX_QUEUED_MESSAGES,
    ) -> None:
        address = checked_endpoint(bind, has_keys=keys is not None, bind=True)
        self.malformed = IncidentCounter(log, "skipped a malformed message")
        self._num_received = 0
        self._is_closed = False
        self._context = zmq.asyncio.Context()
        self._gate = _Gate(keys.allowed if keys is not None else frozenset())
        self._authenticator: AsyncioAuthenticator | None = None
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            _set_common_options(self._socket, address, max_queued)
            self._socket.router_mandatory = True
            self._socket.router_handover = True  # a reconnect replaces its half-dead predecessor
            if keys is not None:
                self._require_keys(keys)
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"endpoint {bind!r}: cannot bind: {error}") from error
        self.endpoint = str(self._socket.get_string(zmq.LAST_ENDPOINT))

    @property
    def num_refused(self) -> int:
        """Connections refused because their key is not allowed."""
        return self._gate.num_refused

    async def receive(self) -> tuple[PeerId, WorkerMessage]:
        """See `CoordinatorEnd`. Cancel it before `close`."""
        while True:
            # A waiting message is returned without a switch to other tasks: give them a turn.
            self._num_received += 1
            if self._num_received % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            if self._is_closed:
                raise RuntimeError("receive() after close()")
            frames = await self._socket.recv_multipart()
            peer = PeerId(frames[0])
            try:
                if len(frames) != 2:
                    raise ProtocolError(f"link message: {len(frames) - 1} frames; allowed: 1")
                return peer, decode_worker_message(frames[1])
            except LinkVersionError as error:
                self.malformed.add(peer.hex()[:16], error)
                await self.send(peer, Rejected(reason=str(error)))
            except ProtocolError as error:
                self.malformed.add(peer.hex()[:16], error)

    async def send(self, peer: PeerId, message: CoordinatorMessage) -> bool:
        """See `CoordinatorEnd`. Raises ProtocolError when the message is out of range."""
        data = encode(message)
        # pyzmq would use the closed socket's address, where another socket may live by now.
        if self._is_closed:
            return False
        try:
            await self._socket.send_multipart([peer, data], zmq.NOBLOCK)
        except zmq.ZMQError:  # unreachable: the peer is gone; or Again: its queue is full
            return False
        return True

    def close(self) -> None:
        """See `CoordinatorEnd`. May be called again."""
        self._is_closed = True
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.destroy(linger=0)

    def _require_keys(self, keys: CoordinatorKeys) -> None:
        """Prove who we are, and let in only allowed keys: the gate stands before the bind."""
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN, self._gate)
        self._authenticator.start()
        self._socket.zap_domain = _ZAP_DOMAIN.encode()
        _set_pair(self._socket, keys.own)
        self._socket.curve_server = True


class _Gate:
    """Says which client keys may connect; called by pyzmq's authenticator."""

    def __init__(self, allowed: frozenset[bytes]) -> None:
        self._allowed = allowed
        self._refused = IncidentCounter(log, "refused a connection")

    @property
    def num_refused(self) -> int:
        return self._refused.count

    def callback(self, domain: str, key: bytes) -> bool:
        """True when the Z85 `key` is allowed."""
        if key in self._allowed:
            return True
        self._refused.add(key.decode(), "the key is not in the coordinator's allowed folder")
        return False


def _set_common_options(socket: zmq.Socket[Any], address: str, max_queued: int) -> None:
    socket.linger = 0
    socket.sndhwm = max_queued
    socket.rcvhwm = max_queued
    socket.maxmsgsize = MAX_MESSAGE_BYTES + _CURVE_OVERHEAD_BYTES
    socket.ipv6 = "[" in address
    # A peer that answers no ping for 3 s is disconnected, whatever TCP still believes.
    socket.heartbeat_ivl = 1_000
    socket.heartbeat_timeout = 3_000
    socket.handshake_ivl = 5_000


def _set_pair(socket: zmq.Socket[Any], pair: CurvePair) -> None:
    socket.curve_publickey = pair.public
    socket.curve_secretkey = pair.secret
