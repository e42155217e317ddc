"""The score for stock workers, over HTTP: nothing waits here, and streams tell first tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_every_request_is_at_a_worker_at_once_and_both_get_some(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    workers = [await make_worker(max_running=1), await make_worker(max_running=1)]
    for worker in workers:
        worker.gate.clear()
    front = await make_front(*workers, dispatch="hexgen_lite", binding="early")
    stream = asyncio.create_task(front.events("/generate", {"text": "x", "stream": True}))
    calls = [asyncio.create_task(front.generate(text=f"other {n}")) for n in range(11)]
    await wait_until(lambda: sum(len(worker.seen) for worker in workers) == 12)
    assert all(worker.seen for worker in workers)
    seen = [
        row
        for worker in front.coordinator.parts.directory.workers.values()
        for row in worker.seen.values()
    ]
    assert sorted(row.streams for row in seen) == [False] * 11 + [True]
    assert not any(w.linked for w in front.coordinator.parts.directory.workers.values())
    for worker in workers:
        worker.gate.set()
    assert (await stream)[-1] == "[DONE]"
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 11
