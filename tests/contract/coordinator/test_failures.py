"""Workers that refuse, die, hang or are not there: what the client sees of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

TAG = {"hexgen": {"workflow_id": "wf", "budget_ms": 60_000}}


async def record(front: Any) -> dict[str, Any]:
    [row] = (await front.workflow("wf"))["requests"]
    return dict(row)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_worker_that_refuses_is_replaced_by_another(
    status: int, stream: bool, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    bad, good = await make_worker(failing=[status]), await make_worker()
    front = await make_front(bad, good, dispatch="round_robin")
    body = {"text": "x", "stream": stream, **TAG}
    async with front.session.post(front.url + "/generate", json=body) as response:
        assert response.status == 200
        await response.read()
    row = await record(front)
    assert (row["worker_id"], row["retries"], row["outcome"]) == ("w1", 1, "completed")
    assert good.seen[0]["rid"] == "2." + bad.seen[0]["rid"]
    budgets = [w.seen[0]["sampling_params"]["custom_params"]["hexgen"] for w in (bad, good)]
    assert budgets[1]["budget_ms"] <= budgets[0]["budget_ms"]  # the deadline did not move


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_dies_before_its_first_byte_loses_nothing(
    stream: bool, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    dying, good = await make_worker(dies_after=[0]), await make_worker()
    front = await make_front(dying, good, dispatch="round_robin")
    body = {"text": "x", "stream": stream, **TAG}
    async with front.session.post(front.url + "/generate", json=body) as response:
        assert response.status == 200
        text = (await response.read()).decode()
    assert "w0 w1 w2 w3 w4" in text
    assert (await record(front))["retries"] == 1


async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_done(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    dying, good = await make_worker(dies_after=[2]), await make_worker()
    front = await make_front(dying, good, dispatch="round_robin")
    body = {"prompt": "x", "stream": True, "logprobs": 1, **TAG}
    events = await front.events("/v1/completions", body)
    assert [json.loads(event)["choices"][0]["text"] for event in events[:-1]] == ["w0", "w1"]
    error = json.loads(events[-1])["error"]
    assert error["code"] == "worker_failed"
    assert "worker 'w0' failed after its first byte" in error["message"]
    assert "cannot go on elsewhere, logprobs was given" in error["message"]
    assert (await record(front))["outcome"] == "failed"
    assert good.seen == []


async def test_a_lone_worker_is_tried_again_and_then_the_client_is_told(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(failing=[500, 500, 200])
    front = await make_front(worker, max_attempts=3)
    worker.failing = [500, 500]
    assert (await front.generate(TAG))[0] == 200
    worker.failing = [500, 500, 500]
    status, answer = await front.generate(TAG)
    assert status == 502
    assert "failed at the last try (try 3 of 3): answered 500" in answer["error"]["message"]
    assert len(worker.seen) == 6


async def test_without_a_worker_requests_wait_and_are_then_refused(
    make_front: MakeFront,
) -> None:
    front = await make_front(queue_timeout_s=0.2)
    async with front.session.post(front.url + "/generate", json={"text": "x"}) as response:
        assert response.status == 503
        assert "retry-after" in response.headers
        message = (await response.json())["error"]["message"]
    assert "no worker could start the request within 0.2 s; 0 of 0 workers are ready" in message
    assert len(front.coordinator.parts.queue) == 0


async def test_a_worker_that_comes_later_serves_those_who_waited(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    front = await make_front()
    calls = [asyncio.create_task(front.generate()) for _ in range(5)]
    await wait_until(lambda: len(front.coordinator.parts.queue) == 5)
    worker = await make_worker()
    status, _ = await front.call("POST", "/workers", {"url": worker.url})
    assert status == 201
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 5


async def test_a_killed_worker_loses_none_of_its_requests(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    dying, good = await make_worker(), await make_worker()
    dying.gate.clear()
    front = await make_front(dying, good, dispatch="round_robin")
    calls = [
        asyncio.create_task(front.generate(hexgen={"workflow_id": f"w{i}"}, stream=i % 2 == 0))
        if i % 2
        else asyncio.create_task(front.events("/generate", {"text": "x", "stream": True}))
        for i in range(20)
    ]
    await wait_until(lambda: len(dying.seen) == 10)
    await dying.stop()
    answers = await asyncio.gather(*calls)
    assert all(answer[0] == 200 or answer[-1] == "[DONE]" for answer in answers)
    assert len(good.seen) == 20
    _, listing = await front.call("GET", "/workers")
    states = {row["worker_id"]: row["state"] for row in listing["workers"]}
    assert states == {"w0": "unreachable", "w1": "ready"}


async def test_a_restarted_worker_is_found_again(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    port = int(worker.url.rpartition(":")[2])
    await worker.stop()
    directory = front.coordinator.parts.directory
    await wait_until(lambda: not directory.ready())
    call = asyncio.create_task(front.generate())
    await wait_until(lambda: len(front.coordinator.parts.queue) == 1)
    await worker.start(port)
    assert (await call)[0] == 200


async def test_a_hung_workers_requests_are_taken_back(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    hung, good = await make_worker(), await make_worker()
    front = await make_front(
        hung, good, dispatch="round_robin", health_timeout_s=0.2, health_failures=2
    )
    hung.gate.clear()
    calls = [asyncio.create_task(front.generate()) for _ in range(4)]
    await wait_until(lambda: len(hung.seen) == 2)
    hung.is_hung = True
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 4
    await wait_until(lambda: len(hung.aborted) == 2)  # told to stop, in case it comes back
    hung.is_hung = False
    hung.gate.set()
    await wait_until(lambda: len(front.coordinator.parts.directory.ready()) == 2)


async def test_a_silent_stream_is_tried_elsewhere_before_its_first_byte(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    silent, good = await make_worker(), await make_worker()
    silent.gate.clear()
    front = await make_front(silent, good, dispatch="round_robin", first_byte_timeout_s=0.3)
    events = await front.events("/generate", {"text": "x", "stream": True, **TAG})
    assert events[-1] == "[DONE]"
    row = await record(front)
    assert (row["worker_id"], row["retries"]) == ("w1", 1)
    assert silent.aborted == [silent.seen[0]["rid"]]


async def test_a_stream_that_falls_silent_ends_with_an_error(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    worker.between.clear()
    front = await make_front(worker, stream_gap_timeout_s=0.3)
    body = {"text": "x", "stream": True, "return_logprob": True}
    events = await front.events("/generate", body)
    assert "silent for 0.3 s inside a stream" in json.loads(events[-1])["error"]["message"]


async def test_a_request_that_takes_too_long_is_504_and_stopped_at_the_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, request_timeout_s=0.3)
    status, answer = await front.generate(TAG)
    assert (status, answer["error"]["message"]) == (504, "not finished within 0.3 s")
    await wait_until(lambda: len(worker.aborted) == 1)
    assert (await record(front))["outcome"] == "failed"
