"""Which prompt prefixes were sent to which worker: a bounded record, never verified.

A prompt is a sequence of block hashes, each chained to the ones before it, so that equal
hashes mean equal prefixes. The caller cuts and hashes (text or tokens, both work); a block is
the unit of all answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixMemory:
    """Blocks by worker, longest unsent forgotten first.

    Args:
        max_blocks: remembered for each worker; at least 1. About the worker's KV capacity
            is right: more would claim hits on what was evicted.
    """

    def __init__(self, max_blocks: int = 8_192) -> None:
        self._max_blocks = max_blocks
        self._limits: dict[str, int] = {}
        self._blocks: dict[str, OrderedDict[int, None]] = {}

    def limit(self, worker_id: str, max_blocks: int) -> None:
        """Remember at most this many blocks (at least 1) of that worker."""
        self._limits[worker_id] = max(1, min(max_blocks, self._max_blocks))

    def note_sent(self, worker_id: str, blocks: Sequence[int]) -> None:
        """The prompt was sent there and will be, or is, in its cache."""
        known = self._blocks.setdefault(worker_id, OrderedDict())
        # Deep blocks first: as in a radix cache, leaves are forgotten before their parents.
        for block in reversed(blocks):
            if block in known:
                known.move_to_end(block)
            else:
                known[block] = None
        excess = len(known) - self._limits.get(worker_id, self._max_blocks)
        for _ in range(excess):
            known.popitem(last=False)

    def num_matched(self, worker_id: str, blocks: Sequence[int]) -> int:
        """Leading blocks of the prompt that were sent there before; 0 to len(blocks)."""
        known = self._blocks.get(worker_id)
        if not known:
            return 0
        for position, block in enumerate(blocks):
            if block not in known:
                return position
        return len(blocks)

    def rename(self, old_id: str, new_id: str) -> None:
        """The same worker under another id; what was known under that one is replaced."""
        if old_id in self._limits:
            self._limits[new_id] = self._limits.pop(old_id)
        if old_id in self._blocks:
            self._blocks[new_id] = self._blocks.pop(old_id)

    def forget(self, worker_id: str) -> None:
        """The worker restarted or is gone: its cache is empty."""
        self._blocks.pop(worker_id, None)
        self._limits.pop(worker_id, None)
