"""The link inside one process, with the same contracts as over ZMQ: for tests and simulators.

Messages go through the codec, so bounds and versions hold here too. Nothing listens, nothing
leaves the process, and the only threads are the callers'.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque

from hexgen_sglang.core.errors import ConfigError, ProtocolError
from hexgen_sglang.protocol.codec import (
    LinkVersionError,
    decode_coordinator_message,
    decode_worker_message,
    encode,
)
from hexgen_sglang.protocol.messages import CoordinatorMessage, Rejected, WorkerMessage
from hexgen_sglang.transport.incidents import IncidentCounter
from hexgen_sglang.transport.interface import PeerId

log = logging.getLogger(__name__)


class MemoryLink:
    """The place where the ends meet, like an endpoint: workers may be there first.

    Args:
        max_queued: messages kept for a slow receiver before `send` says False, at least 1.
    """

    def __init__(self, max_queued: int = 1000) -> None:
        self.max_queued = max_queued
        self._lock = threading.Lock()
        self._coordinator: MemoryCoordinatorEnd | None = None
        self._workers: dict[PeerId, MemoryWorkerEnd] = {}

    def worker_end(self) -> MemoryWorkerEnd:
        """A new worker end, which is a new peer."""
        end = MemoryWorkerEnd(self, PeerId(b"w" + secrets.token_bytes(16)))
        with self._lock:
            self._workers[end.peer] = end
        return end

    def coordinator_end(self) -> MemoryCoordinatorEnd:
        """The coordinator end; make it inside the running event loop.

        Raises:
            ConfigError: another one is open.
        """
        end = MemoryCoordinatorEnd(self)
        with self._lock:
            if self._coordinator is not None:
                raise ConfigError("this memory link has an open coordinator end already")
            self._coordinator = end
        return end

    def _to_coordinator(self, peer: PeerId, data: bytes) -> bool:
        with self._lock:
            if self._coordinator is None or peer not in self._workers:
                return False
            return self._coordinator._put(peer, data)

    def _to_worker(self, peer: PeerId, data: bytes, sender: MemoryCoordinatorEnd) -> bool:
        with self._lock:
            worker = self._workers.get(peer)
            if worker is None or self._coordinator is not sender:
                return False
            return worker._put(data)

    def _leave(self, peer: PeerId) -> None:
        with self._lock:
            self._workers.pop(peer, None)

    def _leave_coordinator(self, end: MemoryCoordinatorEnd) -> None:
        with self._lock:
            if self._coordinator is end:
                self._coordinator = None


class MemoryWorkerEnd:
    """A worker's end of a `MemoryLink`, see `WorkerEnd`."""

    def __init__(self, link: MemoryLink, peer: PeerId) -> None:
        self.peer = peer
        self.malformed = IncidentCounter(log, "skipped a malformed message")
        self._link = link
        self._inbox: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def send(self, message: WorkerMessage) -> bool:
        """See `WorkerEnd`. Raises ProtocolError when the message itself is out of range."""
        return self._link._to_coordinator(self.peer, encode(message))

    def receive(self, timeout_s: float) -> CoordinatorMessage | None:
        """See `WorkerEnd`. None at once after `close`."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                while not self._inbox:
                    remaining_s = deadline_s - time.monotonic()
                    if self._closed or remaining_s <= 0:
                        return None
                    self._changed.wait(remaining_s)
                try:
                    return decode_coordinator_message(self._inbox.popleft())
                except ProtocolError as error:  # a Welcome of another link version
                    self.malformed.add("the coordinator", error)

    def close(self) -> None:
        """See `WorkerEnd`. May be called again."""
        self._link._leave(self.peer)
        with self._changed:
            self._closed = True
            self._inbox.clear()
            self._changed.notify_all()

    def _put(self, data: bytes) -> bool:
        with self._changed:
            if self._closed or len(self._inbox) >= self._link.max_queued:
                return False
            self._inbox.append(data)
            self._changed.notify()
            return True


class MemoryCoordinatorEnd:
    """The coordinator's end of a `MemoryLink`, see `CoordinatorEnd`.

    As over ZMQ, each worker has its own queue, served in turn, so that a noisy worker fills
    only its own.
    """

    def __init__(self, link: MemoryLink) -> None:
        self.malformed = IncidentCounter(log, "skipped a malformed message")
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._inboxes: dict[PeerId, deque[bytes]] = {}
        self._lock = threading.Lock()
        self._arrived = asyncio.Event()
        self._is_closed = False

    async def receive(self) -> tuple[PeerId, WorkerMessage]:
        """See `CoordinatorEnd`. Cancel it before `close`."""
        await asyncio.sleep(0)  # a waiting message must not keep other tasks from their turn
        while True:
            if self._is_closed:
                raise RuntimeError("receive() after close()")
            peer, data = self._take()
            if peer is None:
                await self._arrived.wait()
                continue
            try:
                return peer, decode_worker_message(data)
            except LinkVersionError as error:
                self.malformed.add(peer.hex()[:16], error)
                await self.send(peer, Rejected(reason=str(error)))

    def _take(self) -> tuple[PeerId | None, bytes]:
        """The next queued message, peers in turn; (None, b"") and `_arrived` cleared if none."""
        with self._lock:
            if not self._inboxes:
                self._arrived.clear()
                return None, b""
            peer = next(iter(self._inboxes))
            inbox = self._inboxes.pop(peer)
            data = inbox.popleft()
            if inbox:
                self._inboxes[peer] = inbox  # back to the end of the line
            return peer, data

    async def send(self, peer: PeerId, message: CoordinatorMessage) -> bool:
        """See `CoordinatorEnd`. Raises ProtocolError when the message is out of range."""
        return self._link._to_worker(peer, encode(message), self)

    def close(self) -> None:
        """See `CoordinatorEnd`. May be called again."""
        self._is_closed = True
        self._link._leave_coordinator(self)
        with self._lock:
            self._inboxes.clear()

    def _put(self, peer: PeerId, data: bytes) -> bool:
        """Called in the worker's thread."""
        if self._loop.is_closed():
            return False
        with self._lock:
            inbox = self._inboxes.setdefault(peer, deque())
            if len(inbox) >= self._link.max_queued:
                return False
            inbox.append(data)
        self._loop.call_soon_threadsafe(self._arrived.set)
        return True
