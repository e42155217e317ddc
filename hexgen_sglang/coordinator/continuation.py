"""What a client has of a stream, and how another worker goes on from there.

One object for each streamed answer, in the coordinator's event loop; no I/O. A stream can go on
elsewhere when its request says all that its tokens depend on: what another worker cannot know
(penalties of what was said, a grammar's state, log-probabilities) is refused by name. /generate
goes on from token ids; the OpenAI routes tell no ids and go on from the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hexgen_sglang.coordinator import sse
from hexgen_sglang.coordinator.incoming import CHAT, COMPLETIONS, GENERATE, IncomingRequest
from hexgen_sglang.core.errors import ProtocolError

# Fields with which a stream can go on, whatever they say; any other must be unset.
_EVERYWHERE = {
    *("stream", "model", "rid", "extra_key", "cache_salt", "priority", "custom_labels"),
    *("temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos"),
    *("skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "lora_path"),
}
_OPENAI = {"max_tokens", "min_tokens", "stream_options", "user", "seed", "metadata"}
_FIELDS = {
    GENERATE: _EVERYWHERE | {"text", "input_ids", "sampling_params"},
    COMPLETIONS: _EVERYWHERE | _OPENAI | {"prompt"},
    CHAT: _EVERYWHERE
    | _OPENAI
    | {"messages", "max_completion_tokens", "chat_template_kwargs", "separate_reasoning"},
}
_SAMPLING = _EVERYWHERE | {"max_new_tokens", "min_new_tokens", "sampling_seed"}
# Values of other fields that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"n": (1,), "best_of": (1,), "repetition_penalty": (1,)}
_UNSET: tuple[Any, ...] = (None, False, 0, "", [], {})
# What SGLang takes for a limit that is not stated; None: up to its context.
_DEFAULT_LIMIT = {GENERATE: 128, COMPLETIONS: 16, CHAT: None}
_BROKEN_CHARACTER = "�"


class StreamPosition:
    """How far a client's stream has come.

    Args:
        incoming: what the client asked for, with `stream`.
    """

    def __init__(self, incoming: IncomingRequest) -> None:
        self._incoming = incoming
        self._last: bytes | None = None  # of /generate: each event repeats all before
        self._head: dict[str, Any] = {}  # of the OpenAI routes: id and created
        self._text = ""
        self._ids: list[int] = []
        self._prompt_tokens = 0
        self._num_tokens = 0
        self._has_usage = False
        self._is_finished = False
        self._odd = ""  # why the stream cannot go on, by what it has shown
        self.is_resumed = False

    @property
    def num_tokens(self) -> int:
        """Output tokens that the client had when the stream broke off."""
        return self._num_tokens

    def delivered(self, events: list[bytes]) -> None:
        """The client has these events."""
        for event in events:
            data = sse.payload(event)
            if data is None:
                continue
            if self._incoming.route == GENERATE:
                self._last = data
            else:
                self._take_delta(data)

    def why_not(self) -> str:
        """Why the stream cannot go on at another worker; "" when it can.

        Call it when the stream has broken off.
        """
        why = self._odd or self._read_last()
        if not why and self._is_finished:
            return "" if self.is_complete else "it lacks only its usage"
        return why or self._foreign_field() or self._open_stop()

    @property
    def is_complete(self) -> bool:
        """The client lacks nothing but the mark of the end. Call it after `why_not`."""
        wants_usage = self._incoming.route != GENERATE and not self._incoming.adds_usage
        options = self._incoming.body.get("stream_options") or {}
        lacks_usage = wants_usage and options.get("include_usage") and not self._has_usage
        return self._is_finished and not lacks_usage

    def text_to_tokenize(self) -> tuple[str, bool] | None:
        """A text whose token ids `body` needs, and whether it begins a sequence; None for none."""
        body = self._incoming.body
        if self._incoming.route != GENERATE:
            return (self._text, False) if self._text else None
        return (str(body["text"]), True) if self._ids and not body.get("input_ids") else None

    def ids_to_read(self) -> list[int]:
        """Output ids whose text must not end inside a character; [] when that is known."""
        return self._ids

    def check_read(self, text: str) -> None:
        """`text`: what `ids_to_read` say.

        Raises:
            ProtocolError: the stream broke off inside a character, of which the client would
                miss the beginning.
        """
        if text.endswith(_BROKEN_CHARACTER):
            raise ProtocolError("the stream broke off inside a character")

    def body(self, tokens: list[int]) -> dict[str, Any]:
        """The request for the rest.

        Args:
            tokens: of `text_to_tokenize`; [] when it was None.

        Raises:
            ProtocolError: the next worker reads the prompt as other tokens than the first.
        """
        self.is_resumed = True
        if not self._head:
            return self._incoming.body
        if self._incoming.route == GENERATE:
            return self._generate_body(tokens)
        self._num_tokens = len(tokens)
        return self._openai_body(tokens)

    def joined(self, event: bytes) -> bytes | None:
        """An event of the rest as the client's stream goes on; None: the client has it already.

        Raises:
            ProtocolError: the event is not as it was asked for.
        """
        data = sse.payload(event)
        if data is None:
            return event
        try:
            row = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"event of a stream: {error}") from error
        if not isinstance(row, dict) or "error" in row:
            return event
        if self._incoming.route == GENERATE:
            self._join_generate(row)
        elif not self._join_openai(row):
            return None
        return b"data: " + msgspec.json.encode(row) + b"\n\n"

    def _read_last(self) -> str:
        """Take the position from the last event of /generate; why that is not possible."""
        if self._incoming.route != GENERATE or self._last is None:
            return ""
        try:
            row = msgspec.json.decode(self._last, type=_GenerateEvent)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "its events do not tell token ids"
        meta = row.meta_info
        if len(row.output_ids) != meta.completion_tokens:
            return "its events tell only the newest tokens"
        self._ids, self._text = row.output_ids, row.text or ""
        self._num_tokens = meta.completion_tokens
        self._prompt_tokens = meta.prompt_tokens
        self._head = {"id": meta.id}
        self._is_finished = meta.finish_reason is not None
        return ""

    def _foreign_field(self) -> str:
        """The first field with which a stream cannot go on."""
        incoming = self._incoming
        if incoming.num_outputs != 1 or incoming.shape.num_prompts != 1:
            return "it has several answers"
        sampling = incoming.body.get("sampling_params") or {}
        if not isinstance(sampling, dict):
            return "sampling_params is a list"
        for row, known in ((incoming.body, _FIELDS[incoming.route]), (sampling, _SAMPLING)):
            for name, value in row.items():
                neutral = (*_UNSET, *_NEUTRAL.get(name, ()))
                if name not in known and value not in neutral:
                    return f"{name} was given"
        return self._odd_prompt()

    def _odd_prompt(self) -> str:
        """Why the prompt cannot be followed by the answer so far."""
        body = self._incoming.body
        if self._incoming.route == CHAT:
            last = body["messages"][-1]
            if not isinstance(last, dict) or last.get("role") == "assistant":
                return "the last message is the assistant's"
            return ""
        name = "prompt"
        if self._incoming.route == GENERATE:
            name = "text" if body.get("input_ids") is None else "input_ids"
        value = body.get(name)
        is_ids = isinstance(value, list) and all(type(item) is int for item in value)
        return "" if is_ids or isinstance(value, str) else f"{name} is a list of prompts"

    def _open_stop(self) -> str:
        """Whether the text ends as a stop string begins: the next worker would not see it."""
        body = self._incoming.body
        stops = body.get("stop") or (body.get("sampling_params") or {}).get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            if any(self._text.endswith(stop[:length]) for length in range(1, len(stop))):
                return "it broke off where a stop string may begin"
        return ""

    def _generate_body(self, prompt_ids: list[int]) -> dict[str, Any]:
        body = {name: value for name, value in self._incoming.body.items() if name != "text"}
        ids = body.pop("input_ids", None) or prompt_ids
        if len(ids) != self._prompt_tokens:
            raise ProtocolError(
                f"the prompt has {len(ids)} tokens here, and had {self._prompt_tokens}"
            )
        sampling = dict(body.get("sampling_params") or {})
        limit = sampling.get("max_new_tokens", _DEFAULT_LIMIT[GENERATE])
        _lower(sampling, "max_new_tokens", limit, self._num_tokens)
        if sampling.get("min_new_tokens"):
            least = max(0, sampling["min_new_tokens"] - self._num_tokens)
            sampling["min_new_tokens"] = least
        return {**body, "input_ids": [*ids, *self._ids], "sampling_params": sampling}

    def _openai_body(self, tokens: list[int]) -> dict[str, Any]:
        route, body = self._incoming.route, dict(self._incoming.body)
        name = "max_tokens"
        if body.get("max_completion_tokens") is not None:
            name = "max_completion_tokens"
        given = body.get(name)
        _lower(body, name, _DEFAULT_LIMIT[route] if given is None else given, len(tokens))
        if body.get("min_tokens"):
            body["min_tokens"] = max(0, body["min_tokens"] - len(tokens))
        if not self._text:
            return body
        if route == CHAT:
            said = {"role": "assistant", "content": self._text}
            return {**body, "messages": [*body["messages"], said], "continue_final_message": True}
        prompt = body["prompt"]
        is_text = isinstance(prompt, str)
        return {**body, "prompt": prompt + self._text if is_text else [*prompt, *tokens]}

    def _take_delta(self, data: bytes) -> None:
        """Take in one event of the OpenAI routes."""
        try:
            row = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._odd = "it has shown an event of another shape"
            return
        self._has_usage = self._has_usage or row.usage is not None
        if not self._head:
            self._head = {"id": row.id, "created": row.created}
        for choice in row.choices:
            delta = choice.delta
            if delta is not None and (delta.reasoning_content or delta.tool_calls):
                self._odd = "it has shown reasoning or tool calls"
            self._text += choice.text or (delta.content if delta is not None else None) or ""
            self._is_finished = self._is_finished or choice.finish_reason is not None

    def _join_generate(self, row: dict[str, Any]) -> None:
        meta = row.get("meta_info")
        if not isinstance(meta, dict) or not isinstance(row.get("output_ids"), list):
            raise ProtocolError("event of a stream: has no token ids")
        if isinstance(row.get("text"), str):
            row["text"] = self._text + row["text"]
        row["output_ids"] = [*self._ids, *row["output_ids"]]
        if self._head:
            meta["completion_tokens"] = len(row["output_ids"])
            meta["prompt_tokens"] = self._prompt_tokens
            meta.update(self._head)
        reason = meta.get("finish_reason")
        if isinstance(reason, dict) and isinstance(reason.get("length"), int):
            reason["length"] += self._num_tokens

    def _join_openai(self, row: dict[str, Any]) -> bool:
        """Make it one of the client's stream; False when there is nothing new in it."""
        row.update(self._head)
        usage = row.get("usage")
        if isinstance(usage, dict):
            for name, change in (("prompt", -self._num_tokens), ("completion", self._num_tokens)):
                key = f"{name}_tokens"
                if isinstance(usage.get(key), int):
                    usage[key] += change
        choices = row.get("choices") or []
        for choice in choices:
            delta = choice.get("delta") or {}
            is_opening = delta.pop("role", None) is not None and not delta.get("content")
            if is_opening and choice.get("finish_reason") is None and self._head:
                return False
        return True


def _lower(settings: dict[str, Any], name: str, limit: int | None, by: int) -> None:
    """Take from a limit what the client has already; a worker needs at least one to go for."""
    if limit is not None:
        settings[name] = max(1, limit - by)


class _Meta(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int
    id: str = ""
    finish_reason: Any = None


class _GenerateEvent(msgspec.Struct):
    output_ids: list[int]
    meta_info: _Meta
    text: str | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    id: str
    choices: list[_Choice]
    created: int = 0
    usage: Any = None
