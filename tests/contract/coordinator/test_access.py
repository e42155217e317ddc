"""Keys, tenants and limits over HTTP: who gets in, and whose workflow is whose."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
Headers = dict[str, str]


class Keys:
    """A key file with a key of each kind, as headers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acme = self.add("acme", Role.CLIENT)
        self.rival = self.add("rival", Role.CLIENT)
        self.operator = self.add("ops", Role.OPERATOR)

    def add(self, tenant: str, role: Role) -> Headers:
        key, row = make_key(tenant, (role,))
        append_key(self.path, row)
        return {"authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "api-keys.toml")


ROUTES = [
    ("POST", "/generate"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/tuning"),
    ("GET", "/workers"),
    ("POST", "/workers"),
    ("POST", "/workers/w0/drain"),
    ("DELETE", "/workers/w0"),
    ("GET", "/workflows"),
    ("GET", "/workflows/f"),
    ("GET", "/workflows/f/explain"),
    ("PATCH", "/workflows/f"),
    ("POST", "/workflows/f/end"),
    ("DELETE", "/workflows/f"),
]
FOR_OPERATORS = [row for row in ROUTES if row[1].startswith(("/workers", "/metrics", "/tuning"))]


async def test_no_route_but_health_is_open_and_none_was_forgotten(
    make_worker: MakeWorker, make_front: MakeFront, keys: Keys
) -> None:
    front = await make_front(await make_worker(), api_keys=str(keys.path))
    wrong = {"authorization": keys.acme["authorization"][:-1] + "?"}
    for method, path in ROUTES:
        for headers, code in (
            ({}, "missing_api_key"),
            ({"authorization": "Basic YTpi"}, "missing_api_key"),
            (wrong, "invalid_api_key"),
        ):
            status, answer = await front.call(method, path, headers=headers)
            assert (method, path, status, answer["error"]["code"]) == (method, path, 401, code)
            assert "hexgen_" not in answer["error"]["message"]
    for method, path in FOR_OPERATORS:
        status, answer = await front.call(method, path, headers=keys.acme)
        assert (method, path, status) == (method, path, 403)
        assert "needs a key with the role operator" in answer["error"]["message"]
    status, _ = await front.call("POST", "/generate", {"text": "x"}, headers=keys.operator)
    assert status == 403
    assert (await front.call("GET", "/health"))[0] == 200
    assert list(front.coordinator.parts.directory.workers) == ["w0"]

    from hexgen_sglang.coordinator.app import make_app

    known = {re.sub(r"\{.*?\}", "", route.path) for route in make_app(front.coordinator).routes}
    tried = {re.sub(r"/(w0|f)\b", "/", path) for _, path in ROUTES} | {"/health", "/openapi.json"}
    assert known == tried  # a new route is tried here, too


async def test_a_refusal_comes_before_the_body_and_says_how(
    make_worker: MakeWorker, make_front: MakeFront, keys: Keys
) -> None:
    front = await make_front(await make_worker(), api_keys=str(keys.path), max_body_bytes=1_024)
    body = b"x" * 100_000  # too long as well: but that is not looked at
    async with front.session.post(front.url + "/generate", data=body) as response:
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"


async def test_tenants_with_one_id_have_two_workflows(
    make_worker: MakeWorker, make_front: MakeFront, keys: Keys, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(worker, api_keys=str(keys.path))
    tag = {"workflow_id": "one", "budget_ms": 60_000, "tenant": "somebody-else"}
    body = {"text": "hello", "hexgen": tag}
    calls = [
        asyncio.create_task(front.call("POST", "/generate", body, headers))
        for headers in (keys.acme, keys.rival)
    ]
    await wait_until(lambda: len(worker.seen) == 2)
    engine_tags = [seen["sampling_params"]["custom_params"]["hexgen"] for seen in worker.seen]
    assert sorted((tag["tenant"], tag["workflow_id"]) for tag in engine_tags) == [
        ("acme", "acme/one"),
        ("rival", "rival/one"),
    ]
    assert all("authorization" not in headers for headers in worker.headers)

    status, row = await front.call("GET", "/workflows/one", headers=keys.acme)
    assert (status, row["workflow_id"], row["tenant"]) == (200, "one", "acme")
    assert len(row["requests"]) == 1
    for foreign in ("rival/one", "rival%2Fone"):
        for method, path, change in (
            ("GET", f"/workflows/{foreign}", None),
            ("PATCH", f"/workflows/{foreign}", {"budget_ms": 1}),
            ("POST", f"/workflows/{foreign}/end", None),
            ("DELETE", f"/workflows/{foreign}", None),
        ):
            status, answer = await front.call(method, path, change, keys.acme)
            assert (status, answer["error"]["code"]) == (404, "workflow_not_found")
    _, listing = await front.call("GET", "/workflows", headers=keys.acme)
    assert [row["workflow_id"] for row in listing["workflows"]] == ["one"]
    _, listing = await front.call("GET", "/workflows", headers=keys.operator)
    assert {row["workflow_id"] for row in listing["workflows"]} == {"acme/one", "rival/one"}

    status, told = await front.call("DELETE", "/workflows/one", headers=keys.acme)
    assert (status, told) == (200, {"workflow_id": "one", "num_cancelled": 1})
    worker.gate.set()
    assert [status for status, _ in await asyncio.gather(*calls)] == [499, 200]
    change = {"budget_ms": 5_000}
    status, row = await front.call("PATCH", "/workflows/rival/one", change, keys.operator)
    assert (status, row["workflow_id"]) == (200, "rival/one")


async def test_an_untagged_request_belongs_to_its_tenant(
    make_worker: MakeWorker, make_front: MakeFront, keys: Keys
) -> None:
    front = await make_front(await make_worker(), api_keys=str(keys.path))
    async with front.session.post(
        front.url + "/generate", json={"text": "x"}, headers=keys.acme
    ) as response:
        workflow_id = response.headers["x-hexgen-workflow-id"]
    status, row = await front.call("GET", f"/workflows/{workflow_id}", headers=keys.acme)
    assert (status, row["tenant"]) == (200, "acme")
    assert (await front.call("GET", f"/workflows/{workflow_id}", headers=keys.rival))[0] == 404


async def test_keys_come_and_go_without_a_restart_and_a_broken_file_is_told(
    make_worker: MakeWorker, make_front: MakeFront, keys: Keys
) -> None:
    front = await make_front(await make_worker(), api_keys=str(keys.path), open_metrics=True)
    added = keys.add("late", Role.CLIENT)
    await front.coordinator.reload_keys()
    assert (await front.call("GET", "/v1/models", headers=added))[0] == 200
    keys.path.write_text("[[keys")
    await front.coordinator.reload_keys()
    _, health = await front.call("GET", "/health")
    assert (health["status"], health["degraded"]) == ("degraded", ["api_keys_stale"])
    assert (await front.call("GET", "/v1/models", headers=added))[0] == 200
    async with front.session.get(front.url + "/metrics") as response:
        assert "hexgen_api_keys_stale 1.0" in await response.text()


async def test_a_changed_key_file_is_noticed(
    make_worker: MakeWorker, make_front: MakeFront, keys: Keys, wait_until: WaitUntil
) -> None:
    front = await make_front(await make_worker(), api_keys=str(keys.path))
    keys.add("late", Role.CLIENT)
    ring = front.coordinator.access.ring
    await wait_until(lambda: len(ring) == 4)


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"requests_per_s": 0.01, "burst": 1}, "requests_per_s"),
        ({"max_concurrent": 1}, "max_concurrent"),
        ({"tokens_per_min": 60}, "tokens_per_min"),
    ],
)
async def test_a_tenant_at_its_limit_is_told_and_others_are_served(
    limits: dict[str, Any],
    param: str,
    make_worker: MakeWorker,
    make_front: MakeFront,
    keys: Keys,
    wait_until: WaitUntil,
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    front = await make_front(
        worker, api_keys=str(keys.path), tables={"tenants": {"acme": limits}}, open_metrics=True
    )
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 60}}
    first = asyncio.create_task(front.call("POST", "/generate", body, keys.acme))
    await wait_until(lambda: len(worker.seen) == 1)
    async with front.session.post(
        front.url + "/generate", json=body, headers=keys.acme
    ) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["param"]) == (429, "tenant_limit", param)
        assert int(response.headers["retry-after"]) >= 1
        assert "tenant 'acme'" in error["message"]
    other = asyncio.create_task(front.call("POST", "/generate", body, keys.rival))
    await wait_until(lambda: len(worker.seen) == 2)
    worker.gate.set()
    assert [(await call)[0] for call in (first, other)] == [200, 200]
    if param == "max_concurrent":
        assert (await front.call("POST", "/generate", body, keys.acme))[0] == 200
    async with front.session.get(front.url + "/metrics") as response:
        line = f'hexgen_tenant_limited_total{{limit="{param}",tenant="acme"}} 1.0'
        assert line in await response.text()


async def test_what_ended_in_any_way_frees_its_tenants_place(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(
        worker, tables={"limits": {"max_concurrent": 1}}, max_attempts=1, max_queued=1
    )
    assert (await front.call("POST", "/generate", {"text": "x", "model": "none"}))[0] == 404
    worker.failing = [400]
    assert (await front.generate())[0] == 400
    worker.failing = [500]
    assert (await front.generate())[0] == 502
    worker.gate.clear()
    call = asyncio.create_task(front.generate())
    await wait_until(lambda: len(front.coordinator.exchanges.live) == 1)
    status, answer = await front.generate()
    assert (status, answer["error"]["param"]) == (429, "max_concurrent")
    assert "all callers" in answer["error"]["message"]
    call.cancel()
    await wait_until(lambda: not front.coordinator.exchanges.live)
    worker.gate.set()
    assert (await front.generate())[0] == 200


MARK = "zebra-in-the-prompt"


async def test_no_text_of_a_request_reaches_the_log(
    make_worker: MakeWorker,
    make_front: MakeFront,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
) -> None:
    worker = await make_worker(echoes=True)
    with caplog.at_level(logging.DEBUG):
        front = await make_front(worker, max_attempts=2)
        chat = {"messages": [{"role": "user", "content": MARK}]}
        tag = {"workflow_id": "f", "stage": "draft"}
        assert (await front.generate(text=MARK, hexgen=tag))[0] == 200
        assert (await front.call("POST", "/v1/chat/completions", chat))[0] == 200
        await front.events("/v1/chat/completions", {**chat, "stream": True})
        worker.failing = [500, 500]
        status, answer = await front.generate(text=MARK)
        assert status == 502
        assert MARK in answer["error"]["message"]  # its own client may read it
        worker.failing = [400]
        assert (await front.generate(text=MARK))[0] == 400
        worker.dies_after = [2]
        await front.events("/v1/chat/completions", {**chat, "stream": True})
        await wait_until(lambda: len(front.coordinator.parts.directory.ready()) == 1)
        for odd in (
            {"text": MARK, "rid": MARK},
            {"text": MARK, "hexgen": {"workflow_id": MARK * 9}},
        ):
            assert (await front.call("POST", "/generate", odd))[0] == 400
        async with front.session.post(front.url + "/generate", data=f'{{"text":"{MARK}') as broken:
            assert broken.status == 400
        worker.gate.clear()
        call = asyncio.create_task(front.generate(text=MARK, hexgen=tag))
        await wait_until(lambda: len(front.coordinator.exchanges.live) == 1)
        await front.call("DELETE", "/workflows/f")
        await call
    ours = [r.getMessage() + str(r.exc_text) for r in caplog.records if "hexgen" in r.name]
    assert any("answered 500" in line for line in ours)
    assert not [line for line in ours if MARK in line]
    _, listing = await front.call("GET", "/workers")
    assert MARK not in str(listing)
