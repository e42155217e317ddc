"""`GET /workflows/{id}/explain` and the command that prints it, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hexgen_sglang.cli.main import application
from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.core.errors import ConfigError

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]


async def explain(*arguments: str) -> Any:
    """Run the command beside the coordinator's event loop."""
    return await asyncio.to_thread(CliRunner().invoke, application, ["explain", *arguments])


async def test_the_story_of_a_late_workflow_names_stage_worker_and_price(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), await make_worker(), dispatch="marginal_cost")
    tag = {"workflow_id": "wf", "workflow_type": "sql", "stage": "draft", "budget_ms": 1}
    for final in (False, True):
        status, _ = await front.generate(hexgen={**tag, "final": final})
        assert status == 200
    status, story = await front.call("GET", "/workflows/wf/explain")
    assert status == 200
    assert [(row["stage"], row["visit"]) for row in story["passes"]] == [("draft", 1), ("draft", 2)]
    assert story["late"]["by_s"] > 0
    assert [row["picked"] for row in story["decisions"]] == [
        row["slowest"]["worker_id"] for row in story["passes"]
    ]
    first = story["decisions"][0]
    assert {first["winner"]["worker_id"], first["runner_up"]["worker_id"]} == {"w0", "w1"}
    assert first["winner"]["terms"]["cost"] <= first["runner_up"]["terms"]["cost"]

    told = await explain("wf", "--url", front.url, "--json")
    assert json.loads(told.stdout)["decisions"] == story["decisions"]
    shown = await explain("wf", "--url", front.url)
    assert shown.exit_code == 0, shown.output
    assert "workflow wf (sql) took" in shown.stdout
    assert "why it was late:" in shown.stdout
    assert "runner-up: w" in shown.stdout


async def test_a_tenant_is_told_of_its_own_workflows_only(
    make_worker: MakeWorker, make_front: MakeFront, tmp_path: Path
) -> None:
    path = tmp_path / "api-keys.toml"
    headers, secrets = {}, {}
    for tenant in ("acme", "rival"):
        key, row = make_key(tenant, (Role.CLIENT,))
        append_key(path, row)
        headers[tenant], secrets[tenant] = {"authorization": f"Bearer {key}"}, key
    front = await make_front(await make_worker(), api_keys=str(path))
    body = {"text": "x", "hexgen": {"workflow_id": "wf"}}
    assert (await front.call("POST", "/generate", body, headers["acme"]))[0] == 200
    status, story = await front.call("GET", "/workflows/wf/explain", None, headers["acme"])
    assert (status, story["workflow_id"], story["tenant"]) == (200, "wf", "acme")
    status, answer = await front.call("GET", "/workflows/wf/explain", None, headers["rival"])
    assert (status, answer["error"]["code"]) == (404, "workflow_not_found")
    shown = await explain("wf", "--url", front.url, "--api-key", secrets["acme"])
    assert (shown.exit_code, "took" in shown.stdout or "has taken" in shown.stdout) == (0, True)


async def test_a_wrong_id_and_a_wrong_address_are_clear_errors(make_front: MakeFront) -> None:
    front = await make_front()
    status, answer = await front.call("GET", "/workflows/none/explain")
    assert (status, answer["error"]["param"]) == (404, "workflow_id")
    unknown = await explain("none", "--url", front.url)
    assert isinstance(unknown.exception, ConfigError)
    assert f"WORKFLOW='none': not known at {front.url}" in str(unknown.exception)
    nobody = await explain("wf", "--url", "http://127.0.0.1:9")
    assert isinstance(nobody.exception, ConfigError)
    assert "--url http://127.0.0.1:9" in str(nobody.exception)
