"""What a worker's prefix cache really holds, from its KV events, in the coordinator's own blocks.

Engines name blocks by hashes of token ids, page by page. The tokens come with them, so that the
coordinator's chained blocks of 64 tokens can be followed along each path of the engine's tree,
whatever its page size: a block is there while the page that ends it is. For prompts that come as
token ids that is exact. Of a text prompt the coordinator knows no tokens, and asking a worker for
them would be a call for each request: for text the record of what was sent remains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hexgen_sglang.coordinator.prompt import BLOCK_TOKENS, chained_ids
from hexgen_sglang.protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

# Engine blocks remembered of one worker.
_MAX_NODES = 2_000_000
# Blocks of requests on their way: they will be there soon.
_MAX_PENDING = 8_192
_PENDING_S = 60.0
_GPU = (None, "GPU")


@dataclass(frozen=True, slots=True)
class _Node:
    """An engine's block: our last whole block up to its end, and the tokens behind that.

    `ends`: whole blocks of ours that end inside it.
    """

    chain: int | None
    rest: tuple[int, ...]
    ends: tuple[int, ...]


_ROOT = _Node(None, (), ())


class KvIndex:
    """The blocks of one worker.

    Attributes:
        is_whole: nothing that is in the cache is missing here; else it has less than there is.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}
        self._count: dict[int, int] = {}
        self._pending: OrderedDict[int, float] = OrderedDict()
        self.is_whole = False

    def __len__(self) -> int:
        return len(self._count)

    def take(self, events: Iterable[KvEvent]) -> None:
        """Bring it up to date with a batch of events."""
        for event in events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved():
                    if event.medium in _GPU:
                        for name in event.block_hashes:
                            self._drop(name)
                case AllBlocksCleared():
                    self.clear()
                    self.is_whole = True

    def clear(self) -> None:
        """Nothing is known any more."""
        self._nodes.clear()
        self._count.clear()
        self._pending.clear()
        self.is_whole = False

    def note_sent(self, blocks: Sequence[int], now_s: float) -> None:
        """A prompt with these blocks is on its way there."""
        for block in blocks:
            self._pending[block] = now_s
            self._pending.move_to_end(block)
        while len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)

    def num_matched(self, blocks: Sequence[int], now_s: float) -> int:
        """Leading blocks that are there, or on their way."""
        for place, block in enumerate(blocks):
            if block in self._count:
                continue
            sent_s = self._pending.get(block)
            if sent_s is None or now_s - sent_s > _PENDING_S:
                return place
        return len(blocks)

    def _store(self, event: BlockStored) -> None:
        size = event.block_size
        if event.medium not in _GPU or event.lora_id is not None or event.cache_salt is not None:
            return
        parent = _ROOT
        if event.parent_block_hash is not None:
            known = self._nodes.get(event.parent_block_hash)
            if known is None:
                self.is_whole = False  # its beginning was missed
                return
            parent = known
        for number, name in enumerate(event.block_hashes):
            if len(self._nodes) >= _MAX_NODES:
                self.is_whole = False
                return
            tokens = event.token_ids[number * size : (number + 1) * size]
            parent = self._add(name, parent, tokens)

    def _add(self, name: int, parent: _Node, tokens: list[int]) -> _Node:
        known = self._nodes.get(name)
        if known is not None:
            return known
        rest = (*parent.rest, *tokens)
        chain, ends = parent.chain, []
        while len(rest) >= BLOCK_TOKENS:
            chain = chained_ids(chain, rest[:BLOCK_TOKENS])
            ends.append(chain)
            rest = rest[BLOCK_TOKENS:]
        node = self._nodes[name] = _Node(chain, rest, tuple(ends))
        for block in ends:
            self._count[block] = self._count.get(block, 0) + 1
            self._pending.pop(block, None)
        return node

    def _drop(self, name: int) -> None:
        node = self._nodes.pop(name, None)
        for block in node.ends if node is not None else ():
            left = self._count[block] - 1
            if left:
                self._count[block] = left
            else:
                del self._count[block]
