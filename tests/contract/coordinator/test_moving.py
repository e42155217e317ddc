"""Requests that wait at a worker come back when it drains or keeps them waiting, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hexgen_sglang.protocol.messages import Load

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


async def stuck(front: Any, first: Any, wait_until: WaitUntil, **body: Any) -> asyncio.Task[Any]:
    """A request that was sent to the first worker, which says that it waits there."""
    directory = front.coordinator.parts.directory
    directory.get("w1").drained = True
    directory.drain("w1")
    call = asyncio.create_task(front.events("/generate", {"text": "x", "stream": True, **body}))
    await wait_until(lambda: len(first.seen) == 1)
    directory.undrain(directory.get("w1"))
    report = Load(num_running=1, num_waiting=1, num_waiting_tokens=9, num_kv_tokens_used=0)
    directory.get("w0").take_load(report, front.coordinator.parts.clock())
    return call


@pytest.mark.parametrize("stream", [True, False])
async def test_what_waits_at_a_draining_worker_is_answered_by_another(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil, stream: bool
) -> None:
    first, second = await make_worker(), await make_worker()
    first.gate.clear()
    front = await make_front(first, second, max_attempts=1)
    tag = {"workflow_id": "wf", "stage": "draft", "budget_ms": 60_000}
    if stream:
        call = await stuck(front, first, wait_until, hexgen=tag)
    else:
        directory = front.coordinator.parts.directory
        directory.drain("w1")
        call = asyncio.create_task(front.generate(hexgen=tag))
        await wait_until(lambda: len(first.seen) == 1)
        directory.undrain(directory.get("w1"))
        report = Load(num_running=1, num_waiting=1, num_waiting_tokens=9, num_kv_tokens_used=0)
        directory.get("w0").take_load(report, front.coordinator.parts.clock())
    deadline_s = front.coordinator.parts.tracker.get("wf").deadline_s
    assert (await front.call("POST", "/workers/w0/drain"))[0] == 200
    answer = await asyncio.wait_for(call, 20)
    assert (answer[-1] == "[DONE]") if stream else (answer[0] == 200)
    assert len(second.seen) == 1
    await wait_until(lambda: first.aborted == [first.seen[0]["rid"]])
    workflow = front.coordinator.parts.tracker.get("wf")
    assert workflow.deadline_s == deadline_s
    story = (await front.call("GET", "/workflows/wf/explain"))[1]
    slowest = story["passes"][0]["slowest"]
    assert (slowest["worker_id"], slowest["retries"], slowest["moves"]) == ("w1", 0, 1)
    metrics = front.coordinator.exposition().decode()
    assert 'hexgen_requests_moved_total{reason="drain",worker_id="w0"} 1.0' in metrics
    assert "hexgen_retries_total{" not in metrics


async def test_a_request_that_waits_far_longer_than_predicted_goes_elsewhere(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    first, second = await make_worker(), await make_worker()
    first.gate.clear()
    front = await make_front(first, second, move_overdue=1.5)
    call = await stuck(front, first, wait_until)
    worker = front.coordinator.parts.directory.get("w0")
    (attempt,) = worker.in_flight.values()
    assert attempt.expected_first_s is not None
    attempt.dispatched_s -= 60.0  # it has waited for a minute
    worker.take_load(worker.load, front.coordinator.parts.clock())
    assert (await asyncio.wait_for(call, 20))[-1] == "[DONE]"
    assert len(second.seen) == 1
    metrics = front.coordinator.exposition().decode()
    assert 'hexgen_requests_moved_total{reason="slow",worker_id="w0"} 1.0' in metrics


async def test_what_has_begun_to_answer_ends_where_it_is(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    first, second = await make_worker(), await make_worker()
    first.between.clear()
    front = await make_front(first, second)
    call = await stuck(front, first, wait_until)
    worker = front.coordinator.parts.directory.get("w0")
    await wait_until(lambda: all(a.first_byte_s is not None for a in worker.in_flight.values()))
    assert (await front.call("POST", "/workers/w0/drain"))[0] == 200
    first.between.set()
    assert (await asyncio.wait_for(call, 20))[-1] == "[DONE]"
    assert second.seen == []
    assert first.aborted == []
