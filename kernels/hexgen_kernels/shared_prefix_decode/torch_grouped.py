"""Shared-prefix decode in plain torch: each shared segment is gathered and read once.

What the torch-CPU platform runs in SGLang's scheduler process, where attention is bound by
gathering KV from its slots. Same contract as the kernels, no workspaces, no graphs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hexgen_kernels.shared_prefix_decode.forest import PrefixForest
from hexgen_kernels.shared_prefix_decode.naive import slots_of


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    table_rows: Tensor,
    seq_lens: Tensor,
    forest: PrefixForest,
    sm_scale: float,
    page_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Decode attention of a batch whose rows share the segments of `forest`.

    Args:
        forest: of this batch: rows of a segment have equal `table` entries over it, and every
            row's `suffix_start` is at most its seq_len. Not checked (see `check_forest`).
        q, k_cache, v_cache, table, table_rows, seq_lens, sm_scale, page_size: as
            `naive.decode`, all on one device.

    Returns:
        out (batch, num_q_heads, head_size) in q's dtype, and lse (batch, num_q_heads) in the
        dtype of the computation: float64 for float64, otherwise float32.
    """
    state = _Running(q, k_cache.shape[1], sm_scale)
    lengths = seq_lens.tolist()
    which = table_rows.tolist()
    for segment in forest.segments:
        rows = forest.rows_of(segment)
        slots = slots_of(table[which[int(rows[0])]], segment.start, segment.end, page_size)
        state.add(torch.from_numpy(rows.astype(np.int64)).to(q.device), k_cache, v_cache, slots)
    for row, start in enumerate(forest.suffix_start.tolist()):
        slots = slots_of(table[which[row]], start, lengths[row], page_size)
        state.add(torch.tensor([row], device=q.device), k_cache, v_cache, slots)
    return state.out.flatten(1, 2).to(q.dtype), state.lse.flatten(1)


class _Running:
    """Attention over what was read so far, for every row: online softmax over segments.

    Attributes:
        out: (batch, num_kv_heads, queries a KV head, head_size), normalised.
        lse: the same without head_size; -inf where nothing was read.
    """

    def __init__(self, q: Tensor, num_kv_heads: int, sm_scale: float) -> None:
        batch, num_q_heads, head_size = q.shape
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        per_head = num_q_heads // num_kv_heads
        self.q = q.to(self.dtype).view(batch, num_kv_heads, per_head, head_size) * sm_scale
        self.out = torch.zeros_like(self.q)
        self.lse = self.q.new_full(self.q.shape[:3], -torch.inf)

    def add(self, rows: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        """Let `rows` (distinct) see the tokens in `slots`; none when there are no slots."""
        if slots.numel() == 0:
            return
        num_rows = rows.numel()
        num_kv_heads, per_head, head_size = self.q.shape[1:]
        queries = self.q[rows].transpose(0, 1).reshape(num_kv_heads, -1, head_size)
        keys = k_cache[slots].to(self.dtype).permute(1, 2, 0)
        values = v_cache[slots].to(self.dtype).transpose(0, 1)
        scores = torch.bmm(queries, keys)
        lse = torch.logsumexp(scores, dim=-1)
        out = torch.bmm(torch.exp(scores.sub_(lse[..., None])), values)
        lse = lse.view(num_kv_heads, num_rows, per_head).transpose(0, 1)
        out = out.view(num_kv_heads, num_rows, per_head, head_size).transpose(0, 1)
        before = self.lse[rows]
        total = torch.logaddexp(before, lse)
        weight_before = torch.exp(before - total)[..., None]
        weight = torch.exp(lse - total)[..., None]
        self.out[rows] = self.out[rows] * weight_before + out * weight
        self.lse[rows] = total
