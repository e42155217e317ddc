"""Token counts out of workers' answers, streamed or not, without touching the answer.

Decodes only the few fields needed. An answer in an unknown shape yields None, not an error:
counting must never stand between a worker and a client.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from hexgen_sglang.coordinator import sse
from hexgen_sglang.coordinator.incoming import GENERATE


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request.

    Attributes:
        prompt_tokens, output_tokens: summed over its prompts and answers.
        cached_tokens: prompt tokens found in the prefix cache; None when not told.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageField(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _OpenAIAnswer(msgspec.Struct):
    usage: _UsageField | None = None
    choices: list[msgspec.Raw] | None = None


class _MetaInfo(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None


class _GenerateAnswer(msgspec.Struct):
    meta_info: _MetaInfo
    index: int = 0


_openai = msgspec.json.Decoder(_OpenAIAnswer)
_generate = msgspec.json.Decoder(_GenerateAnswer | list[_GenerateAnswer])


def usage_of_answer(route: str, body: bytes) -> Usage | None:
    """Usage of a complete answer to `route`; None when it does not tell."""
    try:
        if route == GENERATE:
            rows = _generate.decode(body)
            return _sum(rows if isinstance(rows, list) else [rows])
        return _from_field(_openai.decode(body).usage)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class StreamUsage:
    """Collects the usage of one streamed answer, event by event.

    Args:
        route: the route that is answered.
        hides_usage: the usage event was not asked for by the client: `take` says which one.

    Attributes:
        num_events: data events seen; about one for each output token.
    """

    def __init__(self, route: str, hides_usage: bool) -> None:
        self._route = route
        self._hides_usage = hides_usage
        self._usage: Usage | None = None
        self._rows: dict[int, _GenerateAnswer] = {}
        self._last: bytes | None = None
        self.num_events = 0

    def take(self, event: bytes) -> bool:
        """Look at one event; False when the client must not see it."""
        data = sse.payload(event)
        if data is None:
            return True
        self.num_events += 1
        if self._route == GENERATE:
            self._take_generate(data)
            return True
        return self._take_openai(data)

    @property
    def usage(self) -> Usage | None:
        """What is known so far; complete after the last event."""
        if self._route != GENERATE:
            return self._usage
        if not self._rows and self._last is not None:
            self._decode_row(self._last)
        return _sum(list(self._rows.values())) if self._rows else None

    def _take_openai(self, data: bytes) -> bool:
        if b'"usage"' not in data or b'"usage":null' in data:
            return True
        try:
            answer = _openai.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return True
        self._usage = _from_field(answer.usage) or self._usage
        is_usage_event = answer.usage is not None and answer.choices == []
        return not (self._hides_usage and is_usage_event)

    def _take_generate(self, data: bytes) -> None:
        # Each event repeats the whole text so far: decode only the last one of each answer.
        self._last = data
        if b'"finish_reason":null' not in data:
            self._decode_row(data)

    def _decode_row(self, data: bytes) -> None:
        try:
            row = _generate.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if isinstance(row, _GenerateAnswer):
            self._rows[row.index] = row


def _from_field(field: _UsageField | None) -> Usage | None:
    if field is None:
        return None
    details = field.prompt_tokens_details
    cached = details.cached_tokens if details is not None else None
    return Usage(field.prompt_tokens, field.completion_tokens or 0, cached)


def _sum(rows: list[_GenerateAnswer]) -> Usage:
    cached = [row.meta_info.cached_tokens for row in rows]
    told = [count for count in cached if count is not None]
    return Usage(
        sum(row.meta_info.prompt_tokens for row in rows),
        sum(row.meta_info.completion_tokens for row in rows),
        sum(told) if told else None,
    )
