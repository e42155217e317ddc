"""The OpenAPI document of the coordinator's HTTP surface: `GET /openapi.json`.

Plain data. Schemas of bodies come from the structs that check them; of what SGLang checks, only
what the coordinator itself looks at is stated. A test holds the paths against the routes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hexgen_sglang import __version__
from hexgen_sglang.coordinator import incoming
from hexgen_sglang.protocol.tag import BODY_FIELD, WorkflowTag

_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PROMPT = {"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}}]}
# What each generation route wants at least.
_NEEDED: dict[str, dict[str, Any]] = {
    incoming.CHAT: {"messages": {"type": "array", "minItems": 1, "items": {"type": "object"}}},
    incoming.COMPLETIONS: {"prompt": _PROMPT},
    incoming.GENERATE: {},
}
_ERRORS = {
    "400": "malformed; the message names field, value and allowed range",
    "401": "no key, or one that is not known",
    "403": "the key's role does not allow it",
    "404": "not known here",
    "408": "the body did not come in time",
    "409": "not possible in the present state",
    "413": "the body is too long",
    "429": "a queue or a tenant's limit is full, or a deadline cannot be kept; see Retry-After",
    "431": "the headers are too long",
    "499": "the workflow was cancelled",
    "502": "workers failed the request",
    "503": "no worker, or shutting down; see Retry-After",
    "504": "not finished in time",
}


def document(bodies: dict[str, type[msgspec.Struct]]) -> dict[str, Any]:
    """The document.

    Args:
        bodies: the structs that check the bodies of "POST /workers" and
            "PATCH /workflows/{workflow_id}", by these names; in direct mode also those of
            "POST /placements" and "POST /placements/ends", and with peers of
            "POST /peers/beat".
    """
    structs = [WorkflowTag, *bodies.values()]
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    schemas = {**schemas, "Error": _ERROR}
    references = {name: _reference(struct.__name__) for name, struct in bodies.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "hexgen-sglang coordinator", "version": __version__},
        "paths": {
            **_generation(),
            **_direct(references),
            **_peers(references),
            **_control(references),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _generation() -> dict[str, Any]:
    """The routes that generate."""
    paths = {}
    for route in incoming.ROUTES:
        fields = {
            **_NEEDED[route],
            "stream": {"type": ["boolean", "null"]},
            "model": {"type": ["string", "null"]},
            BODY_FIELD: _reference("WorkflowTag"),
        }
        body: dict[str, Any] = {
            "type": "object",
            "properties": fields,
            "required": list(_NEEDED[route]),
        }
        if route == incoming.GENERATE:
            fields |= {"text": _PROMPT, "input_ids": _PROMPT}
            body["anyOf"] = [{"required": [n]} for n in ("text", "input_ids", "input_embeds")]
        paths[route] = {"post": _operation(f"Generate ({route})", body)}
    return paths


def _direct(bodies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The routes of direct mode, where it is on."""
    summaries = {
        "/placements": "Workers for requests that the caller sends there itself, a line for each",
        "/placements/ends": "How such requests ended",
    }
    return {
        path: {"post": _operation(summary, bodies[f"POST {path}"])}
        for path, summary in summaries.items()
        if f"POST {path}" in bodies
    }


def _peers(bodies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The route of other coordinators, where there are any."""
    name = "POST /peers/beat"
    if name not in bodies:
        return {}
    return {"/peers/beat": {"post": _operation("For other coordinators (operators)", bodies[name])}}


def _control(bodies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything else."""
    worker, workflow = _parameter("worker_id"), _parameter("workflow_id")
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}}
    return {
        "/v1/models": {"get": _operation("Models that workers serve")},
        "/health": {"get": {**_operation("Whether requests can be served"), "security": []}},
        "/metrics": {"get": _operation("Prometheus metrics (operators)")},
        "/openapi.json": {"get": {**_operation("This document"), "security": []}},
        "/tuning": {"get": _operation("What the tuner found (operators)")},
        "/workers": {
            "get": _operation("Workers (operators)"),
            "post": _operation("Register a worker (operators)", bodies["POST /workers"], "201"),
        },
        "/workers/{worker_id}/drain": {
            "post": _operation("Send nothing new there (operators)", parameters=[worker])
        },
        "/workers/{worker_id}": {
            "delete": _operation("Forget a worker (operators)", parameters=[worker])
        },
        "/workflows": {"get": _operation("Newest workflows of the caller", parameters=[limit])},
        "/workflows/{workflow_id}/end": {
            "post": _operation("Say that a workflow is over", parameters=[workflow])
        },
        "/workflows/{workflow_id}/explain": {
            "get": _operation(
                "Where a workflow's time went, and what was decided about it",
                parameters=[workflow],
            )
        },
        "/workflows/{workflow_id}": {
            "get": _operation("A workflow with its stages and requests", parameters=[workflow]),
            "patch": _operation(
                "Change a workflow's budget",
                bodies["PATCH /workflows/{workflow_id}"],
                parameters=[workflow],
            ),
            "delete": _operation("Cancel a workflow and its requests", parameters=[workflow]),
        },
    }


def _operation(
    summary: str,
    body: dict[str, Any] | None = None,
    status: str = "200",
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    error = {"application/json": {"schema": _reference("Error")}}
    answers: dict[str, Any] = {
        code: {"description": text, "content": error} for code, text in _ERRORS.items()
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {status: {"description": "done"}, **answers},
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_OR_NULL = {"type": ["string", "null"]}
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
