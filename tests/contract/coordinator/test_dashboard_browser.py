"""The dashboard in a real browser, by keyboard, before a real coordinator and 64 workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.dashboard_page.routes import dashboard_page
from hexgen_sglang.protocol.messages import Load

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
Browse = Callable[..., AbstractAsyncContextManager[Any]]
HOSTILE = "<img src=x onerror=document.title=1>"
STAGES = ("link_schema", "generate_candidate", "revise", "unit_test", "vote")
HARDWARE = ("h100", "a100", "l40s", "a40")


async def run_workflow(front: Any, name: str, budget_ms: int, kind: str = "text2sql") -> None:
    """All stages of one workflow, the second with two siblings."""
    for stage in STAGES:
        tag = {
            "workflow_id": name,
            "workflow_type": kind,
            "stage": stage,
            "budget_ms": budget_ms,
            "final": stage == STAGES[-1],
        }
        tags = [tag]
        if stage == STAGES[1]:
            tags = [{**tag, "siblings": 2, "sibling_index": number} for number in range(2)]
        calls = (front.generate(hexgen=one, sampling_params={"max_new_tokens": 8}) for one in tags)
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}


async def shoot(page: Any, tmp_path: Path, name: str) -> None:
    """A picture of the whole page; kept in HEXGEN_SCREENSHOTS, if that names a folder."""
    path = Path(os.environ.get("HEXGEN_SCREENSHOTS", tmp_path)) / f"{name}.png"
    await page.screenshot(path=path, full_page=True)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


async def test_64_workers_and_their_workflows_are_shown_and_explained(
    make_worker: MakeWorker, make_front: MakeFront, browse: Browse, tmp_path: Path
) -> None:
    workers = [await make_worker() for _ in range(64)]
    rows = [
        {"worker_id": f"{HARDWARE[n % 4]}-{n:02}", "hardware": HARDWARE[n % 4]} for n in range(64)
    ]
    rows[0]["hardware"] = HOSTILE
    front = await make_front(*workers, rows=rows, extension=dashboard_page)
    directory = front.coordinator.parts.directory
    for number, worker in enumerate(directory.workers.values()):
        waiting, used = number % 5, number * 1_500
        worker.take_load(Load(4, waiting, waiting * 300, used), front.coordinator.parts.clock())
    for start in range(0, 48, 8):
        names = range(start, start + 8)
        budgets = [1 if number % 6 == 5 else 20_000 for number in names]
        calls = zip(names, budgets, strict=True)
        await asyncio.gather(*(run_workflow(front, f"wf-{n:03}", ms) for n, ms in calls))
    open_tag = {"workflow_id": "wf-open", "stage": "draft", "budget_ms": 30_000}
    assert (await front.generate(hexgen=open_tag))[0] == 200
    await workers[-1].stop()
    lost = rows[-1]["worker_id"]

    async with browse(f"{front.url}/dashboard", viewport={"width": 1500, "height": 1000}) as page:
        await page.locator(".state.unreachable").wait_for()
        assert await page.locator("#worker-rows tr").count() == 64
        assert "64 workers: 63 ready, 1 unreachable" in await page.inner_text("#workers-note")
        assert await page.locator("#workflow-rows tr").count() == 40
        assert await page.locator("#predictions circle").count() > 20
        assert "missed (8)" in await page.inner_text("#attainment-legend")
        assert "met (40)" in await page.inner_text("#attainment-legend")
        assert "vote" in await page.inner_text("#stages")
        assert HOSTILE in await page.inner_text("#worker-rows")
        assert await page.locator("main img, script:not([src])").count() == 0
        assert await page.title() == "Dashboard - hexgen-sglang"
        await shoot(page, tmp_path, "dashboard-64")
        height = await page.evaluate("document.documentElement.scrollHeight")
        assert height < 2_200

        await page.get_by_role("button", name="KV use").press("Enter")
        assert await page.locator("#worker-rows th").first.inner_text() == lost
        assert (
            await page.get_attribute("#worker-heads th:nth-child(6)", "aria-sort") == "descending"
        )
        await page.fill("#filter", "unreach")
        shown = page.locator("#worker-rows tr:not([hidden]) th")
        assert await shown.all_inner_texts() == [lost]
        await page.fill("#filter", "")

        await page.locator("#home").focus()
        await page.keyboard.press("/")
        await page.keyboard.type("wf-047")
        await page.keyboard.press("Enter")
        await page.locator("#story-title:focus").wait_for()
        assert page.url == f"{front.url}/dashboard/workflows/wf-047"
        assert "late by" in await page.inner_text("#verdict")
        assert await page.locator("#causes li").count() == len(STAGES)
        assert await page.locator("#pass-rows tr").count() == len(STAGES)
        assert await page.locator("#decision-rows tr").count() == 6
        decision = await page.locator("#decision-rows tr").first.inner_text()
        assert "to " in decision
        assert "in flight" in decision
        await shoot(page, tmp_path, "explain")
        await page.keyboard.press("Escape")
        await page.locator("#worker-rows tr").first.wait_for()
        assert page.url == f"{front.url}/dashboard"
        await page.go_back()
        await page.locator("#story:not([hidden])").wait_for()

    dark = {"viewport": {"width": 1500, "height": 1000}, "color_scheme": "dark"}
    async with browse(f"{front.url}/dashboard", **dark) as page:
        await page.locator("#worker-rows tr").first.wait_for()
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(13, 17, 23)"
        await shoot(page, tmp_path, "dashboard-64-dark")


async def test_it_is_live_pauses_wants_a_key_and_says_what_is_wrong(
    make_worker: MakeWorker,
    make_front: MakeFront,
    browse: Browse,
    wait_until: WaitUntil,
    tmp_path: Path,
) -> None:
    file, keys = tmp_path / "keys.toml", {}
    for tenant, role in (("acme", Role.CLIENT), ("ops", Role.OPERATOR)):
        keys[tenant], row = make_key(tenant, (role,))
        append_key(file, row)
    worker = await make_worker()
    front = await make_front(worker, extension=dashboard_page, api_keys=str(file))
    acme = {"authorization": f"Bearer {keys['acme']}"}
    body = {"text": "x", "hexgen": {"workflow_id": "first", "budget_ms": 60_000}}
    assert (await front.call("POST", "/generate", body, acme))[0] == 200

    async with browse(f"{front.url}/dashboard") as page:
        await page.wait_for_selector("#key:focus")
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await page.locator("#error", has_text="not known here").wait_for()
        await page.fill("#key", keys["ops"])
        await page.keyboard.press("Enter")
        await page.locator("#worker-rows th", has_text="w0").wait_for()
        names = page.locator("#workflow-rows a")
        assert await names.all_inner_texts() == ["acme/first"]

        worker.gate.clear()
        waiting = asyncio.create_task(front.call("POST", "/generate", {"text": "x"}, acme))
        running = page.locator("#worker-rows td", has_text="1 / 16")
        await running.wait_for()
        worker.gate.set()
        await waiting
        await page.locator("#worker-rows td", has_text="0 / 16").wait_for()

        await names.first.focus()
        await page.keyboard.press("Enter")
        await page.locator("#verdict", has_text="not late so far").wait_for()
        await page.keyboard.press("Escape")
        await page.locator("#worker-rows tr").first.wait_for()
        await page.fill("#workflow", "nobody")
        await page.keyboard.press("Enter")
        await page.locator("#error", has_text="not known, or forgotten").wait_for()
        await page.keyboard.press("Escape")
        await page.locator("#worker-rows tr").first.wait_for()

        await page.locator("#home").focus()
        await page.keyboard.press("p")
        assert await page.get_attribute("#pause", "aria-pressed") == "true"
        await page.keyboard.press("p")
        front.server.should_exit = True
        await page.locator("#error", has_text="does not answer").wait_for()
