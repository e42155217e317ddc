"""Which request is in which row of the running batch, followed from step to step.

Engines filter a batch and append to it, so most steps differ from the last in a few places; those
are found without a look at each request. CPU only, in the scheduler process.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import filterfalse, pairwise

import numpy as np

from hexgen_kernels.shared_prefix_decode.forest import Int32
from hexgen_sglang.core.errors import ConfigError

# More changes than this are cheaper to find with a look at every request.
_FEW = 16


class BatchRows:
    """Numbers for the requests of a batch, and the row of each.

    Attributes:
        requests: of the last step, by row.
        numbers: of these requests, below the number of requests ever present at once.
    """

    def __init__(self) -> None:
        self.requests: list[Hashable] = []
        self.numbers: dict[Hashable, int] = {}
        self._free: list[int] = []
        self._by_row: Int32 = np.empty(0, dtype=np.int32)
        self._rows: Int32 = np.empty(0, dtype=np.int32)  # by number

    def follow(self, requests: list[Hashable]) -> tuple[list[Hashable], list[Hashable]]:
        """Take the next step's batch; returns who left it and who is new, both by row.

        Raises:
            ConfigError: a request occurs twice; nothing was changed then.
        """
        changes = _few_changes(self.requests, requests)
        if changes is not None and self._are_new(new := requests[changes[1] :]):
            kept, _ = changes
            gone = [
                request
                for (_, last), (first, _) in pairwise(kept)
                for request in self.requests[last:first]
            ]
            numbers = [self._by_row[begin:end] for begin, end in kept]
            self._change(gone, new)
            self._place(requests, [*numbers, self._numbers_of(new)])
            return gone, new
        present = set(requests)
        if len(present) != len(requests):
            raise ConfigError("batch: the name of a request occurs twice")
        gone = list(filterfalse(present.__contains__, self.requests))
        new = list(filterfalse(self.numbers.__contains__, requests))
        self._change(gone, new)
        self._place(requests, [self._numbers_of(requests)])
        return gone, new

    def rows_of(self, numbers: Sequence[int]) -> Int32:
        """Rows of requests, given their numbers."""
        rows: Int32 = self._rows[np.array(numbers, dtype=np.int32)]
        return rows

    def _are_new(self, requests: list[Hashable]) -> bool:
        return len(set(requests)) == len(requests) and not any(
            request in self.numbers for request in requests
        )

    def _change(self, gone: Iterable[Hashable], new: Iterable[Hashable]) -> None:
        for request in gone:
            self._free.append(self.numbers.pop(request))
        for request in new:
            if not self._free:
                self._free.append(len(self.numbers))
            self.numbers[request] = self._free.pop()

    def _numbers_of(self, requests: Sequence[Hashable]) -> Int32:
        return np.array([self.numbers[request] for request in requests], dtype=np.int32)

    def _place(self, requests: list[Hashable], numbers: list[Int32]) -> None:
        self.requests = requests
        self._by_row = np.concatenate(numbers)
        most = len(self.numbers) + len(self._free)
        if len(self._rows) < most:
            self._rows = np.empty(2 * most, dtype=np.int32)
        self._rows[self._by_row] = np.arange(len(requests), dtype=np.int32)


def _few_changes(
    before: list[Hashable], after: list[Hashable]
) -> tuple[list[tuple[int, int]], int] | None:
    """How `after` comes from `before` by leaving out a few and appending.

    Returns:
        The runs [begin, end) of `before` that stay, with an empty one at the end, and where in
        `after` the appended ones begin; None when more than a few are left out.
    """
    kept: list[tuple[int, int]] = [(0, 0)]
    at = place = 0
    for _ in range(_FEW):
        length = _num_equal(before, at, after, place)
        kept.append((at, at + length))
        at, place = at + length, place + length
        if at == len(before):
            return [*kept, (at, at)], place
        at += 1
    return None


def _num_equal(before: list[Hashable], at: int, after: list[Hashable], place: int) -> int:
    """Length of the run that both have from these places on."""
    high = min(len(before) - at, len(after) - place)
    if before[at : at + high] == after[place : place + high]:
        return high
    low = 0
    while high - low > 1:  # the first `low` agree, and not all of the first `high`
        middle = (low + high) // 2
        if before[at + low : at + middle] == after[place + low : place + middle]:
            low = middle
        else:
            high = middle
    return low
