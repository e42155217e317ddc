"""The decode implementations that `speed.py` compares, over one timed batch on a GPU.

Each is prepared outside of the timing and then called once a layer; all read the same KV pool by
token index, except PyTorch's SDPA, which is given contiguous copies.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hexgen_kernels.shared_prefix_decode.decoder import SharedPrefixDecoder, Tiles
from hexgen_kernels.shared_prefix_decode.forest import Branch, PrefixForest, forest_of, unshared

Call = Callable[[int], None]  # runs one layer into the batch's output
WORKSPACE_BYTES = 256 * 2**20
MAX_GATHERED_BYTES = 24 * 2**30


@dataclass(frozen=True)
class Shape:
    """One point of the sweep: `batch` rows share `prefix` tokens and have `suffix` of their own."""

    batch: int
    prefix: int
    suffix: int
    num_q_heads: int
    num_kv_heads: int
    head_size: int = 128

    @property
    def token_bytes(self) -> int:
        """K and V of one token, in a 16-bit dtype."""
        return 2 * self.num_kv_heads * self.head_size * 2

    @property
    def least_bytes(self) -> int:
        """KV bytes that a step must read in one layer: the prefix once, each suffix once."""
        return (self.prefix + self.batch * self.suffix) * self.token_bytes

    @property
    def unshared_bytes(self) -> int:
        """KV bytes read in one layer when every row reads its prefix itself."""
        return self.batch * (self.prefix + self.suffix) * self.token_bytes


class TimedBatch:
    """Inputs of one shape on the GPU, with KV of several layers in shuffled slots.

    Attributes:
        q, out: (batch, num_q_heads, head_size).
        layers: (K cache, V cache) of each layer, (num_slots, num_kv_heads, head_size).
        table, table_rows, seq_lens: as `SharedPrefixDecoder.run` takes them.
        forest: one segment over all rows.
    """

    def __init__(self, shape: Shape, num_layers: int, dtype: torch.dtype, seed: int = 0) -> None:
        self.shape, self.dtype = shape, dtype
        chance = torch.Generator("cuda").manual_seed(seed)
        gpu: dict[str, Any] = {"device": "cuda", "generator": chance}
        num_slots = shape.prefix + shape.batch * shape.suffix
        slots = torch.randperm(num_slots, **gpu).to(torch.int32)
        shared = slots[: shape.prefix].expand(shape.batch, -1)
        own = slots[shape.prefix :].view(shape.batch, shape.suffix)
        self.table = torch.cat((shared, own), dim=1).contiguous()
        self.table_rows = torch.arange(shape.batch, device="cuda")
        length = shape.prefix + shape.suffix
        self.seq_lens = torch.full((shape.batch,), length, dtype=torch.int64, device="cuda")
        kv_shape = (num_slots, shape.num_kv_heads, shape.head_size)
        self.layers = [
            (torch.randn(kv_shape, dtype=dtype, **gpu), torch.randn(kv_shape, dtype=dtype, **gpu))
            for _ in range(num_layers)
        ]
        self.q = torch.randn(shape.batch, shape.num_q_heads, shape.head_size, dtype=dtype, **gpu)
        self.out = torch.empty_like(self.q)
        self.sm_scale = shape.head_size**-0.5
        rows = tuple(range(shape.batch))
        self.forest = forest_of(shape.batch, [Branch(shape.prefix, rows)])


def ours(batch: TimedBatch, forest: PrefixForest, tiles: Tiles | None, overlap: bool) -> Call:
    """Our kernels over a forest; over `unshared` they read as an engine without sharing does."""
    shape = batch.shape
    decoder = SharedPrefixDecoder(
        num_q_heads=shape.num_q_heads,
        num_kv_heads=shape.num_kv_heads,
        head_size=shape.head_size,
        dtype=batch.dtype,
        device="cuda",
        max_batch=shape.batch,
        tiles=tiles,
        overlap=overlap,
    )
    decoder.load(forest)

    def call(layer: int) -> None:
        decoder.run(
            batch.q, *batch.layers[layer], batch.table, batch.table_rows, batch.seq_lens,
            batch.out, batch.sm_scale,
        )  # fmt: skip

    return call


def flashinfer_decode(batch: TimedBatch) -> Call:
    """FlashInfer's batch decode over page size 1, with tensor cores; nothing is shared."""
    import flashinfer

    shape = batch.shape
    length = shape.prefix + shape.suffix
    int32: dict[str, Any] = {"dtype": torch.int32, "device": "cuda"}
    indptr = torch.arange(shape.batch + 1, **int32) * length
    last_page = torch.ones(shape.batch, **int32)
    indices = batch.table.flatten().contiguous()
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=indptr.clone(),
        paged_kv_indices_buffer=indices.clone(),
        paged_kv_last_page_len_buffer=last_page.clone(),
    )
    wrapper.plan(
        indptr, indices, last_page, shape.num_q_heads, shape.num_kv_heads, shape.head_size, 1,
        q_data_type=batch.dtype, kv_data_type=batch.dtype, sm_scale=batch.sm_scale,
    )  # fmt: skip

    def call(layer: int) -> None:
        k, v = batch.layers[layer]
        wrapper.run(batch.q, (k[:, None], v[:, None]), out=batch.out)

    return call


def flashinfer_cascade(batch: TimedBatch) -> Call:
    """FlashInfer's two-level cascade over page size 1."""
    import flashinfer

    shape = batch.shape
    int32: dict[str, Any] = {"dtype": torch.int32, "device": "cuda"}
    queries = [torch.tensor([0, shape.batch], **int32), torch.arange(shape.batch + 1, **int32)]
    indptr = [
        torch.tensor([0, shape.prefix], **int32),
        torch.arange(shape.batch + 1, **int32) * shape.suffix,
    ]
    indices = [
        batch.table[0, : shape.prefix].contiguous(),
        batch.table[:, shape.prefix :].flatten().contiguous(),
    ]
    last_page = [torch.ones(1, **int32), torch.ones(shape.batch, **int32)]
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(
        2,
        torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"),
        "NHD",
        use_cuda_graph=True,
        qo_indptr_buf_arr=[tensor.clone() for tensor in queries],
        paged_kv_indptr_buf_arr=[tensor.clone() for tensor in indptr],
        paged_kv_indices_buf_arr=[tensor.clone() for tensor in indices],
        paged_kv_last_page_len_buf_arr=[tensor.clone() for tensor in last_page],
    )
    wrapper.plan(
        queries, indptr, indices, last_page, shape.num_q_heads, shape.num_kv_heads,
        shape.head_size, 1, sm_scale=batch.sm_scale, q_data_type=batch.dtype,
        kv_data_type=batch.dtype,
    )  # fmt: skip

    def call(layer: int) -> None:
        k, v = batch.layers[layer]
        batch.out.copy_(wrapper.run(batch.q, (k[:, None], v[:, None])))

    return call


def torch_sdpa(batch: TimedBatch) -> Call:
    """PyTorch's SDPA over KV gathered into contiguous tensors beforehand, not timed."""
    slots = batch.table.to(torch.int64)
    gathered = [
        tuple(cache[slots].transpose(1, 2).contiguous() for cache in layer)
        for layer in batch.layers
    ]

    def call(layer: int) -> None:
        k, v = gathered[layer]
        out = torch.nn.functional.scaled_dot_product_attention(
            batch.q[:, :, None], k, v, scale=batch.sm_scale, enable_gqa=True
        )
        batch.out.copy_(out[:, :, 0])

    return call


def systems(batch: TimedBatch, tiles: Tiles | None) -> dict[str, Callable[[], Call] | str]:
    """How to prepare each system, or why it cannot run here."""
    shape = batch.shape
    table: dict[str, Callable[[], Call] | str] = {
        "shared": lambda: ours(batch, batch.forest, tiles, overlap=True),
        "shared, one stream": lambda: ours(batch, batch.forest, tiles, overlap=False),
        "unshared": lambda: ours(batch, unshared(shape.batch), tiles, overlap=False),
    }
    if importlib.util.find_spec("flashinfer") is None:
        table["flashinfer decode"] = table["flashinfer cascade"] = "flashinfer is not installed"
    else:
        table["flashinfer decode"] = lambda: flashinfer_decode(batch)
        table["flashinfer cascade"] = lambda: flashinfer_cascade(batch)
    needed = shape.unshared_bytes * len(batch.layers)
    if needed > MAX_GATHERED_BYTES:
        table["torch sdpa"] = f"contiguous copies would take {needed / 2**30:.0f} GiB"
    else:
        table["torch sdpa"] = lambda: torch_sdpa(batch)
    return table


def row_answer(batch: TimedBatch, layer: int, row: int) -> Tensor:
    """One row's output in float64, (num_q_heads, head_size)."""
    from hexgen_kernels.shared_prefix_decode import naive

    one = slice(row, row + 1)
    out, _ = naive.decode(
        batch.q[one], *batch.layers[layer], batch.table, batch.table_rows[one],
        batch.seq_lens[one], batch.sm_scale,
    )  # fmt: skip
    return out[0]
