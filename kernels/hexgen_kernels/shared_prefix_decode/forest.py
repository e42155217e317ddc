"""Which rows of a decode batch share which part of their KV cache: a forest of prefix segments.

Plain NumPy on the CPU, made by the group finder and read by every implementation of the
operation. No tensors and no device here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.errors import ConfigError, LawViolation

Int32 = NDArray[np.int32]
NO_PARENT = -1
SEGMENT_FIELDS = 6


@dataclass(frozen=True)
class Segment:
    """One row of `PrefixForest.columns`: rows of the batch that hold KV positions alike.

    Attributes:
        start, end: the positions [start, end), 0 <= start < end, which all of these rows hold
            in the same slots. A root starts at 0, any other where its parent ends.
        order_begin, num_rows: the sharing rows are `order[order_begin : order_begin + num_rows]`
            of the forest; num_rows >= 1.
        parent: index of the enclosing segment, which holds all of these rows, or NO_PARENT.
        level: 0 for a root, otherwise one more than the parent's.
    """

    start: int
    end: int
    order_begin: int
    num_rows: int
    parent: int = NO_PARENT
    level: int = 0


@dataclass(frozen=True, eq=False)
class PrefixForest:
    """The shared segments of one batch; what no segment covers is each row's own suffix.

    Attributes:
        order: (batch,) int32, a permutation of the batch's rows that puts the rows of every
            segment next to each other.
        columns: (number of segments, 6) int32, the fields of `Segment` in their order; parents
            before their children.
        suffix_start: (batch,) int32, by row: where the row's last segment ends, 0 without one.
    """

    order: Int32
    columns: Int32
    suffix_start: Int32

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments as objects."""
        return tuple(Segment(*fields) for fields in self.columns.tolist())

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.order)

    @property
    def num_levels(self) -> int:
        """Most segments that lie above one row; 0 when nothing is shared."""
        return 1 + int(self.columns[:, 5].max(initial=-1))

    def rows_of(self, segment: Segment) -> Int32:
        """The rows that share the segment; the first one stands for all when it is read."""
        return self.order[segment.order_begin : segment.order_begin + segment.num_rows]

    def padded(self, batch: int) -> PrefixForest:
        """The same with rows behind the others that share nothing, as in a CUDA graph.

        Raises:
            ConfigError: `batch` is below the forest's.
        """
        if batch < self.batch:
            raise ConfigError(f"batch={batch}: must be at least the forest's, {self.batch}")
        more = np.arange(self.batch, batch, dtype=np.int32)
        return PrefixForest(
            np.concatenate((self.order, more)),
            self.columns,
            np.concatenate((self.suffix_start, np.zeros_like(more))),
        )

    @property
    def tokens_saved(self) -> int:
        """KV tokens that one decode step does not read because they are shared."""
        start, end, _, num_rows = self.columns[:, :4].astype(np.int64).T
        return int(((num_rows - 1) * (end - start)).sum())


def unshared(batch: int) -> PrefixForest:
    """The forest of a batch in which nothing is shared.

    Raises:
        ConfigError: `batch` is below 0.
    """
    if batch < 0:
        raise ConfigError(f"batch={batch}: must be 0 or more")
    order = np.arange(batch, dtype=np.int32)
    no_segments = np.empty((0, SEGMENT_FIELDS), dtype=np.int32)
    return PrefixForest(order, no_segments, np.zeros(batch, dtype=np.int32))


@dataclass(frozen=True)
class Branch:
    """A segment and what lies below it, as a tree: how forests are written by hand."""

    num_tokens: int
    rows: tuple[int, ...] = ()
    children: tuple[Branch, ...] = ()

    def all_rows(self) -> list[int]:
        """Rows of the children first, then those that end in this segment."""
        below = [row for child in self.children for row in child.all_rows()]
        return [*below, *self.rows]


def forest_of(batch: int, roots: Sequence[Branch]) -> PrefixForest:
    """A forest from trees of branches; rows in no tree share nothing.

    Raises:
        ConfigError: a row is outside [0, batch) or in two branches, or a branch has no tokens
            or no rows.
    """
    order = [row for root in roots for row in root.all_rows()]
    if len(set(order)) != len(order) or not all(0 <= row < batch for row in order):
        raise ConfigError(f"rows {order}: each must be in [0, {batch}) and in one branch only")
    segments: list[Segment] = []
    suffix_start = np.zeros(batch, dtype=np.int32)
    open_branches = [(root, NO_PARENT) for root in reversed(roots)]
    place = {row: index for index, row in enumerate(order)}
    while open_branches:
        branch, parent = open_branches.pop()
        rows = branch.all_rows()
        if branch.num_tokens < 1 or not rows:
            raise ConfigError(f"branch {branch}: must have at least one token and one row")
        start = 0 if parent == NO_PARENT else segments[parent].end
        level = 0 if parent == NO_PARENT else segments[parent].level + 1
        end = start + branch.num_tokens
        index = len(segments)
        segments.append(Segment(start, end, place[rows[0]], len(rows), parent, level))
        suffix_start[rows] = end
        open_branches += [(child, index) for child in reversed(branch.children)]
    rest = sorted(set(range(batch)) - set(order))
    columns = np.array([astuple(segment) for segment in segments], dtype=np.int32)
    return PrefixForest(
        np.array([*order, *rest], dtype=np.int32), columns.reshape(-1, SEGMENT_FIELDS), suffix_start
    )


def check_forest(
    forest: PrefixForest, table: NDArray[np.integer], seq_lens: NDArray[np.integer], page_size: int
) -> None:
    """Hold a forest against the batch that it describes. For tests: reads every shared index.

    Args:
        forest: what is claimed.
        table: (batch, max pages), the page index of each row's positions, page by page.
        seq_lens: (batch,), tokens of each row.
        page_size: tokens a page.

    Raises:
        LawViolation: names the broken rule and the segment.
    """
    batch = len(seq_lens)
    if not np.array_equal(np.sort(forest.order), np.arange(batch)):
        raise LawViolation(f"order is no permutation of {batch} rows")
    deepest = np.zeros(batch, dtype=np.int64)
    for index, segment in enumerate(forest.segments):
        _check_place(forest, index)
        rows = forest.rows_of(segment)
        if (seq_lens[rows] < segment.end).any():
            raise LawViolation(f"segment {index}: ends at {segment.end}, beyond one of its rows")
        pages = table[rows, segment.start // page_size : -(-segment.end // page_size)]
        if (pages != pages[:1]).any():
            raise LawViolation(f"segment {index}: its rows {rows.tolist()} use different slots")
        deepest[rows] = np.maximum(deepest[rows], segment.end)
    if not np.array_equal(deepest, forest.suffix_start):
        raise LawViolation("suffix_start is not where each row's last segment ends")


def _check_place(forest: PrefixForest, index: int) -> None:
    """Raise LawViolation unless the segment lies inside its parent and next to it."""
    segment = forest.segments[index]
    if not 0 <= segment.start < segment.end or segment.num_rows < 1:
        raise LawViolation(f"segment {index}: {segment} is empty")
    if segment.order_begin < 0 or segment.order_begin + segment.num_rows > forest.batch:
        raise LawViolation(f"segment {index}: {segment} has rows outside the batch")
    if segment.parent == NO_PARENT:
        if segment.start != 0 or segment.level != 0:
            raise LawViolation(f"segment {index}: a root must start at 0, on level 0")
        return
    if not 0 <= segment.parent < index:
        raise LawViolation(f"segment {index}: its parent must come before it")
    parent = forest.segments[segment.parent]
    inside = (
        parent.order_begin <= segment.order_begin
        and segment.order_begin + segment.num_rows <= parent.order_begin + parent.num_rows
    )
    if not inside or segment.start != parent.end or segment.level != parent.level + 1:
        raise LawViolation(f"segment {index}: {segment} does not continue its parent {parent}")
