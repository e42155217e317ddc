"""The way of one request: wait for a worker, try there, try again elsewhere, end.

Runs as one task for each client connection. Whatever happens, a request leaves the queue and
the worker's count, ends once in the tracker, and its client gets exactly one answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Receive

from hexgen_sglang.coordinator.admission import Parts, admit, no_worker
from hexgen_sglang.coordinator.attempt_io import Answer
from hexgen_sglang.coordinator.backoff import backoff_s
from hexgen_sglang.coordinator.delivery import Delivery, disconnected
from hexgen_sglang.coordinator.http_errors import ApiError, draining
from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.coordinator.limits import Lease, Limiter
from hexgen_sglang.coordinator.live_request import Attempt, AttemptFailed, LiveRequest
from hexgen_sglang.coordinator.retry_budget import RetryBudget
from hexgen_sglang.coordinator.workflows import Outcome, RequestRecord
from hexgen_sglang.core.errors import HexgenError

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.tracing import RequestTrace

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
# With these a worker says that it has too much to do, or it does not get to saying so.
_OVERLOADED = ("status", "timeout")
# As nginx says it: the caller's side gave up. OpenAI clients do not try such a call again.
_CANCELLED_STATUS = 499


class Exchanges:
    """All requests in progress.

    Args:
        parts: what a request passes.
        limiter: holds tenants to their limits.

    Attributes:
        live: accepted requests that have not ended, by request id.
        is_draining: new requests are refused.
    """

    def __init__(self, parts: Parts, limiter: Limiter) -> None:
        self._parts = parts
        self._limiter = limiter
        self._leases: dict[str, Lease] = {}
        config = parts.config
        self._budget = RetryBudget(config.retry_share, config.retry_reserve)
        self.live: dict[str, LiveRequest] = {}
        self.is_draining = False
        self._all_ended = asyncio.Event()

    async def answer(
        self,
        incoming: IncomingRequest,
        headers: Mapping[str, str],
        delivery: Delivery,
        receive: Receive,
        trace: RequestTrace | None = None,
    ) -> None:
        """Serve one request to its end; the client has got its answer, or is gone.

        Raises:
            ApiError, AdmissionRejected: not accepted; nothing of it was kept.
        """
        if self.is_draining:
            raise draining()
        request = self._accept(incoming, trace)
        work = asyncio.create_task(self._serve(request, headers, delivery))
        gone = asyncio.create_task(disconnected(receive))
        awaited: set[asyncio.Future[Any]] = {work, gone, request.cancelled}
        try:
            await asyncio.wait(
                awaited,
                timeout=self._parts.config.request_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                told = _error_of(work)
                outcome = Outcome.FAILED
            else:
                outcome, told = self._interruption(request, gone)
                await _cancelled(work)
            self._end(request, outcome)
            if told is not None:
                await delivery.fail(told, _names(request))
        finally:
            gone.cancel()
            await _cancelled(work)
            self._end(request, Outcome.DISCONNECTED)

    def accept(self, incoming: IncomingRequest, trace: RequestTrace | None = None) -> LiveRequest:
        """Enter a request that is answered elsewhere; whoever calls this ends it.

        Raises:
            ApiError, AdmissionRejected: not accepted; nothing of it was kept.
        """
        if self.is_draining:
            raise draining()
        return self._accept(incoming, trace)

    def finish(self, request: LiveRequest, attempt: Attempt, answer: Answer) -> None:
        """The request has its answer: enter it everywhere, and end the request."""
        self._note_answer(request, attempt, answer)

    def end(self, request: LiveRequest, outcome: Outcome) -> None:
        """The request is over without one; what is left of it at a worker is aborted."""
        self._end(request, outcome)

    def _accept(self, incoming: IncomingRequest, trace: RequestTrace | None) -> LiveRequest:
        """Take the tenant's share and admit the request.

        Raises:
            ApiError, AdmissionRejected: not accepted; nothing of it was kept.
        """
        parts, tag = self._parts, incoming.tag
        kind, stage = (tag.workflow_type or "", tag.stage or "") if tag else ("", "")
        expected = parts.estimates.expected_output_tokens(kind, stage, incoming) or 0
        num_tokens = parts.estimates.num_prompt_tokens(incoming.model or "", incoming.shape)
        try:
            lease = self._limiter.take(incoming.caller.tenant, num_tokens + expected)
        except ApiError as refusal:
            parts.metrics.limited(incoming.caller.tenant, refusal.param or "")
            raise
        try:
            request = admit(parts, incoming)
        except HexgenError:
            lease.give_back()
            raise
        self._leases[request.record.request_id] = lease
        self.live[request.record.request_id] = request
        self._budget.request_came()
        if trace is not None:
            request.trace = trace
            trace.accepted(request)
        return request

    def cancel_workflow(self, workflow_id: str) -> list[LiveRequest]:
        """Cancel every request of a workflow; their clients get status 499."""
        found = [r for r in self.live.values() if r.workflow.workflow_id == workflow_id]
        for request in found:
            request.cancel(
                ApiError(
                    _CANCELLED_STATUS,
                    f"workflow {workflow_id!r} was cancelled",
                    kind="cancelled",
                    code="workflow_cancelled",
                )
            )
        return found

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the others; returns how many are left then."""
        self.is_draining = True
        if self.live:
            self._all_ended.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._all_ended.wait()
            except TimeoutError:
                log.warning("%d requests have not ended in %g s", len(self.live), timeout_s)
        return len(self.live)

    def abandon(self) -> None:
        """Cancel everything that is left; clients get status 503."""
        for request in self.live.values():
            request.cancel(draining())

    async def _serve(
        self, request: LiveRequest, headers: Mapping[str, str], delivery: Delivery
    ) -> None:
        """Try at workers until one answers.

        Raises:
            ApiError: no worker in time, every try failed, or a stream broke off.
        """
        while True:
            attempt = await self._place(request)
            names = _names(request, attempt)

            def note(answer: Answer, attempt: Attempt = attempt) -> None:
                self._note_answer(request, attempt, answer)

            try:
                answer = await self._parts.attempts.run(attempt, delivery, headers, names, note)
            except AttemptFailed as failure:
                self._take_failure(request, attempt, failure, delivery)
                await self._prepare_retry(request)
                continue
            if answer.body is not None:
                length = str(len(answer.body)).encode()
                names += [(b"content-type", answer.content_type), (b"content-length", length)]
                await delivery.whole(answer.status, names, answer.body)
            return

    async def _place(self, request: LiveRequest) -> Attempt:
        """Wait in the queue for a worker.

        Raises:
            ApiError: 503, none came within the queue timeout.
        """
        parts = self._parts
        limit_s = parts.config.queue_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await request.placed
        except TimeoutError as error:
            if request.attempt is None:
                raise no_worker(parts) from error
        return self.note_placed(request)

    def note_placed(self, request: LiveRequest) -> Attempt:
        """Enter where a request was placed; returns the attempt."""
        parts, attempt = self._parts, request.attempt
        if attempt is None:
            raise AssertionError("placed without an attempt")
        record = request.record
        if record.dispatched_s is None:
            parts.metrics.queue_seconds.observe(attempt.dispatched_s - record.accepted_s)
        record.outcome = Outcome.RUNNING
        record.worker_id = attempt.worker.worker_id
        record.dispatched_s = attempt.dispatched_s
        parts.keeper.placed(request, record.worker_id, parts.clock())
        if request.trace is not None:
            request.trace.placed(request, attempt)
        return attempt

    def _note_answer(self, request: LiveRequest, attempt: Attempt, answer: Answer) -> None:
        """Enter a worker's answer everywhere, just before the client has all of it."""
        parts, record = self._parts, request.record
        attempt.worker.breaker.succeeded(attempt.rid)
        busy_s = parts.dispatcher.release(attempt)
        is_good = answer.status < 400
        # Of a stream that came from several workers no rate can be learned.
        if is_good and not request.is_resumed:
            parts.estimates.note_answered(attempt, answer.usage, busy_s, parts.clock())
        if answer.usage is not None:
            record.prompt_tokens = answer.usage.prompt_tokens
            record.output_tokens = answer.usage.output_tokens
            if answer.usage.cached_tokens is not None:
                record.cached_tokens = answer.usage.cached_tokens
                attempt.worker.take_usage(record.prompt_tokens, record.cached_tokens)
        self._end(request, Outcome.COMPLETED if is_good else Outcome.REJECTED)

    def _take_failure(
        self,
        request: LiveRequest,
        attempt: Attempt,
        failure: AttemptFailed,
        delivery: Delivery,
    ) -> None:
        """Count a failed try.

        Raises:
            ApiError: 502, the last try has failed, the answer has begun and cannot go on
                elsewhere, or too many requests are being tried again.
        """
        parts, worker = self._parts, attempt.worker
        if failure.reason == "moved":
            self._take_back(request, attempt)
            return
        log.warning(
            "request %s at worker %s: %s", request.record.request_id, worker.worker_id, failure
        )
        parts.directory.on_attempt_failed(worker, failure, attempt.rid)
        if request.trace is not None:
            request.trace.failed(failure)
        self._leave_worker(request, is_gone=failure.reason in ("connect", "disconnect"))
        label = parts.metrics.worker_label(worker.worker_id)
        parts.metrics.retries.labels(label, failure.reason).inc()
        request.failed_on.add(worker.worker_id)
        why = self._why_not_again(request, failure, delivery)
        if why:
            is_last = request.num_attempts >= parts.config.max_attempts
            when = "at the last try" if is_last else "and the request is not tried again"
            if delivery.has_begun:
                when = "after its first byte"
            raise ApiError(
                502,
                f"worker {worker.worker_id!r} failed {when} "
                f"(try {request.num_attempts} of {parts.config.max_attempts}): "
                f"{failure}{failure.detail}; {why}",
                kind="server_error",
                code="worker_failed",
            )

    def _take_back(self, request: LiveRequest, attempt: Attempt) -> None:
        """A request that waited at a worker comes back; that is no failure and no try of it."""
        parts, worker_id = self._parts, attempt.worker.worker_id
        self._leave_worker(request)
        request.num_moves += 1
        request.failed_on.add(worker_id)
        label = parts.metrics.worker_label(worker_id)
        parts.metrics.moves.labels(label, attempt.moved_for).inc()
        log.info("request %s: %s", request.record.request_id, attempt.lost_reason)

    def _why_not_again(
        self, request: LiveRequest, failure: AttemptFailed, delivery: Delivery
    ) -> str:
        """Why the request is not tried again; "" when it is."""
        if delivery.has_begun:
            position = delivery.position
            why = "it is no stream" if position is None else position.why_not()
            if why:
                return f"cannot go on elsewhere, {why}"
        if request.num_attempts - request.num_moves >= self._parts.config.max_attempts:
            return "no tries are left"
        if failure.reason in _OVERLOADED and not self._budget.take():
            return "too many requests are being tried again"
        request.is_resumed = request.is_resumed or delivery.has_begun
        return ""

    async def _prepare_retry(self, request: LiveRequest) -> None:
        """Queue the request again; pause when every worker that is left has failed it."""
        parts = self._parts
        request.record.retries = request.num_attempts - request.num_moves
        request.record.moves = request.num_moves
        request.record.outcome = Outcome.QUEUED
        able = {w.worker_id for w in parts.directory.ready() if w.serves(request.lane)}
        if able and able <= request.failed_on:
            tries = request.num_attempts
            pause_s = backoff_s(tries, _FIRST_BACKOFF_S, _MAX_BACKOFF_S, random.random)
            await asyncio.sleep(pause_s)
        request.placed = asyncio.get_running_loop().create_future()
        parts.queue.push(request)
        parts.dispatcher.kick()

    def _interruption(
        self, request: LiveRequest, gone: asyncio.Task[None]
    ) -> tuple[Outcome, ApiError | None]:
        """Why a request is stopped from outside, and what its client is told."""
        if request.cancelled.done():
            told = request.cancelled.result()
            is_wanted = told.status == _CANCELLED_STATUS
            return (Outcome.CANCELLED if is_wanted else Outcome.FAILED), told
        if gone.done():
            return Outcome.DISCONNECTED, None
        limit_s = self._parts.config.request_timeout_s
        told = ApiError(
            504, f"not finished within {limit_s:g} s", kind="server_error", code="timeout"
        )
        return Outcome.FAILED, told

    def _leave_worker(self, request: LiveRequest, *, is_gone: bool = False) -> None:
        """Take the request out of the queue and off its worker, which is told to stop."""
        self._parts.queue.remove(request)
        attempt = request.attempt
        if attempt is None:
            return
        self._parts.dispatcher.release(attempt)
        if not is_gone:
            self._parts.client.abort(attempt.worker.url, attempt.rid)

    def _end(self, request: LiveRequest, outcome: Outcome) -> None:
        """The request is over, wherever it was; only the first call counts."""
        if self.live.pop(request.record.request_id, None) is None:
            return
        self._leave_worker(request)
        parts = self._parts
        parts.tracker.close(request.workflow, request.record, outcome, parts.clock())
        parts.keeper.ended(request.workflow, request.record.stage, parts.clock())
        if parts.queue.shares is not None:
            parts.queue.shares.ended(request)
        self._leases.pop(request.record.request_id).settle(_used_tokens(request.record))
        parts.metrics.request_ended(request)
        if request.trace is not None:
            request.trace.ended(request.record, parts.clock())
        if not self.live:
            self._all_ended.set()


def _used_tokens(record: RequestRecord) -> int | None:
    """What a request cost; None when its end did not tell, 0 when no worker ever had it."""
    if record.prompt_tokens is not None:
        return record.prompt_tokens + (record.output_tokens or 0)
    return None if record.dispatched_s is not None else 0


def _error_of(work: asyncio.Task[None]) -> ApiError | None:
    """What went wrong in a finished task, as the client is told it; None when nothing did."""
    error = work.exception()
    if error is None or isinstance(error, ApiError):
        return error
    log.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "internal error", kind="server_error", code="internal_error")


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over; its result no longer matters."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _names(request: LiveRequest, attempt: Attempt | None = None) -> list[tuple[bytes, bytes]]:
    """Headers that tell the client who served it."""
    shown_id = request.incoming.caller.shown_id(request.workflow.workflow_id)
    names = [
        (b"x-hexgen-request-id", request.record.request_id.encode()),
        (b"x-hexgen-workflow-id", shown_id.encode()),
    ]
    if attempt is not None:
        names.append((b"x-hexgen-worker-id", attempt.worker.worker_id.encode()))
    return names
