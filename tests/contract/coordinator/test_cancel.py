"""Clients that go away, and workflows that are cancelled or ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


async def outcome(front: Any, workflow_id: str) -> list[str]:
    return [row["outcome"] for row in (await front.workflow(workflow_id))["requests"]]


async def test_a_client_that_leaves_while_its_answer_is_made_stops_the_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker)
    call = asyncio.create_task(front.generate(hexgen={"workflow_id": "wf"}))
    await wait_until(lambda: len(worker.seen) == 1)
    call.cancel()
    rid = worker.seen[0]["rid"]
    await wait_until(lambda: worker.aborted == [rid] and worker.hung_up == [rid])
    assert await outcome(front, "wf") == ["disconnected"]
    assert front.coordinator.exchanges.live == {}
    [known] = front.coordinator.parts.directory.workers.values()
    assert known.in_flight == {}


async def test_a_client_that_leaves_inside_a_stream_stops_the_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.between.clear()
    front = await make_front(worker)
    async with aiohttp.ClientSession() as session:
        body = {"text": "x", "stream": True, "hexgen": {"workflow_id": "wf"}}
        async with session.post(front.url + "/generate", json=body) as response:
            await response.content.readuntil(b"\n\n")
    rid = worker.seen[0]["rid"]
    await wait_until(lambda: worker.aborted == [rid] and worker.hung_up == [rid])
    assert await outcome(front, "wf") == ["disconnected"]


async def test_a_client_that_leaves_the_queue_is_never_sent(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, rows=[{"worker_id": "w", "max_in_flight": 1}])
    running = asyncio.create_task(front.generate(text="running"))
    await wait_until(lambda: len(worker.seen) == 1)
    leaving = asyncio.create_task(front.generate(text="leaving"))
    queue = front.coordinator.parts.queue
    await wait_until(lambda: len(queue) == 1)
    leaving.cancel()
    await wait_until(lambda: len(queue) == 0)
    worker.gate.set()
    assert (await running)[0] == 200
    assert (await front.generate(text="next"))[0] == 200
    assert [body["text"] for body in worker.seen] == ["running", "next"]
    assert worker.aborted == []


async def test_a_cancelled_workflow_ends_everywhere_and_its_clients_are_told(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.between.clear()
    front = await make_front(worker, rows=[{"worker_id": "w", "max_in_flight": 1}])
    tag = {"hexgen": {"workflow_id": "wf", "budget_ms": 60_000}}
    streaming = asyncio.create_task(front.events("/generate", {"text": "x", "stream": True, **tag}))
    await wait_until(lambda: len(worker.seen) == 1)
    rid = worker.seen[0]["rid"]
    live = front.coordinator.exchanges.live
    await wait_until(lambda: live[rid].attempt.first_byte_s is not None)
    waiting = asyncio.create_task(front.generate(tag))
    other = asyncio.create_task(front.generate(hexgen={"workflow_id": "other"}))
    await wait_until(lambda: len(live) == 3)
    status, answer = await front.call("DELETE", "/workflows/wf")
    assert (status, answer) == (200, {"workflow_id": "wf", "num_cancelled": 2})
    events = await streaming
    assert json.loads(events[-1])["error"]["code"] == "workflow_cancelled"
    status, answer = await waiting
    assert (status, answer["error"]["message"]) == (499, "workflow 'wf' was cancelled")
    await wait_until(lambda: worker.aborted == [rid])
    report = await front.workflow("wf")
    assert (report["ended"], report["cancelled"], report["met_deadline"]) == (True, True, None)
    assert [row["outcome"] for row in report["requests"]] == ["cancelled", "cancelled"]
    worker.between.set()
    assert (await other)[0] == 200


async def test_the_client_ends_a_workflow_and_then_its_budget_is_fixed(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    await front.generate(hexgen={"workflow_id": "a/b:c", "budget_ms": 60_000})
    assert (await front.workflow("a%2Fb:c"))["ended"] is False
    status, report = await front.call("POST", "/workflows/a%2Fb:c/end")
    assert (status, report["ended"], report["met_deadline"]) == (200, True, True)
    assert report["e2e_s"] == pytest.approx(report["elapsed_s"])
    status, answer = await front.call("PATCH", "/workflows/a/b:c", {"budget_ms": 5})
    assert (status, answer["error"]["code"]) == (409, "workflow_ended")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"budget_ms": 0}, "Expected `int` >= 1"),
        ({}, "missing required field `budget_ms`"),
        ({"budget_ms": 5, "x": 1}, "unknown field `x`"),
        ([], "must be a JSON object"),
    ],
)
async def test_a_wrong_new_budget_is_400(
    body: object, said: str, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    await front.generate(hexgen={"workflow_id": "wf"})
    status, answer = await front.call("PATCH", "/workflows/wf", body)
    assert status == 400
    assert said in answer["error"]["message"]


async def test_the_session_header_makes_a_workflow(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    for _ in range(2):
        status, _ = await front.call(
            "POST", "/v1/completions", {"prompt": "x"}, {"x-session-id": "s-1"}
        )
        assert status == 200
    report = await front.workflow("s-1")
    assert (len(report["requests"]), report["ended"]) == (2, False)
    assert worker.seen[0]["custom_params"]["hexgen"] == {"workflow_id": "s-1"}


async def test_workflows_are_listed_newest_first(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    for name in ("a", "b", "c"):
        await front.generate(hexgen={"workflow_id": name, "workflow_type": "t"})
    _, listing = await front.call("GET", "/workflows?limit=2")
    assert [row["workflow_id"] for row in listing["workflows"]] == ["c", "b"]
