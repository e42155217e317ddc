"""The replay against a small real HTTP worker: what it sends, when, and what it records."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from hexgen_sglang.bench.replay import Replay, ReplaySettings
from hexgen_sglang.bench.targets import OneUrl, WorkersInTurn
from hexgen_sglang.protocol.tag import tag_from_body
from hexgen_sglang.results.laws import broken_laws
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.workload.plan import PlannedWorkflow, Workload, WorkloadSettings
from hexgen_sglang.workload.prefixes import TokenSource, prompts_of
from hexgen_sglang.workload.trace import (
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

SYSTEM = PrefixPart(PrefixScope.TEMPLATE, "system", 40)
TALK = PrefixPart(PrefixScope.WORKFLOW, "talk", 20)
FORK = TraceWorkflow(
    "fork",
    "agent",
    (
        TraceStage("plan", (TraceRequest(100, 5, (SYSTEM, TALK)),)),
        TraceStage("left", (TraceRequest(80, 3, (SYSTEM, TALK)),) * 2, after=(0,), tool_s=1.0),
        TraceStage("right", (TraceRequest(30, 2, ()),), after=(0,)),
        TraceStage("join", (TraceRequest(60, 4, (SYSTEM,)),), after=(1, 2)),
    ),
)
TOKENS = TokenSource(seed=0, num_ids=10_000, first_id=5)


class Worker:
    """Answers /generate as SGLang does, after `seconds`; remembers every body and when it came."""

    def __init__(self, name: str, seconds: float = 0.05) -> None:
        self.name = name
        self.seconds = seconds
        self.bodies: list[tuple[float, dict[str, Any]]] = []
        self.fail: dict[str, int] = {}
        self.came_unix_s: dict[str, float] = {}
        self.short: set[str] = set()
        self.busy = 0
        self.most_busy = 0

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert "rid" not in body  # a coordinator names requests itself
        body["rid"] = request.headers["x-request-id"]
        self.bodies.append((asyncio.get_running_loop().time(), body))
        self.came_unix_s[body["rid"]] = time.time()
        if body["rid"] in self.fail:
            return web.json_response({"error": "no"}, status=self.fail[body["rid"]])
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        wanted = body["sampling_params"]["max_new_tokens"]
        made = wanted - 1 if body["rid"] in self.short else wanted
        await self._event(response, body, 1, None)
        await asyncio.sleep(self.seconds)
        await self._event(response, body, made, {"type": "length"})
        await response.write(b"data: [DONE]\n\n")
        self.busy -= 1
        return response

    async def _event(
        self, response: web.StreamResponse, body: dict[str, Any], made: int, finish: Any
    ) -> None:
        meta = {
            "id": body["rid"],
            "finish_reason": finish,
            "prompt_tokens": len(body["input_ids"]),
            "cached_tokens": 7,
            "completion_tokens": made,
            "weight_version": self.name,
            "queue_time": 0.01,
            # Half a second to the scheduler; its prefill ended a quarter before now.
            "api_server_dispatch_finish_ts": self.came_unix_s[body["rid"]] + 0.5,
            "prefill_finished_time": self.came_unix_s[body["rid"]] - 0.25,
        }
        event = json.dumps({"text": "x" * made, "meta_info": meta})
        await response.write(f"data: {event}\n\n".encode())


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/generate", worker.generate)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def workload(arrivals: list[float], budget: float | None = 30.0) -> Workload:
    """Forks that arrive at given instants."""
    planned = tuple(
        PlannedWorkflow(
            index=index,
            workflow_id=f"w{index}",
            workflow=FORK,
            arrival_s=arrival,
            unloaded_s=2.0,
            budget_s=budget,
            prompts=prompts_of(FORK, f"w{index}", f"w{index}"),
            warmup=False,
        )
        for index, arrival in enumerate(arrivals)
    )
    settings = WorkloadSettings(rate_per_s=1.0, num_workflows=len(arrivals))
    return Workload(Trace("t", "t", "jsonl", (FORK,)), settings, planned)


async def replay(url: str, load: Workload, scale: float = 4.0, **settings: Any) -> RunRecord:
    return await Replay(
        "s", load, OneUrl(url), TOKENS, ReplaySettings(time_scale=scale, **settings)
    ).run()


def sent(worker: Worker) -> dict[str, tuple[float, dict[str, Any]]]:
    return {body["rid"]: (at, body) for at, body in worker.bodies}


async def test_every_request_is_sent_once_with_exact_lengths_and_prefixes() -> None:
    worker = Worker("a100-0")
    async with serving(worker) as url:
        load = workload([0.0, 0.3])
        run = await replay(url, load)
    # How late the driver is depends on what else this machine does, over 0.3 s here.
    broken = [law for law in broken_laws(load, run) if not law.startswith("driver: its lateness")]
    assert broken == []
    bodies = sent(worker)
    assert len(worker.bodies) == len(bodies) == 10
    for planned in load.workflows:
        for stage, sibling, asked in planned.workflow.requests():
            _, body = bodies[f"{planned.workflow_id}-{stage}-{sibling}"]
            assert len(body["input_ids"]) == asked.num_input_tokens
            assert body["sampling_params"]["max_new_tokens"] == asked.num_output_tokens
            assert body["sampling_params"]["ignore_eos"] is True
            assert min(body["input_ids"]) >= 5
    plan, left = bodies["w0-0-0"][1]["input_ids"], bodies["w0-1-0"][1]["input_ids"]
    assert plan[:60] == left[:60]
    assert plan[60:] != left[60:]
    assert bodies["w1-0-0"][1]["input_ids"][:40] == plan[:40]
    assert bodies["w1-0-0"][1]["input_ids"][40:60] != plan[40:60]


async def test_dependencies_tool_time_and_fan_out_are_honoured() -> None:
    """Requests take 0.05 s, which are 0.2 emulated ones at scale 4; tools take 1 (0.25 real)."""
    worker = Worker("w")
    async with serving(worker) as url:
        run = await replay(url, workload([0.5]))
    at = {rid: instant for rid, (instant, _) in sent(worker).items()}
    assert 0.05 <= at["w0-2-0"] - at["w0-0-0"] < 0.20  # right follows plan at once
    assert at["w0-1-0"] - at["w0-0-0"] >= 0.29  # left waits for the tools too
    assert abs(at["w0-1-1"] - at["w0-1-0"]) < 0.05  # siblings go together
    assert at["w0-3-0"] - at["w0-1-0"] >= 0.05  # join waits for the later side
    (record,) = run.workflows
    assert 1.6 <= record.e2e_s < 2.6
    by_id = {request.request_id: request for request in run.requests}
    plan = by_id["w0-0-0"]
    assert plan.worker == "w"
    assert plan.cached_tokens == 7
    assert plan.queue_s is not None
    assert abs(plan.queue_s - 0.04) < 1e-9
    # Half a real second to the scheduler and a quarter back, as the worker says, at scale 4.
    assert plan.ttft_s is not None
    assert plan.ttft_s < plan.end_s - plan.due_s - 0.15
    assert plan.to_engine_s is not None
    assert 2.0 <= plan.to_engine_s < 3.0
    assert plan.back_s is not None
    assert 1.0 <= plan.back_s < 2.0
    assert by_id["w0-3-0"].due_s == max(by_id["w0-1-0"].end_s, by_id["w0-1-1"].end_s)


async def test_arrivals_are_open_loop() -> None:
    """Ten workflows arrive at once although the first has not ended."""
    worker = Worker("w", seconds=0.4)
    async with serving(worker) as url:
        run = await replay(url, workload([0.0] * 10))
    assert worker.most_busy >= 10
    assert run.max_in_flight >= 10
    assert all(workflow.completed for workflow in run.workflows)


async def test_tags_carry_the_workflow_and_what_is_left_of_its_budget() -> None:
    worker = Worker("w")
    async with serving(worker) as url:
        await replay(url, workload([0.0], budget=30.0), scale=4.0)
    bodies = {rid: body for rid, (_, body) in sent(worker).items()}
    plan, left, join = (
        tag_from_body(bodies[rid]["hexgen"]) for rid in ("w0-0-0", "w0-1-1", "w0-3-0")
    )
    assert (plan.workflow_id, plan.workflow_type, plan.stage) == ("w0", "agent", "plan")
    assert (left.siblings, left.sibling_index) == (2, 1)
    assert [tag.final for tag in (plan, left, join)] == [False, False, True]
    budgets = [tag.budget_ms for tag in (plan, left, join)]
    assert all(budget is not None for budget in budgets)
    # 30 emulated seconds are 7.5 real ones; the join starts at least 0.35 s later.
    assert 7_300 < (budgets[0] or 0) <= 7_500
    assert (budgets[0] or 0) - (budgets[2] or 0) >= 350
    assert bodies["w0-0-0"]["sampling_params"]["custom_params"]["hexgen"]["workflow_id"] == "w0"


async def test_without_deadline_no_budget_is_sent() -> None:
    worker = Worker("w")
    async with serving(worker) as url:
        await replay(url, workload([0.0], budget=None))
    assert all("budget_ms" not in body["hexgen"] for _, body in worker.bodies)


async def test_late_workflow_still_sends_a_valid_budget() -> None:
    worker = Worker("w")
    async with serving(worker) as url:
        await replay(url, workload([0.0], budget=0.001))
    assert all(body["hexgen"]["budget_ms"] == 1 for _, body in worker.bodies)


async def test_round_robin_of_the_driver_alternates() -> None:
    first, second = Worker("wrong-name"), Worker("b")
    async with serving(first) as one, serving(second) as two:
        target = WorkersInTurn({"a": one, "b": two})
        run = await Replay("s", workload([0.0, 0.1]), target, TOKENS).run()
    assert len(first.bodies) == len(second.bodies) == 5
    assert {request.worker for request in run.requests} == {"a", "b"}


async def test_priority_is_the_deadline_when_wanted() -> None:
    worker = Worker("w")
    async with serving(worker) as url:
        await replay(url, workload([0.0, 2.0]), send_priority=True)
    bodies = {rid: body for rid, (_, body) in sent(worker).items()}
    assert bodies["w0-0-0"]["priority"] == 30
    assert bodies["w1-3-0"]["priority"] == 32


async def test_failed_request_voids_the_run_and_ends_its_workflow() -> None:
    worker = Worker("w")
    worker.fail["w0-1-0"] = 503
    async with serving(worker) as url:
        load = workload([0.0, 0.0])
        run = await replay(url, load)
    assert "w0-3-0" not in sent(worker)
    assert [workflow.completed for workflow in run.workflows] == [False, True]
    broken = broken_laws(load, run)
    assert any("1 requests never ended: w0-3-0" in sentence for sentence in broken)
    assert any("status 503" in sentence for sentence in broken)


async def test_wrong_output_length_voids_the_run() -> None:
    worker = Worker("w")
    worker.short.add("w0-2-0")
    async with serving(worker) as url:
        load = workload([0.0])
        run = await replay(url, load)
    broken = broken_laws(load, run)
    assert any("completion_tokens=1: must be 2" in sentence for sentence in broken)


async def test_connection_limit_voids_the_run() -> None:
    worker = Worker("w", seconds=0.3)
    async with serving(worker) as url:
        load = workload([0.0] * 4)
        run = await replay(url, load, max_connections=2)
    assert run.connection_waits >= 2
    assert any("waited for a connection" in sentence for sentence in broken_laws(load, run))


async def test_unreachable_worker_is_an_outcome_not_a_crash() -> None:
    load = workload([0.0])
    run = await replay("http://127.0.0.1:9", load)
    (request,) = run.requests
    assert "ClientConnectorError" in request.outcome
    assert not run.workflows[0].completed
