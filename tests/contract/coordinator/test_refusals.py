"""Refusals: the status, and a message that names field, value and range, in OpenAI's format."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        ({"hexgen": {"stage": "s"}}, {}, "hexgen: Object missing required field `workflow_id`"),
        ({"hexgen": {"workflow_id": "a b"}}, {}, "; workflow_id='a b'"),
        ({"hexgen": {"workflow_id": "w", "budget_ms": 0}}, {}, "Expected `int` >= 1"),
        ({"hexgen": {"workflow_id": "w", "budget_ms": "9"}}, {}, "`int | null`, got `str`"),
        ({"hexgen": {"workflow_id": "w", "bugdet_ms": 9}}, {}, "unknown field `bugdet_ms`"),
        (
            {"hexgen": {"workflow_id": "w", "siblings": 2, "sibling_index": 2}},
            {},
            "sibling_index=2: must be below siblings=2",
        ),
        ({"hexgen": "w"}, {}, "hexgen: Expected `object`, got `str`"),
        ({}, {"x-hexgen-stage": "s"}, "missing required field `workflow_id`"),
        ({}, {"x-hexgen-workflow": "w"}, "header x-hexgen-workflow: unknown; known headers:"),
        ({}, {"x-hexgen-workflow-id": "w", "x-hexgen-final": "maybe"}, "final"),
        (
            {"hexgen": {"workflow_id": "w", "stage": "a"}},
            {"x-hexgen-stage": "b"},
            "hexgen.stage='a' in the body but x-hexgen-stage='b' in the headers",
        ),
        ({"text": 3}, {}, "text=3: must be a string"),
        ({"sampling_params": "hot"}, {}, 'sampling_params="hot": must be an object'),
    ],
)
async def test_malformed_tags_and_bodies_are_400(
    body: dict[str, Any],
    headers: dict[str, str],
    said: str,
    make_worker: MakeWorker,
    make_front: MakeFront,
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    status, answer = await front.call("POST", "/generate", {"text": "x", **body}, headers)
    assert status == 400
    error = answer["error"]
    assert said in error["message"]
    assert (error["type"], set(error)) == (
        "invalid_request_error",
        {"message", "type", "param", "code"},
    )
    assert worker.seen == []
    assert front.coordinator.parts.tracker.num_lasting == 0


async def test_a_body_that_is_not_json_is_400(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    async with front.session.post(front.url + "/generate", data=b"{oops") as response:
        assert response.status == 400
        assert "body: not valid JSON" in (await response.json())["error"]["message"]


async def test_a_body_too_large_is_413(make_worker: MakeWorker, make_front: MakeFront) -> None:
    front = await make_front(await make_worker(), max_body_bytes=2048)
    status, answer = await front.generate(text="x" * 3000)
    assert (status, answer["error"]["message"]) == (413, "body: must be at most 2048 bytes")
    assert (await front.generate(text="x" * 1000))[0] == 200


async def test_a_full_queue_is_429_with_retry_after(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, rows=[{"worker_id": "w", "max_in_flight": 1}], max_queued=2)
    calls = [asyncio.create_task(front.generate()) for _ in range(3)]
    await wait_until(lambda: len(front.coordinator.parts.queue) == 2)
    async with front.session.post(front.url + "/generate", json={"text": "x"}) as response:
        assert response.status == 429
        assert int(response.headers["retry-after"]) >= 1
        error = (await response.json())["error"]
    assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
    assert "2 requests of" in error["message"]
    assert "at most 2 of" in error["message"]
    worker.gate.set()
    assert [status for status, _ in await asyncio.gather(*calls)] == [200, 200, 200]


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v1/embeddings", 404, "GET /v1/embeddings: no such path"),
        ("GET", "/generate", 405, "GET /generate: method not allowed"),
        ("GET", "/workflows/nobody", 404, "workflow_id='nobody': not known, or forgotten"),
        ("DELETE", "/workers/nobody", 404, "worker_id='nobody': not registered; workers: w0"),
        ("GET", "/workflows?limit=0", 400, "limit='0': must be 1 to 1000"),
    ],
)
async def test_unknown_things_are_named(
    method: str,
    path: str,
    status: int,
    said: str,
    make_worker: MakeWorker,
    make_front: MakeFront,
) -> None:
    front = await make_front(await make_worker())
    got, answer = await front.call(method, path)
    assert got == status
    assert said in answer["error"]["message"]


async def test_too_many_busy_workflows_are_429(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, max_workflows=1)
    call = asyncio.create_task(front.generate(hexgen={"workflow_id": "a"}))
    await wait_until(lambda: len(worker.seen) == 1)
    status, answer = await front.generate(hexgen={"workflow_id": "b"})
    assert status == 429
    assert "1 workflows have open requests: at most 1 may" in answer["error"]["message"]
    worker.gate.set()
    assert (await call)[0] == 200
    assert (await front.generate(hexgen={"workflow_id": "b"}))[0] == 200
