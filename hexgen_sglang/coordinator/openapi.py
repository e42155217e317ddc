"""The OpenAPI document of the coordinator's HTTP surface: `GET /openapi.json`.

Plain data. Schemas of bodies come from the structs that check them; of what SGLang checks, only
what the coordinator itself looks at is stated, and of answers, what they have at least. A test
holds the paths against the routes, another tries the whole document on a coordinator.
"""

from __future__ import annotations

from typing import Any

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hexgen_sglang import __version__
from hexgen_sglang.coordinator import incoming, placements, reports
from hexgen_sglang.core.worker import WorkerState
from hexgen_sglang.protocol.tag import BODY_FIELD, WorkflowTag

_JSON, _TEXT_PLAIN = "application/json", "text/plain"
_TEXT = {"type": "string"}
_OR_NULL = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_IDS = {"type": "array", "items": _COUNT, "minItems": 1}
_PROMPT: dict[str, Any] = {
    "anyOf": [
        _TEXT,
        _IDS,
        {"type": "array", "items": _TEXT, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": _COUNT}, "minItems": 1},
    ]
}
# What each generation route wants at least.
_NEEDED: dict[str, dict[str, Any]] = {
    incoming.CHAT: {"messages": {"type": "array", "minItems": 1}},
    incoming.COMPLETIONS: {"prompt": _PROMPT},
    incoming.GENERATE: {},
}
_ERRORS = {
    "400": "malformed; the message names field, value and allowed range",
    "401": "no key, or one that is not known",
    "403": "the key's role does not allow it",
    "404": "not known here",
    "408": "headers or body did not come in time",
    "409": "not possible in the present state",
    "413": "the body is too long",
    "429": "a queue or a tenant's limit is full, or a deadline cannot be kept; see Retry-After",
    "431": "the headers are too long",
    "499": "the workflow was cancelled",
    "502": "workers failed the request",
    "503": "no worker, or shutting down; see Retry-After",
    "504": "not finished in time",
}
# These also come as plain text, where there is no request yet that could be answered.
_BEFORE_A_REQUEST = ("400", "408", "431", "503")


def document(
    bodies: dict[str, type[msgspec.Struct]], *, needs_key: bool, has_open_metrics: bool
) -> dict[str, Any]:
    """The document.

    Args:
        bodies: the structs that check the bodies of "POST /workers" and
            "PATCH /workflows/{workflow_id}", by these names; in direct mode also those of
            "POST /placements" and "POST /placements/ends", and with peers of
            "POST /peers/beat".
        needs_key: callers need a key, except where an operation says otherwise.
        has_open_metrics: but not for the metrics.
    """
    structs = [WorkflowTag, *bodies.values()]
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    references = {name: _reference(struct.__name__) for name, struct in bodies.items()}
    paths = {
        **_generation(),
        **_direct(references),
        **_peers(references),
        **_control(references),
    }
    if has_open_metrics:
        paths["/metrics"]["get"]["security"] = []
    components: dict[str, Any] = {"schemas": {**_portable(schemas), "Error": _ERROR}}
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "hexgen-sglang coordinator", "version": __version__},
        "paths": paths,
        "components": components,
        "security": [{"key": []}] if needs_key else [],
    }


def _portable(value: Any) -> Any:
    r"""Schemas whose patterns end in `$`, which is the end of the text there, not Python's `\Z`."""
    if isinstance(value, list):
        return [_portable(row) for row in value]
    if not isinstance(value, dict):
        return value
    made = {name: _portable(row) for name, row in value.items()}
    if isinstance(made.get("pattern"), str):
        made["pattern"] = made["pattern"].replace(r"\Z", "$")
    return made


def _generation() -> dict[str, Any]:
    """The routes that generate."""
    paths = {}
    for route in incoming.ROUTES:
        fields = {
            **_NEEDED[route],
            "stream": {"type": ["boolean", "null"]},
            "model": _OR_NULL,
            BODY_FIELD: {"anyOf": [_reference("WorkflowTag"), {"type": "null"}]},
        }
        body: dict[str, Any] = {
            "type": "object",
            "properties": fields,
            "required": list(_NEEDED[route]),
        }
        if route == incoming.GENERATE:
            none, some = {"type": "null"}, {"not": {"type": "null"}}
            fields["text"] = {"anyOf": [_PROMPT, none]}
            body["anyOf"] = [
                {"required": ["text"], "properties": {"text": some}},
                {"required": ["input_ids"], "properties": {"input_ids": _PROMPT}},
                {
                    "required": ["input_embeds"],
                    "properties": {"input_embeds": some, "input_ids": none},
                },
            ]
        answers = {_JSON: {"schema": {"type": "object"}}, "text/event-stream": {}}
        operation = _operation(f"Generate ({route})", body, answers=answers)
        operation["responses"]["4XX"] = {"description": "what the worker refused, in its words"}
        paths[route] = {"post": operation}
    return paths


def _direct(bodies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The routes of direct mode, where it is on."""
    place, ends = placements.ROUTE, f"{placements.ROUTE}/ends"
    if f"POST {place}" not in bodies:
        return {}
    return {
        place: {
            "post": _operation(
                "Workers for requests that the caller sends there itself, a line for each",
                bodies[f"POST {place}"],
                answers={"application/x-ndjson": {}},
            )
        },
        ends: {
            "post": _operation(
                "How such requests ended", bodies[f"POST {ends}"], answers=_with(num_ended=_COUNT)
            )
        },
    }


def _peers(bodies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The route of other coordinators, where there are any."""
    name = "POST /peers/beat"
    if name not in bodies:
        return {}
    told = _with(
        coordinator_id=_TEXT, is_draining={"type": "boolean"}, in_flight={"type": "object"}
    )
    summary = "For other coordinators (operators)"
    return {"/peers/beat": {"post": _operation(summary, bodies[name], answers=told)}}


def _control(bodies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything else."""
    worker, workflow = _parameter("worker_id"), _parameter("workflow_id")
    most = reports.MAX_LISTED_WORKFLOWS
    limit = {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": most},
    }
    a_worker = _with(worker_id=_TEXT, url=_TEXT, state={"enum": [*WorkerState]})
    told = _with(workflow_id=_TEXT, ended={"type": "boolean"}, stages=_OBJECTS, requests=_OBJECTS)
    return {
        "/v1/models": {
            "get": _operation("Models that workers serve", answers=_with(data=_OBJECTS))
        },
        "/health": {"get": _health()},
        "/metrics": {
            "get": _operation(
                "Prometheus metrics (operators)", answers={CONTENT_TYPE_LATEST: {"schema": _TEXT}}
            )
        },
        "/openapi.json": {
            "get": {
                **_operation("This document", answers=_with(openapi=_TEXT)),
                "security": [],
            }
        },
        "/tuning": {
            "get": _operation("What the tuner found (operators)", answers=_with(mode=_TEXT))
        },
        "/workers": {
            "get": _operation("Workers (operators)", answers=_with(workers=_OBJECTS)),
            "post": _operation(
                "Register a worker (operators)", bodies["POST /workers"], "201", answers=a_worker
            ),
        },
        "/workers/{worker_id}/drain": {
            "post": _operation(
                "Send nothing new there (operators)", parameters=[worker], answers=a_worker
            )
        },
        "/workers/{worker_id}": {
            "delete": _operation(
                "Forget a worker (operators)",
                parameters=[worker],
                answers=_with(worker_id=_TEXT, num_in_flight=_COUNT),
            )
        },
        "/workflows": {
            "get": _operation(
                "Newest workflows of the caller",
                parameters=[limit],
                answers=_with(workflows=_OBJECTS),
            )
        },
        "/workflows/{workflow_id}/end": {
            "post": _operation("Say that a workflow is over", parameters=[workflow], answers=told)
        },
        "/workflows/{workflow_id}/explain": {
            "get": _operation(
                "Where a workflow's time went, and what was decided about it",
                parameters=[workflow],
                answers=_with(workflow_id=_TEXT, passes=_OBJECTS),
            )
        },
        "/workflows/{workflow_id}": {
            "get": _operation(
                "A workflow with its stages and requests", parameters=[workflow], answers=told
            ),
            "patch": _operation(
                "Change a workflow's budget",
                bodies["PATCH /workflows/{workflow_id}"],
                parameters=[workflow],
                answers=told,
            ),
            "delete": _operation(
                "Cancel a workflow and its requests; what became of it can still be asked",
                parameters=[workflow],
                answers=_with(workflow_id=_TEXT, num_cancelled=_COUNT),
            ),
        },
    }


def _health() -> dict[str, Any]:
    """The operation whose 503 is no error, but the same report."""
    answers = _with(
        status={"enum": ["ok", "degraded", "no_worker", "draining"]},
        degraded={"type": "array", "items": _TEXT},
        workers={"type": "object", "additionalProperties": _COUNT},
        num_queued=_COUNT,
    )
    operation = _operation("Whether requests can be served", answers=answers)
    operation["responses"]["503"] = {
        "description": "they cannot",
        "content": {**answers, _TEXT_PLAIN: {}},
    }
    return {**operation, "security": []}


def _operation(
    summary: str,
    body: dict[str, Any] | None = None,
    status: str = "200",
    parameters: list[dict[str, Any]] | None = None,
    *,
    answers: dict[str, Any],
) -> dict[str, Any]:
    """One operation; `answers`: the content of what it answers when all is well."""
    errors: dict[str, Any] = {}
    for code, text in _ERRORS.items():
        content: dict[str, Any] = {_JSON: {"schema": _reference("Error")}}
        if code in _BEFORE_A_REQUEST:
            content[_TEXT_PLAIN] = {}
        errors[code] = {"description": text, "content": content}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {status: {"description": "done", "content": answers}, **errors},
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _with(**fields: dict[str, Any]) -> dict[str, Any]:
    """The content of an answer: an object with at least these fields."""
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {_JSON: {"schema": schema}}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": _OR_NULL,
                "code": _OR_NULL,
                "earliest_feasible_ms": {"type": "integer", "minimum": 1},
            },
        }
    },
}
