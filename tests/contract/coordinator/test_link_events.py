"""Workers over the link: registration, load, timings, deadlines, loss, restart.

The link runs in memory, through the real codec; the workers' HTTP is on real sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    Cancel,
    CoordinatorMessage,
    Goodbye,
    Hello,
    Load,
    Rejected,
    Reprioritise,
    RequestFinished,
    Welcome,
)
from hexgen_sglang.transport.memory import MemoryLink, MemoryWorkerEnd

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

HELLO = Hello(
    link_version=LINK_VERSION,
    worker_id="gpu-0",
    incarnation="first",
    url="http://127.0.0.1:1",
    model="stand-in",
    hardware="a100",
    sglang_version="0.5.23",
    plugin_version="0.1.0",
    max_running_requests=8,
    kv_capacity_tokens=50_000,
    ordering="least_slack",
)


class Plugin:
    """The plugin's end of one worker, as the agent drives it, without its thread."""

    def __init__(self, end: MemoryWorkerEnd, hello: Hello) -> None:
        self.end = end
        self.hello = hello
        self.got: list[CoordinatorMessage] = []

    def send(self, message: Any) -> None:
        assert self.end.send(message)

    async def next(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        async with asyncio.timeout(20):
            while True:
                message = self.end.receive(0.0)
                if message is None:
                    await asyncio.sleep(0.01)
                    continue
                self.got.append(message)
                if isinstance(message, kind):
                    return message

    async def register(self) -> Any:
        self.send(self.hello)
        return await self.next((Welcome, Rejected))  # type: ignore[arg-type]


@pytest.fixture
def linked(make_front: MakeFront) -> Callable[..., Awaitable[Any]]:
    """Starts a coordinator with a memory link; settings as for `make_front`."""

    async def make(*workers: Any, **settings: Any) -> tuple[Any, Callable[..., Plugin]]:
        link = MemoryLink()
        front = await make_front(*workers, end=link.coordinator_end(), **settings)

        def plugin(**fields: Any) -> Plugin:
            return Plugin(link.worker_end(), msgspec.structs.replace(HELLO, **fields))

        return front, plugin

    return make


def directory(front: Any) -> Any:
    return front.coordinator.parts.directory


async def test_a_hello_registers_a_worker_that_then_serves(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front, plugin = await linked(heartbeat_ms=700)
    agent = plugin(url=worker.url)
    welcome = await agent.register()
    assert (welcome.coordinator_id, welcome.heartbeat_ms) == ("coordinator", 700)
    await wait_until(lambda: len(directory(front).ready()) == 1)
    assert (await front.generate())[0] == 200
    agent.send(Load(1, 2, 300, 4_000))
    known = directory(front).workers["gpu-0"]
    await wait_until(lambda: known.load is not None)
    _, listing = await front.call("GET", "/workers")
    [row] = listing["workers"]
    assert (row["hardware"], row["sglang_version"], row["linked"]) == ("a100", "0.5.23", True)
    assert (row["max_running_requests"], row["kv_capacity_tokens"]) == (8, 50_000)
    assert (row["load"]["num_waiting_tokens"], row["load"]["num_kv_tokens_used"]) == (300, 4_000)


async def test_a_worker_known_by_url_takes_its_own_name_and_keeps_serving(
    linked: Any, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    front, plugin = await linked(worker, rows=[{"prefill_tokens_per_s": 1_500.0}])
    assert isinstance(await plugin(url=worker.url).register(), Welcome)
    rates = front.coordinator.parts.estimates.rates.of("gpu-0")
    assert rates.prefill_tokens_per_s == 1_500.0
    assert list(directory(front).workers) == ["gpu-0"]
    assert [w.worker_id for w in directory(front).ready()] == ["gpu-0"]
    assert (await front.generate())[0] == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "http://10.0.0.9:30000"}, "host is not allowed for a link without keys"),
        ({"url": "http://127.0.0.1:1/path"}, "without path, query or user"),
        ({"worker_id": "other", "url": "named"}, "belongs to worker 'named', not to 'other'"),
        ({"worker_id": "named"}, "worker_id='named': is at"),
    ],
)
async def test_who_may_not_register_is_told_why(
    fields: dict[str, str], said: str, linked: Any, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    front, plugin = await linked(worker, rows=[{"worker_id": "named"}])
    if fields.get("url") == "named":
        fields = {**fields, "url": worker.url}
    answer = await plugin(**fields).register()
    assert isinstance(answer, Rejected)
    assert said in answer.reason
    assert list(directory(front).workers) == ["named"]


async def test_reported_load_holds_requests_back_until_it_falls(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front, plugin = await linked(heartbeat_ms=10_000, look_ahead_tokens=1_000)
    agent = plugin(url=worker.url)
    await agent.register()
    await wait_until(lambda: len(directory(front).ready()) == 1)
    calls = [asyncio.create_task(front.generate())]
    await wait_until(lambda: len(worker.seen) == 1)
    agent.send(Load(1, 9, 5_000, 20_000))
    await wait_until(lambda: directory(front).workers["gpu-0"].load is not None)
    calls += [asyncio.create_task(front.generate()) for _ in range(3)]
    await wait_until(lambda: len(front.coordinator.parts.queue) == 3)
    agent.send(Load(1, 0, 0, 20_000))
    await wait_until(lambda: len(worker.seen) == 4)
    worker.gate.set()
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 4


async def test_full_memory_holds_requests_back(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front, plugin = await linked(heartbeat_ms=10_000)
    agent = plugin(url=worker.url, kv_capacity_tokens=1_000)
    await agent.register()
    await wait_until(lambda: len(directory(front).ready()) == 1)
    first = asyncio.create_task(front.generate())
    await wait_until(lambda: len(worker.seen) == 1)
    agent.send(Load(1, 0, 0, 950))
    await wait_until(lambda: directory(front).workers["gpu-0"].load is not None)
    second = asyncio.create_task(front.generate(text="x" * 400))  # about 100 tokens
    await wait_until(lambda: len(front.coordinator.parts.queue) == 1)
    agent.send(Load(1, 0, 0, 500))
    await wait_until(lambda: len(worker.seen) == 2)
    worker.gate.set()
    assert [(await call)[0] for call in (first, second)] == [200, 200]


async def test_the_engines_timings_teach_rates_and_fill_in_cached_tokens(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front, plugin = await linked()
    agent = plugin(url=worker.url)
    await agent.register()
    await wait_until(lambda: len(directory(front).ready()) == 1)
    worker._usage = lambda length: {"prompt_tokens": 12, "completion_tokens": length}
    tag = {"workflow_id": "wf"}
    status, _ = await front.call("POST", "/v1/completions", {"prompt": "x", "hexgen": tag})
    assert status == 200
    [row] = (await front.workflow("wf"))["requests"]
    assert row["cached_tokens"] is None
    agent.send(
        RequestFinished(
            request_id=row["request_id"],
            workflow_id="wf",
            stage=None,
            prompt_tokens=1_012,
            cached_tokens=12,
            output_tokens=41,
            queue_ms=100.0,
            ttft_ms=200.0,
            e2e_ms=400.0,
            aborted=False,
        )
    )
    rates = front.coordinator.parts.estimates.rates
    await wait_until(lambda: rates.of("gpu-0").prefill_tokens_per_s is not None)
    assert rates.of("gpu-0").prefill_tokens_per_s == pytest.approx(10_000.0)
    assert rates.of("gpu-0").decode_tokens_per_s == pytest.approx(200.0)
    [row] = (await front.workflow("wf"))["requests"]
    assert (row["prompt_tokens"], row["cached_tokens"]) == (12, 12)


async def test_a_new_deadline_and_a_cancel_reach_the_engines_that_hold_the_workflow(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    workers = [await make_worker(), await make_worker()]
    for worker in workers:
        worker.gate.clear()
    front, plugin = await linked(dispatch="round_robin")
    agents = [plugin(worker_id=f"gpu-{i}", url=worker.url) for i, worker in enumerate(workers)]
    for agent in agents:
        await agent.register()
    await wait_until(lambda: len(directory(front).ready()) == 2)
    tag = {"workflow_id": "wf", "budget_ms": 60_000}
    call = asyncio.create_task(front.generate(hexgen=tag))
    await wait_until(lambda: len(workers[0].seen) == 1)
    await front.call("PATCH", "/workflows/wf", {"budget_ms": 1_234})
    assert await agents[0].next(Reprioritise) == Reprioritise("wf", 1_234, 0.0)
    await front.call("DELETE", "/workflows/wf")
    assert await agents[0].next(Cancel) == Cancel("wf", None)
    assert (await call)[0] == 499
    other = asyncio.create_task(front.generate(hexgen={"workflow_id": "other"}))
    await wait_until(lambda: len(workers[1].seen) == 1)
    await front.call("PATCH", "/workflows/other", {"budget_ms": 99})
    assert await agents[1].next(Reprioritise) == Reprioritise("other", 99, 0.0)
    assert not any(isinstance(m, Reprioritise | Cancel) for m in agents[1].got[:-1])
    workers[1].gate.set()
    assert (await other)[0] == 200


async def test_a_lost_link_leaves_the_worker_serving_and_is_told_in_health(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front, plugin = await linked(heartbeat_ms=50)
    agent = plugin(url=worker.url)
    await agent.register()
    await wait_until(lambda: len(directory(front).ready()) == 1)
    known = directory(front).workers["gpu-0"]
    await wait_until(lambda: not known.linked)  # it sends no heartbeat
    assert (await front.generate())[0] == 200
    status, body = await front.call("GET", "/health")
    assert (status, body["degraded"]) == (200, ["links_lost"])
    assert isinstance(await agent.register(), Welcome)
    assert known.linked


async def test_a_worker_that_says_goodbye_gets_nothing_new(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front, plugin = await linked(queue_timeout_s=0.3)
    agent = plugin(url=worker.url)
    await agent.register()
    await wait_until(lambda: len(directory(front).ready()) == 1)
    agent.send(Goodbye("stopped by its operator"))
    await wait_until(lambda: not directory(front).ready())
    assert (await front.generate())[0] == 503
    again = plugin(url=worker.url, incarnation="second")
    assert isinstance(await again.register(), Welcome)
    await wait_until(lambda: len(directory(front).ready()) == 1)


async def test_a_removed_worker_stays_out_until_it_is_restarted(
    linked: Any, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    front, plugin = await linked()
    await plugin(url=worker.url).register()
    await front.call("DELETE", "/workers/gpu-0")
    answer = await plugin(url=worker.url).register()
    assert isinstance(answer, Rejected)
    assert "worker_id='gpu-0': was removed by the operator" in answer.reason
    assert isinstance(await plugin(url=worker.url, incarnation="second").register(), Welcome)


async def test_a_restarted_worker_has_an_empty_cache_and_may_move(
    linked: Any, make_worker: MakeWorker, wait_until: WaitUntil
) -> None:
    old, new = await make_worker(), await make_worker()
    front, plugin = await linked()
    first = plugin(url=old.url)
    await first.register()
    await wait_until(lambda: len(directory(front).ready()) == 1)
    prompt = "x" * 3_000
    await front.generate(text=prompt)
    estimates = front.coordinator.parts.estimates
    blocks = [2**64]
    estimates.prefixes.note_sent("gpu-0", blocks)
    first.end.close()
    await old.stop()
    assert isinstance(await plugin(url=new.url, incarnation="second").register(), Welcome)
    assert estimates.prefixes.num_matched("gpu-0", blocks) == 0
    await wait_until(lambda: len(directory(front).ready()) == 1)
    assert (await front.generate())[0] == 200
    assert len(new.seen) == 1


def test_an_authenticated_link_may_bring_any_host() -> None:
    from hexgen_sglang.coordinator.estimates import Estimates
    from hexgen_sglang.coordinator.link_events import LinkEvents
    from hexgen_sglang.coordinator.metrics import Metrics
    from hexgen_sglang.coordinator.workers import WorkerDirectory

    estimates = Estimates()
    workers = WorkerDirectory(estimates, Metrics(), set(), 10, lambda: None)
    events = LinkEvents(
        workers,
        estimates,
        coordinator_id="c",
        heartbeat_ms=1_000,
        is_authenticated=True,
        on_load=lambda: None,
    )
    hello = msgspec.structs.replace(HELLO, url="http://10.0.0.9:30000")
    assert isinstance(events.on_hello(hello), Welcome)
