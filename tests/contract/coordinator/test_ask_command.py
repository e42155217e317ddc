"""`hexgen-sglang ask` through a real coordinator: what only a coordinator can tell it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from hexgen_sglang.cli.main import application

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]


@pytest.mark.parametrize("path", ["", "/v1"])
async def test_ask_names_the_workers_of_each_stage(
    path: str, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(says=lambda body: " SELECT COUNT(*) FROM station"))
    arguments = ["ask", "How many stations are there?", "--json", "--url", f"{front.url}{path}"]
    done = await asyncio.to_thread(CliRunner().invoke, application, arguments)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["rows"] == [[22]]
    assert answer["met_deadline"] is True
    workers = {stage["stage"]: stage["workers"] for stage in answer["stages"]}
    assert workers.pop("retrieve_values") == []
    assert set(workers) >= {"link_schema", "generate_candidate"}
    assert all(names == ["w0"] for names in workers.values())
