"""When a worker says hello, and when it takes the coordinator for gone.

The rules of the agent's conversation without sockets, threads or a clock of their own: instants
come in as arguments. Owned by the agent's thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from hexgen_sglang.protocol.messages import (
    CoordinatorMessage,
    HelloWanted,
    Rejected,
    Welcome,
)


class LinkState(StrEnum):
    """Where a worker stands with its coordinator."""

    SEEKING = "seeking"  # saying hello; reports wait
    WELCOMED = "welcomed"  # registered, and the coordinator is heard from
    REJECTED = "rejected"  # refused for a stated reason; tries again slowly
    STOPPED = "stopped"  # not started yet, or ended


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds.

    Attributes:
        first_hello_s: between the first hello and the second; doubles with each one.
        longest_hello_s: cap of that doubling.
        rejected_s: between hellos after a rejection.
        missed_heartbeats: heartbeats without a word after which the coordinator is gone.
        reopen_s: silence after which an unregistered worker opens a new connection, since a
            refused one (wrong key) is not retried by ZMQ itself.
    """

    first_hello_s: float = 0.25
    longest_hello_s: float = 5.0
    rejected_s: float = 5.0
    missed_heartbeats: int = 5
    reopen_s: float = 15.0


class Registration:
    """State of the conversation.

    Attributes:
        state: SEEKING, WELCOMED or REJECTED.
        heartbeat_s: interval asked for by the last `Welcome`.
        rejection: reason of the last `Rejected`; "" when none came.
    """

    def __init__(self, patience: Patience, now_s: float) -> None:
        self.state = LinkState.SEEKING
        self.heartbeat_s = 1.0
        self.rejection = ""
        self._patience = patience
        self._last_heard_s = now_s
        self._last_hello_s = -math.inf
        self._next_hello_s = now_s
        self._hello_wait_s = patience.first_hello_s

    def heard(self, message: CoordinatorMessage, now_s: float) -> None:
        """Any message came from the coordinator."""
        self._last_heard_s = now_s
        match message:
            case Welcome():
                self.state = LinkState.WELCOMED
                self.heartbeat_s = message.heartbeat_ms / 1000
            case HelloWanted():
                # Several may answer the loads that were on their way: one hello serves them.
                self._seek(max(now_s, self._last_hello_s + self._patience.first_hello_s))
            case Rejected():
                self.state = LinkState.REJECTED
                self.rejection = message.reason
                self._next_hello_s = now_s + self._patience.rejected_s

    def is_silent(self, now_s: float) -> bool:
        """True once when a welcoming coordinator has become silent; then hellos are due."""
        patience_s = self._patience.missed_heartbeats * self.heartbeat_s
        if self.state is not LinkState.WELCOMED or now_s - self._last_heard_s <= patience_s:
            return False
        self._seek(now_s)
        return True

    def hello_is_due(self, now_s: float) -> bool:
        """Whether to say hello now."""
        return self.state is not LinkState.WELCOMED and now_s >= self._next_hello_s

    def hello_was_sent(self, now_s: float) -> None:
        """A hello went out over a live connection; the next one waits longer."""
        self._last_hello_s = now_s
        if self.state is LinkState.REJECTED:
            self._next_hello_s = now_s + self._patience.rejected_s
        else:
            self._next_hello_s = now_s + self._hello_wait_s
            self._hello_wait_s = min(2 * self._hello_wait_s, self._patience.longest_hello_s)

    def reopen_is_due(self, now_s: float) -> bool:
        """Whether nothing has come over this connection for so long that a new one may help."""
        return (
            self.state is not LinkState.WELCOMED
            and now_s - self._last_heard_s >= self._patience.reopen_s
        )

    def was_reopened(self, now_s: float) -> None:
        """There is a new connection: say hello over it at once."""
        self._last_heard_s = now_s
        self._seek(now_s)

    def _seek(self, next_hello_s: float) -> None:
        self.state = LinkState.SEEKING
        self._hello_wait_s = self._patience.first_hello_s
        self._next_hello_s = next_hello_s
