"""The HTTP surface under what no schema can say: broken bodies, odd paths, tags in headers.

What the document does say, right or wrong, is tried by test_schema_fuzz.
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
TAG = {"workflow_id": "flow", "stage": "s", "budget_ms": 10_000, "siblings": 2}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": "hello \u00e9", "hexgen": TAG},
    "/v1/completions": {"prompt": [[1, 2], [3]], "stream": True, "hexgen": TAG},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/workers": {"url": "http://127.0.0.1:9", "worker_id": 7},
    "/workflows/flow": {"budget_ms": 10_000},
}
BROKEN = (b"", b"\xff", b"\x00", b"{" * 3_000, b"[" * 200_000, b'"\\ud800"', b"NaN", b"9" * 5_000)
PATH_PARTS = ("none", "a/b", "%00", "..", ".", "\u00e9", "a" * 400, "flow", "end", "{}", "//", "?")
HEADERS = {
    "x-hexgen-budget-ms": ("1", "-1", "x", "1e9", "", "9" * 400),
    "x-hexgen-workflow-id": ("flow", "a b", "\u00e9", "x" * 129),
    "x-hexgen-siblings": ("2", "0", "2.0"),
    "x-hexgen-colour": ("red",),
    "x-session-id": ("session", " "),
    "content-type": ("text/plain", "application/json; charset=utf-16"),
}


def broken(dice: random.Random, body: dict[str, Any]) -> bytes:
    """The body as it is, cut, or with something strange in it."""
    raw = json.dumps(body, ensure_ascii=False).encode()
    at = dice.randrange(len(raw))
    match dice.randrange(5):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + dice.choice(BROKEN) + raw[at:]
        case 2:
            return bytes((*raw[:at], raw[at] ^ 1 << dice.randrange(8), *raw[at + 1 :]))
        case 3:
            return dice.choice(BROKEN)
    return raw


def odd_path(dice: random.Random) -> str:
    part = quote(dice.choice(PATH_PARTS), safe="/" if dice.random() < 0.5 else "")
    end = dice.choice(("", "/end", "/explain", "/drain", "?limit=%00", f"/{part}"))
    return f"/{dice.choice(('workflows', 'workers'))}/{part}{end}"


async def test_no_input_breaks_the_surface(make_worker: MakeWorker, make_front: MakeFront) -> None:
    front = await make_front(await make_worker(), request_timeout_s=20.0)
    dice = random.Random(7)
    statuses: Counter[int] = Counter()
    for _ in range(CALLS):
        if dice.random() < 0.7:
            path, body = dice.choice(list(BODIES.items()))
            method, raw = "PATCH" if path == "/workflows/flow" else "POST", broken(dice, body)
        else:
            path, raw = odd_path(dice), None
            method = dice.choice(("GET", "POST", "PATCH", "DELETE"))
        names = dice.sample(list(HEADERS), k=dice.choice((0, 0, 1, 2)))
        headers = {name: dice.choice(HEADERS[name]) for name in names}
        async with front.session.request(
            method, front.url + path, data=raw, headers=headers
        ) as response:
            text = await response.read()
        statuses[response.status] += 1
        told = f"{method} {path} {headers} {raw!r:.300}: {response.status} {text[:200]!r}"
        assert response.status < 500, told
        if response.status >= 400 and response.content_type == "application/json":
            error = json.loads(text)["error"]
            assert {"message", "type", "param", "code"} <= error.keys(), told
    assert statuses[200] > 100
    assert statuses[400] > 400
    assert statuses[404] > 100
    status, health = await front.call("GET", "/health")
    assert (status, health["num_queued"]) == (200, 0)
