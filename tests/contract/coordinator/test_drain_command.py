"""`hexgen-sglang drain` against a real coordinator, as hooks call it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


async def drain(*arguments: str) -> tuple[int, str]:
    """Exit status and all output of the command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hexgen_sglang", "drain", *arguments, "--poll-s", "0.05"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_it_waits_for_the_last_request_and_removes_the_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    worker.gate.clear()
    call = asyncio.create_task(front.generate())
    await wait_until(lambda: len(worker.seen) == 1)
    drained = asyncio.create_task(drain("w0", "--url", front.url, "--remove"))
    directory = front.coordinator.parts.directory
    await wait_until(lambda: directory.get("w0").drained)
    assert not drained.done()
    worker.gate.set()
    assert (await call)[0] == 200
    status, output = await drained
    assert (status, output.startswith("w0: drained after")) == (0, True), output
    assert "w0" not in directory.workers


async def test_requests_that_outlast_it_are_left_alone_and_told(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    worker.gate.clear()
    call = asyncio.create_task(front.generate())
    await wait_until(lambda: len(worker.seen) == 1)
    status, output = await drain("w0", "--url", front.url, "--remove", "--timeout-s", "0")
    assert (status, output) == (1, "w0: 1 requests left after 0 s\n")
    assert "w0" in front.coordinator.parts.directory.workers
    worker.gate.set()
    assert (await call)[0] == 200


async def test_an_unknown_worker_and_an_absent_coordinator_are_named(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    status, output = await drain("nobody", "--url", front.url)
    assert (status, "WORKER='nobody': not registered" in output) == (2, True)
    status, output = await drain("w0", "--url", "http://127.0.0.1:9")
    assert (status, "--url http://127.0.0.1:9: POST" in output) == (2, True)
