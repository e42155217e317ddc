"""Our own trace format: JSON lines, a header and then one workflow a line.

First line: `{"hexgen_trace": 1}`. Every further line is a workflow:

    {"workflow_id": "q1", "workflow_type": "text2sql", "stages": [
      {"id": "draft", "stage": "generate_candidate", "after": [], "tool_s": 0.2, "requests": [
        {"input_tokens": 900, "output_tokens": 40, "prefix": [
          {"scope": "template", "name": "generate_candidate", "tokens": 500},
          {"scope": "workflow", "name": "schema", "tokens": 300}]}]}]}

* `stages` stand in an order in which each is behind what it waits for. `stage` is the name in
  the workflow tag. `id` (default: its index as text) is what `after` refers to. `after` lists
  the ids that must have ended first; left out, it is the stage before; `[]` starts at once.
* `tool_s` (default 0) is the time between the end of the last stage it waits for and its
  requests: SQL, retrieval, human time.
* `prefix` lists the parts the prompt starts with: scope "template" is shared by all workflows
  of the trace, "workflow" within the workflow. Left out, the rules of `workload/prefixes.py`
  apply to Text-to-SQL steps; `[]` says that the prompt is all the request's own. The tokens
  that were generated are never part of a later prompt's prefix; text that later stages carry
  on counts as a part of scope "workflow".

Unknown fields are errors. `example_trace.jsonl` beside this module is a small example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats.problem import problem
from hexgen_sglang.workload.trace import (
    MAX_TOKENS,
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

FORMAT = "jsonl"
HEADER_FIELD = "hexgen_trace"
EXAMPLE = Path(__file__).with_name("example_trace.jsonl")

_Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_S = TypeVar("_S", bound=Struct)


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    hexgen_trace: Annotated[int, Meta(ge=1, le=1)]


class _Prefix(Struct, frozen=True, forbid_unknown_fields=True):
    scope: PrefixScope
    name: _Name
    tokens: _Tokens


class _Request(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    input_tokens: _Tokens
    output_tokens: _Tokens
    prefix: Annotated[list[_Prefix], Meta(max_length=64)] | None = None


class _Stage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    stage: _Name
    requests: Annotated[list[_Request], Meta(min_length=1, max_length=1024)]
    id: _Name | None = None
    after: list[str] | None = None
    tool_s: _Seconds = 0.0


class _Workflow(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    workflow_id: Annotated[str, Meta(min_length=1, max_length=128)]
    stages: Annotated[list[_Stage], Meta(min_length=1, max_length=4096)]
    workflow_type: _Name = "text2sql"


def read(path: str, name: str, content: str) -> Trace:
    """The trace in `content`.

    Raises:
        ConfigError: names file, line, field and value.
    """
    lines = [(number, raw) for number, raw in enumerate(content.splitlines(), 1) if raw.strip()]
    if not lines:
        raise problem(path, None, f'empty; the first line must be {{"{HEADER_FIELD}": 1}}')
    _decode(path, *lines[0], _Header)
    workflows = []
    for line, raw in lines[1:]:
        wire = _decode(path, line, raw, _Workflow)
        try:
            workflows.append(_to_workflow(wire))
        except ConfigError as error:
            raise problem(path, line, str(error)) from error
    if not workflows:
        raise problem(path, lines[0][0], "no workflow behind the header; must have at least one")
    return Trace(name=name, origin=path, format=FORMAT, workflows=tuple(workflows))


def write(trace: Trace, path: Path) -> None:
    """Write any trace in this format, complete and lossless but for name and origin."""
    lines = [msgspec.json.encode(_Header(hexgen_trace=1))]
    lines.extend(msgspec.json.encode(_from_workflow(workflow)) for workflow in trace.workflows)
    path.write_bytes(b"\n".join(lines) + b"\n")


def _decode(path: str, line: int, raw: str, kind: type[_S]) -> _S:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise problem(path, line, f"{error}{_value_at(raw, str(error))}") from error
    except msgspec.DecodeError as error:
        raise problem(path, line, f"not valid JSON: {error}") from error


def _value_at(raw: str, message: str) -> str:
    """`; value ...` for a message that ends in "at `$.a[0].b`": msgspec leaves it out."""
    _, marker, tail = message.rpartition("`$")
    if not marker:
        return ""
    value = msgspec.json.decode(raw)
    for key in tail.rstrip("`").replace("[", ".[").split("."):
        if key.startswith("[") and isinstance(value, list):
            index = key.strip("[]")
            if not index.isdigit():
                return ""
            value = value[int(index)]
        elif key and isinstance(value, dict) and key in value:
            value = value[key]
        elif key:
            return ""
    return f"; value {str(value)[:80]!r}"


def _to_workflow(wire: _Workflow) -> TraceWorkflow:
    places: dict[str, int] = {}
    stages = []
    for index, stage in enumerate(wire.stages):
        after = _after(stage, index, places)
        stages.append(
            TraceStage(
                name=stage.stage,
                requests=tuple(_to_request(request) for request in stage.requests),
                after=after,
                tool_s=stage.tool_s,
            )
        )
        key = stage.id if stage.id is not None else str(index)
        if key in places:
            raise ConfigError(f"stages[{index}].id={key!r}: must be unique within the workflow")
        places[key] = index
    return TraceWorkflow(wire.workflow_id, wire.workflow_type, tuple(stages))


def _after(stage: _Stage, index: int, places: dict[str, int]) -> tuple[int, ...]:
    if stage.after is None:
        return (index - 1,) if index else ()
    for key in stage.after:
        if key not in places:
            known = ", ".join(places) or "none"
            raise ConfigError(
                f"stages[{index}].after={key!r}: must be the id of an earlier stage ({known})"
            )
    return tuple(sorted({places[key] for key in stage.after}))


def _to_request(wire: _Request) -> TraceRequest:
    prefix = None
    if wire.prefix is not None:
        prefix = tuple(PrefixPart(part.scope, part.name, part.tokens) for part in wire.prefix)
    return TraceRequest(wire.input_tokens, wire.output_tokens, prefix)


def _from_workflow(workflow: TraceWorkflow) -> _Workflow:
    return _Workflow(
        workflow_id=workflow.workflow_id,
        workflow_type=workflow.workflow_type,
        stages=[
            _Stage(
                stage=stage.name,
                after=[str(before) for before in stage.after],
                tool_s=stage.tool_s,
                requests=[_from_request(request) for request in stage.requests],
            )
            for stage in workflow.stages
        ],
    )


def _from_request(request: TraceRequest) -> _Request:
    prefix = None
    if request.prefix is not None:
        prefix = [_Prefix(part.scope, part.name, part.num_tokens) for part in request.prefix]
    return _Request(request.num_input_tokens, request.num_output_tokens, prefix)
