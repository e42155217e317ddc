"""Real workers killed and a real coordinator restarted, with requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from hexgen_sglang.cluster.running import Cluster

DECODE = {"max_new_tokens": 120, "ignore_eos": True}


async def listing(session: aiohttp.ClientSession, cluster: Cluster) -> dict[str, dict[str, Any]]:
    async with session.get(cluster.url + "/workers") as response:
        rows = (await response.json())["workers"]
    return {row["worker_id"]: row for row in rows}


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 120.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.05)


@pytest.mark.timeout(600)
async def test_a_worker_killed_with_twenty_requests_in_flight_loses_none(
    fresh_cluster: Callable[..., Cluster],
) -> None:
    cluster = fresh_cluster(2, {"dispatch": "least_requests", "health_interval_s": 1.0})
    async with aiohttp.ClientSession() as session:

        async def ask(number: int) -> tuple[int, bytes, str]:
            body = {
                "text": f"select {number} from t",
                "sampling_params": DECODE,
                "hexgen": {"workflow_id": f"kill-{number}", "budget_ms": 600_000, "final": True},
            }
            async with session.post(cluster.url + "/generate", json=body) as response:
                worker_id = response.headers.get("x-hexgen-worker-id", "")
                return response.status, await response.read(), worker_id

        async def both_busy() -> bool:
            rows = await listing(session, cluster)
            return all(row["num_in_flight"] >= 5 for row in rows.values())

        calls = [asyncio.create_task(ask(number)) for number in range(20)]
        await until(both_busy)
        assert not any(call.done() for call in calls)
        cluster.processes["worker-0"].kill()
        answers = await asyncio.gather(*calls)
        assert [status for status, _, _ in answers] == [200] * 20
        rows = await listing(session, cluster)
        assert rows["worker-0"]["state"] == "unreachable"

        num_retried = 0
        for number in range(20):
            url = f"{cluster.url}/workflows/kill-{number}"
            async with session.get(url) as response:
                told = await response.json()
            [row] = told["requests"]
            assert (row["outcome"], row["output_tokens"]) == ("completed", 120)
            assert told["ended"] is True
            assert told["budget_s"] == pytest.approx(600.0, abs=0.01)
            num_retried += row["retries"] > 0
        assert num_retried >= 5

        # It comes back under its own name, with a new incarnation, and serves.
        await asyncio.to_thread(cluster.start_workers, ["worker-0"])
        statuses = [(await ask(number))[0] for number in (20, 21, 22, 23)]
        assert statuses == [200] * 4


@pytest.mark.timeout(600)
async def test_workers_find_a_restarted_coordinator_again(
    fresh_cluster: Callable[..., Cluster],
) -> None:
    cluster = fresh_cluster(1)
    async with aiohttp.ClientSession() as session:
        before = (await listing(session, cluster))["worker-0"]
        cluster.processes["coordinator"].kill()
        await asyncio.to_thread(cluster.start_coordinator)

        async def is_back() -> bool:
            row = (await listing(session, cluster)).get("worker-0")
            return row is not None and row["state"] == "ready" and row["linked"]

        await until(is_back)
        after = (await listing(session, cluster))["worker-0"]
        for name in ("url", "sglang_version", "kv_capacity_tokens", "max_running_requests"):
            assert after[name] == before[name]
        assert after["origin"] == "link"
        body = {"text": "select", "sampling_params": {"max_new_tokens": 4}}
        async with session.post(cluster.url + "/generate", json=body) as response:
            assert response.status == 200

        async def reports_load() -> bool:
            load = (await listing(session, cluster))["worker-0"]["load"]
            return load is not None and load["age_s"] < 5.0

        await until(reports_load)
