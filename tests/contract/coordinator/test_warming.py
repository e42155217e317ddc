"""Templates are at every worker before the first request, and again after it was away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator.config import CoordinatorFile, convert
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.coordinator.warming import read_templates
from hexgen_sglang.core.errors import ConfigError

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("draft", "link"):
        (tmp_path / f"{name}.txt").write_text(f"You {name} SQL. " * 60)
    return tmp_path


async def test_each_worker_computes_each_template_and_is_known_to_have_it(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil, folder: Path
) -> None:
    workers = [await make_worker(), await make_worker()]
    front = await make_front(*workers, warm=str(folder))
    await wait_until(lambda: all(len(worker.seen) == 2 for worker in workers))
    texts = list(read_templates(folder))
    for worker in workers:
        assert [body["text"] for body in worker.seen] == texts
        assert {body["sampling_params"]["max_new_tokens"] for body in worker.seen} == {1}
    line = 'hexgen_templates_total{outcome="warmed",worker_id="w1"} 2.0'
    await wait_until(lambda: line in front.coordinator.exposition().decode())
    tag = {"workflow_id": "wf", "stage": "draft"}
    assert (await front.generate(text=texts[0] + " Question?", hexgen=tag))[0] == 200
    story = (await front.call("GET", "/workflows/wf/explain"))[1]
    decision = story["decisions"][0]
    assert decision["winner"]["cached_tokens"] > 0
    assert decision["runner_up"]["cached_tokens"] > 0


async def test_a_worker_that_was_away_computes_them_again_and_a_refusal_is_counted(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil, folder: Path
) -> None:
    worker = await make_worker()
    front = await make_front(worker, warm=str(folder))
    await wait_until(lambda: len(worker.seen) == 2)
    port = int(worker.url.rpartition(":")[2])
    await worker.stop()
    directory = front.coordinator.parts.directory
    await wait_until(lambda: not directory.ready())
    worker.failing = [500]
    await worker.start(port)
    await wait_until(lambda: len(worker.seen) == 3)
    line = 'hexgen_templates_total{outcome="failed",worker_id="w0"} 1.0'
    await wait_until(lambda: line in front.coordinator.exposition().decode())
    assert (await front.generate())[0] == 200


async def test_a_folder_without_templates_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a folder with 1 to 256 files"):
        read_templates(tmp_path / "absent")
    (tmp_path / "empty.txt").write_text("")
    settings = {"coordinator": {"warm": str(tmp_path)}}
    with pytest.raises(ConfigError, match="0 bytes: must be 1 to"):
        Coordinator(convert(settings, CoordinatorFile, "test"))
    (tmp_path / "empty.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="utf-8"):
        read_templates(tmp_path)
    shared = {"isolate_tenant_caches": True, "api_keys": "keys.toml", "warm": "x"}
    with pytest.raises(ConfigError, match="isolate_tenant_caches"):
        convert({"coordinator": shared}, CoordinatorFile, "test")
