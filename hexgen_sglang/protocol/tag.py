"""The workflow tag, version 1: how a caller says which workflow a request belongs to.

It comes as the body field `hexgen: {...}` or as `x-hexgen-*` headers, and goes on to the
engine inside `custom_params`. Instants never cross machines: the tag carries what is left
(`budget_ms`), and the receiver makes it an instant on arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.core.errors import ProtocolError

BODY_FIELD = "hexgen"
HEADER_PREFIX = "x-hexgen-"
SESSION_HEADER = "x-session-id"
TAG_VERSION = 1

# Ids and names appear in logs, metrics and URLs: visible ASCII without spaces or quotes.
# (\Z, not $, which lets a trailing newline pass.)
_NAME_PATTERN = r"^[A-Za-z0-9._:/@+=-]+\Z"
WorkflowId = Annotated[str, Meta(min_length=1, max_length=128, pattern=_NAME_PATTERN)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=_NAME_PATTERN)]
BudgetMs = Annotated[int, Meta(ge=1, le=86_400_000)]
FanOut = Annotated[int, Meta(ge=1, le=1024)]
FanOutIndex = Annotated[int, Meta(ge=0, le=1023)]
NumTokens = Annotated[int, Meta(ge=1, le=1_048_576)]
RemainingMs = Annotated[int, Meta(ge=0, le=86_400_000)]


class WorkflowTag(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which workflow and stage a request belongs to, and how long the workflow has left.

    Attributes:
        workflow_id: one user question; 1-128 characters of [A-Za-z0-9._:/@+=-].
        workflow_type: workflows whose stages are alike, e.g. "text2sql".
        stage: node of the workflow, e.g. "generate_candidate".
        budget_ms: milliseconds left until the workflow's deadline when this was sent,
            1 to 86,400,000; None: the type's default, else best effort.
        siblings: parallel requests of this stage, 1 to 1024.
        sibling_index: which of them this is, 0 <= sibling_index < siblings.
        tenant: for fairness and accounting.
        final: the workflow ends with this request.
        expected_output_tokens: a hint, 1 to 1,048,576.
    """

    workflow_id: WorkflowId
    workflow_type: Name | None = None
    stage: Name | None = None
    budget_ms: BudgetMs | None = None
    siblings: FanOut = 1
    sibling_index: FanOutIndex = 0
    tenant: Name | None = None
    final: bool = False
    expected_output_tokens: NumTokens | None = None

    def __post_init__(self) -> None:
        if self.sibling_index >= self.siblings:
            raise ValueError(
                f"sibling_index={self.sibling_index}: must be below siblings={self.siblings}"
            )


class EngineTag(WorkflowTag, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The tag as the engine gets it: `custom_params["hexgen"]`.

    A plain `WorkflowTag` is a valid one, so callers may tag requests to a worker directly.

    Attributes:
        predicted_remaining_ms: what the workflow is still expected to need on an idle
            worker, this request included, 0 to 86,400,000; None when unknown.
        predicted_stage_ms: the part of it that this request's stage needs, same range.
    """

    predicted_remaining_ms: RemainingMs | None = None
    predicted_stage_ms: RemainingMs | None = None


_Tag = TypeVar("_Tag", bound=WorkflowTag)
_FIELDS = tuple(field.name for field in msgspec.structs.fields(WorkflowTag))
_HEADERS = {HEADER_PREFIX + name.replace("_", "-"): name for name in _FIELDS}


def tag_from_body(value: object) -> WorkflowTag:
    """The tag from the body field `hexgen`.

    Raises:
        ProtocolError: names the field, the offending value and the allowed range.
    """
    return _convert(value, WorkflowTag, BODY_FIELD, strict=True)


def engine_tag(value: object) -> EngineTag:
    """The tag from a request's `custom_params["hexgen"]` inside the engine.

    Raises:
        ProtocolError: names the field, the offending value and the allowed range.
    """
    return _convert(value, EngineTag, f"custom_params.{BODY_FIELD}", strict=True)


def tag_from_headers(headers: Mapping[str, str]) -> WorkflowTag | None:
    """The tag from HTTP headers, or None when no header of ours is present.

    `x-hexgen-workflow-id` names the workflow; without it a bare `x-session-id` does.
    Header names are compared without case.

    Raises:
        ProtocolError: an unknown `x-hexgen-` header, a tag without a workflow id, or a value
            out of range.
    """
    values: dict[str, Any] = {}
    session_id: str | None = None
    for raw_name, value in headers.items():
        name = raw_name.lower()
        if name == SESSION_HEADER:
            session_id = value
        elif name.startswith(HEADER_PREFIX):
            field = _HEADERS.get(name)
            if field is None:
                known = ", ".join(sorted(_HEADERS))
                raise ProtocolError(f"header {_printable(name)}: unknown; known headers: {known}")
            values[field] = value
    if session_id is not None:
        values.setdefault("workflow_id", session_id)
    if not values:
        return None
    return _convert(values, WorkflowTag, "headers x-hexgen-*", strict=False)


def _convert(value: object, kind: type[_Tag], where: str, *, strict: bool) -> _Tag:
    """Validate through msgspec; on failure say which field had which value."""
    try:
        return msgspec.convert(value, kind, strict=strict)
    except (msgspec.ValidationError, ValueError) as error:
        reason = _printable(str(error)) + _offender(value, str(error))
        raise ProtocolError(f"{where}: {reason}") from error


def _offender(value: object, message: str) -> str:
    """`; stage=''` for a message that ends in "at `$.stage`": msgspec leaves the value out."""
    _, marker, path = message.rpartition("`$.")
    field = path.rstrip("`")
    if not marker or not isinstance(value, Mapping) or field not in value:
        return ""
    try:
        shown = repr(str(value[field])[:80])
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        shown = f"a {type(value[field]).__name__} too large to show"
    return f"; {field}={_printable(shown)}"


def _printable(text: str) -> str:
    """At most 300 characters of caller's text, ASCII, fit for a log line and a JSON body."""
    shown = (
        char if char.isascii() and char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[:300]
    )
    return "".join(shown)[:300]
