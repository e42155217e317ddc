"""Circuit breaker of one worker: after failures in a row it gets nothing, then one request.

Counting only, in the coordinator's event loop; instants come as arguments. Whether the worker
is there at all is the health watch's to say; this is about one that is there, and fails.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from hexgen_sglang.coordinator.backoff import backoff_s


class BreakerState(StrEnum):
    """What may be sent to the worker."""

    CLOSED = "closed"  # everything
    OPEN = "open"  # nothing
    HALF_OPEN = "half_open"  # one request, whose end decides


class CircuitBreaker:
    """Opens after `num_failures` failed requests in a row.

    Open, it lets nothing through for a while that grows each time it opens again (`backoff`);
    then exactly one request at a time, the probe: success closes it, failure opens it again. A
    probe that ends without either (its client went away) makes room for another.

    Args:
        num_failures: in a row; at least 1.
        first_open_s, most_open_s: bounds of the time that it stays open.
        dice: yields numbers from 0 to 1.
    """

    def __init__(
        self,
        num_failures: int,
        first_open_s: float,
        most_open_s: float,
        dice: Callable[[], float],
    ) -> None:
        self._num_failures = num_failures
        self._first_open_s = first_open_s
        self._most_open_s = most_open_s
        self._dice = dice
        self._failed = 0
        self._times_opened = 0
        self._open_until_s: float | None = None
        self._probe = ""

    def state(self, now_s: float) -> BreakerState:
        """The state at this instant."""
        if self._open_until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._open_until_s else BreakerState.HALF_OPEN

    def may_send(self, now_s: float) -> bool:
        """Whether one more request may go to the worker."""
        state = self.state(now_s)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._probe)

    def sent(self, rid: str, now_s: float) -> None:
        """The request goes there; half open, it is the probe."""
        if self.state(now_s) is BreakerState.HALF_OPEN and not self._probe:
            self._probe = rid

    def succeeded(self, rid: str) -> None:
        """The worker answered; an answer to what was sent before it opened closes nothing."""
        if self._open_until_s is None or rid == self._probe:
            self._failed = 0
            self._times_opened = 0
            self._open_until_s = None
            self._probe = ""

    def failed(self, rid: str, now_s: float) -> float | None:
        """The request failed there; returns for how many seconds it opened, None if it did not."""
        self._failed += 1
        was_probe = bool(self._probe) and rid == self._probe
        if was_probe:
            self._probe = ""
        elif self._open_until_s is not None or self._failed < self._num_failures:
            return None
        self._times_opened += 1
        open_s = backoff_s(self._times_opened, self._first_open_s, self._most_open_s, self._dice)
        self._open_until_s = now_s + open_s
        return open_s

    def left(self, rid: str) -> None:
        """The request is no longer at the worker, however it ended. Idempotent."""
        if rid == self._probe:
            self._probe = ""
