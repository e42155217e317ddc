"""One /generate request and its answer, as the replay needs them.

Knows SGLang's native route: the body, the server-sent events, and `meta_info`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from hexgen_sglang.protocol.tag import BODY_FIELD, EngineTag
from hexgen_sglang.workload.prefixes import TokenIds

_DATA = b"data: "
_DONE = b"[DONE]"
_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask of a worker.

    Attributes:
        url: base address.
        request_id: our name for it, sent as `x-request-id`; the engine's `rid` is its own
            affair, or the coordinator's.
        input_ids: the prompt.
        output_tokens: exact output length; the end-of-sequence token is ignored.
        tag: workflow, stage and what is left of the budget.
        priority: SGLang's own request priority; None: not sent.
    """

    url: str
    request_id: str
    input_ids: TokenIds
    output_tokens: int
    tag: EngineTag
    priority: int | None = None

    def body(self) -> bytes:
        """The JSON body. The tag goes in both places: a coordinator reads the top level, an
        engine behind no coordinator `custom_params`; other routers drop or pass them.
        """
        tag = msgspec.to_builtins(self.tag)
        fields: dict[str, Any] = {
            "input_ids": self.input_ids.tolist(),
            "stream": True,
            "sampling_params": {
                "max_new_tokens": self.output_tokens,
                "ignore_eos": True,
                "temperature": 0.0,
                "custom_params": {BODY_FIELD: tag},
            },
            BODY_FIELD: tag,
        }
        if self.priority is not None:
            fields["priority"] = self.priority
        return msgspec.json.encode(fields)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        first_byte_s: instant of the first event, by `clock`; None when none came.
        end_s: instant of the end.
        meta: `meta_info` of the last event; {} when there was none.
        worker: the dispatcher's word on who served it, from the headers; "" without one.
        error: "" for a whole answer.
    """

    first_byte_s: float | None
    end_s: float
    meta: dict[str, Any]
    worker: str = ""
    error: str = ""


async def exchange(
    session: aiohttp.ClientSession, call: Call, body: bytes, clock: Callable[[], float]
) -> Answer:
    """Send one request and read its answer to the end; failures are answers with `error`."""
    first_byte_s: float | None = None
    try:
        async with session.post(
            f"{call.url}/generate",
            data=body,
            headers={"content-type": "application/json", "x-request-id": call.request_id},
        ) as response:
            worker = response.headers.get("x-hexgen-worker-id", "")
            if response.status != 200:
                text = (await response.text())[:_ERROR_CHARS]
                return Answer(None, clock(), {}, worker, f"status {response.status}: {text}")
            last = b""
            async for line in response.content:
                if line.startswith(_DATA):
                    if first_byte_s is None:
                        first_byte_s = clock()
                    payload = line[len(_DATA) :].strip()
                    last = last if payload == _DONE else payload
            return _read(last, first_byte_s, clock(), worker)
    except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError) as error:
        return Answer(first_byte_s, clock(), {}, "", f"{type(error).__name__}: {error}")


def _read(last: bytes, first_byte_s: float | None, end_s: float, worker: str) -> Answer:
    """The answer whose last event is `last`."""
    if not last:
        return Answer(first_byte_s, end_s, {}, worker, "the answer has no event")
    event = msgspec.json.decode(last)
    if "error" in event:
        return Answer(first_byte_s, end_s, {}, worker, str(event["error"])[:_ERROR_CHARS])
    meta = event.get("meta_info") or {}
    finish = (meta.get("finish_reason") or {}).get("type")
    if finish != "length":
        return Answer(first_byte_s, end_s, meta, worker, f"finish_reason={finish!r}")
    return Answer(first_byte_s, end_s, meta, worker)
