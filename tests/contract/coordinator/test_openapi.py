"""The OpenAPI document says what the routes are, and what it allows is what they accept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.coordinator.app import make_app

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]


def references(value: Any) -> set[str]:
    """Every `$ref` anywhere below."""
    if isinstance(value, list):
        return set().union(*map(references, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*map(references, value.values()))


async def test_the_document_has_every_route_and_nothing_else(make_front: MakeFront) -> None:
    front = await make_front()
    status, document = await front.call("GET", "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    told = {(path, method.upper()) for path, row in document["paths"].items() for method in row}
    routes = make_app(front.coordinator).routes
    served = {
        (route.path.replace(":path}", "}"), method)
        for route in routes
        for method in route.methods - {"HEAD"}
    }
    assert told == served
    schemas = document["components"]["schemas"]
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    bounds = schemas["WorkflowTag"]["properties"]["siblings"]
    assert (bounds["minimum"], bounds["maximum"]) == (1, 1024)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/workers", "GET, HEAD, POST"),
        ("/workflows/some/flow", "DELETE, GET, HEAD, PATCH"),
        ("/workflows/some/end", "POST"),
        ("/generate", "POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    path: str, allowed: str, make_front: MakeFront
) -> None:
    front = await make_front()
    async with front.session.put(front.url + path) as response:
        assert (response.status, response.headers["allow"]) == (405, allowed)


async def test_keys_are_in_the_document_where_they_are_needed(
    make_front: MakeFront, tmp_path: Path
) -> None:
    _, row = make_key("acme", (Role.CLIENT,))
    append_key(tmp_path / "keys.toml", row)
    keys = {"api_keys": str(tmp_path / "keys.toml")}
    _, open_document = await (await make_front()).call("GET", "/openapi.json")
    assert open_document["security"] == []
    assert "securitySchemes" not in open_document["components"]
    for settings, metrics_need_it in (({}, True), ({"open_metrics": True}, False)):
        front = await make_front(**keys, **settings)
        _, document = await front.call("GET", "/openapi.json")
        assert document["security"] == [{"key": []}]
        for path in ("/health", "/openapi.json", "/metrics"):
            needs_key = path == "/metrics" and metrics_need_it
            async with front.session.get(front.url + path) as response:
                assert (response.status == 401) == needs_key
            assert (document["paths"][path]["get"].get("security") != []) == needs_key


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/nowhere", None, 404),
        ("PUT", "/workers", {}, 405),
        ("GET", "/workflows?limit=0", None, 400),
        ("POST", "/workers", {"url": 1}, 400),
        ("DELETE", "/workers/none", None, 404),
        ("PATCH", "/workflows/none", {"budget_ms": 1}, 404),
        ("POST", "/generate", {"text": 1}, 400),
        ("POST", "/v1/chat/completions", {"messages": []}, 400),
    ],
)
async def test_refusals_have_the_documents_shape(
    method: str, path: str, body: Any, expected: int, make_front: MakeFront
) -> None:
    front = await make_front()
    _, document = await front.call("GET", "/openapi.json")
    wanted = document["components"]["schemas"]["Error"]["properties"]["error"]["required"]
    status, answer = await front.call(method, path, body)
    assert status == expected
    assert sorted(answer["error"]) == sorted(wanted)
    if path in document["paths"] and method.lower() in document["paths"][path]:
        assert str(status) in document["paths"][path][method.lower()]["responses"]
