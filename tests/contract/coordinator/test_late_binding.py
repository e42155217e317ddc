"""Who waits, who goes first, and where: decided when a worker has room, not on arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


class Calls:
    """Requests sent one after the other, each known to be accepted before the next."""

    def __init__(self, front: Any, wait_until: WaitUntil) -> None:
        self.front = front
        self.wait_until = wait_until
        self.tasks: list[asyncio.Task[tuple[int, Any]]] = []

    async def send(self, name: str, **tag: Any) -> None:
        live = self.front.coordinator.exchanges.live
        count = len(live) + 1
        body = {"text": name, "hexgen": {"workflow_id": name, **tag}}
        self.tasks.append(asyncio.create_task(self.front.generate(body)))
        await self.wait_until(lambda: len(live) == count)

    async def finish(self) -> list[int]:
        return [status for status, _ in await asyncio.gather(*self.tasks)]


def texts(worker: Any) -> list[str]:
    return [body["text"] for body in worker.seen]


async def test_a_tight_request_overtakes_slack_ones_that_came_first(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, rows=[{"worker_id": "w", "max_in_flight": 1}])
    calls = Calls(front, wait_until)
    await calls.send("running")
    await calls.send("slack", budget_ms=600_000)
    await calls.send("best-effort")
    await calls.send("tight", budget_ms=5_000)
    assert texts(worker) == ["running"]
    worker.gate.set()
    assert await calls.finish() == [200] * 4
    assert texts(worker) == ["running", "tight", "best-effort", "slack"]


async def test_a_worker_never_holds_more_than_it_can_soon_start(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker(max_running=3)
    worker.gate.clear()
    front = await make_front(worker, look_ahead=1)
    calls = Calls(front, wait_until)
    for number in range(10):
        await calls.send(f"r{number}")
    await wait_until(lambda: len(worker.seen) == 4)
    assert len(front.coordinator.parts.queue) == 6
    worker.gate.set()
    assert await calls.finish() == [200] * 10
    assert len(worker.seen) == 10


async def test_whichever_worker_is_free_first_takes_the_next(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    one, other = await make_worker(), await make_worker()
    one.gate.clear()
    other.gate.clear()
    rows = [{"worker_id": name, "max_in_flight": 1} for name in ("one", "other")]
    front = await make_front(one, other, rows=rows, dispatch="round_robin")
    calls = Calls(front, wait_until)
    for number in range(4):
        await calls.send(f"r{number}")
    await wait_until(lambda: len(one.seen) + len(other.seen) == 2)
    other.gate.set()
    await wait_until(lambda: len(other.seen) == 3)
    assert texts(one) == ["r0"]
    assert texts(other) == ["r1", "r2", "r3"]
    one.gate.set()
    assert await calls.finish() == [200] * 4


async def test_a_new_budget_changes_the_rank_of_what_waits(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, rows=[{"worker_id": "w", "max_in_flight": 1}])
    calls = Calls(front, wait_until)
    await calls.send("running")
    await calls.send("a", budget_ms=50_000)
    await calls.send("b", budget_ms=60_000)
    await calls.send("c", budget_ms=70_000)
    status, report = await front.call("PATCH", "/workflows/c", {"budget_ms": 10_000})
    assert status == 200
    assert 10.0 <= report["budget_s"] < 20.0
    status, report = await front.call("PATCH", "/workflows/a", {"budget_ms": None})
    assert (status, report["budget_s"]) == (200, None)
    worker.gate.set()
    assert await calls.finish() == [200] * 4
    # "a" is best effort now, ranked as 30 s after its arrival; of "b", whose workflow has not
    # begun, a quarter of its slack counts
    assert texts(worker) == ["running", "c", "b", "a"]


async def test_every_dispatch_policy_serves(make_worker: MakeWorker, make_front: MakeFront) -> None:
    from hexgen_sglang.policies.dispatch import DISPATCH

    for name in DISPATCH:
        workers = [await make_worker(), await make_worker()]
        front = await make_front(*workers, dispatch=name)
        answers = await asyncio.gather(*(front.generate() for _ in range(20)))
        assert [status for status, _ in answers] == [200] * 20
        assert sum(len(worker.seen) for worker in workers) == 20


async def test_a_prefix_goes_where_it_was_sent_before(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    workers = [await make_worker() for _ in range(3)]
    rates = {"prefill_tokens_per_s": 1_000.0, "decode_tokens_per_s": 50.0}
    rows = [{"worker_id": f"w{i}", **rates} for i in range(3)]
    front = await make_front(*workers, rows=rows)
    schema = " ".join(f"column_{number} integer," for number in range(500))
    homes = []
    for number in range(3):
        # An unlike prompt of the same length in between: nothing but the prefix can decide.
        await front.generate(text=f"{number}" * len(schema))
        async with front.session.post(
            front.url + "/generate", json={"text": schema + f" question {number}"}
        ) as response:
            homes.append(response.headers["x-hexgen-worker-id"])
    assert len(set(homes)) == 1
