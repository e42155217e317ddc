"""A coordinator with its tuner's real process beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator import tuning
from hexgen_sglang.coordinator.tuning_messages import CrewMember, Said
from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    Hello,
    OrderingSet,
    PolicySettings,
    Welcome,
)
from hexgen_sglang.transport.memory import MemoryLink

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[..., Awaitable[None]]

ACCELERATORS = Path(__file__).parents[3] / "launch/configs/accelerators"
ROWS = [{"worker_id": name, "hardware": name} for name in ("a100", "a6000")]
TUNING = {
    "mode": "advise",
    "profiles": {name: str(ACCELERATORS / f"{name}.toml") for name in ("a100", "a6000")},
    "engine": "fcfs",
    "every_s": 0.1,
    "min_workflows": 4,
    "workflows": 10,
    "seeds": 2,
    "candidates": 2,
}


async def front_with_tuner(make_worker: MakeWorker, make_front: MakeFront, **changes: Any) -> Any:
    """A coordinator under `paper` in front of two workers, after six workflows of two stages."""
    workers = [await make_worker() for _ in ROWS]
    front = await make_front(
        *workers, rows=ROWS, dispatch="paper", binding="early", tuning={**TUNING, **changes}
    )
    for number in range(6):
        for stage in ("draft", "judge"):
            tag = {"workflow_id": f"q{number}", "stage": stage, "budget_ms": 60_000}
            tag["final"] = stage == "judge"
            status, answer = await front.generate(hexgen=tag)
            assert status == 200, answer
    return front


async def test_recent_workflows_are_replayed_beside_serving(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    front = await front_with_tuner(make_worker, make_front)
    running = front.coordinator.tuning
    await wait_until(lambda: running.report()["said"], 60.0)
    status, report = await front.call("GET", "/tuning")
    assert status == 200
    assert (report["mode"], report["num_workflows"], report["is_down"]) == ("advise", 6, False)
    said = report["said"][0]
    assert said["kind"] in ("keep", "advice"), said
    assert said["num_runs"] == 4
    assert set(said["settings"]) == {"alpha"}
    assert report["settings"]["alpha"] == 0.4
    async with front.session.get(front.url + "/metrics") as response:
        assert f'hexgen_tuning_total{{kind="{said["kind"]}"}}' in await response.text()


async def test_dead_tuner_is_said_and_serving_goes_on(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    front = await front_with_tuner(make_worker, make_front)
    running = front.coordinator.tuning
    await wait_until(lambda: running.pid is not None, 60.0)
    # It takes time that nobody wants. It says so of itself, once it has begun.
    await wait_until(lambda: os.sched_getscheduler(running.pid) == os.SCHED_IDLE, 60.0)
    assert os.getpriority(os.PRIO_PROCESS, running.pid) == 19
    os.kill(running.pid, signal.SIGKILL)
    await wait_until(lambda: running.is_down, 60.0)
    status, health = await front.call("GET", "/health")
    assert (status, health["status"], health["degraded"]) == (200, "degraded", ["tuner_down"])
    assert (await front.generate())[0] == 200


async def test_tuner_is_started_again_with_what_was_seen(
    make_worker: MakeWorker,
    make_front: MakeFront,
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "_RESTART_S", 0.01)
    front = await front_with_tuner(make_worker, make_front, every_s=1.0)
    running = front.coordinator.tuning
    await wait_until(lambda: running.pid is not None, 60.0)
    first = running.pid
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: running.pid not in (None, first), 60.0)
    # No workflow ends from here on: the new process was told of the earlier ones.
    await wait_until(lambda: running.report()["said"], 60.0)
    assert running.report()["said"][0]["kind"] in ("keep", "advice")


async def test_tuner_that_is_off_runs_no_process(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    _, report = await front.call("GET", "/tuning")
    assert (report["mode"], report["is_down"], front.coordinator.tuning.pid) == ("off", False, None)
    _, health = await front.call("GET", "/health")
    assert health["degraded"] == []


SLACK = "ordering.best_effort_slack_s"


class Plugin:
    """A worker's end of the link, which answers what is sent to its engine."""

    def __init__(self, link: MemoryLink, url: str, worker_id: str, **changes: Any) -> None:
        self.end = link.worker_end()
        self.refusal = ""
        self.got: list[PolicySettings] = []
        own = {"incarnation": "first", "ordering": "least_slack", "hardware": "a100", **changes}
        self.hello = Hello(
            link_version=LINK_VERSION,
            worker_id=worker_id,
            url=url,
            model="stand-in",
            sglang_version="0.5.23",
            plugin_version="0.1.0",
            max_running_requests=8,
            kv_capacity_tokens=50_000,
            **own,
        )

    async def join(self) -> None:
        """Say hello and wait for the welcome."""
        assert self.end.send(self.hello)
        async with asyncio.timeout(20):
            while not self.heard_welcome():  # noqa: ASYNC110  (another connection's doing)
                await asyncio.sleep(0.01)

    def heard_welcome(self) -> bool:
        """Take in what came, answering settings; whether a welcome was among it."""
        heard = False
        while (message := self.end.receive(0.0)) is not None:
            heard |= isinstance(message, Welcome)
            if isinstance(message, PolicySettings):
                self.got.append(message)
                answer = OrderingSet(message.ordering, message.settings, self.refusal)
                assert self.end.send(answer)
        return heard

    def has_got(self, *slacks_s: float) -> bool:
        """Whether just these slacks came so far, in this order."""
        self.heard_welcome()
        return [one.settings for one in self.got] == [
            {"best_effort_slack_s": slack_s} for slack_s in slacks_s
        ]


async def test_ordering_settings_reach_every_linked_engine_and_whoever_joins_later(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    """Two engines of ours, one of them strict, one that orders by `lpm`, and one without a link."""
    workers = [await make_worker() for _ in range(4)]
    link = MemoryLink()
    stock = {"worker_id": "stock", "hardware": "a100"}
    # The plugins here send no heartbeats.
    front = await make_front(
        workers[0], rows=[stock], end=link.coordinator_end(), heartbeat_ms=20_000
    )
    good = Plugin(link, workers[1].url, "good")
    strict = Plugin(link, workers[2].url, "strict")
    strict.refusal = "best_effort_slack_s=9: too small"
    lpm = Plugin(link, workers[3].url, "lpm", ordering="lpm")
    for plugin in (good, strict, lpm):
        await plugin.join()
    running = front.coordinator.tuning
    running.hear(Said("advice", {SLACK: 7.0}, "would be better"))
    running.hear(Said("apply", {"caution": 2.0, "working_set": 2.5, SLACK: 9.0}, "gain"))
    await wait_until(lambda: good.has_got(9.0) and strict.has_got(9.0))

    async def report(*standings: str) -> dict[str, Any]:
        """As soon as good, strict, lpm and stock stand so."""
        async with asyncio.timeout(20):
            while True:
                _, found = await front.call("GET", "/tuning")
                rows = found["engines"]["workers"]
                stand = tuple(rows[name]["standing"] for name in ("good", "strict", "lpm", "stock"))
                if stand == standings:
                    return dict(found)
                await asyncio.sleep(0.01)

    found = await report("applied", "refused", "other", "unlinked")
    in_force = found["settings"]
    assert (in_force["caution"], in_force["working_set"], in_force[SLACK]) == (2.0, 2.5, 9.0)
    assert found["engines"]["settings"] == {"best_effort_slack_s": 9.0}
    assert found["engines"]["workers"]["strict"]["why"] == strict.refusal
    assert lpm.has_got()
    # A new process behind a known address, and one that was never there before.
    strict.end.close()
    strict = Plugin(link, workers[2].url, "strict", incarnation="second")
    await strict.join()
    late = Plugin(link, (await make_worker()).url, "late")
    await late.join()
    await good.join()
    await wait_until(lambda: late.has_got(9.0) and good.has_got(9.0, 9.0) and strict.has_got(9.0))
    # What was changed comes back everywhere.
    running.hear(Said("return", {"caution": 1.0, "working_set": 1.5, SLACK: 30.0}, "fell"))
    await wait_until(
        lambda: (
            late.has_got(9.0, 30.0) and good.has_got(9.0, 9.0, 30.0) and strict.has_got(9.0, 30.0)
        )
    )
    found = await report("applied", "applied", "other", "unlinked")
    assert found["settings"]["working_set"] == 1.5
    assert found["engines"]["settings"] == {"best_effort_slack_s": 30.0}


async def test_a_coordinator_with_peers_leaves_the_engines_alone(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    link = MemoryLink()
    worker = await make_worker()
    peers = {"peers": [{"coordinator_id": "other", "url": "http://127.0.0.1:9"}]}
    front = await make_front(end=link.coordinator_end(), tables=peers)
    plugin = Plugin(link, worker.url, "good")
    await plugin.join()
    running = front.coordinator.tuning
    running.hear(Said("apply", {"caution": 2.0, SLACK: 9.0}, "gain"))
    _, found = await front.call("GET", "/tuning")
    assert (found["engines"], found["settings"]["caution"]) == (None, 1.0)
    running.hear(Said("apply", {"caution": 2.0}, "gain"))
    _, found = await front.call("GET", "/tuning")
    assert found["settings"]["caution"] == 2.0
    assert plugin.has_got()


async def test_workers_tell_by_themselves_how_fast_they_emulate(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    real, emulated = await make_worker(), await make_worker(time_scale=5.0)
    odd, linked = await make_worker(time_scale=-1.0), await make_worker(time_scale=2.5)
    link = MemoryLink()
    rows = [{"worker_id": name, "hardware": "a100"} for name in ("real", "emulated", "odd")]
    front = await make_front(real, emulated, odd, rows=rows, end=link.coordinator_end())
    await Plugin(link, linked.url, "linked", hardware="a6000").join()
    ready = front.coordinator.parts.directory.ready
    await wait_until(lambda: len(ready()) == 4)
    assert tuning.crew_of(ready()) == (
        CrewMember("a100", None),
        CrewMember("a100", 1.0),
        CrewMember("a100", 5.0),
        CrewMember("a6000", 2.5),
    )
    # Another process at the same address, at another scale.
    await linked.stop()
    workers = front.coordinator.parts.directory.workers
    await wait_until(lambda: workers["linked"] not in ready())
    linked.time_scale = 4.0
    await linked.start(int(linked.url.rpartition(":")[2]))
    await wait_until(lambda: len(ready()) == 4)
    assert workers["linked"].time_scale == 4.0


@pytest.mark.parametrize("mode", ["auto", "advise"])
async def test_engines_begin_where_the_coordinator_does_when_it_may_change_them(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil, mode: str
) -> None:
    """An earlier coordinator may have left them elsewhere."""
    link = MemoryLink()
    front = await make_front(
        end=link.coordinator_end(),
        heartbeat_ms=20_000,
        ordering_settings={"best_effort_slack_s": 12.0},
        tuning={**TUNING, "mode": mode, "engine": "hexgen"},
    )
    plugin = Plugin(link, (await make_worker()).url, "ours")
    await plugin.join()
    running = front.coordinator.tuning
    if mode == "auto":
        await wait_until(lambda: plugin.has_got(12.0))
    running.hear(Said("apply", {SLACK: 9.0}, "gain"))
    wanted = (12.0, 9.0) if mode == "auto" else (9.0,)
    await wait_until(lambda: plugin.has_got(*wanted))
    assert running.report()["engines"]["settings"] == {"best_effort_slack_s": 9.0}
