"""What the comparison relies on in the real sglang-router, in front of two small HTTP workers.

The router must pass token ids, exact lengths, priorities and streams on, and its cache_aware
policy must tell prompts apart that are given as token ids.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from hexgen_sglang.bench.dispatchers import dispatching
from hexgen_sglang.bench.engines import Engines
from hexgen_sglang.bench.exchange import Answer, Call, exchange
from hexgen_sglang.bench.systems import Engine, parse_system
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.protocol.tag import EngineTag

pytest.importorskip("sglang_router", reason="sglang-router is not installed")

PROFILE = Path(__file__).resolve().parents[2] / "launch/configs/accelerators/a100.toml"
FAMILY = np.random.default_rng(0).integers(300, 1_600, size=(4, 2_000)).astype(np.int32)


class Worker:
    """Answers what the router asks of a worker, and /generate as SGLang streams it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bodies: list[dict[str, Any]] = []

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(0.2)
        meta = {
            "finish_reason": {"type": "length"},
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": body["sampling_params"]["max_new_tokens"],
            "cached_tokens": 0,
            "weight_version": self.name,
        }
        await response.write(f"data: {json.dumps({'text': '', 'meta_info': meta})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def other(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "model_path": "m", "model_id": "m"})


@asynccontextmanager
async def routed(policy: str, folder: Path) -> AsyncIterator[tuple[str, list[Worker]]]:
    """The router's address, in front of two workers that serve on this event loop."""
    workers = [Worker("a"), Worker("b")]
    config = ClusterConfig(workers=(WorkerRow(name="w", count=2, profile=str(PROFILE)),))
    engines = Engines(config, Engine("lpm"), 1.0, linked=False, folder=folder)
    servers = []
    for worker in workers:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", worker.generate)
        app.router.add_route("*", "/{path:.*}", worker.other)
        servers.append(TestServer(app))
        await servers[-1].start_server()
    engines.specs = {
        worker.name: WorkerSpec(name=worker.name, model_path="m", port=server.port or 0)
        for worker, server in zip(workers, servers, strict=True)
    }
    system = parse_system(f"sglang-router:{policy}+lpm")
    front = dispatching(system, engines, CoordinatorConfig(), 1.0, folder)
    try:
        target, _ = await asyncio.to_thread(front.__enter__)
        try:
            yield target.next().url, workers
        finally:
            await asyncio.to_thread(front.__exit__, None, None, None)
    finally:
        for server in servers:
            await server.close()


async def ask(url: str, family: int, number: int, priority: int | None = None) -> Answer:
    """One request: the family's 2,000 tokens and 200 of its own."""
    own = np.random.default_rng(100 + number).integers(300, 1_600, size=200).astype(np.int32)
    call = Call(
        url=url,
        request_id=f"r{number}",
        input_ids=np.concatenate([FAMILY[family], own]),
        output_tokens=5 + number,
        tag=EngineTag(workflow_id=f"w{family}", stage="s"),
        priority=priority,
    )
    clock = asyncio.get_running_loop().time
    async with aiohttp.ClientSession() as session:
        return await exchange(session, call, call.body(), clock)


async def test_ids_lengths_and_priority_arrive_and_the_answer_comes_back(tmp_path: Path) -> None:
    async with routed("round_robin", tmp_path) as (url, workers):
        answers = [await ask(url, 0, number, priority=7) for number in range(4)]
    assert [answer.error for answer in answers] == [""] * 4
    assert sorted(len(worker.bodies) for worker in workers) == [2, 2]
    for body in (body for worker in workers for body in worker.bodies):
        assert body["input_ids"][:2_000] == FAMILY[0].tolist()
        assert len(body["input_ids"]) == 2_200
        assert body["sampling_params"]["ignore_eos"] is True
        assert body["priority"] == 7
        assert body["stream"] is True
    assert [answer.meta["completion_tokens"] for answer in answers] == [5, 6, 7, 8]
    assert {answer.meta["weight_version"] for answer in answers} == {"a", "b"}


async def test_cache_aware_routes_by_the_common_prefix_of_token_ids(tmp_path: Path) -> None:
    """Four families come at once and spread by load; then each stays where it was first."""
    async with routed("cache_aware", tmp_path) as (url, _):
        first = await asyncio.gather(*(ask(url, family, family) for family in range(4)))
        homes = [answer.meta["weight_version"] for answer in first]
        assert set(homes) == {"a", "b"}
        for round_number in range(3):
            for family in (0, 1, 2, 3, 3, 2, 1, 0):
                again = await ask(url, family, 10 + 10 * round_number + family)
                assert again.meta["weight_version"] == homes[family]
