"""The coordinator's end of its tuner: starts it, tells it of ended workflows, uses its finds.

Runs on the coordinator's event loop. The search is in a process of its own, which this starts
by module name and never imports; when that process dies, dispatch goes on with the settings in
force, `/health` says "tuner_down", and it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.engine_ordering import EngineOrdering
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.tuned_settings import TunedSettings
from hexgen_sglang.coordinator.tuning_messages import (
    Crew,
    CrewMember,
    Said,
    Start,
    ToTuner,
    from_tuner,
    line,
)
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Outcome, RequestRecord, Workflow
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.observed import (
    MAX_REQUESTS,
    MAX_TOKENS,
    ObservedRequest,
    ObservedWorkflow,
)

log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-P", "-m", "hexgen_sglang.tuner.shadow")
_RESTART_S = 30.0
_LEAVE_S = 5.0
_MAX_SAID = 100
_MAX_LINE_BYTES = 65_536
# Beyond this the tuner does not keep up: news are dropped, and counted.
_MAX_UNREAD_BYTES = 4_194_304


class Tuning:
    """One tuner process at a time, and what it said.

    Args:
        config: the coordinator's; `config.tuning` says how to tune.
        tuned: what is changed.
        engines: what the engines were told of it; None where they are left alone.
        crew: the workers that take requests now.
        metrics: told of every message.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        tuned: TunedSettings,
        engines: EngineOrdering | None,
        crew: Callable[[], tuple[CrewMember, ...]],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._tuned = tuned
        self._engines = engines
        self._find_crew = crew
        self._metrics = metrics
        self._clock = clock
        self._recent: deque[ObservedWorkflow] = deque(maxlen=config.tuning.window_workflows)
        self._said: deque[tuple[float, Said]] = deque(maxlen=_MAX_SAID)
        self._counts: dict[str, int] = {}
        self._crew: tuple[CrewMember, ...] = ()
        self._process: asyncio.subprocess.Process | None = None
        self.num_dropped = 0

    @property
    def is_on(self) -> bool:
        """Whether there is anything to run."""
        return self._config.tuning.mode != "off"

    @property
    def is_down(self) -> bool:
        """Whether the process should run and does not."""
        return self.is_on and self._process is None

    @property
    def pid(self) -> int | None:
        """Process id of the running tuner; None without one."""
        return None if self._process is None else self._process.pid

    def ended(self, workflow: Workflow) -> None:
        """Tell of a workflow that ended, when all of it completed and was counted."""
        if not self.is_on:
            return
        observed = observed_workflow(workflow)
        if observed is None:
            return
        self._recent.append(observed)
        self._tell_crew()
        self._tell(observed)

    async def run(self) -> None:
        """Keep a process running until cancelled."""
        try:
            while True:
                await self._follow_one()
                await asyncio.sleep(_RESTART_S)
        finally:
            await self._stop()

    def show(self) -> None:
        """Bring the metrics of what is in force up to date."""
        if self.is_on:
            standings = {} if self._engines is None else self._engines.counts()
            self._metrics.set_tuning(self._tuned.in_force(), standings)

    def report(self) -> dict[str, Any]:
        """Body of `GET /tuning`."""
        now_s = self._clock()
        return {
            "mode": self._config.tuning.mode,
            "objective": self._config.tuning.objective,
            "is_down": self.is_down,
            "dispatch": self._config.dispatch,
            "settings": self._tuned.in_force(),
            "engines": None if self._engines is None else self._engines.report(),
            "num_workflows": len(self._recent),
            "num_dropped": self.num_dropped,
            "counts": self._counts,
            "said": [
                {"age_s": now_s - at_s, **msgspec.to_builtins(said)} for at_s, said in self._said
            ],
        }

    async def _follow_one(self) -> None:
        """Start a process, bring it up to date, hear it until it ends."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
        )
        self._process = process
        config = self._config
        self._crew = ()
        self._tell(
            Start(
                config.tuning,
                config.dispatch,
                config.binding,
                self._tuned.in_force(),
                self._tuned.ordering,
                engines_told=self._engines is not None and self._engines.wanted is not None,
            )
        )
        self._tell_crew()
        for observed in self._recent:
            self._tell(observed)
        assert process.stdout is not None
        try:
            async for raw in process.stdout:
                self.hear(from_tuner(raw))
            status = await process.wait()
            log.error("tuner ended with status %d; dispatch goes on as it is", status)
        except (msgspec.DecodeError, ValueError) as error:
            log.error("tuner sent what cannot be read, it is stopped: %s", error)
        finally:
            await self._stop()

    def hear(self, said: Said) -> None:
        """Log, count and keep a message; use the settings that it says to use."""
        self._said.append((self._clock(), said))
        self._counts[said.kind] = self._counts.get(said.kind, 0) + 1
        self._metrics.tuning.labels(said.kind).inc()
        told = " ".join(f"{name}={value:g}" for name, value in sorted(said.settings.items()))
        level = logging.INFO if said.kind in ("keep", "advice") else logging.WARNING
        log.log(level, "tuner: %s %s: %s", said.kind, told, said.reason)
        if said.kind not in ("apply", "return"):
            return
        try:
            self._tuned.change(said.settings)
        except ConfigError:
            log.exception("tuner wants settings that are refused; they are not used")

    def _tell_crew(self) -> None:
        crew = self._find_crew()
        if crew != self._crew:
            self._crew = crew
            self._tell(Crew(crew))

    def _tell(self, message: ToTuner) -> None:
        """Send unless the tuner has stopped reading; never waits."""
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return
        transport = process.stdin.transport
        if transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self.num_dropped += 1
            return
        process.stdin.write(line(message))

    async def _stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _LEAVE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def crew_of(workers: Iterable[Worker]) -> tuple[CrewMember, ...]:
    """The workers as the tuner sees them, in an order that does not depend on theirs."""
    members = [CrewMember(worker.hardware, worker.time_scale) for worker in workers]
    return tuple(sorted(members, key=lambda one: (one.hardware, one.time_scale or 0.0)))


def observed_workflow(workflow: Workflow) -> ObservedWorkflow | None:
    """What the tuner may know of an ended workflow; None when a part of it is missing."""
    records = list(workflow.records.values())
    if workflow.is_cancelled or workflow.ended_s is None or not 1 <= len(records) <= MAX_REQUESTS:
        return None
    requests = [_observed_request(record, workflow.started_s) for record in records]
    if any(request is None for request in requests):
        return None
    deadline_s = workflow.deadline_s
    budget_s = None if deadline_s is None else deadline_s - workflow.started_s
    known = tuple(request for request in requests if request is not None)
    # Without idle time behind its last request: the tracker may have waited for more.
    met = None if budget_s is None else max(one.end_s for one in known) <= budget_s
    return ObservedWorkflow(
        workflow.workflow_type or None,
        workflow.started_s,
        known,
        budget_s if budget_s is None or budget_s > 0 else None,
        met,
    )


def _observed_request(record: RequestRecord, started_s: float) -> ObservedRequest | None:
    if record.outcome is not Outcome.COMPLETED or record.finished_s is None:
        return None
    counts = (record.prompt_tokens or 0, record.output_tokens or 0)
    if not all(1 <= count <= MAX_TOKENS for count in counts):
        return None
    return ObservedRequest(
        stage=record.stage or None,
        start_s=max(0.0, record.accepted_s - started_s),
        end_s=max(0.0, record.finished_s - started_s),
        input_tokens=counts[0],
        output_tokens=counts[1],
        cached_tokens=record.cached_tokens,
        siblings=record.siblings,
        sibling_index=record.sibling_index,
    )
