"""`POST /placements` and `POST /placements/ends`: the HTTP of direct mode.

Runs in the coordinator's event loop. Each line of the answer to a call for placements is one
JSON object; a line goes out as soon as its request is placed. What a placement is, and how it
ends, is in `placements`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hexgen_sglang.coordinator import placements
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.admission import no_worker
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.attempt_io import cache_key, engine_tag_of
from hexgen_sglang.coordinator.delivery import Delivery, disconnected
from hexgen_sglang.coordinator.http_errors import ApiError, as_api_error
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.placements import PlacementEnds, WantedPlacements
from hexgen_sglang.coordinator.receiving import admitted, read_body
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import HexgenError, ProtocolError
from hexgen_sglang.protocol.tag import BODY_FIELD

_T = TypeVar("_T")
BODIES: dict[str, type[msgspec.Struct]] = {
    f"POST {placements.ROUTE}": WantedPlacements,
    f"POST {placements.ROUTE}/ends": PlacementEnds,
}
_LINES = b"application/x-ndjson"
_OK = [(b"content-type", _LINES)]
Answering = Callable[[Coordinator, Caller, bytes, Delivery, Request], Awaitable[None]]


def routes(coordinator: Coordinator) -> list[Route]:
    """The routes; without `direct` in the configuration there are none."""
    if not coordinator.config.direct:
        return []
    return [
        Route(placements.ROUTE, _Endpoint(coordinator, _place), methods=["POST"]),
        Route(f"{placements.ROUTE}/ends", _Endpoint(coordinator, _take_ends), methods=["POST"]),
    ]


class _Endpoint:
    """One route as plain ASGI: who calls, the body, the answer or an error."""

    def __init__(self, coordinator: Coordinator, answering: Answering) -> None:
        self._coordinator = coordinator
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        coordinator = self._coordinator
        delivery = Delivery(send)
        request = Request(scope, receive)
        try:
            caller = admitted(coordinator, request.headers, (Role.CLIENT,))
            raw = await read_body(request, coordinator)
            await self._answering(coordinator, caller, raw, delivery, request)
        except ClientDisconnect:
            return
        except HexgenError as error:
            refusal = as_api_error(error)
            coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
            await delivery.fail(refusal)


async def _place(
    coordinator: Coordinator, caller: Caller, raw: bytes, delivery: Delivery, asked: Request
) -> None:
    """Accept each request, and tell of each as soon as it is placed."""
    wanted = _decoded(_PLACEMENTS, raw)
    call = _Call(coordinator, delivery)
    num_bytes = len(raw) // len(wanted.requests)
    refusals: list[ApiError] = []
    tracing = coordinator.tracing
    for index, row in enumerate(wanted.requests):
        trace = None if tracing is None else tracing.request(placements.ROUTE, asked.headers)
        try:
            call.waiting[index] = coordinator.placements.accept(row, caller, num_bytes, trace)
        except HexgenError as error:
            refusals.append(as_api_error(error))
            if trace is not None:
                trace.refused(refusals[-1])
            call.lines.append(_error_line(index, refusals[-1]))
    if not call.waiting:
        raise refusals[0]
    for refusal in refusals:
        coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
    parts = coordinator.parts
    if len(parts.queue) <= len(wanted.requests):
        parts.dispatcher.run_pass()  # nobody else waits: no turn of the loop is needed
    try:
        call.collect()
        if not call.waiting:
            await call.whole()
            return
        await call.rest(asked.receive)
    finally:
        for request in call.waiting.values():
            coordinator.placements.abandon(request)


class _Call:
    """One call for placements.

    Attributes:
        waiting: requests that the client has not heard of, by their place in the call.
        lines: of the answer, not sent yet.
    """

    def __init__(self, coordinator: Coordinator, delivery: Delivery) -> None:
        self._coordinator = coordinator
        self._delivery = delivery
        self.waiting: dict[int, LiveRequest] = {}
        self.lines: list[bytes] = []

    def collect(self) -> None:
        """Make lines of the requests that are placed, or have ended, by now."""
        for index, request in list(self.waiting.items()):
            if request.cancelled.done():
                self.lines.append(_error_line(index, request.cancelled.result()))
                del self.waiting[index]
            elif request.placed.done():
                self.lines.append(self._line(index, request))
                del self.waiting[index]

    async def whole(self) -> None:
        """Send everything in one piece."""
        body = b"".join(self.lines)
        length = (b"content-length", str(len(body)).encode())
        await self._delivery.whole(200, [*_OK, length], body)

    async def rest(self, receive: Receive) -> None:
        """Send each line as it comes, until none is left, the time is over, or nobody reads."""
        parts = self._coordinator.parts
        gone = asyncio.create_task(disconnected(receive))
        ends_s = parts.clock() + parts.config.queue_timeout_s
        await self._delivery.begin(200, _OK)
        try:
            while self.waiting:
                await self._send()
                events: set[asyncio.Future[Any]] = {gone}
                for request in self.waiting.values():
                    events |= {request.placed, request.cancelled}
                left_s = ends_s - parts.clock()
                await asyncio.wait(
                    events, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
                )
                if gone.done():
                    return
                self.collect()
                if parts.clock() >= ends_s:
                    self._give_up()
            await self._send()
            await self._delivery.end()
        finally:
            gone.cancel()

    async def _send(self) -> None:
        if self.lines:
            data, self.lines = b"".join(self.lines), []
            await self._delivery.write(data)

    def _give_up(self) -> None:
        """No worker for what is left."""
        for index, request in self.waiting.items():
            self.lines.append(_error_line(index, no_worker(self._coordinator.parts)))
            self._coordinator.placements.refuse(request)
        self.waiting.clear()

    def _line(self, index: int, request: LiveRequest) -> bytes:
        """What a client needs to carry the request to its worker."""
        coordinator = self._coordinator
        attempt = coordinator.exchanges.note_placed(request)
        tag = engine_tag_of(request, coordinator.parts.clock())
        caller, worker = request.incoming.caller, attempt.worker
        line: dict[str, Any] = {
            "index": index,
            "request_id": request.record.request_id,
            "workflow_id": caller.shown_id(request.workflow.workflow_id),
            "worker_id": worker.worker_id,
            "url": worker.url,
            "rid": attempt.rid,
            "custom_params": None if tag is None else {BODY_FIELD: tag},
            "worker_reports_end": worker.linked,
        }
        if coordinator.config.isolate_tenant_caches:
            line["extra_key"] = cache_key(caller.tenant, None)
        if request.trace is not None:
            line["headers"] = request.trace.headers()
        return msgspec.json.encode(line) + b"\n"


def _error_line(index: int, error: ApiError) -> bytes:
    body = msgspec.json.decode(error.body())
    hint = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
    return msgspec.json.encode({"index": index, "status": error.status, **body, **hint}) + b"\n"


async def _take_ends(
    coordinator: Coordinator, caller: Caller, raw: bytes, delivery: Delivery, asked: Request
) -> None:
    """Close what the client says has ended; what is not open any more is left out."""
    ends = _decoded(_ENDS, raw).ends
    told = coordinator.placements.told
    body = msgspec.json.encode({"num_ended": sum([told(end, caller) for end in ends])})
    length = (b"content-length", str(len(body)).encode())
    await delivery.whole(200, [(b"content-type", b"application/json"), length], body)


_PLACEMENTS = msgspec.json.Decoder(WantedPlacements)
_ENDS = msgspec.json.Decoder(PlacementEnds)


def _decoded(decoder: msgspec.json.Decoder[_T], raw: bytes) -> _T:
    """A body.

    Raises:
        ProtocolError: names field and allowed range.
    """
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"body: {error}") from error
