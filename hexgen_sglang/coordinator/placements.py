"""Direct mode: requests that their clients carry to the worker themselves.

Runs in the coordinator's event loop. A placement is accepted, queued and dispatched like any
request, counts at its worker until its end is known, and is told of in the same records. Who
tells of the end: the worker's plugin over the link, the client, or, when both are silent, the
sweep here: the worker is gone, says that it has nothing to do, or the request timed out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.admission import Parts
from hexgen_sglang.coordinator.attempt_io import Answer
from hexgen_sglang.coordinator.exchange import Exchanges
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.prompt import BLOCK_CHARS, BLOCK_TOKENS, PromptShape
from hexgen_sglang.coordinator.usage import Usage
from hexgen_sglang.coordinator.workflows import Outcome
from hexgen_sglang.core.worker import WorkerState
from hexgen_sglang.protocol.messages import RequestFinished
from hexgen_sglang.protocol.tag import NumTokens, WorkflowTag

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.tracing import RequestTrace

ROUTE = "/placements"
# From dispatch until a worker without work must have heard of the request.
_ARRIVAL_S = 10.0
_CANCELLED_STATUS = 499

Length = Annotated[int, Meta(ge=0, le=2**31)]
WorkerName = Annotated[str, Meta(min_length=1, max_length=512)]


class WantedPlacement(Struct, frozen=True, forbid_unknown_fields=True):
    """What is told of one request with one prompt and one answer, instead of its body.

    Attributes:
        model: as in the request.
        num_prompt_chars, num_prompt_tokens: length of the prompt, as text or as token ids.
        prompt_blocks: chained hashes of its whole blocks (see `coordinator.prompt`): no more
            than a prompt of that length has.
        max_output_tokens: the request's limit.
        stream: the client will ask the worker for a stream.
        hexgen: the workflow tag.
        failed_on: workers that failed the request before.
    """

    model: Annotated[str, Meta(max_length=512)] | None = None
    num_prompt_chars: Length = 0
    num_prompt_tokens: Length = 0
    prompt_blocks: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=1_024)] = ()
    max_output_tokens: NumTokens | None = None
    stream: bool = False
    hexgen: WorkflowTag | None = None
    failed_on: Annotated[tuple[WorkerName, ...], Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        most = self.shape.num_whole_blocks
        if len(self.prompt_blocks) > most:
            raise ValueError(
                f"prompt_blocks: has {len(self.prompt_blocks)}; must be at most {most}, one for "
                f"each {BLOCK_TOKENS} of num_prompt_tokens={self.num_prompt_tokens}, or without "
                f"them {BLOCK_CHARS} of num_prompt_chars={self.num_prompt_chars}"
            )

    @property
    def shape(self) -> PromptShape:
        """Size and prefix of the prompt."""
        return PromptShape(1, self.num_prompt_chars, self.num_prompt_tokens, self.prompt_blocks)


class WantedPlacements(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /placements`: requests that are placed together, such as siblings."""

    requests: Annotated[tuple[WantedPlacement, ...], Meta(min_length=1, max_length=256)]


class PlacementEnd(Struct, frozen=True, forbid_unknown_fields=True):
    """How a placed request ended, as its client saw it.

    Attributes:
        request_id: of the placement.
        outcome: "completed"; "rejected": the worker called it wrong (4xx); "failed": the
            worker refused, broke off or fell silent; "abandoned": the client gave up.
        prompt_tokens, output_tokens, cached_tokens: of the answer, where it told.
    """

    request_id: Annotated[str, Meta(min_length=1, max_length=64)]
    outcome: Literal["completed", "rejected", "failed", "abandoned"] = "completed"
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None
    cached_tokens: Length | None = None


class PlacementEnds(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /placements/ends`."""

    ends: Annotated[tuple[PlacementEnd, ...], Meta(min_length=1, max_length=1_024)]


_OUTCOMES = {
    "completed": Outcome.COMPLETED,
    "rejected": Outcome.REJECTED,
    "failed": Outcome.FAILED,
    "abandoned": Outcome.DISCONNECTED,
}


class Placements:
    """The placed requests whose end is not known.

    Args:
        parts: what a request passes.
        exchanges: accepts and ends requests.
    """

    def __init__(self, parts: Parts, exchanges: Exchanges) -> None:
        self._parts = parts
        self._exchanges = exchanges
        self._open: dict[str, LiveRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    def accept(
        self,
        wanted: WantedPlacement,
        caller: Caller,
        num_bytes: int,
        trace: RequestTrace | None = None,
    ) -> LiveRequest:
        """Enter a request; it waits in the central queue.

        Raises:
            ApiError, AdmissionRejected, ProtocolError: not accepted; nothing of it was kept.
        """
        request = self._exchanges.accept(incoming_of(wanted, caller, num_bytes), trace)
        request.failed_on.update(wanted.failed_on)
        self._open[request.record.request_id] = request
        request.cancelled.add_done_callback(lambda told: self._cancelled(request, told))
        return request

    def abandon(self, request: LiveRequest) -> None:
        """Its client has gone away before it heard of a worker."""
        self._end(request, Outcome.DISCONNECTED, "client")

    def refuse(self, request: LiveRequest) -> None:
        """No worker was found for it in time."""
        self._end(request, Outcome.FAILED, "unplaced")

    def reported(self, worker_id: str, message: RequestFinished) -> None:
        """The plugin of the worker told of the end of some request."""
        request = self._open.get(message.request_id.partition(".")[0])
        if request is None or request.attempt is None:
            return
        if request.attempt.worker.worker_id != worker_id:
            return
        if message.aborted:
            self._end(request, Outcome.DISCONNECTED, "report")
            return
        usage = Usage(message.prompt_tokens, message.output_tokens, message.cached_tokens)
        self._finish(request, usage, "report")

    def told(self, end: PlacementEnd, caller: Caller) -> bool:
        """A client told of an end; False when it is no open placement of this caller.

        Of a worker that reports ends itself, a client's token counts count for nothing.
        """
        request = self._open.get(end.request_id)
        if request is None or not caller.sees(request.workflow.tenant):
            return False
        attempt = request.attempt
        if attempt is None:
            self._end(request, Outcome.DISCONNECTED, "client")
            return True
        if end.outcome == "failed":
            # A caller's word alone takes no worker out of service: it is looked at.
            attempt.worker.needs_full_check = True
            self._parts.directory.wake(attempt.worker)
        usage = None if attempt.worker.linked else _usage_of(end, request.incoming)
        if end.outcome == "completed" and usage is not None:
            self._finish(request, usage, "client")
        else:
            self._end(request, _OUTCOMES[end.outcome], "client")
        return True

    def sweep(self, now_s: float) -> None:
        """Close what nobody will tell of any more."""
        for request in list(self._open.values()):
            if request.record.request_id not in self._exchanges.live:
                del self._open[request.record.request_id]  # ended by somebody else
                continue
            attempt = request.attempt
            if now_s - request.record.accepted_s > self._parts.config.request_timeout_s:
                self._end(request, Outcome.FAILED, "timeout")
            elif attempt is None:
                continue
            elif attempt.lost_reason is not None or (
                attempt.worker.state is WorkerState.UNREACHABLE
            ):
                self._end(request, Outcome.FAILED, "worker_gone")
            elif attempt.worker.is_idle_since(attempt.dispatched_s + _ARRIVAL_S):
                self._end(request, Outcome.FAILED, "idle_worker")

    def _finish(self, request: LiveRequest, usage: Usage, teller: str) -> None:
        attempt = request.attempt
        if attempt is None:
            raise AssertionError("an answer without an attempt")
        self._forget(request, teller)
        attempt.worker.last_alive_s = self._parts.clock()
        self._exchanges.finish(request, attempt, Answer(200, b"", None, usage))

    def _end(self, request: LiveRequest, outcome: Outcome, teller: str) -> None:
        self._forget(request, teller)
        if teller in ("report", "client", "idle_worker") and request.attempt is not None:
            # The engine has nothing of it (any more): nothing is left to abort there.
            is_over = outcome is not Outcome.DISCONNECTED or teller == "report"
            if is_over:
                self._parts.dispatcher.release(request.attempt)
        self._exchanges.end(request, outcome)

    def _forget(self, request: LiveRequest, teller: str) -> None:
        if self._open.pop(request.record.request_id, None) is not None:
            self._parts.metrics.placement_ends.labels(teller).inc()

    def _cancelled(self, request: LiveRequest, told: asyncio.Future[ApiError]) -> None:
        """Its workflow was cancelled, or the coordinator leaves: then the worker may go on."""
        if told.cancelled() or request.record.request_id not in self._open:
            return
        if told.result().status == _CANCELLED_STATUS:
            self._end(request, Outcome.CANCELLED, "cancel")
            return
        if request.attempt is not None:
            self._parts.dispatcher.release(request.attempt)
        self._end(request, Outcome.FAILED, "shutdown")


def incoming_of(wanted: WantedPlacement, caller: Caller, num_bytes: int) -> IncomingRequest:
    """The request as queue, dispatcher and estimates know it: without a body.

    Raises:
        ProtocolError: the workflow id is too long for the caller's tenant.
    """
    return IncomingRequest(
        route=ROUTE,
        body={},
        tag=caller.own(wanted.hexgen),
        model=None if wanted.model in (None, "", "default") else wanted.model,
        stream=wanted.stream,
        adds_usage=False,
        shape=wanted.shape,
        num_outputs=1,
        max_output_tokens=wanted.max_output_tokens,
        num_bytes=num_bytes,
        caller=caller,
    )


def _usage_of(end: PlacementEnd, incoming: IncomingRequest) -> Usage | None:
    """What the client says that it used, within the request's own limit; None when it does not."""
    if end.prompt_tokens is None or end.output_tokens is None:
        return None
    output = end.output_tokens
    if incoming.max_output_tokens is not None:
        output = min(output, incoming.max_output_tokens)
    cached = None if end.cached_tokens is None else min(end.cached_tokens, end.prompt_tokens)
    return Usage(end.prompt_tokens, output, cached)
