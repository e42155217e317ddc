"""Runs the Triton kernels: their buffers, their launches, and plans copied to the device.

One `SharedPrefixDecoder` serves all layers of a model on one device, in SGLang's scheduler
process. All memory is taken when it is made; no call waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from hexgen_kernels.shared_prefix_decode import triton_kernels as kernels
from hexgen_kernels.shared_prefix_decode.forest import PrefixForest
from hexgen_kernels.shared_prefix_decode.plan import ITEM_FIELDS, DecodePlan, WorkLimits, cut
from hexgen_sglang.core.errors import ConfigError

HEAD_SIZES = (64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTERPRETED = not isinstance(kernels.prefix_kernel, triton.JITFunction)
_INDEX_DTYPES = (torch.int32, torch.int64)
MERGE_SLOTS, MERGE_WARPS = 8, 1


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Block sizes of the kernels; the defaults were the fastest of those tried on an H200.

    They suit small batches best: at 128 rows tiles of 128 queries and tokens were 9 to 16 % faster.

    Attributes:
        prefix_queries: queries of one KV head in a tile, a power of two from 16 to 256. Shared
            KV is read once for each tile, from L2 when several tiles run side by side.
        prefix_tokens, suffix_tokens: KV tokens a loop iteration, powers of two from 16 to 256.
        min_chunk: fewest KV tokens a program is started for; best a multiple of both.
        prefix_warps, prefix_stages, suffix_warps, suffix_stages: Triton's num_warps and
            num_stages.
    """

    prefix_queries: int = 64
    prefix_tokens: int = 64
    suffix_tokens: int = 32
    min_chunk: int = 128
    prefix_warps: int = 4
    prefix_stages: int = 3
    suffix_warps: int = 2
    suffix_stages: int = 3

    def __post_init__(self) -> None:
        for name in ("prefix_queries", "prefix_tokens", "suffix_tokens"):
            value = getattr(self, name)
            if not 16 <= value <= 256 or value & (value - 1):
                raise ConfigError(f"{name}={value}: must be a power of two from 16 to 256")


class SharedPrefixDecoder:
    """Decode attention over paged KV in which rows share prefixes; one object a device.

    Use: `load` when the batch or its forest changed, `run` in every layer. Between them
    seq_lens, table and KV may change freely: they are read on the device. For CUDA graphs,
    `run` is captured once for each batch size after a `load` of that size; every replay uses
    what was loaded last, and `load` stays outside of the graph.

    Args:
        num_q_heads, num_kv_heads: on this device; the first a multiple of the second.
        head_size: 64 or 128, of keys and of values.
        dtype: of q, KV and output: bfloat16 or float16 (float32 is there to check the
            algorithm: it uses no tensor cores).
        device: a CUDA device, or the CPU under Triton's interpreter.
        max_batch: most rows of a launch.
        max_levels: most shared segments above one row.
        page_size: tokens a page of `table`.
        target_programs: programs that fill the device; default its multiprocessors.
        num_entries: partial results in the workspace (each num_q_heads * (head_size + 1) * 4
            bytes). More allow finer cuts of long prefixes in large batches.
        tiles: block sizes; default `tiles_for` the heads and the device.
        overlap: run prefixes and suffixes side by side, on two streams.

    Raises:
        ConfigError: names the argument, its value and what is allowed.
    """

    def __init__(
        self,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        max_batch: int,
        max_levels: int = 4,
        page_size: int = 1,
        target_programs: int | None = None,
        num_entries: int | None = None,
        tiles: Tiles | None = None,
        overlap: bool = True,
    ) -> None:
        self.device = torch.device(device)
        _check_model(num_q_heads, num_kv_heads, head_size, dtype, page_size)
        per_kv_head = num_q_heads // num_kv_heads
        self.tiles = tiles or tiles_for(per_kv_head, _capability(self.device))
        if per_kv_head > self.tiles.prefix_queries:
            raise ConfigError(
                f"num_q_heads / num_kv_heads = {per_kv_head}: at most prefix_queries="
                f"{self.tiles.prefix_queries}"
            )
        self.num_q_heads, self.num_kv_heads = num_q_heads, num_kv_heads
        self.head_size, self.dtype, self.page_size = head_size, dtype, page_size
        self.limits = WorkLimits(
            max_batch=max_batch,
            max_levels=max_levels,
            num_kv_heads=num_kv_heads,
            rows_per_item=self.tiles.prefix_queries // per_kv_head,
            target_programs=target_programs or _programs_for(self.device),
            min_chunk=self.tiles.min_chunk,
            num_entries=num_entries or max(1024, max_batch * (max_levels + 4)),
        )
        self._allocate()
        self._side = torch.cuda.Stream(self.device) if overlap and self._on_gpu else None

    def _allocate(self) -> None:
        entries, heads = self.limits.num_entries, self.num_q_heads
        float32 = {"dtype": torch.float32, "device": self.device}
        self.partial_out = torch.empty(entries, heads, self.head_size, **float32)
        self.partial_lse = torch.empty(entries, heads, **float32)
        self.lse = torch.empty(self.limits.max_batch, heads, **float32)
        batch, items = self.limits.max_batch, self.limits.max_items * ITEM_FIELDS
        self._plan = torch.zeros(1 + 3 * batch + items, dtype=torch.int32, device=self.device)
        sizes = [1, batch, batch, batch, items]
        parts = self._plan.split(sizes)
        self._num_items, self._order, self._suffix_start, self._suffix_slot, self._items = parts
        self._loaded_batch: int | None = None

    @property
    def _on_gpu(self) -> bool:
        return bool(self.device.type == "cuda")

    def load(self, forest: PrefixForest, batch: int | None = None) -> DecodePlan:
        """Plan the forest's work and copy it to the device, behind what the stream has to do.

        Args:
            forest: of this batch: see `check_forest` for what must hold.
            batch: rows of the launches that follow, default those of the forest.

        Returns:
            The plan, for tests and counters.

        Raises:
            ConfigError: more rows or levels than this decoder was made for.
        """
        plan = cut(forest, self.limits, forest.batch if batch is None else batch)
        rows = self.limits.max_batch
        packed = np.zeros(1 + 3 * rows + plan.items.size, dtype=np.int32)
        packed[0] = len(plan.items)
        for place, part in enumerate((plan.order, plan.suffix_start, plan.suffix_slot)):
            packed[1 + place * rows : 1 + place * rows + plan.batch] = part
        packed[1 + 3 * rows :] = plan.items.ravel()
        host = torch.from_numpy(packed)
        # Memory from the pinned pool is reused only after its copies are done.
        host = host.pin_memory() if self._on_gpu else host
        self._plan[: len(packed)].copy_(host, non_blocking=True)
        self._loaded_batch = plan.batch
        return plan

    def run(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        table: Tensor,
        table_rows: Tensor,
        seq_lens: Tensor,
        out: Tensor,
        sm_scale: float,
    ) -> Tensor:
        """Compute the attention of one layer into `out`. Can be captured; never synchronises.

        Args:
            q: (batch, num_q_heads, head_size), last dimension contiguous.
            k_cache, v_cache: (num_slots, num_kv_heads, head_size), last dimension contiguous,
                any other strides (SGLang's token-to-KV pool, or pages flattened to slots).
            table: (num_table_rows, max pages) int32 or int64, last dimension contiguous: page
                index of positions [i * page_size, (i + 1) * page_size). With page_size 1 it is
                SGLang's `req_to_token`.
            table_rows: (batch,) int32 or int64, contiguous: row of `table` for each row.
            seq_lens: (batch,) int32 or int64, contiguous: tokens of each row, the new one
                included; at least the row's suffix_start, below 2**31. 0 gives zeros.
            out: (batch, num_q_heads, head_size), last dimension contiguous; all is written.
            sm_scale: factor on the scores before the softmax.

        Returns:
            lse (batch, num_q_heads) float32, natural logarithm: a view that the next call
            overwrites.

        Raises:
            ConfigError: shapes, dtypes or devices do not fit, or no plan of this batch size
                was loaded.
        """
        batch = self._check_call(q, k_cache, v_cache, table, table_rows, seq_lens, out)
        numbers = (
            *q.stride()[:2], *k_cache.stride()[:2], *v_cache.stride()[:2], table.stride(0),
            sm_scale / math.log(2),
        )  # fmt: skip
        inputs = (q, k_cache, v_cache, table, table_rows)
        constants = self._constants(k_cache, v_cache)
        if self._side is None:
            self._run_prefix(inputs, batch, numbers, constants)
        else:
            self._side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._side):
                self._run_prefix(inputs, batch, numbers, constants)
        splits = self.limits.suffix_splits(batch)
        self._run_suffix(inputs, seq_lens, batch, splits, numbers, constants)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)
        self._run_merge(seq_lens, out, batch, splits)
        return self.lse[:batch]

    def _run_prefix(self, inputs: Any, batch: int, numbers: Any, constants: dict[str, Any]) -> None:
        programs = -(-self.limits.target_programs // self.num_kv_heads)
        kernels.prefix_kernel[(programs, self.num_kv_heads)](
            *inputs,
            self._order,
            self._items,
            self._num_items,
            self.partial_out,
            self.partial_lse,
            batch,
            self.num_q_heads,
            *numbers,
            **constants,
            BLOCK_M=self.tiles.prefix_queries,
            BLOCK_N=self.tiles.prefix_tokens,
            num_warps=self.tiles.prefix_warps,
            num_stages=self.tiles.prefix_stages,
        )

    def _run_suffix(
        self,
        inputs: Any,
        seq_lens: Tensor,
        batch: int,
        splits: int,
        numbers: Any,
        constants: dict[str, Any],
    ) -> None:
        per_kv_head = self.num_q_heads // self.num_kv_heads
        queries = max(16, triton.next_power_of_2(per_kv_head))
        kernels.suffix_kernel[(batch, self.num_kv_heads, splits)](
            *inputs,
            seq_lens,
            self._suffix_start,
            self._suffix_slot,
            self.partial_out,
            self.partial_lse,
            batch,
            self.num_q_heads,
            splits,
            *numbers,
            **constants,
            BLOCK_M=queries,
            BLOCK_N=self.tiles.suffix_tokens,
            MIN_CHUNK=self.limits.min_chunk,
            num_warps=self.tiles.suffix_warps,
            num_stages=self.tiles.suffix_stages,
        )

    def _run_merge(self, seq_lens: Tensor, out: Tensor, batch: int, splits: int) -> None:
        kernels.merge_kernel[(batch, self.num_q_heads)](
            self.partial_out,
            self.partial_lse,
            seq_lens,
            self._suffix_start,
            self._suffix_slot,
            out,
            self.lse,
            batch,
            self.num_q_heads,
            splits,
            *out.stride()[:2],
            HEAD_SIZE=self.head_size,
            MIN_CHUNK=self.limits.min_chunk,
            BLOCK_SLOTS=MERGE_SLOTS,
            num_warps=MERGE_WARPS,
        )

    def _constants(self, k_cache: Tensor, v_cache: Tensor) -> dict[str, Any]:
        return {
            "QUERIES_PER_KV_HEAD": self.num_q_heads // self.num_kv_heads,
            "PAGE_SIZE": self.page_size,
            "HEAD_SIZE": self.head_size,
            "SAME_STRIDES": k_cache.stride(0) == v_cache.stride(0),
            "WIDE": max(_last_offset(k_cache), _last_offset(v_cache)) >= 2**31,
            "UPCAST": INTERPRETED and self.dtype == torch.bfloat16,
        }

    def _check_call(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        table: Tensor,
        table_rows: Tensor,
        seq_lens: Tensor,
        out: Tensor,
    ) -> int:
        """The batch size, if everything fits."""
        batch = q.shape[0]
        if batch != self._loaded_batch:
            raise ConfigError(f"batch of {batch} rows: the plan loaded is for {self._loaded_batch}")
        head_shape = (self.num_q_heads, self.head_size)
        kv_shape = (k_cache.shape[0], self.num_kv_heads, self.head_size)
        for name, tensor, shape in (
            ("q", q, (batch, *head_shape)),
            ("out", out, (batch, *head_shape)),
            ("k_cache", k_cache, kv_shape),
            ("v_cache", v_cache, kv_shape),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype != self.dtype or tensor.stride(2) != 1:
                raise ConfigError(
                    f"{name} {tuple(tensor.shape)} {tensor.dtype} strides {tensor.stride()}: must "
                    f"be {shape} {self.dtype}, last dimension contiguous"
                )
        if table.dim() != 2 or table.stride(1) != 1 or table.dtype not in _INDEX_DTYPES:
            raise ConfigError(
                f"table {tuple(table.shape)} {table.dtype}: must be 2-D int32 or int64, last "
                "dimension contiguous"
            )
        for name, tensor in (("table_rows", table_rows), ("seq_lens", seq_lens)):
            fits = tuple(tensor.shape) == (batch,) and tensor.dtype in _INDEX_DTYPES
            if not fits or not tensor.is_contiguous():
                raise ConfigError(
                    f"{name} {tuple(tensor.shape)} {tensor.dtype}: must be ({batch},) int32 or "
                    "int64, contiguous"
                )
        for tensor in (q, k_cache, v_cache, table, table_rows, seq_lens, out):
            if tensor.device != self.partial_out.device:
                raise ConfigError(f"tensor on {tensor.device}: must be on {self.device}")
        return int(batch)


def _last_offset(cache: Tensor) -> int:
    """From the first element of a KV head to its last, in elements."""
    return int((cache.shape[0] - 1) * cache.stride(0) + cache.shape[2] - 1)


def _check_model(
    num_q_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype, page_size: int
) -> None:
    if num_kv_heads < 1 or num_q_heads < 1 or num_q_heads % num_kv_heads:
        raise ConfigError(
            f"num_q_heads={num_q_heads}, num_kv_heads={num_kv_heads}: the first must be a "
            "multiple of the second, both at least 1"
        )
    if head_size not in HEAD_SIZES:
        raise ConfigError(f"head_size={head_size}: must be one of {HEAD_SIZES}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype}: must be one of {DTYPES}")
    if page_size < 1:
        raise ConfigError(f"page_size={page_size}: must be at least 1")


def tiles_for(per_kv_head: int, capability: int) -> Tiles:
    """The default block sizes for so many queries of a KV head, on sm_`capability`.

    Raises:
        ConfigError: more queries than a tile holds.
    """
    usual = Tiles()
    queries = max(usual.prefix_queries, triton.next_power_of_2(per_kv_head))
    # Four warps spill registers with more queries, and where there is no wgmma.
    enough = queries == usual.prefix_queries and capability >= 90
    return replace(usual, prefix_queries=queries, prefix_warps=usual.prefix_warps if enough else 8)


def _capability(device: torch.device) -> int:
    """Of a GPU, 90 for sm_90; the CPU under the interpreter stands for that."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * int(major) + int(minor)


def _programs_for(device: torch.device) -> int:
    """The multiprocessors of a GPU.

    Raises:
        ConfigError: the device is no GPU and Triton's interpreter is off.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    if INTERPRETED:
        return 8
    raise ConfigError(
        f"device={device}: must be a CUDA device, or the CPU with TRITON_INTERPRET=1 set before "
        "Triton is imported"
    )
