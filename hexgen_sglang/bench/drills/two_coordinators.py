"""The drill of two coordinators before the same workers, one of which dies.

Callers ask either of them, and send a request whose connection breaks to the other one. A stream
that had begun ends with a clear error where it came through the one that lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec

from hexgen_sglang.bench.drills.drill import Drill, DrillReport, under_load
from hexgen_sglang.bench.drills.stage import Stage, until
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.ports import fetch_json, free_port
from hexgen_sglang.coordinator.config import PeerConfig

_NAMES = ("coordinator", "coordinator-2")
_SENT_AGAIN_S = 60.0


async def kill_one_of_two(stage: Stage) -> DrillReport:
    """`kill -9` of one; recovery: until the last call that was sent again hears of an answer."""
    async with _pair(stage) as urls:

        def load(drill: Drill) -> None:
            drill.callers.urls = urls
            drill.burst(24, again_s=_SENT_AGAIN_S)

        name = "one of two coordinators killed"
        async with under_load(stage, name, load, may_fail=True, forgets=True) as drill:
            await asyncio.to_thread(stage.processes[_NAMES[1]].kill)
            drill.burst(6, count=20, again_s=_SENT_AGAIN_S)
            await drill.callers.finish(120.0)
            again = [call for call in drill.callers.calls if call.retries]
            heard = [min([*call.event_s, call.ended_s or 0.0]) for call in again]
            drill.report.recovery_s = drill.after_fault_s(max(heard)) if heard else None
            drill.report.facts["sent_again"] = len(again)
        told = {call.error for call in drill.callers.calls if call.error}
        drill.expect(bool(again), "no call was hit")
        drill.expect(
            all("lost after the first byte" in error for error in told),
            "a request ended in another error than that its coordinator was lost",
        )
    return drill.report


@contextlib.asynccontextmanager
async def _pair(stage: Stage) -> AsyncIterator[list[str]]:
    """Two coordinators in place of the stage's one, each with ready workers; undone at the end."""
    before = stage.coordinator
    ports = {_NAMES[0]: before.config.port, _NAMES[1]: free_port()}
    links = {_NAMES[0]: before.config.link, _NAMES[1]: stage.second_link}
    await asyncio.to_thread(stage.processes[_NAMES[0]].kill)
    specs = [_spec(before, name, ports, links) for name in _NAMES]
    try:
        for spec in specs:
            stage.coordinator = spec
            await stage.start_coordinator()
        for spec in specs:
            ready = functools.partial(_is_whole, stage, spec)
            await until(ready, 120.0, f"{spec.name} is not ready")
        stage.coordinator = specs[0]
        yield [spec.url for spec in specs]
    finally:
        for name in _NAMES:
            await asyncio.to_thread(stage.processes[name].kill)
        del stage.processes[_NAMES[1]]
        stage.coordinator = before
        await stage.start_coordinator()
        for name in stage.workers:
            await stage.until_ready(name)


def _spec(
    base: CoordinatorSpec, name: str, ports: dict[str, int], links: dict[str, str]
) -> CoordinatorSpec:
    config = msgspec.structs.replace(
        base.config, coordinator_id=name, port=ports[name], link=links[name], peer_interval_ms=100
    )
    peers = [
        PeerConfig(coordinator_id=other, url=f"http://127.0.0.1:{port}")
        for other, port in ports.items()
        if other != name
    ]
    return replace(base, config=config, name=name, peers=tuple(peers))


async def _is_whole(stage: Stage, spec: CoordinatorSpec) -> bool:
    """It knows its peer, and every worker is ready and linked to it."""
    health = await asyncio.to_thread(fetch_json, f"{spec.url}/health")
    listing = await asyncio.to_thread(fetch_json, f"{spec.url}/workers")
    if not health or not listing or health["degraded"]:
        return False
    rows = {row["worker_id"]: row for row in listing["workers"]}
    names = stage.workers or stage.http
    return all(
        name in rows
        and rows[name]["state"] == "ready"
        and (rows[name]["linked"] or not stage.workers)
        for name in names
    )
