"""The coordinator before two real SGLang servers: every route, clients, cancelling, prefixes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from hexgen_sglang.cluster.running import Cluster

CHAT = {"messages": [{"role": "user", "content": "How many tracks are there?"}]}
LONG = {"max_new_tokens": 1_500, "ignore_eos": True, "temperature": 0.0}
SCHEMA = " ".join(f"create table t{n} (id integer, name text);" for n in range(40))


@pytest.fixture
def name() -> str:
    """A workflow id that no other test uses."""
    return f"wf-{uuid.uuid4().hex[:12]}"


async def call(cluster: Cluster, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, cluster.url + path, json=body) as response,
    ):
        return response.status, await response.json()


async def report(cluster: Cluster, workflow_id: str) -> dict[str, Any]:
    status, body = await call(cluster, "GET", f"/workflows/{workflow_id}")
    assert status == 200, body
    return dict(body)


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait until an awaited condition is true; returns its value."""
    async with asyncio.timeout(timeout_s):
        while not (value := await condition()):  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.1)
        return value


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 6}),
        ("/v1/completions", {"prompt": "select", "max_tokens": 6}),
        ("/generate", {"text": "select", "sampling_params": {"max_new_tokens": 6}}),
        ("/generate", {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 6}}),
    ],
)
async def test_every_route_streamed_and_not(
    route: str, body: dict[str, Any], name: str, cluster: Cluster
) -> None:
    tag = {"hexgen": {"workflow_id": name, "workflow_type": "route-test", "budget_ms": 60_000}}
    status, whole = await call(cluster, "POST", route, {**body, **tag})
    assert status == 200, whole
    async with (
        aiohttp.ClientSession() as session,
        session.post(cluster.url + route, json={**body, **tag, "stream": True}) as response,
    ):
        assert response.status == 200
        raw = await response.read()
    events = [e.removeprefix(b"data: ") for e in raw.split(b"\n\n") if e]
    assert events[-1] == b"[DONE]"
    decoded = [msgspec.json.decode(event) for event in events[:-1]]
    assert not any(event.get("usage") for event in decoded)  # nobody asked for it
    rows = (await report(cluster, name))["requests"]
    assert [row["outcome"] for row in rows] == ["completed", "completed"]
    assert all(row["prompt_tokens"] > 0 and row["output_tokens"] > 0 for row in rows)
    assert all(row["worker_id"] in ("worker-0", "worker-1") for row in rows)


async def test_the_openai_client_works_with_a_tag_in_its_extra_body(
    name: str, cluster: Cluster
) -> None:
    client = openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
    async with client:
        [model] = [card.id async for card in client.models.list()]
        tag = {"hexgen": {"workflow_id": name, "stage": "draft", "budget_ms": 60_000}}
        answer = await client.chat.completions.create(
            model=model,
            messages=CHAT["messages"],
            max_tokens=5,
            extra_body=tag,  # type: ignore[arg-type]
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 5
        assert answer.id == (await report(cluster, name))["requests"][0]["request_id"]
        stream = await client.completions.create(
            model=model,
            prompt="select",
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-hexgen-workflow-id": name, "x-hexgen-stage": "check"},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        with pytest.raises(openai.BadRequestError, match="budget_ms"):
            await client.chat.completions.create(
                model=model,
                messages=CHAT["messages"],  # type: ignore[arg-type]
                extra_body={"hexgen": {"workflow_id": name, "budget_ms": -1}},
            )
        with pytest.raises(openai.NotFoundError, match="not served here; models: "):
            await client.completions.create(model="gpt-9", prompt="x")
    stages = [row["stage"] for row in (await report(cluster, name))["stages"]]
    assert stages == ["draft", "check"]


async def test_a_prefix_is_reused_by_the_next_stage(name: str, cluster: Cluster) -> None:
    # A first line of its own, so that no other test has filled the cache.
    context = f"-- {name}\n{SCHEMA}\n"
    for stage in ("link", "draft", "check"):
        body = {
            "text": context + f"-- stage {stage}\n",
            "sampling_params": {"max_new_tokens": 4},
            "hexgen": {"workflow_id": name, "workflow_type": "prefix-test", "stage": stage},
        }
        status, answer = await call(cluster, "POST", "/generate", body)
        assert status == 200, answer
    rows = (await report(cluster, name))["requests"]
    assert len({row["worker_id"] for row in rows}) == 1
    first, *later = rows
    for row in later:
        assert row["cached_tokens"] > 0.8 * first["prompt_tokens"]


async def test_cached_tokens_of_openai_answers_are_known_too(name: str, cluster: Cluster) -> None:
    messages = [{"role": "system", "content": f"{name} {SCHEMA}"}, *CHAT["messages"]]
    for stage in ("one", "two"):
        tag = {"hexgen": {"workflow_id": name, "stage": stage}}
        body = {"messages": messages, "max_tokens": 3, **tag}
        assert (await call(cluster, "POST", "/v1/chat/completions", body))[0] == 200

    async def second() -> Any:
        return (await report(cluster, name))["requests"][1]["cached_tokens"]

    assert await until(second) > 100


async def test_a_client_that_leaves_frees_the_engine(name: str, cluster: Cluster) -> None:
    tag = {"hexgen": {"workflow_id": name}}
    async with aiohttp.ClientSession() as session:
        body = {"text": "select", "sampling_params": LONG, "stream": True, **tag}
        async with session.post(cluster.url + "/generate", json=body) as response:
            await response.content.readuntil(b"\n\n")
    row = (await report(cluster, name))["requests"][0]

    async def is_idle() -> bool:
        _, listing = await call(cluster, "GET", "/workers")
        [worker] = [w for w in listing["workers"] if w["worker_id"] == row["worker_id"]]
        load = worker["load"]
        return worker["num_in_flight"] == 0 and load is not None and load["num_running"] == 0

    await until(is_idle)
    row = (await report(cluster, name))["requests"][0]
    assert row["outcome"] == "disconnected"


async def test_a_cancelled_workflow_leaves_the_engines(name: str, cluster: Cluster) -> None:
    tag = {"hexgen": {"workflow_id": name, "budget_ms": 60_000}}
    body = {"text": "select", "sampling_params": LONG, **tag}
    calls = [asyncio.create_task(call(cluster, "POST", "/generate", body)) for _ in range(3)]

    async def all_run() -> bool:
        status, known = await call(cluster, "GET", f"/workflows/{name}")
        rows = known["requests"] if status == 200 else []
        return [row["outcome"] for row in rows] == ["running"] * 3

    await until(all_run)
    status, answer = await call(cluster, "DELETE", f"/workflows/{name}")
    assert (status, answer["num_cancelled"]) == (200, 3)
    assert [status for status, _ in await asyncio.gather(*calls)] == [499] * 3

    async def is_idle() -> bool:
        _, listing = await call(cluster, "GET", "/workers")
        return all(w["load"] and w["load"]["num_running"] == 0 for w in listing["workers"])

    await until(is_idle)
    assert (await report(cluster, name))["cancelled"] is True


async def test_workers_tell_load_limits_and_rates(cluster: Cluster) -> None:
    body = {"text": SCHEMA, "sampling_params": {"max_new_tokens": 16, "ignore_eos": True}}
    assert (await call(cluster, "POST", "/generate", body))[0] == 200

    async def measured() -> Any:
        _, listing = await call(cluster, "GET", "/workers")
        return [w for w in listing["workers"] if w["decode_tokens_per_s"]] and listing["workers"]

    for worker in await until(measured):
        assert worker["state"] == "ready"
        assert worker["linked"] is True
        assert worker["sglang_version"]
        assert worker["kv_capacity_tokens"] > 1_000
        assert worker["max_running_requests"] > 0
        assert worker["load"]["age_s"] < 5.0


async def test_a_workflow_is_told_with_its_times(name: str, cluster: Cluster) -> None:
    started_s = time.monotonic()
    for stage, final in (("draft", False), ("check", True)):
        body = {
            "text": "select",
            "sampling_params": {"max_new_tokens": 4},
            "hexgen": {
                "workflow_id": name,
                "workflow_type": "told",
                "stage": stage,
                "budget_ms": 60_000,
                "final": final,
                "tenant": "team",
            },
        }
        assert (await call(cluster, "POST", "/generate", body))[0] == 200
    elapsed_s = time.monotonic() - started_s
    told = await report(cluster, name)
    assert (told["ended"], told["met_deadline"], told["tenant"]) == (True, True, "team")
    assert told["budget_s"] == pytest.approx(60.0, abs=0.1)
    assert 0 < told["e2e_s"] <= elapsed_s
    for row in told["requests"]:
        assert row["accepted_s"] <= row["dispatched_s"] <= row["finished_s"] <= told["e2e_s"]
