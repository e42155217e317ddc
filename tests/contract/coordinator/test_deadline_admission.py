"""Workflows that would be late get 429 and the earliest deadline that can be kept, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

# About what the stand-in's answers of 12 prompt and 5 output tokens would take: 0.2 s.
ROW = {"worker_id": "w", "prefill_tokens_per_s": 200.0, "decode_tokens_per_s": 30.0}
TAG = {"workflow_type": "sql", "stage": "draft"}


async def taught(make_front: MakeFront, worker: Any, **settings: Any) -> Any:
    """A coordinator that has seen enough workflows of the type end."""
    front = await make_front(worker, rows=[ROW], admission_attainment=0.95, **settings)
    for number in range(12):
        status, _ = await front.generate(
            hexgen={**TAG, "workflow_id": f"past-{number}", "budget_ms": 60_000, "final": True}
        )
        assert status == 200
    return front


async def test_a_workflow_that_cannot_be_in_time_is_told_when_it_could(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await taught(make_front, await make_worker())
    asked = {**TAG, "workflow_id": "wf", "budget_ms": 1}
    async with front.session.post(
        front.url + "/generate", json={"text": "x", "hexgen": asked}
    ) as response:
        answer = await response.json()
        assert response.status == 429
        assert int(response.headers["retry-after"]) >= 1
    error = answer["error"]
    assert (error["code"], error["param"], error["type"]) == (
        "deadline_infeasible",
        "budget_ms",
        "rate_limit_error",
    )
    assert error["earliest_feasible_ms"] > 1
    status, _ = await front.call("GET", "/workflows/wf")
    assert status == 404  # nothing of it was kept
    metrics = front.coordinator.exposition().decode()
    assert 'hexgen_workflows_refused_total{reason="hopeless",workflow_type="sql"} 1.0' in metrics
    assert 'hexgen_requests_refused_total{status="429"} 1.0' in metrics
    asked["budget_ms"] = error["earliest_feasible_ms"]
    assert (await front.generate(hexgen=asked))[0] == 200


async def test_a_flood_is_cut_and_the_accepted_keep_their_later_stages(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker(max_running=1)
    front = await taught(make_front, worker)
    worker.gate.clear()
    tag = {**TAG, "budget_ms": 1_500}
    calls = [
        asyncio.create_task(front.generate(hexgen={**tag, "workflow_id": f"wf-{number}"}))
        for number in range(60)
    ]
    live = front.coordinator.exchanges.live
    await wait_until(lambda: len(live) + sum(call.done() for call in calls) == 60)
    refused = [call.result() for call in calls if call.done()]
    assert 0 < len(refused) < 60
    assert {status for status, _ in refused} == {429}
    assert {answer["error"]["code"] for _, answer in refused} == {"deadline_infeasible"}
    accepted = [number for number, call in enumerate(calls) if not call.done()]
    # A later stage of an accepted one goes on, though a new workflow like it would be refused.
    later = asyncio.create_task(
        front.generate(hexgen={**tag, "workflow_id": f"wf-{accepted[0]}", "stage": "revise"})
    )
    status, _ = await front.generate(hexgen={**tag, "workflow_id": "another"})
    assert status == 429
    worker.gate.set()
    assert (await later)[0] == 200
    assert [(await calls[number])[0] for number in accepted] == [200] * len(accepted)


async def test_a_types_default_budget_counts_and_best_effort_is_let_in(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await taught(make_front, await make_worker(), default_budget_ms={"sql": 1})
    status, answer = await front.generate(hexgen={**TAG, "workflow_id": "wf"})
    assert (status, answer["error"]["code"]) == (429, "deadline_infeasible")
    assert (await front.generate())[0] == 200


async def test_each_refused_placement_says_when_it_could_be_kept(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await taught(make_front, await make_worker(), direct=True)
    wanted = {"hexgen": {**TAG, "workflow_id": "wf", "budget_ms": 1}, "num_prompt_chars": 40}
    status, answer = await front.call("POST", "/placements", {"requests": [wanted]})
    assert (status, answer["error"]["code"]) == (429, "deadline_infeasible")
    assert answer["error"]["earliest_feasible_ms"] > 1
