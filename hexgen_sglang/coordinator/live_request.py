"""A request from acceptance to its end, and one try of it at one worker.

Mutable state: made by the exchange (by the simulator, too), moved by queue and dispatcher.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hexgen_sglang.coordinator.decisions import Decision
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import InFlight

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.tracing import RequestTrace
    from hexgen_sglang.coordinator.worker import Worker
    from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow

QueueKey = tuple[tuple[float, ...], float, str]
# The model, and whether the workflow has begun.
QueueLane = tuple[str, bool]
# Of a lane: those that stand back, best effort, and each tenant's are apart.
QueueRow = tuple[QueueLane, bool, bool, str]


class AttemptFailed(HexgenError):
    """A try at a worker failed through no fault of the client.

    Args:
        message: what happened, for logs and for the client if no try succeeds.
        reason: short word for metrics: "connect", "disconnect", "status", "timeout", "lost";
            "moved": the request was taken back, and the worker has not failed.
        detail: what the worker said, for the client whose request it was and nobody else: it
            may repeat the prompt, so it is in no log line.
    """

    def __init__(self, message: str, reason: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True, eq=False)
class Attempt:
    """One try of a request at one worker; in flight from dispatch until released.

    Attributes:
        rid: SGLang's id of this try: the request id, with `N.` before it from the second on.
        num_prompt_tokens, num_uncached_tokens, expected_output_tokens: estimates at dispatch.
        batch: requests in flight at the worker right after dispatch, this one included.
        seen: the same as policies see it.
        num_events: data events delivered so far.
        scope: the timeout around the exchange with the worker, once it runs.
        is_handing_over: the client is being given events, which must not stop half way.
        lost_reason: why the attempt was interrupted; None when it was not.
        moved_for: its request was taken back to be sent elsewhere: "drain" or "slow"; "" if not.
        expected_first_s: seconds from dispatch to its first token as the policy predicted; None
            for policies that do not.
    """

    rid: str
    worker: Worker
    request: QueuedRequest
    dispatched_s: float
    num_prompt_tokens: int
    num_uncached_tokens: int
    expected_output_tokens: int
    batch: int
    seen: InFlight
    num_events: int = 0
    scope: asyncio.Timeout | None = None
    is_handing_over: bool = False
    lost_reason: str | None = None
    moved_for: str = ""
    expected_first_s: float | None = None

    @property
    def first_byte_s(self) -> float | None:
        """First event of a stream; None before, and for answers in one piece."""
        return self.seen.first_token_s

    @first_byte_s.setter
    def first_byte_s(self, instant_s: float) -> None:
        self.seen.first_token_s = instant_s
        self.worker.version += 1

    def recall(self, moved_for: str) -> None:
        """Take the request back to send it elsewhere, unless the client has begun to get it."""
        if self.scope is None or self.lost_reason is not None or self.is_handing_over:
            return
        if self.first_byte_s is None:
            self.moved_for = moved_for
            self.interrupt(f"taken back from worker {self.worker.worker_id}: {moved_for}")

    def interrupt(self, reason: str) -> None:
        """Give up on the worker: the exchange goes on with an `AttemptFailed`.

        While the client is being given events that waits, so that it is known what it has.
        """
        self.lost_reason = reason
        if self.scope is not None and not self.is_handing_over:
            self.scope.reschedule(asyncio.get_running_loop().time())


@dataclass(slots=True, eq=False, kw_only=True)
class QueuedRequest(ABC):
    """An accepted request, as queue, dispatcher and estimators know it.

    Attributes:
        incoming: what the client sent.
        view: what policies see; replaced when deadline or prediction change.
        workflow, record: its place in the workflow tracker.
        lane: the served model it needs; "" when any worker will do.
        failed_on: worker ids that failed it since the last success of any.
        num_attempts: tries so far, a running one included.
        num_moves: those of them that ended since it was taken back from a worker.
        queue_key: its rank while it waits in the central queue, else None.
        queue_lane, queue_row: where it waits there.
        charged: of its tenant's share (see `tenant_shares`).
        stands_back: it goes behind all that can still meet its deadline (see `demotion`).
        attempt: the try that runs now, else None.
        decision: the last one about it, for people.
        trace: its spans; None where nothing is traced.
    """

    incoming: IncomingRequest
    view: RequestView
    workflow: Workflow
    record: RequestRecord
    lane: str
    failed_on: set[str] = field(default_factory=set)
    num_attempts: int = 0
    num_moves: int = 0
    queue_key: QueueKey | None = None
    queue_lane: QueueLane = ("", False)
    queue_row: QueueRow = (("", False), False, False, "")
    charged: float = 0.0
    stands_back: bool = False
    attempt: Attempt | None = None
    decision: Decision | None = None
    trace: RequestTrace | None = None

    @property
    @abstractmethod
    def is_placed(self) -> bool:
        """A worker was found, or nobody waits for one any more."""

    @abstractmethod
    def place(self, attempt: Attempt) -> None:
        """A worker was found: go there."""


@dataclass(slots=True, eq=False, kw_only=True)
class LiveRequest(QueuedRequest):
    """A client's request that has not ended.

    Attributes:
        placed: resolves to the next attempt.
        cancelled: resolves when somebody cancels it, to what the client is told.
        is_resumed: its stream broke off at a worker and goes on at another.
    """

    placed: asyncio.Future[Attempt]
    cancelled: asyncio.Future[ApiError]
    is_resumed: bool = False

    @property
    def is_placed(self) -> bool:
        """See `QueuedRequest`; true also when its exchange was cancelled and is leaving."""
        return self.placed.done()

    def place(self, attempt: Attempt) -> None:
        """Wake the exchange."""
        self.attempt = attempt
        self.placed.set_result(attempt)

    def cancel(self, told: ApiError) -> None:
        """End the request; the client gets `told`. Idempotent."""
        if not self.cancelled.done():
            self.cancelled.set_result(told)
