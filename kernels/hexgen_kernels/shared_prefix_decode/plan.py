"""Cuts a prefix forest into work items of similar size, as the arrays that the kernels read.

Plain NumPy on the CPU, in SGLang's scheduler process, whenever the batch changes. Lengths of
suffixes are no part of a plan: the kernels read them on the device, so a plan stays right from
step to step while the same requests run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hexgen_kernels.shared_prefix_decode.forest import NO_PARENT, Int32, PrefixForest
from hexgen_sglang.core.errors import ConfigError

Int64 = NDArray[np.int64]
Count = TypeVar("Count", int, Int64)

ITEM_FIELDS = 6  # representative row, KV start, KV end, first place in order, rows, slot


@dataclass(frozen=True, kw_only=True)
class WorkLimits:
    """How finely work is cut, and how much room there is for its partial results.

    Attributes:
        max_batch: most rows of a batch.
        max_levels: most segments above one row.
        num_kv_heads: KV heads on this device; each item is run once for each of them.
        rows_per_item: most rows whose queries fit one tile, at least 1.
        target_programs: programs that fill the device; work is cut to reach it.
        min_chunk: fewest KV tokens worth a program of their own; the cut falls on multiples.
        num_entries: partial results (one for each query head of a row) that the workspace holds.
    """

    max_batch: int
    max_levels: int
    num_kv_heads: int
    rows_per_item: int
    target_programs: int
    min_chunk: int
    num_entries: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        least = self.max_batch * (self.max_levels + 1)
        if self.num_entries < least:
            raise ConfigError(
                f"num_entries={self.num_entries}: must be at least {least} for max_batch="
                f"{self.max_batch} and max_levels={self.max_levels}"
            )

    @property
    def max_items(self) -> int:
        """Most items that `cut` makes."""
        return -(-self.target_programs // self.num_kv_heads) + self.max_batch * self.max_levels

    def suffix_splits(self, batch: int) -> int:
        """Into how many parts each row's suffix may be cut, the same for every row of a batch."""
        wanted = -(-self.target_programs // (batch * self.num_kv_heads))
        return max(1, min(wanted, self.num_entries // batch - self.max_levels))


@dataclass(frozen=True)
class DecodePlan:
    """One batch's work, ready for the device.

    A row's partial results have slots 0, 1, ...: those of its segments from the root down, then
    those of its suffix. The result of slot s of row b is entry s * batch + b of the workspace.

    Attributes:
        batch: rows of the launch that this is for, at least those of the forest.
        order: (batch,) int32: as in the forest; rows without a request stand for themselves.
        suffix_start: (batch,) int32, by row: first position of the row's own suffix.
        suffix_slot: (batch,) int32, by row: slot of the first part of the suffix.
        items: (number of items, 6) int32: the row whose slots are read, KV start and end, first
            place in `order`, number of rows, slot.
    """

    batch: int
    order: Int32
    suffix_start: Int32
    suffix_slot: Int32
    items: Int32


def cut(forest: PrefixForest, limits: WorkLimits, batch: int) -> DecodePlan:
    """Cut every segment into items of about equal numbers of tokens.

    Args:
        forest: of the running requests.
        limits: of the decoder that will run it.
        batch: rows of the launch, forest.batch <= batch <= limits.max_batch (a CUDA graph has
            more rows than there are requests; the others share nothing).

    Raises:
        ConfigError: batch or forest is larger or deeper than the limits allow.
    """
    if not forest.batch <= batch <= limits.max_batch:
        raise ConfigError(f"batch={batch}: must be {forest.batch} to {limits.max_batch}")
    if forest.num_levels > limits.max_levels:
        raise ConfigError(f"forest with {forest.num_levels} levels: at most {limits.max_levels}")
    padded = forest.padded(batch)
    order, suffix_start = padded.order, padded.suffix_start
    suffix_slot = np.zeros(batch, dtype=np.int32)
    if not len(forest.columns):
        items = np.empty((0, ITEM_FIELDS), dtype=np.int32)
        return DecodePlan(batch, order, suffix_start, suffix_slot, items)
    columns = forest.columns.astype(np.int64)
    tiles = -(-columns[:, 3] // limits.rows_per_item)
    max_slots = limits.num_entries // batch - limits.suffix_splits(batch)
    splits, first_slot = _splits(columns, tiles, limits, max_slots)
    by_place = np.zeros(batch, dtype=np.int32)
    begins, num_rows = columns[:, 2].tolist(), columns[:, 3].tolist()
    for begin, rows, slot in zip(begins, num_rows, (first_slot + splits).tolist(), strict=True):
        by_place[begin : begin + rows] = slot
    suffix_slot[order] = by_place
    items = _items(columns[:, :4], tiles, splits, first_slot, order, limits.min_chunk)
    return DecodePlan(batch, order, suffix_start, suffix_slot, items)


def _splits(
    columns: Int64, tiles: Int64, limits: WorkLimits, max_slots: int
) -> tuple[Int64, Int64]:
    """Into how many parts each segment is cut, and the slot of its first part."""
    tokens = columns[:, 1] - columns[:, 0]
    parents = columns[:, 4].tolist()
    target_items = max(1, limits.target_programs // limits.num_kv_heads)
    chunk = max(limits.min_chunk, -(-int((tokens * tiles).sum()) // target_items))
    while True:
        splits = -(-tokens // _up_to_multiple(chunk, limits.min_chunk))
        next_slot: list[int] = []
        for parent, parts in zip(parents, splits.tolist(), strict=True):
            next_slot.append(parts + (0 if parent == NO_PARENT else next_slot[parent]))
        if max(next_slot) <= max_slots:
            return splits, np.array(next_slot) - splits
        chunk *= 2


def _items(
    columns: Int64,
    tiles: Int64,
    splits: Int64,
    first_slot: Int64,
    order: Int32,
    multiple: int,
) -> Int32:
    """One item for each part and tile of rows; tiles that read the same KV are neighbours."""
    counts = tiles * splits
    segment = np.repeat(np.arange(len(columns)), counts)
    number = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    part, tile = number // tiles[segment], number % tiles[segment]
    start, end, begin, rows = columns[segment].T
    chunk = _up_to_multiple(-(-(end - start) // splits[segment]), multiple)
    tile_rows = -(-rows // tiles[segment])
    part_start = start + part * chunk
    items = np.stack(
        [
            order[begin],
            np.minimum(part_start, end),
            np.minimum(part_start + chunk, end),
            begin + tile * tile_rows,
            np.minimum(tile_rows, rows - tile * tile_rows),
            first_slot[segment] + part,
        ],
        axis=1,
    )
    return items.astype(np.int32)


def _up_to_multiple(value: Count, multiple: int) -> Count:
    """`value` rounded up to a multiple."""
    return -(-value // multiple) * multiple
