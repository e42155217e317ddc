"""SGLang's own KV event publisher on real sockets, and what the coordinator makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator.config import CoordinatorFile, WorkerConfig, convert
from hexgen_sglang.coordinator.kv_follower import follow_kv_events
from hexgen_sglang.coordinator.kv_index import KvIndex
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.prompt import shape_of_ids
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.transport.kv_events import ZmqKvEvents

kv_events = pytest.importorskip("sglang.srt.disaggregation.kv_events")
PROMPT = list(range(64, 264))


class Engine:
    """SGLang's publisher, and the events of a radix cache with pages of one token."""

    def __init__(self, folder: Path, *, replays: bool = True, kept: int = 100) -> None:
        self.endpoint = f"ipc://{folder}/kv"
        self.replay_endpoint = f"ipc://{folder}/replay" if replays else ""
        self.publisher = kv_events.ZmqEventPublisher(
            0, self.endpoint, self.replay_endpoint or None, buffer_steps=kept
        )

    def publish(self, *events: Any) -> None:
        self.publisher.publish(kv_events.KVEventBatch(ts=1.0, events=list(events)))

    def store(self, first: int, last: int, shift: int = 0) -> None:
        """Tokens of the prompt from `first` to before `last`; named by their places."""
        names = [shift + place + 1 for place in range(first, last)]
        parent = shift + first if first else None
        tokens = [shift + token for token in PROMPT[first:last]]
        self.publish(kv_events.BlockStored(names, parent, tokens, 1, None))

    def remove(self, first: int, last: int) -> None:
        self.publish(kv_events.BlockRemoved([place + 1 for place in range(first, last)]))


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(tmp_path, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.publisher.shutdown()


async def followed(engine: Engine, condition: Callable[[KvIndex], bool]) -> tuple[KvIndex, str]:
    """Follow until something holds of the index; returns it and the metrics."""
    metrics = Metrics()
    worker = Worker("w", "http://127.0.0.1:1", "config")
    row = WorkerConfig(
        "http://127.0.0.1:1", kv_events=engine.endpoint, kv_replay=engine.replay_endpoint
    )
    task = asyncio.create_task(follow_kv_events(worker, row, metrics))
    async with asyncio.timeout(20):
        while worker.kv_index is None or not condition(worker.kv_index):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    metrics.set_worker(worker)
    return worker.kv_index, metrics.exposition().decode()


def matched(index: KvIndex, prompt: list[int]) -> int:
    return index.num_matched(shape_of_ids([prompt]).blocks, 0.0)


async def test_what_was_published_before_it_came_is_replayed(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    engine.store(0, 130)
    engine.store(130, 200)
    engine.remove(192, 200)
    index, text = await followed(engine, lambda index: index.is_whole and len(index) == 3)
    assert matched(index, PROMPT) == 3
    assert 'hexgen_kv_index_whole{worker_id="w"} 1.0' in text
    engine.remove(120, 192)
    index, _ = await followed(engine, lambda index: index.is_whole and len(index) == 1)
    assert matched(index, PROMPT) == 1


async def test_what_the_worker_has_not_kept_is_not_known(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(kept=1)
    engine.store(0, 130)
    engine.store(0, 200, shift=1_000)

    async def go_on() -> None:
        while True:
            engine.store(0, 64, shift=5_000)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(go_on())
    try:
        index, text = await followed(engine, lambda index: len(index) == 1)
    finally:
        task.cancel()
    assert not index.is_whole
    assert matched(index, PROMPT) == 0
    assert 'hexgen_kv_index_whole{worker_id="w"} 0.0' in text
    assert 'hexgen_kv_event_gaps_total{outcome="rebuilt",worker_id="w"}' in text


async def test_a_source_that_nobody_answers_at_gives_up(tmp_path: Path) -> None:
    source = ZmqKvEvents(f"ipc://{tmp_path}/none", f"ipc://{tmp_path}/nobody")
    assert source.can_replay
    assert await source.replay(0, 0.05) is None
    source.close()


def test_endpoints_are_checked_with_the_configuration() -> None:
    row = {"url": "http://127.0.0.1:1"}
    for fields, said in (
        ({"kv_events": "http://x"}, "must be tcp://"),
        ({"kv_events": "tcp://*:5557"}, "definite host"),
        ({"kv_replay": "tcp://127.0.0.1:5558"}, "needs kv_events"),
    ):
        with pytest.raises(ConfigError, match=said):
            convert({"workers": [{**row, **fields}]}, CoordinatorFile, "test")
    shared = {"isolate_tenant_caches": True, "api_keys": "keys.toml"}
    with pytest.raises(ConfigError, match="isolate_tenant_caches"):
        convert(
            {"coordinator": shared, "workers": [{**row, "kv_events": "tcp://127.0.0.1:5557"}]},
            CoordinatorFile,
            "test",
        )
