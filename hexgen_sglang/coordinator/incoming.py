"""A client's request, read and checked: route, body, tag, and what can be told of its size.

Every check that can fail is made here, before anything is accepted; each error names field,
value and allowed range. What SGLang checks itself is left to SGLang.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hexgen_sglang.coordinator import prompt
from hexgen_sglang.coordinator.access import ANYBODY, Caller
from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.tag import (
    BODY_FIELD,
    HEADER_PREFIX,
    WorkflowTag,
    tag_from_body,
    tag_from_headers,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GENERATE = "/generate"
ROUTES = (CHAT, COMPLETIONS, GENERATE)

_SHOWN_CHARS = 80
# Of callers with keys: these make an engine open connections, or run code of the caller's.
_REFUSED_FIELDS = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "custom_logit_processor")
# A model name that SGLang takes for "whatever is served".
_ANY_MODEL = "default"


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A checked request, not yet accepted.

    Attributes:
        route: one of `ROUTES`.
        body: what goes on to the worker; the field `hexgen` (and `model` for /generate) is
            taken out. Owned by the request; attempts copy what they change.
        tag: None for untagged requests.
        model: None when the client leaves the choice open.
        stream: the client wants an event stream.
        adds_usage: the coordinator asks the worker for a usage event that the client did not
            ask for and does not get to see.
        shape: size and prefix of the prompts.
        num_outputs: answers wanted: prompts x n.
        max_output_tokens: limit of each answer; None when not stated.
        num_bytes: length of the body as it came.
        caller: who sent it.
    """

    route: str
    body: dict[str, Any]
    tag: WorkflowTag | None
    model: str | None
    stream: bool
    adds_usage: bool
    shape: prompt.PromptShape
    num_outputs: int
    max_output_tokens: int | None
    num_bytes: int
    caller: Caller = ANYBODY

    def tag_for(self, request_id: str) -> WorkflowTag:
        """Its tag; without one it is a workflow of its own, named after the request."""
        if self.tag is not None:
            return self.tag
        return WorkflowTag(workflow_id=request_id, tenant=self.caller.tenant, final=True)


def read_request(
    route: str, raw: bytes, headers: Mapping[str, str], caller: Caller = ANYBODY
) -> IncomingRequest:
    """Check a request of `caller`.

    Raises:
        ProtocolError: body or tag malformed; names field, value and allowed range.
    """
    body = read_object(raw)
    tag = caller.own(_merge_tags(body.pop(BODY_FIELD, None), headers))
    if caller.tenant is not None:
        _check_foreign_fields(body)
    stream = _optional(body, "stream", bool, "true or false") or False
    model = _optional(body, "model", str, "the name of a served model")
    if body.get("rid") is not None:
        raise _wrong("rid", body["rid"], "left out: the coordinator names requests")
    if route == GENERATE:
        body.pop("model", None)
        shape, settings = _generate_prompt(body), _sampling_settings(body)
        limit = settings.get("max_new_tokens")
    else:
        shape, settings = _openai_prompt(route, body), body
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        _optional(body, "custom_params", dict, "an object")
    return IncomingRequest(
        route=route,
        body=body,
        tag=tag,
        model=None if model in (None, "", _ANY_MODEL) else model,
        stream=stream,
        adds_usage=route != GENERATE and stream and _leaves_usage_open(body),
        shape=shape,
        num_outputs=shape.num_prompts * (_count(settings.get("n")) or 1),
        max_output_tokens=_count(limit),
        num_bytes=len(raw),
        caller=caller,
    )


def read_object(raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ProtocolError: not JSON, or not an object.
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"body: not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ProtocolError(f"body: must be a JSON object, not {_shown(body)}")
    return body


def _merge_tags(value: object, headers: Mapping[str, str]) -> WorkflowTag | None:
    """The tag of body and headers together; where both speak they must agree.

    A bare `x-session-id` counts only where nothing else names the workflow.
    """
    in_body = None if value is None else tag_from_body(value)
    if in_body is None:
        return tag_from_headers(headers)
    ours = {name: text for name, text in headers.items() if name.lower().startswith(HEADER_PREFIX)}
    if not ours:
        return in_body
    ours.setdefault(HEADER_PREFIX + "workflow-id", in_body.workflow_id)
    in_headers = tag_from_headers(ours)
    merged: dict[str, Any] = {}
    for field in msgspec.structs.fields(WorkflowTag):
        here, there = getattr(in_body, field.name), getattr(in_headers, field.name)
        merged[field.name] = there if here == field.default else here
        if here != there and field.default not in (here, there):
            raise ProtocolError(
                f"{BODY_FIELD}.{field.name}={here!r} in the body but "
                f"{HEADER_PREFIX}{field.name.replace('_', '-')}={there!r} in the headers: "
                "must be equal, or be given once"
            )
    return tag_from_body(merged)


def _check_foreign_fields(body: dict[str, Any]) -> None:
    """Refuse what would let one tenant speak for another, or an engine act for it.

    A tag inside `custom_params` would reach the engine as it is, with any tenant's workflow.
    """
    for name in _REFUSED_FIELDS:
        if body.get(name) is not None:
            raise _wrong(name, body[name], "left out: not for callers with API keys")
    given = body.get("sampling_params")
    for row in (body, *(given if isinstance(given, list) else [given])):
        params = row.get("custom_params") if isinstance(row, dict) else None
        if isinstance(params, dict) and BODY_FIELD in params:
            raise _wrong(
                f"custom_params.{BODY_FIELD}", params[BODY_FIELD], f"the field {BODY_FIELD} instead"
            )


def _openai_prompt(route: str, body: dict[str, Any]) -> prompt.PromptShape:
    """Prompts of the OpenAI routes."""
    if route == CHAT:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _wrong("messages", messages, "a list with at least one message")
        return prompt.shape_of_texts([prompt.chat_text(messages, body.get("tools"))])
    return _prompts("prompt", body.get("prompt"))


def _generate_prompt(body: dict[str, Any]) -> prompt.PromptShape:
    """Prompts of /generate: text, input_ids or (opaque here) input_embeds."""
    for name in ("text", "input_ids"):
        if body.get(name) is not None:
            return _prompts(name, body[name])
    if body.get("input_embeds") is not None:
        return prompt.PromptShape(1, 0, 0, ())
    raise _wrong("text", None, "text, input_ids or input_embeds with a prompt")


def _prompts(name: str, value: object) -> prompt.PromptShape:
    """One prompt or several, each text or token ids."""
    if isinstance(value, str):
        return prompt.shape_of_texts([value])
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return prompt.shape_of_texts(value)
        if all(_is_id(item) for item in value):
            return prompt.shape_of_ids([value])
        if all(isinstance(item, list) and all(map(_is_id, item)) for item in value):
            return prompt.shape_of_ids(value)
    raise _wrong(name, value, "a string, a list of token ids >= 0, or a list of such prompts")


def _sampling_settings(body: dict[str, Any]) -> dict[str, Any]:
    """The first prompt's sampling parameters; checks that a tag can be put into each."""
    given = body.get("sampling_params")
    rows = given if isinstance(given, list) else [given]
    for row in rows:
        if row is not None and not isinstance(row, dict):
            raise _wrong("sampling_params", given, "an object, or a list of objects")
        if row is not None:
            _optional(row, "custom_params", dict, "an object", "sampling_params.")
    return rows[0] or {} if rows else {}


def _leaves_usage_open(body: dict[str, Any]) -> bool:
    """True when the client said nothing about a usage event."""
    options = _optional(body, "stream_options", dict, "an object") or {}
    return options.get("include_usage") is None


def _optional(
    body: Mapping[str, Any], name: str, kind: type[Any], allowed: str, where: str = ""
) -> Any:
    """The field's value when it has the right type, None when absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise _wrong(where + name, value, allowed)
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count(value: object) -> int | None:
    """A whole number above 0, or None: SGLang itself refuses what is neither."""
    return value if isinstance(value, int) and _is_id(value) and value > 0 else None


def _wrong(name: str, value: object, allowed: str) -> ProtocolError:
    return ProtocolError(f"{name}={_shown(value)}: must be {allowed}")


def _shown(value: object) -> str:
    """A value as JSON, cut to a readable length."""
    text = msgspec.json.encode(value).decode("utf-8", "replace")
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
