"""The page in a real browser, by keyboard: Chromium before a real coordinator and agent.

Needs Debian's package chromium and the Python package playwright, whose own browser is not used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.ask_page.routes import ask_page
from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.text2sql.sample import make_sample_database

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
Browse = Callable[..., AbstractAsyncContextManager[Any]]
HOSTILE = "<img src=x onerror=document.title=1>"
SQL = f" SELECT name AS \"{HOSTILE}\", '\u202e<b>' || docks AS docks FROM station ORDER BY 1"


@pytest.fixture(scope="module")
def bikes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "bikes.sqlite"
    make_sample_database(path)
    return path


def stage_of(body: dict[str, Any]) -> str:
    return str(body["custom_params"]["hexgen"]["stage"])


def answer(body: dict[str, Any]) -> str:
    return SQL if stage_of(body) == "generate_candidate" else " station"


async def focused(page: Any) -> str:
    return str(await page.evaluate("document.activeElement.id || document.activeElement.tagName"))


async def test_a_question_is_asked_and_read_by_keyboard(
    make_worker: MakeWorker, make_front: MakeFront, browse: Browse, bikes: Path, tmp_path: Path
) -> None:
    worker = await make_worker(says=answer)
    front = await make_front(
        worker, extension=ask_page, ask={"databases": {"bikes": {"db": str(bikes)}}}
    )
    async with browse(f"{front.url}/ask") as page:
        await page.wait_for_selector("#question:focus")
        assert await page.locator("#database option").all_inner_texts() == ["bikes (SQLite)"]
        await page.keyboard.type("Which stations are there?")
        await page.keyboard.press("Control+Enter")
        await page.wait_for_selector("#rows td")
        picture = tmp_path / "page.png"
        await page.screenshot(path=picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000

        assert await page.locator("#rows tbody tr").count() == 22
        assert "22 rows after" in await page.locator("#status").inner_text()
        assert await page.locator("#rows th").first.inner_text() == HOSTILE
        second = page.locator("#rows td").nth(1)
        assert (await second.inner_text()).startswith("\u27e8U+202E\u27e9<b>")
        assert await page.locator("#rows img, #rows b, #sql img, script:not([src])").count() == 0
        assert await page.title() == "Ask a database - hexgen-sglang"
        assert await page.locator("#sql .sql-keyword").first.inner_text() == "SELECT"
        stages = await page.locator("#stage-rows th").all_inner_texts()
        assert {"link_schema", "generate_candidate"} <= set(stages)
        assert "w0" in await page.locator("#stage-rows").inner_text()

        await page.keyboard.press("Tab")
        assert await focused(page) == "ask"
        for _ in range(10):
            await page.keyboard.press("Tab")
            if await focused(page) == "TD":
                break
        assert await focused(page) == "TD"
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowRight")
        place = "[document.activeElement.parentElement.rowIndex, document.activeElement.cellIndex]"
        assert await page.evaluate(place) == [2, 1]
        await page.keyboard.press("Control+End")
        assert await page.evaluate(place) == [22, 1]

        await page.keyboard.press("Escape")
        assert await focused(page) == "question"
        await page.keyboard.press("Control+a")
        await page.keyboard.type("Half a quest")
        await page.keyboard.press("ArrowUp")
        assert await page.input_value("#question") == "Which stations are there?"
        await page.keyboard.press("ArrowDown")
        assert await page.input_value("#question") == "Half a quest"


async def test_keys_stopping_deadlines_and_errors(
    make_worker: MakeWorker,
    make_front: MakeFront,
    browse: Browse,
    wait_until: WaitUntil,
    bikes: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.toml"
    key, row = make_key("acme", (Role.CLIENT,))
    append_key(file, row)
    worker = await make_worker(says=answer)
    worker.gate.clear()
    table = {"databases": {"bikes": {"db": str(bikes)}}}
    front = await make_front(worker, extension=ask_page, ask=table, api_keys=str(file))
    async with browse(f"{front.url}/ask") as page:
        await page.wait_for_selector("#key:focus")
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#error:not([hidden])")
        assert "not known here" in await page.locator("#error").inner_text()
        await page.fill("#key", key)
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#question:focus")

        await page.keyboard.type("Stop this")
        await page.keyboard.press("Control+Enter")
        await wait_until(lambda: len(worker.seen) >= 1)
        await page.keyboard.press("Escape")
        await page.locator("#status", has_text="Stopped.").wait_for()
        await wait_until(lambda: not front.coordinator.exchanges.live)

        await page.fill("#deadline", "1")
        await page.keyboard.press("Control+Enter")
        await wait_until(lambda: any(stage_of(one) == "generate_candidate" for one in worker.seen))
        worker.gate.set()
        await page.wait_for_selector("#rows td")
        dropped = await page.locator("#dropped li").all_inner_texts()
        assert dropped == ["candidates 3 -> 1: the deadline had passed"]
        assert "after the deadline" in await page.locator("#status").inner_text()

        worker.failing = [400] * 50
        await page.fill("#deadline", "60")
        await page.keyboard.press("Control+Enter")
        await page.locator("#error", has_text="told 400").wait_for()
        assert "model_failed" in await page.locator("#error").inner_text()
        assert await page.locator("#rows-section").is_hidden()
