"""Adding, draining and removing workers over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_a_worker_is_added_probed_and_described(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    front = await make_front()
    worker = await make_worker(max_running=7)
    body = {"url": worker.url, "worker_id": "new", "hardware": "a100"}
    status, row = await front.call("POST", "/workers", body)
    assert (status, row["worker_id"], row["state"]) == (201, "new", "starting")
    await wait_until(lambda: len(front.coordinator.parts.directory.ready()) == 1)
    _, listing = await front.call("GET", "/workers")
    [row] = listing["workers"]
    assert {name: row[name] for name in ("model", "hardware", "sglang_version", "state")} == {
        "model": "stand-in",
        "hardware": "a100",
        "sglang_version": "0.0.1",
        "state": "ready",
    }
    assert (row["max_running_requests"], row["kv_capacity_tokens"]) == (7, 100_000)
    assert (row["num_in_flight"], row["load"], row["linked"]) == (0, None, False)


async def test_a_drained_worker_ends_what_it_has_and_gets_nothing_new(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    leaving, staying = await make_worker(), await make_worker()
    leaving.gate.clear()
    front = await make_front(leaving, staying, dispatch="round_robin")
    call = asyncio.create_task(front.generate())
    await wait_until(lambda: len(leaving.seen) == 1)
    status, row = await front.call("POST", "/workers/w0/drain")
    assert (status, row["state"], row["num_in_flight"]) == (200, "draining", 1)
    for _ in range(3):
        assert (await front.generate())[0] == 200
    assert (len(leaving.seen), len(staying.seen)) == (1, 3)
    leaving.gate.set()
    assert (await call)[0] == 200
    status, row = await front.call("POST", "/workers", {"url": leaving.url})
    assert (row["worker_id"], row["state"]) == ("w0", "ready")


async def test_a_removed_worker_is_gone_but_its_request_is_answered(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker)
    call = asyncio.create_task(front.generate())
    await wait_until(lambda: len(worker.seen) == 1)
    status, answer = await front.call("DELETE", "/workers/w0")
    assert (status, answer) == (200, {"worker_id": "w0", "num_in_flight": 1})
    _, listing = await front.call("GET", "/workers")
    assert listing == {"workers": []}
    worker.gate.set()
    assert (await call)[0] == 200
    assert b'worker_state{state="ready",worker_id="w0"}' not in front.coordinator.exposition()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"url": "http://169.254.169.254:80"}, 403, "host must be one of 127.0.0.1, ::1, gpu-1"),
        ({"url": "ftp://127.0.0.1"}, 400, "url='ftp://127.0.0.1': must be http"),
        ({"url": "http://127.0.0.1/admin"}, 400, "without path, query or user"),
        ({"url": "http://127.0.0.1@evil"}, 400, "without path, query or user"),
        ({}, 400, "missing required field `url`"),
        ({"url": "http://127.0.0.1:1", "worker_id": "a b"}, 400, "worker_id"),
        ({"url": "http://127.0.0.1:1", "worker_id": "w0"}, 409, "both must be new"),
        ({"url": "http://127.0.0.1:1", "weights": 1}, 400, "unknown field `weights`"),
    ],
)
async def test_what_may_not_be_added(
    body: dict[str, Any], status: int, said: str, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), allowed_worker_hosts=["gpu-1"])
    got, answer = await front.call("POST", "/workers", body)
    assert got == status
    assert said in answer["error"]["message"]
    assert list(front.coordinator.parts.directory.workers) == ["w0"]


async def test_an_allowed_host_may_be_added_and_the_number_is_bounded(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), allowed_worker_hosts=["gpu-1"], max_workers=2)
    status, row = await front.call("POST", "/workers", {"url": "http://GPU-1:30000"})
    assert (status, row["worker_id"]) == (201, "GPU-1:30000")
    status, answer = await front.call("POST", "/workers", {"url": "http://gpu-1:30001"})
    assert status == 429
    assert "2 workers are registered: at most 2 may" in answer["error"]["message"]
