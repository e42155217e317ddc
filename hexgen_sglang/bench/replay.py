"""The open-loop driver: sends a workload's requests when they are due, whatever comes back.

Runs on one event loop of the bench's process. A workflow arrives at its scheduled instant; a
stage is due when the stages it waits for have ended and its tool time has passed. Latency
counts from the scheduled arrival, so a late driver makes a run look worse, never better, and
how late it was is recorded with every request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from hexgen_sglang.bench.exchange import Answer, Call, exchange
from hexgen_sglang.bench.targets import Destination, Target
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.tag import EngineTag
from hexgen_sglang.results.records import COMPLETED, RequestRecord, RunRecord, WorkflowRecord
from hexgen_sglang.workload.plan import PlannedWorkflow, Workload
from hexgen_sglang.workload.prefixes import TokenSource
from hexgen_sglang.workload.trace import TraceRequest

_LEAD_S = 0.2
_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How to replay.

    Attributes:
        time_scale: emulated seconds in a real one; arrivals, tool times and deadlines are
            divided by it. Greater than 0, at most 1,000.
        max_connections: connections open at once, at least 1; a run that needs more is void.
        timeout_s: real seconds for one request, greater than 0.
        send_priority: give each request its workflow's deadline as SGLang's priority, in
            emulated seconds after the start of the run, the smaller the more urgent.
    """

    time_scale: float = 1.0
    max_connections: int = 4_096
    timeout_s: float = 3_600.0
    send_priority: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_scale) and 0 < self.time_scale <= 1_000):
            raise ConfigError(
                f"time_scale={self.time_scale}: must be greater than 0, at most 1,000"
            )
        if self.max_connections < 1:
            raise ConfigError(f"max_connections={self.max_connections}: must be at least 1")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"timeout_s={self.timeout_s}: must be finite and greater than 0")


class Replay:
    """One replay; `run` may be called once.

    Args:
        system: name for the record.
        workload: what to send.
        target: where to.
        tokens: makes the prompts' token ids; the same for every system of a comparison.
        settings: how.
        on_workflow_end: told after each workflow, e.g. for progress.
    """

    def __init__(
        self,
        system: str,
        workload: Workload,
        target: Target,
        tokens: TokenSource,
        settings: ReplaySettings | None = None,
        on_workflow_end: Callable[[], None] | None = None,
    ) -> None:
        self._system = system
        self._workload = workload
        self._target = target
        self._tokens = tokens
        self._settings = settings or ReplaySettings()
        self._on_workflow_end = on_workflow_end
        self._requests: list[RequestRecord] = []
        self._in_flight = 0
        self._max_in_flight = 0
        self._connection_waits = 0
        self._start_s = 0.0

    async def run(self) -> RunRecord:
        """Send everything, wait for every end, and return what happened.

        Failed requests are in the record; the stages behind one are not sent.
        """
        settings = self._settings
        connector = aiohttp.TCPConnector(limit=settings.max_connections, force_close=True)
        timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=_LINE_BYTES
        ) as session:
            self._start_s = asyncio.get_running_loop().time() + _LEAD_S
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._workflow(session, planned))
                    for planned in self._workload.workflows
                ]
        return RunRecord(
            system=self._system,
            seed=self._workload.settings.seed,
            rate_per_s=self._workload.settings.rate_per_s,
            time_scale=settings.time_scale,
            workflows=tuple(task.result() for task in tasks),
            requests=tuple(self._requests),
            max_in_flight=self._max_in_flight,
            connection_waits=self._connection_waits,
        )

    def _now_s(self) -> float:
        """Emulated seconds since the start of the run."""
        elapsed_s = asyncio.get_running_loop().time() - self._start_s
        return elapsed_s * self._settings.time_scale

    async def _sleep_until(self, instant_s: float) -> None:
        """Return at an emulated instant, at once when it has passed."""
        left_s = (instant_s - self._now_s()) / self._settings.time_scale
        if left_s > 0:
            await asyncio.sleep(left_s)

    async def _workflow(
        self, session: aiohttp.ClientSession, planned: PlannedWorkflow
    ) -> WorkflowRecord:
        """Replay one workflow: each stage when those it waits for have ended."""
        stages = planned.workflow.stages
        ends: list[asyncio.Future[float | None]] = [
            asyncio.get_running_loop().create_future() for _ in stages
        ]
        await self._sleep_until(planned.arrival_s)
        async with asyncio.TaskGroup() as group:
            for index in range(len(stages)):
                group.create_task(self._stage(session, planned, index, ends))
        results = [end.result() for end in ends]
        last_s = [result for result in results if result is not None]
        if self._on_workflow_end is not None:
            self._on_workflow_end()
        return WorkflowRecord(
            index=planned.index,
            workflow_id=planned.workflow_id,
            arrival_s=planned.arrival_s,
            unloaded_s=planned.unloaded_s,
            budget_s=planned.budget_s,
            warmup=planned.warmup,
            end_s=max(last_s, default=self._now_s()),
            completed=len(last_s) == len(results),
        )

    async def _stage(
        self,
        session: aiohttp.ClientSession,
        planned: PlannedWorkflow,
        index: int,
        ends: list[asyncio.Future[float | None]],
    ) -> None:
        """Send a stage's siblings together; its end is that of the last, None if one failed."""
        stage = planned.workflow.stages[index]
        before = [await ends[number] for number in stage.after]
        reached = [end_s for end_s in before if end_s is not None]
        if len(reached) < len(before):
            ends[index].set_result(None)
            return
        due_s = max(reached, default=planned.arrival_s) + stage.tool_s
        await self._sleep_until(due_s)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._request(session, planned, index, sibling, due_s))
                for sibling in range(len(stage.requests))
            ]
        records = [task.result() for task in tasks]
        completed = all(record.outcome == COMPLETED for record in records)
        ends[index].set_result(max(record.end_s for record in records) if completed else None)

    async def _request(
        self,
        session: aiohttp.ClientSession,
        planned: PlannedWorkflow,
        stage: int,
        sibling: int,
        due_s: float,
    ) -> RequestRecord:
        """Send one request and record what came of it."""
        asked = planned.workflow.stages[stage].requests[sibling]
        destination = self._target.next()
        call = self._call(planned, stage, sibling, destination)
        body = call.body()
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        if self._in_flight > self._settings.max_connections:
            self._connection_waits += 1
        sent_s, sent_unix_s = self._now_s(), time.time()
        answer = await exchange(session, call, body, self._now_s)
        self._in_flight -= 1
        to_engine_s, back_s = self._host_s(answer, sent_s, sent_unix_s)
        record = RequestRecord(
            request_id=call.request_id,
            workflow=planned.index,
            stage=stage,
            stage_name=planned.workflow.stages[stage].name,
            sibling=sibling,
            due_s=due_s,
            sent_s=sent_s,
            end_s=answer.end_s,
            first_byte_s=answer.first_byte_s,
            worker=destination.worker
            or answer.worker
            or str(answer.meta.get("weight_version", "")),
            input_tokens=int(answer.meta.get("prompt_tokens", 0)),
            cached_tokens=int(answer.meta.get("cached_tokens", 0)),
            output_tokens=int(answer.meta.get("completion_tokens", 0)),
            queue_s=self._queue_s(answer),
            retractions=int(answer.meta.get("num_retractions", 0)),
            to_engine_s=to_engine_s,
            back_s=back_s,
            outcome=answer.error or _objection(asked, answer) or COMPLETED,
        )
        self._requests.append(record)
        return record

    def _queue_s(self, answer: Answer) -> float | None:
        """Waiting in the engine in emulated seconds, where the engine tells it."""
        queue_s = answer.meta.get("queue_time")
        return None if queue_s is None else float(queue_s) * self._settings.time_scale

    def _host_s(
        self, answer: Answer, sent_s: float, sent_unix_s: float
    ) -> tuple[float | None, float | None]:
        """Emulated seconds on the way to the scheduler, and back with the first token.

        SGLang tells wall-clock instants; those of another machine would need equal clocks.
        """
        scale = self._settings.time_scale
        handed_s = answer.meta.get("api_server_dispatch_finish_ts")
        made_s = answer.meta.get("prefill_finished_time")
        to_engine_s = back_s = None
        if handed_s is not None:
            to_engine_s = max(0.0, float(handed_s) - sent_unix_s) * scale
        if made_s is not None and answer.first_byte_s is not None:
            passed_s = answer.first_byte_s - sent_s
            back_s = max(0.0, passed_s - (float(made_s) - sent_unix_s) * scale)
        return to_engine_s, back_s

    def _call(
        self, planned: PlannedWorkflow, stage: int, sibling: int, destination: Destination
    ) -> Call:
        """The request as it goes out now."""
        workflow = planned.workflow
        node = workflow.stages[stage]
        last = workflow.last_stages()
        tag = EngineTag(
            workflow_id=planned.workflow_id,
            workflow_type=workflow.workflow_type,
            stage=node.name,
            budget_ms=self._budget_ms(planned),
            siblings=len(node.requests),
            sibling_index=sibling,
            tenant=planned.tenant or None,
            final=len(last) == 1 and stage in last,
        )
        return Call(
            url=destination.url,
            request_id=f"{planned.workflow_id}-{stage}-{sibling}",
            input_ids=self._tokens.input_ids(planned.prompts[stage][sibling]),
            output_tokens=node.requests[sibling].num_output_tokens,
            tag=tag,
            priority=self._priority(planned),
        )

    def _budget_ms(self, planned: PlannedWorkflow) -> int | None:
        """What is left until the deadline in real milliseconds, at least 1; None without one."""
        if planned.budget_s is None:
            return None
        left_s = planned.arrival_s + planned.budget_s - self._now_s()
        return max(1, round(left_s / self._settings.time_scale * 1000))

    def _priority(self, planned: PlannedWorkflow) -> int | None:
        if not self._settings.send_priority or planned.budget_s is None:
            return None
        return round(planned.arrival_s + planned.budget_s)


def _objection(asked: TraceRequest, answer: Answer) -> str:
    """What is wrong with the token counts of a whole answer; "" when nothing is."""
    for field, wanted in (
        ("prompt_tokens", asked.num_input_tokens),
        ("completion_tokens", asked.num_output_tokens),
    ):
        if answer.meta.get(field) != wanted:
            return f"{field}={answer.meta.get(field)}: must be {wanted}"
    return ""
