"""The dashboard's routes: who is told what, that it is bounded, and what it remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.dashboard_page.routes import dashboard_page
from hexgen_sglang.pages.serving import CONTENT_SECURITY_POLICY

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]


async def keyed(
    front_of: Callable[[str], Awaitable[Any]], path: Path
) -> tuple[Any, dict[str, Any]]:
    """A coordinator with keys, and headers by tenant."""
    headers = {}
    for tenant, role in (("acme", Role.CLIENT), ("rival", Role.CLIENT), ("ops", Role.OPERATOR)):
        key, row = make_key(tenant, (role,))
        append_key(path, row)
        headers[tenant] = {"authorization": f"Bearer {key}"}
    return await front_of(str(path)), headers


def ended(state: dict[str, Any]) -> list[int]:
    """How many workflows met their deadline, missed it, had none, were cancelled."""
    return [sum(column) for column in zip(*state["attainment"]["counts"], strict=True)]


async def test_tenants_see_their_own_workflows_and_no_workers(
    make_worker: MakeWorker, make_front: MakeFront, tmp_path: Path
) -> None:
    worker = await make_worker()
    front, headers = await keyed(
        lambda path: make_front(worker, extension=dashboard_page, api_keys=path),
        tmp_path / "keys.toml",
    )
    for tenant in ("acme", "rival"):
        for number, budget_ms in enumerate((60_000, 1)):
            for is_final in (False, True):  # two answers take more than a millisecond
                tag = {"workflow_id": f"wf-{number}", "budget_ms": budget_ms, "final": is_final}
                body = {"text": "x", "hexgen": tag}
                assert (await front.call("POST", "/generate", body, headers[tenant]))[0] == 200
    for path in ("/dashboard", "/dashboard/workflows/a/b", "/dashboard/assets/text.js"):
        async with front.session.get(front.url + path) as response:
            assert response.status == 200
            assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert (await front.call("GET", "/dashboard/state"))[0] == 401
    assert (await front.call("GET", "/dashboard/assets/..%2Froutes.py"))[0] == 404

    status, acme = await front.call("GET", "/dashboard/state", None, headers["acme"])
    assert (status, acme["tenant"]) == (200, "acme")
    assert (acme["workers"], acme["totals"], acme["estimates"]) == (None, None, None)
    assert [row["workflow_id"] for row in acme["workflows"]] == ["wf-1", "wf-0"]
    assert ended(acme) == [1, 1, 0, 0]
    _, ops = await front.call("GET", "/dashboard/state", None, headers["ops"])
    assert {row["tenant"] for row in ops["workflows"]} == {"acme", "rival"}
    assert ended(ops) == [2, 2, 0, 0]
    async with asyncio.timeout(20):
        while ops["workers"][0]["prefix_hit_frac"] is None:  # workers are looked at every second
            _, ops = await front.call("GET", "/dashboard/state", None, headers["ops"])
    assert ops["workers"][0]["prefix_hit_frac"] == 4 / 12
    assert ops["totals"]["status"] == "ok"


async def test_many_viewers_are_told_the_same_bytes_for_a_second(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), extension=dashboard_page)
    first = (await front.call("GET", "/dashboard/state"))[1]
    await front.generate(hexgen={"workflow_id": "new", "final": True})
    assert (await front.call("GET", "/dashboard/state"))[1] == first
    assert first["workflows"] == []


async def test_another_sites_name_is_refused_and_the_page_can_be_left_out(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), extension=dashboard_page)
    foreign = {"host": "evil.example"}
    status, answer = await front.call("GET", "/dashboard/state", None, foreign)
    assert (status, answer["error"]["code"]) == (403, "foreign_host")
    without = await make_front(extension=dashboard_page, dashboard=False)
    assert (await without.call("GET", "/dashboard"))[0] == 404
    assert without.coordinator.listeners == []
