"""What a worker's plugin hears between two stages: the link in memory, HTTP on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    CoordinatorMessage,
    Features,
    Hello,
    Prewarm,
    Release,
    Retain,
    Welcome,
)
from hexgen_sglang.transport.memory import MemoryLink

TOOLS_S = 0.06  # what the workflows' tools take: longer than what is not worth a message


async def test_a_worker_is_told_of_the_prefix_that_comes_next_while_tools_run(
    make_front: Callable[..., Awaitable[Any]],
    make_worker: Callable[..., Awaitable[Any]],
    wait_until: Callable[[Callable[[], bool]], Awaitable[None]],
) -> None:
    worker = await make_worker()
    link = MemoryLink()
    front = await make_front(end=link.coordinator_end())
    end = link.worker_end()
    heard: list[CoordinatorMessage] = []

    def listen(kind: type, workflow_id: str) -> bool:
        while (message := end.receive(0.0)) is not None:
            heard.append(message)
        return any(
            isinstance(one, kind) and getattr(one, "workflow_id", workflow_id) == workflow_id
            for one in heard
        )

    hello = Hello(
        LINK_VERSION, "gpu-0", "first", worker.url, "stand-in", "a100", "0.5.23", "0.1.0", 8,
        50_000, "least_slack",
    )  # fmt: skip
    assert end.send(hello)
    await wait_until(lambda: listen(Welcome, ""))
    assert end.send(Features(keeps_prefixes=True, prewarms=True))
    workers = front.coordinator.parts.directory.workers
    await wait_until(
        lambda: workers["gpu-0"].prewarms and bool(front.coordinator.parts.directory.ready())
    )

    async def stage(number: int, name: str, own: int, *, final: bool = False) -> None:
        tag = {"workflow_id": f"w{number}", "workflow_type": "sql", "stage": name, "final": final}
        ids = [number] * 640 + [100 + own] * 64
        body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 1}, "hexgen": tag}
        assert (await front.call("POST", "/generate", body))[0] == 200

    for number in range(4):
        await stage(number, "plan", 0)
        await asyncio.sleep(TOOLS_S)
        for own in range(3):
            await stage(number, "revise", own)
            await asyncio.sleep(TOOLS_S)
        await stage(number, "vote", 9, final=True)
    await wait_until(lambda: listen(Release, "w3"))
    assert listen(Retain, "w3")
    told = [one for one in heard if isinstance(one, Prewarm) and one.workflow_id == "w3"]
    assert {one.stage for one in told} == {"revise"}
    # The worker has had it: it goes by its own memory, no token ids are sent.
    assert {(one.num_tokens, one.token_ids) for one in told} == {(0, b"")}
