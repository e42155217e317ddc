"""One drill: load, a fault, and the judgement of what its callers saw.

Runs in the drill's event loop. What is broken is the caller's (`faults`) to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hexgen_sglang.bench.drills.callers import Call
from hexgen_sglang.bench.drills.stage import Stage, until
from hexgen_sglang.core.errors import LawViolation

KINDS = ("stream", "text", "stream", "whole")
_LONG_PROMPT = 1_500
_FIRST_CALLS = 12
_SETTLE_S = 60.0
_ROUNDING_S = 0.01


@dataclass
class DrillReport:
    """What a drill found.

    Attributes:
        in_flight: requests accepted and not ended when the fault came.
        lost: requests that did not end in exactly one right answer or clear error.
        duplicated_tokens, missing_tokens: of all streams, beside the known answers.
        recovery_s: the longest pause of a stream that was in progress at the fault, unless the
            drill says otherwise in `facts`; None when skipped.
        errors: requests that ended in a clear error.
        moved_deadlines: workflows whose deadline is not as they stated it.
        broken: what the drill expected beside that, and did not see.
        skipped: why it did not run; "" when it did.
    """

    name: str
    in_flight: int = 0
    lost: int = 0
    duplicated_tokens: int = 0
    missing_tokens: int = 0
    recovery_s: float | None = None
    requests: int = 0
    errors: int = 0
    moved_deadlines: int = 0
    broken: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def is_good(self) -> bool:
        """Nothing lost, nothing twice, deadlines as they were, and nothing broken."""
        return not (
            self.lost
            or self.duplicated_tokens
            or self.missing_tokens
            or self.moved_deadlines
            or self.broken
        )

    def row(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "good": self.is_good}


class Drill:
    """Load on a stage, and a fault in the middle of it.

    Args:
        stage: shared by the drills; each leaves it as it found it.
        name: of the drill.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.report = DrillReport(name)
        self.callers = stage.callers()
        self._fault_s: float | None = None
        self._hit: list[Call] = []
        self._feeding: asyncio.Task[None] | None = None

    def burst(
        self, number: int, *, count: int = 60, kinds: Sequence[str] = KINDS, again_s: float = 0.0
    ) -> None:
        """Send so many calls at once; every fifth has a long prompt, to be hit in prefill."""
        for place, kind in zip(range(number), itertools.cycle(kinds), strict=False):
            length = _LONG_PROMPT if place % 5 == 4 else 100
            call = self.stage.call(kind, num_prompt_tokens=length, count=count)
            self.callers.send(call, again_until_s=again_s)

    def feed(self, every_s: float, *, count: int = 30, again_s: float = 0.0) -> None:
        """Send a call now and then until `finish`, after enough to make the workers busy."""
        self.burst(_FIRST_CALLS, again_s=again_s)

        async def send() -> None:
            for kind in itertools.cycle(KINDS):
                self.burst(1, count=count, kinds=(kind,), again_s=again_s)
                await asyncio.sleep(every_s)

        self._feeding = asyncio.create_task(send())

    async def until_busy(self, *, waiting: int = 0) -> None:
        """Wait until each ready worker holds requests, streams have begun, and some wait here."""

        async def is_busy() -> bool:
            rows = await self.stage.rows()
            health = await self.stage.ask("/health")
            ready = [row for row in rows.values() if row["state"] == "ready"]
            streams = [call for call in self.callers.calls if call.event_s]
            return (
                bool(ready)
                and all(row["num_in_flight"] >= 2 for row in ready)
                and len(streams) >= len(ready)
                and health["num_queued"] >= waiting
            )

        try:
            await until(is_busy, 60.0, "workers are not busy")
        except LawViolation:
            self.stop_feeding()
            raise

    def fault(self) -> None:
        """The fault comes now."""
        self._hit = [call for call in self.callers.calls if call.ended_s is None]
        self.report.in_flight = len(self._hit)
        self._fault_s = time.monotonic()

    @property
    def since_fault_s(self) -> float:
        """Seconds since the fault."""
        return time.monotonic() - (self._fault_s or time.monotonic())

    def after_fault_s(self, instant_s: float) -> float:
        """Seconds from the fault to a monotonic instant."""
        return round(instant_s - (self._fault_s or instant_s), 3)

    def stop_feeding(self) -> None:
        """No new calls from now on."""
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None

    def expect(self, holds: bool, what: str) -> None:
        """Note what the drill expected and did not see."""
        if not holds:
            self.report.broken.append(what)

    async def finish(self, timeout_s: float = 120.0, *, forgets: bool = False) -> DrillReport:
        """Wait for all calls, and judge them.

        `forgets`: the coordinator was started anew, and knows only what came after that.
        """
        self.stop_feeding()
        await self.callers.finish(timeout_s)
        report, calls = self.report, self.callers.calls
        report.requests = len(calls)
        lost = [call for call in calls if not call.has_ended_well]
        report.lost = len(lost)
        report.errors = sum(bool(call.error) for call in calls)
        report.duplicated_tokens = sum(call.repeated for call in calls)
        report.missing_tokens = sum(call.missing for call in calls if not call.error)
        told = sorted({call.error for call in calls if call.error})
        if told or lost:
            report.facts["told"] = told[:5]
            report.facts["lost"] = [f"{call.kind} {call.name}: {call.error}" for call in lost[:5]]
        if report.recovery_s is None:
            report.recovery_s = self._longest_pause_s()
        await self._check_records(forgets)
        await self._settle()
        return report

    def _longest_pause_s(self) -> float | None:
        """Between two events of a stream that was in progress at the fault."""
        if self._fault_s is None:
            return None
        pauses = [
            after - before
            for call in self._hit
            for before, after in itertools.pairwise(call.event_s)
            if after > self._fault_s and call.event_s[0] < self._fault_s
        ]
        return round(max(pauses), 3) if pauses else None

    async def _check_records(self, forgets: bool) -> None:
        """The coordinator's own books: each request once, its deadline as stated."""
        for call in self.callers.calls:
            told = await self.stage.ask(f"/workflows/{call.name}")
            if told is None:
                self.expect(forgets, f"{call.name} is not in the books")
                continue
            budget_s = told["budget_s"] or 0.0
            if all(abs(budget_s - one / 1_000) > _ROUNDING_S for one in call.stated_ms):
                self.report.moved_deadlines += 1
            outcomes = [row["outcome"] for row in told["requests"]]
            wanted = "failed" if call.error else "completed"
            if call.retries:  # what was lost with a coordinator may be in another's books, too
                outcomes = outcomes[-1:]
            self.expect(outcomes == [wanted], f"{call.name} ended {outcomes}, not [{wanted!r}]")
            self.report.facts["retries"] = self.report.facts.get("retries", 0) + sum(
                row["retries"] for row in told["requests"]
            )

    async def _settle(self) -> None:
        """Nothing may be left in the coordinator's counts, and all workers must be back."""

        async def is_quiet() -> bool:
            rows, health = await self.stage.rows(), await self.stage.ask("/health")
            return (
                health is not None
                and health["num_queued"] == 0
                and all(row["num_in_flight"] == 0 for row in rows.values())
            )

        await until(is_quiet, _SETTLE_S, "requests are left in the coordinator's counts")


@contextlib.asynccontextmanager
async def under_load(
    stage: Stage,
    name: str,
    load: Callable[[Drill], None],
    *,
    waiting: int = 0,
    may_fail: bool = False,
    forgets: bool = False,
    timeout_s: float = 120.0,
) -> AsyncIterator[Drill]:
    """The frame of a drill: its block begins with the fault, and behind it all calls are judged.

    Args:
        stage: shared by the drills.
        name: of the drill.
        load: sends what keeps the workers busy.
        waiting: requests that wait in the central queue when the fault comes.
        may_fail: a request may end in a clear error.
        forgets: as of `Drill.finish`.
        timeout_s: for the calls to end, after the block.
    """
    drill = Drill(stage, name)
    load(drill)
    await drill.until_busy(waiting=waiting)
    drill.fault()
    yield drill
    report = await drill.finish(timeout_s, forgets=forgets)
    drill.expect(may_fail or report.errors == 0, "a request ended in an error")
