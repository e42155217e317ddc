"""The page's routes: a real coordinator, agent, database and sandbox before a stand-in worker."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hexgen_sglang.ask_page.routes import ask_page
from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.pages.serving import CONTENT_SECURITY_POLICY
from hexgen_sglang.text2sql.sample import make_sample_database

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
COUNT = " SELECT COUNT(*) AS stations FROM station"


def stage_of(body: dict[str, Any]) -> str:
    return str(body["custom_params"]["hexgen"]["stage"])


def writing(sql: str) -> Callable[[dict[str, Any]], str]:
    """A model that writes this SQL whatever is asked."""
    return lambda body: sql if stage_of(body) in {"generate_candidate", "revise"} else " station"


@pytest.fixture(scope="module")
def bikes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ask") / "bikes.sqlite"
    make_sample_database(path)
    return path


def ask_table(bikes: Path, **fields: Any) -> dict[str, Any]:
    return {"databases": {"bikes": {"db": str(bikes)}}, **fields}


async def ask(front: Any, headers: dict[str, str] | None = None, **fields: Any) -> list[Any]:
    """The events of one question, as (name, data)."""
    body = {"database": "bikes", "question": "How many stations?", **fields}
    url = f"{front.url}/ask/questions"
    async with front.session.post(url, json=body, headers=headers) as response:
        raw = (await response.read()).decode()
        if response.status != 200:
            return [(response.status, json.loads(raw)["error"])]
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    return [parsed(event) for event in raw.split("\n\n") if event]


def parsed(event: str) -> tuple[str, Any]:
    lines = event.split("\n")
    name = lines[0].removeprefix("event: ") if len(lines) > 1 else ""
    return name, json.loads(lines[-1].removeprefix("data: "))


async def test_a_question_is_a_workflow_whose_stages_are_told(
    make_worker: MakeWorker, make_front: MakeFront, bikes: Path
) -> None:
    workers = [await make_worker(says=writing(COUNT)) for _ in range(2)]
    front = await make_front(*workers, extension=ask_page, ask=ask_table(bikes))
    status, state = await front.call("GET", "/ask/databases")
    assert status == 200
    assert state["databases"] == [{"name": "bikes", "dialect": "SQLite"}]
    assert state["models"] == ["stand-in"]

    events = await ask(front, deadline_s=30)
    names = [name for name, _ in events]
    assert names[:2] == ["opening", "started"]
    assert names[-1] == "answer"
    answer = events[-1][1]
    assert (answer["outcome"], answer["columns"]) == ("rows", ["stations"])
    assert answer["rows"] == [[22]]
    assert answer["met_deadline"] is True

    finished = {data["stage"]: data for name, data in events if name == "stage_finished"}
    assert finished["generate_candidate"]["num_requests"] == 3
    assert set(finished["generate_candidate"]["workers"]) <= {"w0", "w1"}
    assert finished["generate_candidate"]["workers"]
    seen = [body for worker in workers for body in worker.seen]
    tags = [body["custom_params"]["hexgen"] for body in seen]
    assert {tag["workflow_id"] for tag in tags} == {answer["workflow_id"]}
    assert {tag["workflow_type"] for tag in tags} == {"text2sql"}
    assert all(0 < tag["budget_ms"] <= 30_000 for tag in tags)
    record = await front.workflow(answer["workflow_id"])
    assert record["ended"] is True
    assert len(record["requests"]) == len(seen)


async def test_a_near_deadline_is_for_the_fallback_model(
    make_worker: MakeWorker, make_front: MakeFront, bikes: Path
) -> None:
    worker = await make_worker(says=writing(COUNT), models=["stand-in", "small"])
    table = ask_table(bikes, fallback_model="small")
    front = await make_front(worker, extension=ask_page, ask=table)

    async def slowly() -> None:
        while True:
            worker.gate.clear()
            await asyncio.sleep(0.4)
            worker.gate.set()
            await asyncio.sleep(0)

    slow = asyncio.create_task(slowly())
    try:
        for deadline_s, model in ((60.0, "stand-in"), (0.3, "small")):
            worker.seen.clear()
            events = await ask(front, deadline_s=deadline_s)
            assert events[-1][1]["outcome"] == "rows"
            assert {body["model"] for body in worker.seen} == {model}
    finally:
        slow.cancel()


async def test_the_page_needs_no_key_and_what_it_shows_does(
    make_worker: MakeWorker, make_front: MakeFront, bikes: Path, tmp_path: Path
) -> None:
    file, headers = tmp_path / "keys.toml", {}
    for tenant, role in (
        ("acme", Role.CLIENT),
        ("rival", Role.CLIENT),
        ("ops", Role.OPERATOR),
    ):
        key, row = make_key(tenant, (role,))
        append_key(file, row)
        headers[tenant] = {"authorization": f"Bearer {key}"}
    worker = await make_worker(says=writing(COUNT))
    table = {"databases": {"bikes": {"db": str(bikes), "tenants": ["acme"]}}}
    front = await make_front(worker, extension=ask_page, ask=table, api_keys=str(file))

    for path in ("/ask", "/ask/assets/page.js", "/ask/assets/page.css"):
        async with front.session.get(front.url + path) as response:
            assert response.status == 200
            assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert (await front.call("GET", "/ask/databases"))[0] == 401
    assert (await ask(front))[0][0] == 401
    assert (await ask(front, headers["ops"]))[0][0] == 403
    _, state = await front.call("GET", "/ask/databases", headers=headers["rival"])
    assert state["databases"] == []
    status, error = (await ask(front, headers["rival"]))[0]
    assert (status, error["code"]) == (404, "no_database")
    assert worker.seen == []

    answer = (await ask(front, headers["acme"]))[-1][1]
    assert answer["rows"] == [[22]]
    tags = [body["custom_params"]["hexgen"] for body in worker.seen]
    assert {tag["workflow_id"] for tag in tags} == {f"acme/{answer['workflow_id']}"}
    assert {tag["tenant"] for tag in tags} == {"acme"}
    assert all("authorization" not in one for one in worker.headers)


async def test_leaving_stops_the_question(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil, bikes: Path
) -> None:
    worker = await make_worker(says=writing(COUNT))
    worker.gate.clear()
    front = await make_front(worker, extension=ask_page, ask=ask_table(bikes))
    call = asyncio.create_task(ask(front))
    await wait_until(lambda: bool(worker.seen))
    call.cancel()
    await asyncio.wait({call})
    exchanges = front.coordinator.exchanges
    await wait_until(lambda: not exchanges.live)
    assert [workflow.is_cancelled for workflow in front.coordinator.parts.tracker.newest(9)]
    num_seen = len(worker.seen)
    worker.gate.set()
    await wait_until(lambda: len(worker.aborted) + len(worker.hung_up) >= num_seen)
    assert len(worker.seen) == num_seen


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        (" WITH gone AS (SELECT 1) DELETE FROM station", "only SELECT"),
        (" SELECT load_extension('x.so')", "load_extension"),
        (" SELECT * FROM nowhere", "no such table: nowhere"),
    ],
)
async def test_hostile_sql_changes_nothing_and_is_answered(
    make_worker: MakeWorker, make_front: MakeFront, bikes: Path, sql: str, words: str
) -> None:
    worker = await make_worker(says=writing(sql))
    front = await make_front(worker, extension=ask_page, ask=ask_table(bikes, max_rounds=0))
    answer = (await ask(front))[-1][1]
    assert answer["outcome"] == "no_valid_sql"
    assert words in answer["message"]
    with closing(sqlite3.connect(bikes)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM station").fetchone() == (22,)


async def test_what_is_wrong_is_refused_in_words(
    make_worker: MakeWorker, make_front: MakeFront, bikes: Path
) -> None:
    front = await make_front(await make_worker(), extension=ask_page, ask=ask_table(bikes))
    for fields, status, words in (
        ({"database": "other"}, 404, "database='other'"),
        ({"question": " "}, 400, "must have text"),
        ({"question": "x" * 501}, 400, "length <= 500"),
        ({"deadline_s": 601}, 400, "at most 600"),
        ({"deadline_s": 0}, 400, "deadline_s"),
        ({"colour": 1}, 400, "unknown field `colour`"),
    ):
        told, error = (await ask(front, **fields))[0]
        assert (told, words in error["message"]) == (status, True), error
    body = b'{"database": "bikes", "question": "How many?"}'
    for headers, status in (
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json", "origin": "http://elsewhere.example"}, 403),
        ({"content-type": "application/json", "host": "elsewhere.example"}, 403),
    ):
        async with front.session.post(
            f"{front.url}/ask/questions", data=body, headers=headers
        ) as response:
            assert response.status == status, await response.text()
    status, _ = await front.call("GET", "/ask/databases", headers={"host": "elsewhere.example"})
    assert status == 403
    for path in ("/ask/assets/none.js", "/ask/assets/..%2Froutes.py"):
        assert (await front.call("GET", path))[0] == 404


async def test_places_are_limited_and_a_stopping_coordinator_says_so(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil, bikes: Path
) -> None:
    worker = await make_worker(says=writing(COUNT))
    worker.gate.clear()
    front = await make_front(worker, extension=ask_page, ask=ask_table(bikes, max_open=1))
    first = asyncio.create_task(ask(front))
    await wait_until(lambda: bool(worker.seen))
    status, error = (await ask(front))[0]
    assert (status, error["message"]) == (429, "1 questions are open: at most 1 may")
    worker.gate.set()
    assert (await first)[-1][1]["rows"] == [[22]]
    front.coordinator.exchanges.is_draining = True
    assert (await ask(front))[0][0] == 503


async def test_a_worker_that_fails_is_told_as_it_is(
    make_worker: MakeWorker, make_front: MakeFront, bikes: Path
) -> None:
    worker = await make_worker(failing=[400] * 50)
    front = await make_front(worker, extension=ask_page, ask=ask_table(bikes))
    answer = (await ask(front))[-1][1]
    assert answer["outcome"] == "model_failed"
    assert "told 400" in answer["message"]


async def test_a_database_that_cannot_be_opened_ends_the_stream_with_its_error(
    make_worker: MakeWorker, make_front: MakeFront, tmp_path: Path
) -> None:
    path = tmp_path / "bikes.sqlite"
    make_sample_database(path)
    front = await make_front(await make_worker(), extension=ask_page, ask={"folder": str(tmp_path)})
    path.unlink()
    events = await ask(front, database="bikes.sqlite")
    assert [name for name, _ in events] == ["opening", ""]
    assert events[-1][1]["error"]["type"] == "invalid_request_error"


async def test_without_databases_there_is_no_page(make_front: MakeFront) -> None:
    front = await make_front(extension=ask_page)
    async with aiohttp.ClientSession() as session, session.get(f"{front.url}/ask") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"databases": {"a": {"db": "absent.sqlite"}}}, r"ask\.databases\.a: db='absent\.sqlite'"),
        ({"databases": {"a": {"db": __file__}}}, "not an SQLite database file"),
        ({"folder": "absent"}, r"ask\.folder='absent': No such file"),
        ({"folder": str(Path(__file__).parent)}, "holds no SQLite or DuckDB file"),
    ],
)
async def test_a_database_that_is_not_there_is_named_at_the_start(
    make_front: MakeFront, table: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        await make_front(extension=ask_page, ask=table)
