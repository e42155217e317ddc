"""A request from acceptance to its end, and one try of it at one worker.

Mutable state of the event loop: made by the exchange, moved by queue and dispatcher.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.core.request import RequestView

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.worker import Worker
    from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow

QueueKey = tuple[tuple[float, ...], float, str]


class AttemptFailed(HexgenError):
    """A try at a worker failed through no fault of the client.

    Args:
        message: what happened, for logs and for the client if no try succeeds.
        reason: short word for metrics: "connect", "disconnect", "status", "timeout", "lost".
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True, eq=False)
class Attempt:
    """One try of a request at one worker; in flight from dispatch until released.

    Attributes:
        rid: SGLang's request id of this try: the request id, with `.N` from the second on.
        num_prompt_tokens, num_uncached_tokens, expected_output_tokens: estimates at dispatch.
        batch: requests in flight at the worker right after dispatch, this one included.
        first_byte_s: first event of a stream; None before, and for answers in one piece.
        num_events: data events delivered so far.
        scope: the timeout around the exchange with the worker, once it runs.
        lost_reason: why the attempt was interrupted; None when it was not.
    """

    rid: str
    worker: Worker
    request: LiveRequest
    dispatched_s: float
    num_prompt_tokens: int
    num_uncached_tokens: int
    expected_output_tokens: int
    batch: int
    first_byte_s: float | None = None
    num_events: int = 0
    scope: asyncio.Timeout | None = None
    lost_reason: str | None = None

    def interrupt(self, reason: str) -> None:
        """Give up on the worker: the exchange goes on with an `AttemptFailed`."""
        self.lost_reason = reason
        if self.scope is not None:
            self.scope.reschedule(asyncio.get_running_loop().time())


@dataclass(slots=True, eq=False)
class LiveRequest:
    """An accepted request that has not ended.

    Attributes:
        incoming: what the client sent.
        view: what policies see; replaced when deadline or prediction change.
        workflow, record: its place in the workflow tracker.
        lane: the served model it needs; "" when any worker will do.
        failed_on: worker ids that failed it since the last success of any.
        num_attempts: tries so far, a running one included.
        queue_key: its rank while it waits in the central queue, else None.
        placed: resolves to the next attempt.
        attempt: the try that runs now, else None.
        cancelled: resolves when somebody cancels it, to what the client is told.
    """

    incoming: IncomingRequest
    view: RequestView
    workflow: Workflow
    record: RequestRecord
    lane: str
    placed: asyncio.Future[Attempt]
    cancelled: asyncio.Future[ApiError]
    failed_on: set[str] = field(default_factory=set)
    num_attempts: int = 0
    queue_key: QueueKey | None = None
    attempt: Attempt | None = None

    def cancel(self, told: ApiError) -> None:
        """End the request; the client gets `told`. Idempotent."""
        if not self.cancelled.done():
            self.cancelled.set_result(told)
