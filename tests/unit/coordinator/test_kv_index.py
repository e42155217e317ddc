"""What a worker's KV events say of its prefix cache, and what happens when some are missed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from hexgen_sglang.coordinator.kv_follower import KvFollower
from hexgen_sglang.coordinator.kv_index import KvIndex
from hexgen_sglang.coordinator.prompt import shape_of_ids
from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    decode_kv_events,
)

PROMPT = list(range(200))


def names(page: int, prompt: list[int] = PROMPT) -> list[int]:
    """Some engine's names of a prompt's pages: of equal prefixes the same."""
    return [hash(tuple(prompt[: end + page])) for end in range(0, len(prompt) - page + 1, page)]


def stored(page: int, prompt: list[int] = PROMPT, start: int = 0) -> BlockStored:
    """The event of a prompt from its page number `start` on."""
    called = names(page, prompt)
    parent = called[start - 1] if start else None
    tokens = prompt[start * page : len(called) * page]
    return BlockStored(called[start:], parent, tokens, page)


def blocks(prompt: list[int] = PROMPT) -> tuple[int, ...]:
    return shape_of_ids([prompt]).blocks


@pytest.mark.parametrize("page", [1, 16, 48, 64, 100])
def test_blocks_are_there_while_the_page_that_ends_them_is(page: int) -> None:
    index = KvIndex()
    index.take([stored(page)])
    whole = len(names(page)) * page // 64
    assert index.num_matched(blocks(), 0.0) == whole
    assert index.num_matched(blocks([7, *PROMPT[1:]]), 0.0) == 0
    index.take([BlockRemoved([names(page)[-1]])])
    left = (len(names(page)) - 1) * page // 64
    assert index.num_matched(blocks(), 0.0) == left
    index.take([stored(page, start=len(names(page)) - 1)])
    assert index.num_matched(blocks(), 0.0) == whole


def test_two_prompts_share_what_they_share() -> None:
    other = PROMPT[:130] + [9] * 70
    index = KvIndex()
    index.take([stored(1), stored(1, other)])
    index.take([BlockRemoved(names(1, other)[130:])])
    assert index.num_matched(blocks(other), 0.0) == 2
    assert index.num_matched(blocks(), 0.0) == 3
    index.take([AllBlocksCleared()])
    assert (index.num_matched(blocks(), 0.0), len(index), index.is_whole) == (0, 0, True)


def test_what_is_on_its_way_counts_for_a_minute() -> None:
    index = KvIndex()
    index.note_sent(blocks(), 10.0)
    assert index.num_matched(blocks(), 69.0) == 3
    assert index.num_matched(blocks(), 71.0) == 0


def test_other_tiers_adapters_and_salts_and_lost_beginnings_do_not_count() -> None:
    index = KvIndex()
    index.is_whole = True
    event = stored(1)
    index.take(
        [
            msgspec.structs.replace(event, medium="CPU_PINNED"),
            msgspec.structs.replace(event, lora_id=3),
            msgspec.structs.replace(event, cache_salt="x"),
        ]
    )
    assert (len(index), index.is_whole) == (0, True)
    index.take([stored(1, start=5)])
    assert (len(index), index.is_whole) == (0, False)


class Publisher:
    """A worker's side: what it sent, and what it kept."""

    def __init__(self, *, keeps: bool = True) -> None:
        self.can_replay = keeps
        self.kept: list[tuple[int, bytes]] = []
        self.stream: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.asked: list[int] = []

    def send(self, *events: Any, lost: bool = False) -> None:
        """Publish a batch; the subscriber may not get it."""
        batch = (len(self.kept), msgspec.msgpack.encode([1.0, events, 0]))
        self.kept.append(batch)
        if not lost:
            self.stream.put_nowait(batch)

    async def receive(self) -> tuple[int, bytes]:
        return await self.stream.get()

    async def replay(self, first: int, timeout_s: float) -> list[tuple[int, bytes]] | None:
        self.asked.append(first)
        return [batch for batch in self.kept if batch[0] >= first]


async def followed(publisher: Publisher, index: KvIndex, gaps: list[str]) -> None:
    """Take all that was sent in."""
    task = asyncio.create_task(KvFollower(publisher, index, "w", gaps.append).run())
    for _ in range(50):
        await asyncio.sleep(0)
    assert publisher.stream.empty()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_late_subscriber_asks_for_the_beginning_and_takes_nothing_twice() -> None:
    publisher, index, gaps = Publisher(), KvIndex(), []
    publisher.send(stored(1), lost=True)
    publisher.send(BlockRemoved(names(1)[128:]))  # comes by replay and by the stream
    publisher.send(stored(1, start=128))
    await followed(publisher, index, gaps)
    assert (index.num_matched(blocks(), 0.0), index.is_whole, gaps) == (3, True, [])
    assert publisher.asked == [0]


async def test_a_gap_is_replayed() -> None:
    publisher, index, gaps = Publisher(), KvIndex(), []
    task = asyncio.create_task(KvFollower(publisher, index, "w", gaps.append).run())
    await asyncio.sleep(0.01)
    publisher.send(stored(1))
    publisher.send(BlockRemoved(names(1)[64:]), lost=True)
    publisher.send(stored(1, [9] * 200))
    while len(index) != 4:  # noqa: ASYNC110  (the follower is another task)
        await asyncio.sleep(0.001)
    task.cancel()
    assert (index.num_matched(blocks(), 0.0), index.is_whole) == (1, True)
    assert (gaps, publisher.asked) == (["replayed"], [0, 1])


async def test_without_replay_a_gap_starts_the_index_anew() -> None:
    publisher, index, gaps = Publisher(keeps=False), KvIndex(), []
    publisher.send(stored(1))
    publisher.send(BlockRemoved(names(1)[64:]), lost=True)
    publisher.send(stored(1, [9] * 200))
    await followed(publisher, index, gaps)
    assert index.num_matched(blocks(), 0.0) == 0
    assert index.num_matched(blocks([9] * 200), 0.0) == 3
    assert (index.is_whole, gaps) == (False, ["rebuilt"])


async def test_numbers_that_begin_again_are_another_process() -> None:
    publisher, index, gaps = Publisher(keeps=False), KvIndex(), []
    publisher.send(stored(1))
    publisher.send(stored(1, [8] * 200))
    publisher.kept.clear()
    publisher.send(stored(1, [9] * 200))
    await followed(publisher, index, gaps)
    assert index.num_matched(blocks(), 0.0) == 0
    assert index.num_matched(blocks([9] * 200), 0.0) == 3
    assert (index.is_whole, gaps) == (True, [])


async def test_a_batch_that_is_none_makes_the_index_less_than_whole() -> None:
    publisher, index, gaps = Publisher(keeps=False), KvIndex(), []
    publisher.send(stored(1))
    publisher.stream.put_nowait((1, b"\xc1"))
    await followed(publisher, index, gaps)
    assert (len(index), index.is_whole, gaps) == (0, False, ["rebuilt"])
    with pytest.raises(ProtocolError, match="KV events"):
        decode_kv_events(b"\xc1")
