"""Fault drills on a real emulated worker and a real coordinator; all of them are run by
`launch/bench/drills.py`, here those for which one server is enough.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.bench.drills.callers import Call, Callers, KnownAnswers
from hexgen_sglang.bench.drills.drill import DrillReport
from hexgen_sglang.bench.drills.faults import DRILLS
from hexgen_sglang.bench.drills.forwarder import Forwarder, LinkState
from hexgen_sglang.bench.drills.stage import PROFILE, Stage
from hexgen_sglang.cluster.ports import free_port


@pytest.mark.timeout(240)
async def test_drills_lose_nothing_and_repeat_nothing(shared_worker: Any, tmp_path: Path) -> None:
    server = await asyncio.to_thread(shared_worker, name="drilled", emulate=PROFILE)
    async with Stage(tmp_path / "stage", server.url) as stage:
        for name in ("flap", "takeover", "coordinator"):
            report = await DRILLS[name](stage)
            assert report.is_good, report.row()
            assert report.lost == report.duplicated_tokens == report.missing_tokens == 0
            assert report.in_flight > 0
            assert report.requests >= report.in_flight
            assert report.recovery_s is not None
        retries = report.facts["sent_again"]
        assert retries > 0  # callers saw the coordinator die, and that is all they saw


async def test_a_link_passes_cuts_and_holds_back() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    port = free_port()
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    link = Forwarder(("127.0.0.1", free_port()), ("127.0.0.1", port))
    await link.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    link.set(LinkState.SILENT)
    writer.write(b"two")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.readexactly(3)
    link.set(LinkState.OPEN)
    assert await reader.readexactly(3) == b"two"
    link.set(LinkState.CUT)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    await link.stop()
    server.close()


@pytest.mark.parametrize(
    ("events", "counted"),
    [
        ([[1, 2], [1, 2, 3]], (0, 0, True)),
        ([[1, 2], [1, 2, 2, 3]], (1, 0, False)),  # one came twice
        ([[1, 2], [1, 2]], (0, 1, False)),  # one never came
        ([[1, 2], [1]], (1, 2, False)),  # a step back
        ([[1, 3]], (1, 1, False)),  # one was left out
    ],
)
def test_judges_of_streams_see_what_is_wrong(
    events: list[list[int]], counted: tuple[int, int, bool]
) -> None:
    callers = Callers([""], KnownAnswers(0, tuple(range(1, 252))), {})
    call = Call("c", "stream", [], 3, 1_000, answers=1)
    before: list[int] = []
    for now in events:
        callers._compare(call, before, now)
        before = now
    assert (call.repeated, call.missing, call.has_ended_well) == counted


def test_a_report_is_good_only_without_losses() -> None:
    assert DrillReport("x", in_flight=3, errors=1).is_good
    for wrong in ("lost", "duplicated_tokens", "missing_tokens", "moved_deadlines"):
        report = DrillReport("x")
        setattr(report, wrong, 1)
        assert not report.is_good
    assert not DrillReport("x", broken=["y"]).is_good
