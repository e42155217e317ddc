"""The two ends of the link, as the plugin's agent and the coordinator see them."""

from __future__ import annotations

from typing import NewType, Protocol

from hexgen_sglang.protocol.messages import CoordinatorMessage, WorkerMessage

PeerId = NewType("PeerId", bytes)


class WorkerEnd(Protocol):
    """The worker's end. Owned and used by one thread, never SGLang's scheduler thread."""

    def send(self, message: WorkerMessage) -> bool:
        """Hand a message over without blocking; False when it was not taken.

        That is: no live connection, or its bounded queue is full. True promises no delivery.

        Raises:
            ProtocolError: the message itself is out of range.
        """
        ...

    def receive(self, timeout_s: float) -> CoordinatorMessage | None:
        """Next message, or None after `timeout_s`. Malformed ones are counted and skipped."""
        ...

    def close(self) -> None:
        """Close at once; what was not sent is dropped."""
        ...


class CoordinatorEnd(Protocol):
    """The coordinator's end: many workers, one event loop."""

    async def receive(self) -> tuple[PeerId, WorkerMessage]:
        """Next message and who sent it. Malformed ones are counted and skipped.

        A `Hello` of another link version is answered with `Rejected`. Cancel a pending call
        before `close`.
        """
        ...

    async def send(self, peer: PeerId, message: CoordinatorMessage) -> bool:
        """Hand a message over without blocking; False when the peer is gone or full.

        Raises:
            ProtocolError: the message itself is out of range.
        """
        ...

    def close(self) -> None:
        """Close at once."""
        ...
