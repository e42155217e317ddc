"""One try at one worker, as bytes: send the request, pass the answer on.

Raises `AttemptFailed` for whatever another worker may do better. Nothing here knows queues.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from hexgen_sglang.coordinator import sse
from hexgen_sglang.coordinator.continuation import StreamPosition
from hexgen_sglang.coordinator.delivery import Delivery
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.incoming import GENERATE
from hexgen_sglang.coordinator.live_request import Attempt, AttemptFailed, QueuedRequest
from hexgen_sglang.coordinator.usage import StreamUsage, Usage, usage_of_answer
from hexgen_sglang.coordinator.worker_client import WorkerClient
from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.tag import BODY_FIELD, EngineTag

_MAX_BUDGET_MS = 86_400_000
_MAX_TOKENS = 1_048_576
_READ_OUT_S = 1.0
# Passed on to the worker; everything else is between the client and the coordinator.
_FORWARDED_HEADERS = ("authorization", "traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered.

    Attributes:
        status: below 500.
        content_type: as the worker said.
        body: the whole body; None when it was streamed to the client already.
        usage: token counts, where the answer tells them.
    """

    status: int
    content_type: bytes
    body: bytes | None
    usage: Usage | None


class AttemptIO:
    """Talks to workers on behalf of attempts.

    Args:
        first_byte_timeout_s: dispatch to first event of a streamed answer.
        stream_gap_timeout_s: longest silence of a worker inside a streamed answer.
        isolate_caches: engines share no prefix between tenants.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: WorkerClient,
        *,
        first_byte_timeout_s: float,
        stream_gap_timeout_s: float,
        isolate_caches: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._first_byte_timeout_s = first_byte_timeout_s
        self._stream_gap_timeout_s = stream_gap_timeout_s
        self._isolate_caches = isolate_caches
        self._clock = clock

    async def run(
        self,
        attempt: Attempt,
        delivery: Delivery,
        headers: Mapping[str, str],
        answer_headers: list[tuple[bytes, bytes]],
        note: Callable[[Answer], None],
    ) -> Answer:
        """Get the worker's answer; a stream goes to the client as it comes.

        Args:
            attempt: the try; its counters are kept up to date.
            delivery: where a streamed answer goes.
            headers: of the client's request.
            answer_headers: added to a streamed answer.
            note: told of the complete answer before the client can have seen all of it, so
                that whoever asks afterwards finds it entered.

        Raises:
            AttemptFailed: the worker refused, broke off, fell silent or was given up.
            ApiError: the client has a part of the answer, and no worker can go on with it.
        """
        try:
            async with asyncio.timeout(None) as scope:
                attempt.scope = scope
                _check_wanted(attempt)
                return await self._exchange(attempt, delivery, headers, answer_headers, note)
        except TimeoutError as error:
            _check_wanted(attempt, error)
            raise AttemptFailed(self._silence(attempt), "timeout") from error
        finally:
            attempt.scope = None

    async def _exchange(
        self,
        attempt: Attempt,
        delivery: Delivery,
        headers: Mapping[str, str],
        answer_headers: list[tuple[bytes, bytes]],
        note: Callable[[Answer], None],
    ) -> Answer:
        incoming = attempt.request.incoming
        position = delivery.position
        if incoming.stream and position is None:
            position = delivery.position = StreamPosition(incoming)
        if delivery.has_begun and position is not None and position.is_complete:
            return await self._complete(delivery, note)
        rest = await self._rest(attempt, delivery)
        body = body_for(
            attempt.request,
            attempt.rid,
            self._clock(),
            rest=rest,
            isolate_caches=self._isolate_caches,
        )
        sent = {name: headers[name] for name in _FORWARDED_HEADERS if name in headers}
        if incoming.caller.tenant is not None:
            sent.pop("authorization", None)  # our own key: no worker's business
        if attempt.request.trace is not None:
            sent |= attempt.request.trace.headers()
        sent["content-type"] = "application/json"
        if incoming.stream:
            self._expect_within(attempt, self._first_byte_timeout_s)
        async with self._client.post(attempt.worker.url + incoming.route, body, sent) as response:
            content_type = response.headers.get("content-type", "application/json").encode()
            if response.status == 200 and incoming.stream:
                named = [(b"content-type", content_type), *answer_headers]
                return await self._pass_on(attempt, response, delivery, named, note)
            if delivery.has_begun:
                raise AttemptFailed(f"answered {response.status}", "status")
            whole = await response.read()
        attempt.worker.last_alive_s = self._clock()
        usage = usage_of_answer(incoming.route, whole) if response.status == 200 else None
        answer = Answer(response.status, content_type, whole, usage)
        note(answer)
        return answer

    async def _complete(self, delivery: Delivery, note: Callable[[Answer], None]) -> Answer:
        """End a stream of which the client lacks only the mark of the end."""
        answer = Answer(200, b"text/event-stream", None, None)
        note(answer)
        await delivery.write(sse.DONE + b"\n\n")
        await delivery.end()
        return answer

    async def _rest(self, attempt: Attempt, delivery: Delivery) -> dict[str, Any] | None:
        """The request for what the client lacks of its stream; None when it has nothing yet.

        Raises:
            AttemptFailed: this worker does not answer.
            ApiError: 502, no worker can go on with it.
        """
        position, url = delivery.position, attempt.worker.url
        if position is None or not delivery.has_begun:
            return None
        self._expect_within(attempt, None)
        try:
            if position.ids_to_read():
                ids = position.ids_to_read()
                position.check_read(await self._client.detokenize(url, ids))
            question = position.text_to_tokenize()
            tokens = []
            if question is not None:
                text, begins = question
                tokens = await self._client.tokenize(url, text, begins=begins)
            return position.body(tokens)
        except (ProtocolError, AttemptFailed) as error:
            if isinstance(error, AttemptFailed) and error.reason != "status":
                raise
            raise ApiError(
                502,
                f"a worker failed after its first byte, and worker {attempt.worker.worker_id!r} "
                f"cannot go on: {error}",
                kind="server_error",
                code="worker_failed",
            ) from error

    async def _pass_on(
        self,
        attempt: Attempt,
        response: aiohttp.ClientResponse,
        delivery: Delivery,
        headers: list[tuple[bytes, bytes]],
        note: Callable[[Answer], None],
    ) -> Answer:
        """Give the client each event as it comes."""
        incoming = attempt.request.incoming
        position = delivery.position
        if position is None:
            raise AssertionError("a stream without its position")
        usage = StreamUsage(incoming.route, incoming.adds_usage)
        splitter = sse.EventSplitter()
        answer: Answer | None = None
        async for chunk in response.content.iter_any():
            self._expect_within(attempt, None)
            attempt.worker.last_alive_s = self._clock()
            with _event_limit():
                events = splitter.feed(chunk)
                if position.is_resumed:
                    events = [new for event in events if (new := position.joined(event))]
            shown = [event for event in events if usage.take(event)]
            attempt.num_events = usage.num_events
            if any(map(sse.is_done, events)):
                answer = Answer(200, b"text/event-stream", None, usage.usage)
            if shown:
                await self._hand_over(attempt, delivery, shown, headers, answer, note)
            elif answer is not None:
                note(answer)
            if answer is not None:
                await delivery.end()
                await _read_out(response)
                return answer
            self._expect_within(attempt, self._stream_gap_timeout_s)
        raise AttemptFailed("the stream ended before its end", "disconnect")

    async def _hand_over(
        self,
        attempt: Attempt,
        delivery: Delivery,
        shown: list[bytes],
        headers: list[tuple[bytes, bytes]],
        answer: Answer | None,
        note: Callable[[Answer], None],
    ) -> None:
        """Give the client events, and enter what it has; an interruption waits for that.

        Raises:
            AttemptFailed: the worker was given up meanwhile, and its answer is not complete.
        """
        if attempt.first_byte_s is None:
            attempt.first_byte_s = self._clock()
            record = attempt.request.record
            record.first_byte_s = record.first_byte_s or attempt.first_byte_s
        attempt.is_handing_over = True
        try:
            if not delivery.has_begun:
                await delivery.begin(200, headers)
            if answer is not None:
                note(answer)
            await delivery.write(b"".join(shown))
            if delivery.position is not None:
                delivery.position.delivered(shown)
        finally:
            attempt.is_handing_over = False
        if answer is None:
            _check_wanted(attempt)

    def _expect_within(self, attempt: Attempt, seconds: float | None) -> None:
        """The worker must say something within so long; None: no limit."""
        if attempt.scope is None or attempt.lost_reason is not None:
            return
        loop = asyncio.get_running_loop()
        attempt.scope.reschedule(None if seconds is None else loop.time() + seconds)

    def _silence(self, attempt: Attempt) -> str:
        """Why a timeout of ours struck."""
        if attempt.first_byte_s is None:
            return f"no first byte within {self._first_byte_timeout_s:g} s"
        return f"silent for {self._stream_gap_timeout_s:g} s inside a stream"


def _check_wanted(attempt: Attempt, cause: Exception | None = None) -> None:
    """Stop a try that was given up or taken back.

    Raises:
        AttemptFailed: it was.
    """
    if attempt.lost_reason is not None:
        reason = "moved" if attempt.moved_for else "lost"
        raise AttemptFailed(attempt.lost_reason, reason) from cause


def body_for(
    request: QueuedRequest,
    rid: str,
    now_s: float,
    *,
    rest: dict[str, Any] | None = None,
    isolate_caches: bool = False,
) -> bytes:
    """What goes to the worker: the client's body, the request's id and the engine's tag.

    `rest`: instead of the client's body, when it asks for what is lacking. `isolate_caches`: with a
    key for the prefix cache that no other tenant can name.
    """
    incoming = request.incoming
    body = {**(incoming.body if rest is None else rest), "rid": rid}
    if isolate_caches:
        body["extra_key"] = cache_key(incoming.caller.tenant, body.get("extra_key"))
    tag = engine_tag_of(request, now_s)
    if incoming.route == GENERATE:
        if tag is not None:
            body["sampling_params"] = _tagged_sampling(body.get("sampling_params"), tag)
    else:
        if tag is not None:
            body["custom_params"] = {**(body.get("custom_params") or {}), BODY_FIELD: tag}
        if incoming.adds_usage:
            options = body.get("stream_options") or {}
            body["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(body)


def engine_tag_of(request: QueuedRequest, now_s: float) -> dict[str, Any] | None:
    """The tag for the engine as plain JSON; None when untagged.

    `budget_ms` is what is left at this instant, `expected_output_tokens` of each answer.
    """
    tag = request.incoming.tag
    if tag is None:
        return None
    view = request.view
    budget_ms = None
    if view.deadline_s is not None:
        budget_ms = min(_MAX_BUDGET_MS, max(1, round((view.deadline_s - now_s) * 1000)))
    remaining_ms = min(_MAX_BUDGET_MS, round(view.predicted_remaining_s * 1000))
    stage_ms = min(_MAX_BUDGET_MS, round(view.predicted_stage_s * 1000))
    expected = view.expected_output_tokens
    if expected is not None:
        expected = min(_MAX_TOKENS, max(1, round(expected / request.incoming.num_outputs)))
    plain: dict[str, Any] = msgspec.to_builtins(
        EngineTag(
            workflow_id=tag.workflow_id,
            workflow_type=tag.workflow_type,
            stage=tag.stage,
            budget_ms=budget_ms,
            siblings=tag.siblings,
            sibling_index=tag.sibling_index,
            tenant=tag.tenant,
            final=tag.final,
            expected_output_tokens=expected,
            predicted_remaining_ms=remaining_ms or None,
            predicted_stage_ms=stage_ms or None,
        )
    )
    return plain


def cache_key(tenant: str | None, given: Any) -> Any:
    """SGLang's `extra_key`, which prefixes must share to be shared, below the tenant's name."""
    if isinstance(given, list):
        return [cache_key(tenant, row) for row in given]
    return f"{tenant}/{given or ''}"


def _tagged_sampling(given: Any, tag: dict[str, Any]) -> Any:
    """Sampling parameters with the tag in the `custom_params` of each row."""
    if isinstance(given, list):
        return [_tagged_sampling(row, tag) for row in given]
    row = given or {}
    return {**row, "custom_params": {**(row.get("custom_params") or {}), BODY_FIELD: tag}}


async def _read_out(response: aiohttp.ClientResponse) -> None:
    """Read the end of a body that holds nothing more, so that its connection can be kept."""
    with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
        async with asyncio.timeout(_READ_OUT_S):
            await response.read()


@contextmanager
def _event_limit() -> Iterator[None]:
    """An endless event is the worker's failure, not the client's."""
    try:
        yield
    except ProtocolError as error:
        raise AttemptFailed(str(error), "disconnect") from error
