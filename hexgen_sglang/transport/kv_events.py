"""A worker's KV event publisher over ZMQ: SUB for the stream, DEALER for what was missed.

Connects in the background and reconnects by itself. Nothing is encrypted: SGLang's publisher
has no keys, so it belongs on the network on which its HTTP is.
"""

from __future__ import annotations

import asyncio

import zmq
import zmq.asyncio

from hexgen_sglang.core.errors import ConfigError

_QUEUED = 100_000
_END = (-1).to_bytes(8, "big", signed=True)
_SEQUENCE_BYTES = 8

# Number of a batch, and its msgpack.
Numbered = tuple[int, bytes]


class ZmqKvEvents:
    """The events of one worker.

    Args:
        endpoint: `tcp://host:port` or `ipc://path` of its PUB socket.
        replay_endpoint: of its replay socket; "" for none.
        context: of the coordinator; the caller ends it.

    Raises:
        ConfigError: an endpoint is malformed.
    """

    def __init__(
        self, endpoint: str, replay_endpoint: str, context: zmq.asyncio.Context | None = None
    ) -> None:
        self._context = context or zmq.asyncio.Context.instance()
        self._replay_endpoint = replay_endpoint
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = _QUEUED
        self._socket.linger = 0
        self._socket.reconnect_ivl_max = 2_000
        self._socket.subscribe(b"")
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"kv_events={endpoint!r}: {error}") from error

    @property
    def can_replay(self) -> bool:
        """Whether missed batches can be asked for."""
        return bool(self._replay_endpoint)

    async def receive(self) -> Numbered:
        """The next batch; messages of another form are skipped."""
        while True:
            frames = await self._socket.recv_multipart()
            if len(frames) >= 2 and len(frames[-2]) == _SEQUENCE_BYTES:
                return int.from_bytes(frames[-2], "big"), frames[-1]

    async def replay(self, first: int, timeout_s: float) -> list[Numbered] | None:
        """What the worker has kept of the batches from `first` on; None: it does not answer."""
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        batches: list[Numbered] = []
        try:
            socket.connect(self._replay_endpoint)
            async with asyncio.timeout(timeout_s):
                await socket.send_multipart([b"", first.to_bytes(_SEQUENCE_BYTES, "big")])
                while True:
                    # An empty frame, the topic in newer versions, the number, the batch.
                    frames = await socket.recv_multipart()
                    if len(frames) < 3 or len(frames[-2]) != _SEQUENCE_BYTES:
                        return None
                    if frames[-2] == _END:
                        return batches
                    batches.append((int.from_bytes(frames[-2], "big"), frames[-1]))
        except (TimeoutError, zmq.ZMQError):
            return None
        finally:
            socket.close()

    def close(self) -> None:
        """Close at once."""
        self._socket.close()
