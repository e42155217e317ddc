"""A coordinator with its tuner's real process beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator import tuning

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
