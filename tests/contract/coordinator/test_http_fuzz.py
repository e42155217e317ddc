"""The HTTP surface under inputs made from its own OpenAPI document, right ones and wrong ones.

Whatever comes: an answer with a status that the document names, in the documented shape, never
500, and a coordinator that goes on.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]

CALLS = 1_500
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**63, 2**80, 1.5, -0.0, "", "x", "\u0000", "\U0001f600" * 3),
    *("a" * 300, "../..", [], [[]], [None], {}, {"": {}}, ["x"] * 50),
)
PATH_PARTS = ("none", "a/b", "%00", "..", "\u00e9", "a" * 400, "flow", "end", "{}")


class Maker:
    """Values by a JSON schema, now and then beside it."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self.schemas = document["components"]["schemas"]
        self.dice = random.Random(seed)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        if self.dice.random() < 0.12 or depth > 5:
            return self.dice.choice(ODD)
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rpartition("/")[2]], depth)
        for choices in (schema.get("anyOf"), schema.get("oneOf")):
            if choices and not schema.get("properties"):
                return self.value(self.dice.choice(choices), depth)
        if "enum" in schema:
            return self.dice.choice(schema["enum"])
        kind = schema.get("type", "object")
        kind = self.dice.choice(kind) if isinstance(kind, list) else kind
        return getattr(self, f"_{kind}", self._null)(schema, depth)

    def _object(self, schema: dict[str, Any], depth: int) -> Any:
        needed = set(schema.get("required", ()))
        made = {
            name: self.value(row, depth + 1)
            for name, row in schema.get("properties", {}).items()
            if self.dice.random() < (0.95 if name in needed else 0.5)
        }
        if self.dice.random() < 0.05:
            made[self.dice.choice(("unknown", "", "stream", "model", "rid", "n"))] = 1
        return made

    def _array(self, schema: dict[str, Any], depth: int) -> Any:
        count = self.dice.randint(0, 3)
        return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]

    def _integer(self, schema: dict[str, Any], depth: int) -> Any:
        low, high = schema.get("minimum", -5), schema.get("maximum", 100_000)
        return self.dice.choice((low, high, low - 1, high + 1, self.dice.randint(low, high)))

    def _number(self, schema: dict[str, Any], depth: int) -> Any:
        return self.dice.uniform(-1, 1_000)

    def _string(self, schema: dict[str, Any], depth: int) -> Any:
        return self.dice.choice(("flow", "http://127.0.0.1:9", "default", "hello", ""))

    def _boolean(self, schema: dict[str, Any], depth: int) -> Any:
        return self.dice.random() < 0.5

    def _null(self, schema: dict[str, Any], depth: int) -> Any:
        return None


def call_of(maker: Maker, document: dict[str, Any]) -> tuple[str, str, str, Any]:
    """Method, path of the document, path to ask, body (bytes, or None)."""
    path, row = maker.dice.choice(list(document["paths"].items()))
    method, operation = maker.dice.choice(list(row.items()))
    asked = path
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            part = quote(
                maker.dice.choice(PATH_PARTS), safe="/" if maker.dice.random() < 0.5 else ""
            )
            asked = asked.replace("{" + parameter["name"] + "}", part)
        else:
            asked += f"?{parameter['name']}={quote(str(maker.dice.choice(ODD)))}"
    body = None
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = json.dumps(maker.value(schema)).encode()
        if maker.dice.random() < 0.05:
            body = body[: len(body) // 2] + maker.dice.choice((b"", b"\xff", b"\x00"))
    return method, path, asked, body


async def test_no_input_breaks_the_surface(make_worker: MakeWorker, make_front: MakeFront) -> None:
    front = await make_front(await make_worker(), request_timeout_s=20.0)
    _, document = await front.call("GET", "/openapi.json")
    maker = Maker(document, seed=7)
    statuses: Counter[int] = Counter()
    for _ in range(CALLS):
        method, path, asked, body = call_of(maker, document)
        if path == "/workers" and method == "post":
            body = b'{"url": 7}' if maker.dice.random() < 0.9 else b"[]"  # no workers that hang
        headers = {"content-type": "application/json"}
        if maker.dice.random() < 0.1:
            headers["x-hexgen-budget-ms"] = str(maker.dice.choice(("1", "-1", "x", "1e9")))
        async with front.session.request(
            method, front.url + asked, data=body, headers=headers
        ) as response:
            text = await response.read()
        statuses[response.status] += 1
        told = f"{method} {asked} {body!r}: {response.status} {text[:200]!r}"
        assert response.status < 500 or response.status == 503, told
        named = document["paths"][path][method]["responses"]
        # A path with a slash or dots in it may be another route's, or none's.
        is_same_route = "{" not in path
        assert str(response.status) in named or not is_same_route, told
        if response.status >= 400 and response.status != 499:
            error = json.loads(text)["error"]
            assert {"message", "type", "param", "code"} <= error.keys(), told
    assert statuses[200] > 100
    assert statuses[400] > 100
    status, health = await front.call("GET", "/health")
    assert (status, health["num_queued"]) == (200, 0)
