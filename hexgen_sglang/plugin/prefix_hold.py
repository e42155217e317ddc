"""Requests that wait for a prefix: nothing that is being computed is computed again beside it.

Siblings of a stage come together and share thousands of prompt tokens. SGLang's cache holds a
prefix only after its step has ended, so siblings admitted before that would compute it each for
themselves. Here they stay behind, for a step or two, until the first of them has put it there.

Runs on SGLang's scheduler thread, in every choice of a batch. SGLang is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hexgen_sglang.plugin.hold import Hold

# Not worth waiting for fewer tokens: a step costs more than they do.
WORTH_WAITING = 128


class PrefixHold(Hold):
    """Holds what shares with a prompt in progress, or with one before it in the queue.

    At least 128 tokens more than it has in the cache, that is.

    Args:
        workflow_of: the workflow of a `Req`; only requests of one workflow are compared.
    """

    def __init__(self, workflow_of: Callable[[Any], str]) -> None:
        super().__init__()
        self._workflow_of = workflow_of

    def _waits(self, waiting_queue: Sequence[Any]) -> Iterator[bool]:
        if len(waiting_queue) + len(self._in_progress) < 2:
            return
        leaders: dict[str, list[Any]] = {}
        for req in self._in_progress:
            leaders.setdefault(self._workflow_of(req), []).append(req)
        for req in waiting_queue:
            group = leaders.setdefault(self._workflow_of(req), [])
            cached = getattr(req, "num_matched_prefix_tokens", 0) or 0
            ids = req.origin_input_ids
            waits = any(
                shared_tokens(ids, leader.origin_input_ids) - cached >= WORTH_WAITING
                for leader in group
            )
            if not waits:
                group.append(req)
            yield waits


def shared_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens that two prompts share from the first on; 0 when fewer than 128."""
    low, high = 0, min(len(ours), len(theirs))
    if high < WORTH_WAITING or ours[:WORTH_WAITING] != theirs[:WORTH_WAITING]:
        return 0
    low = WORTH_WAITING
    while low < high:  # the first `low` agree, and no more than `high` do
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
