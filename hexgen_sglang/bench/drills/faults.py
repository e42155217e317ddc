"""The drills: each breaks one thing under load, mends it, and says what its callers saw.

Run them in the order of `DRILLS`: a worker that one kills, the next starts again under load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from hexgen_sglang.bench.drills.drill import Drill, DrillReport, under_load
from hexgen_sglang.bench.drills.forwarder import LinkState
from hexgen_sglang.bench.drills.lossy import lossy_network
from hexgen_sglang.bench.drills.stage import WORKERS, Stage, until
from hexgen_sglang.bench.drills.two_coordinators import kill_one_of_two

FaultDrill = Callable[[Stage], Awaitable[DrillReport]]

# Longer than the probes need to call a worker hung: two of 4 s, and what is between them.
_HANG_S = 14.0
_AN_HOUR_S = 3_600.0
_MANY_TOKENS = 1_000_000


async def kill_worker(stage: Stage) -> DrillReport:
    """`kill -9` of a worker with requests queued, prefilling, decoding and streaming."""
    async with under_load(
        stage, "worker killed", partial(Drill.burst, number=24), waiting=4
    ) as drill:
        await asyncio.to_thread(stage.processes["worker-0"].kill)
    rows = await stage.rows()
    drill.expect(rows["worker-0"]["state"] == "unreachable", "the dead worker counts as alive")
    return drill.report


async def add_worker(stage: Stage) -> DrillReport:
    """A worker started under load; recovery: from its registration to its first request."""
    async with under_load(
        stage, "worker added under load", partial(Drill.feed, every_s=0.5)
    ) as drill:
        await stage.start_worker("worker-0")
        ready_s = time.monotonic()
        drill.report.facts["start_s"] = round(drill.since_fault_s, 1)
        drill.burst(12)

        async def is_used() -> bool:
            row = (await stage.rows())["worker-0"]
            return bool(row["num_in_flight"] > 0)

        await until(is_used, 30.0, "the new worker gets nothing")
        drill.report.recovery_s = round(time.monotonic() - ready_s, 3)
    return drill.report


async def hang_worker(stage: Stage) -> DrillReport:
    """SIGSTOP of a worker until its requests were taken back, then SIGCONT."""
    async with under_load(stage, "worker hung, and back", partial(Drill.burst, number=16)) as drill:
        stage.pause("worker-1")
        await _until_state(stage, "worker-1", "unreachable")
        drill.report.facts["noticed_s"] = round(drill.since_fault_s, 1)
        await asyncio.sleep(max(0.0, _HANG_S - drill.since_fault_s))
        stage.resume("worker-1")
        resumed_s = time.monotonic()
        await _until_state(stage, "worker-1", "ready")
        drill.report.facts["back_s"] = round(time.monotonic() - resumed_s, 1)
        drill.burst(8, count=20)
    return drill.report


async def flapping_worker(stage: Stage) -> DrillReport:
    """The connections to a worker break six times in ten seconds; it lives all the time."""
    async with under_load(
        stage, "worker flapping", partial(Drill.feed, every_s=0.4), may_fail=True
    ) as drill:
        for _ in range(6):
            stage.http["worker-0"].set(LinkState.CUT)
            await asyncio.sleep(0.8)
            stage.http["worker-0"].set(LinkState.OPEN)
            await asyncio.sleep(0.8)
        drill.stop_feeding()
        await _until_state(stage, "worker-0", "ready")
    return drill.report


async def restart_coordinator(stage: Stage) -> DrillReport:
    """`kill -9` of the coordinator and a new one; recovery: from the fault to the first answer.

    Callers see their connection break, and send the request again.
    """
    name, load = "coordinator killed and restarted", partial(Drill.burst, number=16, again_s=60.0)
    async with under_load(stage, name, load, forgets=True) as drill:
        fault_s = time.monotonic()
        await asyncio.to_thread(stage.processes["coordinator"].kill)
        await stage.start_coordinator()
        for worker in WORKERS:
            await stage.until_ready(worker)
        drill.report.facts["workers_back_s"] = round(drill.since_fault_s, 2)
        await drill.callers.finish(120.0)
        after = [call for call in drill.callers.calls if (call.ended_s or 0) > fault_s]
        firsts = [
            min(t for t in (*call.event_s, call.ended_s or 0) if t > fault_s) for call in after
        ]
        drill.report.recovery_s = round(min(firsts) - fault_s, 3) if firsts else None
        drill.report.facts["sent_again"] = sum(call.retries > 0 for call in after)
    return drill.report


async def cut_link(stage: Stage) -> DrillReport:
    """The ZMQ link of a worker falls silent while HTTP lives; recovery: until linked again."""
    async with under_load(
        stage, "ZMQ link cut, HTTP lives", partial(Drill.feed, every_s=0.5)
    ) as drill:
        stage.link["worker-0"].set(LinkState.SILENT)

        async def is_unlinked() -> bool:
            return not (await stage.rows())["worker-0"]["linked"]

        await until(is_unlinked, 60.0, "the lost link counts as alive")
        drill.report.facts["noticed_s"] = round(drill.since_fault_s, 1)
        drill.burst(8, count=20)
        rows = await stage.rows()
        drill.expect(rows["worker-0"]["state"] == "ready", "a worker without link gets nothing")
        opened_s = time.monotonic()
        stage.link["worker-0"].set(LinkState.OPEN)
        await stage.until_ready("worker-0")
        drill.report.recovery_s = round(time.monotonic() - opened_s, 3)
    return drill.report


async def cut_http(stage: Stage) -> DrillReport:
    """HTTP towards a worker falls silent while its ZMQ link lives."""
    async with under_load(
        stage, "HTTP cut, ZMQ link lives", partial(Drill.burst, number=16)
    ) as drill:
        stage.http["worker-1"].set(LinkState.SILENT)
        await _until_state(stage, "worker-1", "unreachable")
        drill.report.facts["noticed_s"] = round(drill.since_fault_s, 1)
        rows = await stage.rows()
        drill.expect(rows["worker-1"]["linked"], "the link went with HTTP")
        drill.burst(6, count=20)
        await drill.callers.finish(120.0)
        stage.http["worker-1"].set(LinkState.OPEN)
        await _until_state(stage, "worker-1", "ready")
    return drill.report


async def lying_worker(stage: Stage) -> DrillReport:
    """A worker reports first no load at all, then far more than it can have."""
    async with under_load(
        stage, "worker reports wrong load", partial(Drill.burst, number=12)
    ) as drill:
        for told in (0, _MANY_TOKENS):
            (stage.lies / "load").write_text(str(told))

            async def is_believed(told: int = told) -> bool:
                load = (await stage.rows())["worker-0"]["load"]
                return load is not None and load["num_running"] == told

            await until(is_believed, 30.0, f"no report of {told}")
            drill.burst(10, count=20)
            await drill.callers.finish(120.0)
        (stage.lies / "load").unlink()
    return drill.report


async def clock_jumps(stage: Stage) -> DrillReport:
    """Wall clocks of all processes jump by an hour, both ways, and the coordinator stands still.

    Standing still, as a suspended machine does, is a jump of its monotonic clock.
    """
    async with under_load(stage, "clocks jump", partial(Drill.feed, every_s=0.5)) as drill:
        for shift_s in (_AN_HOUR_S, -_AN_HOUR_S, 0.0):
            (stage.lies / "clock_shift_s").write_text(str(shift_s))
            await asyncio.sleep(2.0)
        stage.pause("coordinator")
        await asyncio.sleep(5.0)
        stage.resume("coordinator")
        drill.report.facts["coordinator_stood_still_s"] = 5.0
    for name in WORKERS:
        await _until_state(stage, name, "ready")
    return drill.report


async def _until_state(stage: Stage, name: str, state: str) -> None:
    async def is_so() -> bool:
        row = (await stage.rows()).get(name)
        return row is not None and row["state"] == state

    await until(is_so, 90.0, f"{name} is not {state}")


DRILLS: dict[str, FaultDrill] = {
    "hang": hang_worker,
    "flap": flapping_worker,
    "link": cut_link,
    "http": cut_http,
    "load": lying_worker,
    "clock": clock_jumps,
    "coordinator": restart_coordinator,
    "takeover": kill_one_of_two,
    "lossy": lossy_network,
    "kill": kill_worker,
    "add": add_worker,
}
