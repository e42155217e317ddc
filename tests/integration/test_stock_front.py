"""A coordinator in front of SGLang whose plugin it does not hear: `hexgen_lite`, KV events.

The coordinator runs in the test's event loop; the servers are the session's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from hexgen_sglang.coordinator.config import CoordinatorFile, convert
from hexgen_sglang.coordinator.server import HttpServer
from hexgen_sglang.coordinator.service import Coordinator


class Front:
    """A serving coordinator."""

    def __init__(self, coordinator: Coordinator, url: str, session: aiohttp.ClientSession) -> None:
        self.coordinator = coordinator
        self.url = url
        self._session = session

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer, which must be good."""
        async with self._session.request(method, self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def stream(self, path: str, body: dict[str, Any]) -> list[str]:
        """The data of each event."""
        async with self._session.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            raw = (await response.read()).decode()
        return [event.removeprefix("data: ") for event in raw.split("\n\n") if event]


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (the conditions are about other processes)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def front_of(rows: list[dict[str, Any]], **settings: Any) -> AsyncIterator[Front]:
    """A coordinator in front of these workers, all of them ready."""
    plain = {"coordinator": {"port": 0, **settings}, "workers": rows}
    coordinator = Coordinator(convert(plain, CoordinatorFile, "test"))
    async with coordinator.running(), aiohttp.ClientSession() as session:
        server = HttpServer(coordinator, ())
        serving = asyncio.create_task(server.serve())
        try:
            await until(lambda: server.started)
            await until(lambda: len(coordinator.parts.directory.ready()) == len(rows))
            yield Front(coordinator, f"http://127.0.0.1:{server.port}", session)
        finally:
            server.should_exit = True
            await serving


def tag(workflow_id: str, stage: str, **fields: Any) -> dict[str, Any]:
    return {"workflow_id": workflow_id, "workflow_type": "sql", "stage": stage, **fields}


async def test_lite_serves_a_workflow_on_stock_servers_and_goes_back_to_the_prefix(
    stock_worker: Any, hexgen_worker: Any
) -> None:
    rows = [
        {"url": stock_worker.url, "worker_id": "stock"},
        {"url": hexgen_worker.url, "worker_id": "other"},
    ]
    settings = {"dispatch": "hexgen_lite", "binding": "early", "ordering": "fcfs"}
    sampling = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    schema = "CREATE TABLE artists (name TEXT, born INTEGER, country TEXT); " * 12
    async with front_of(rows, **settings) as front:
        first = {"text": schema, "sampling_params": sampling}
        body = {**first, "hexgen": tag("wf", "link", budget_ms=60_000)}
        assert (await front.stream("/generate", body))[-1] == "[DONE]"
        siblings = [
            front.call(
                "POST",
                "/generate",
                {
                    **{**first, "text": f"{schema} question {number}"},
                    "hexgen": tag("wf", "draft", siblings=6, sibling_index=number),
                },
            )
            for number in range(6)
        ]
        answers = await asyncio.gather(*siblings)
        assert all(answer["meta_info"]["completion_tokens"] == 6 for answer in answers)
        chat = {
            "model": "default",
            "messages": [{"role": "user", "content": schema}],
            "max_tokens": 4,
            "hexgen": tag("wf", "vote", final=True),
        }
        usage = (await front.call("POST", "/v1/chat/completions", chat))["usage"]
        assert usage["completion_tokens"] >= 1
        story = await front.call("GET", "/workflows/wf/explain")
        workers = front.coordinator.parts.directory.workers
        assert not any(worker.linked for worker in workers.values())
        # What it learned, it learned from HTTP.
        rates = front.coordinator.parts.estimates.rates
        assert rates.of(story["decisions"][0]["picked"]).decode_tokens_per_s is not None
    decisions = story["decisions"]
    assert len(decisions) == 8
    assert all(row["picked"] == row["winner"]["worker_id"] for row in decisions)
    assert all(row["runner_up"] is not None for row in decisions)
    home = decisions[0]["picked"]
    drafts = [row for row in decisions if row["stage"] == "draft"]
    known = {
        price["worker_id"]: price["cached_tokens"]
        for price in (drafts[0]["winner"], drafts[0]["runner_up"])
    }
    assert known[home] > 0
    assert home in {row["picked"] for row in drafts}
    # And the engine had that prefix indeed.
    told = [answer["meta_info"]["cached_tokens"] for answer in answers]
    assert max(told) >= known[home] // 2


async def test_kv_events_say_what_is_cached_and_what_was_evicted(
    hexgen_worker: Any, kv_endpoints: dict[str, str]
) -> None:
    row = {
        "url": hexgen_worker.url,
        "worker_id": "w",
        "kv_events": kv_endpoints["endpoint"],
        "kv_replay": kv_endpoints["replay_endpoint"],
    }
    ids = [10 + number % 90 for number in range(300)]
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 2, "temperature": 0, "ignore_eos": True},
    }
    async with front_of([row]) as front:
        worker = front.coordinator.parts.directory.get("w")
        await until(lambda: worker.kv_index is not None and worker.kv_index.is_whole)
        index = worker.kv_index
        first = await front.call("POST", "/generate", {**body, "hexgen": tag("one", "draft")})
        await until(lambda: len(index) >= 4)
        second = await front.call("POST", "/generate", {**body, "hexgen": tag("two", "draft")})
        story = await front.call("GET", "/workflows/two/explain")
        believed = story["decisions"][0]["winner"]["cached_tokens"]
        assert believed == 256  # four blocks of 64
        assert believed <= second["meta_info"]["cached_tokens"] <= 300
        assert first["meta_info"]["prompt_tokens"] == 300
        # The record of what was sent would still believe in it after a flush; the events do not.
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{hexgen_worker.url}/flush_cache") as response,
        ):
            assert response.status == 200
        await until(lambda: len(index) == 0)
        third = await front.call("POST", "/generate", {**body, "hexgen": tag("three", "draft")})
        story = await front.call("GET", "/workflows/three/explain")
        assert story["decisions"][0]["winner"]["cached_tokens"] == 0
        assert third["meta_info"]["cached_tokens"] < 64
        text = front.coordinator.exposition().decode()
        assert 'hexgen_kv_index_whole{worker_id="w"} 1.0' in text
        assert json.dumps("rebuilt") not in text
