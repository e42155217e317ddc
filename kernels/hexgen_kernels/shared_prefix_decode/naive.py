"""What shared-prefix decode must compute, in plain PyTorch: the truth for every other version.

`decode` ignores all sharing. `attend` and `merge` are the two halves that every grouped version
is made of, written as formulas. Any device, any floating dtype; use float64 to judge others.
Speed is no aim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def slots_of(table_row: Tensor, start: int, end: int, page_size: int) -> Tensor:
    """KV slots of the positions [start, end) of one sequence.

    Args:
        table_row: (max pages,) integers: page index of positions [i * page_size, ...). With
            page_size 1 these are SGLang's token indices (a row of `req_to_token`).
        start, end: 0 <= start <= end <= max pages * page_size.
        page_size: tokens a page, at least 1.

    Returns:
        (end - start,) int64: page * page_size + position % page_size.
    """
    positions = torch.arange(start, end, device=table_row.device)
    pages = table_row[positions // page_size].to(torch.int64)
    return pages * page_size + positions % page_size


def attend(q: Tensor, k: Tensor, v: Tensor, sm_scale: float) -> tuple[Tensor, Tensor]:
    """Attention of queries over a set of keys, and the weight of that set.

    Args:
        q: (num_queries, num_q_heads, head_size).
        k, v: (num_tokens, num_kv_heads, head_size); num_q_heads is a multiple of num_kv_heads,
            and query head h reads KV head h // (num_q_heads / num_kv_heads). No mask: every
            query sees every token. num_tokens may be 0.
        sm_scale: factor on the scores before the softmax.

    Returns:
        out (num_queries, num_q_heads, head_size), zeros over no token; and
        lse (num_queries, num_q_heads), the natural logarithm of the sum of exp(score), -inf
        over no token.
    """
    num_q_heads, num_kv_heads = q.shape[1], k.shape[1]
    keys = k.repeat_interleave(num_q_heads // num_kv_heads, dim=1)
    values = v.repeat_interleave(num_q_heads // num_kv_heads, dim=1)
    scores = torch.einsum("qhd,thd->qht", q, keys) * sm_scale
    if k.shape[0] == 0:
        return torch.zeros_like(q), scores.new_full(q.shape[:2], -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.einsum("qht,thd->qhd", torch.exp(scores - lse[..., None]), values), lse


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over a union of disjoint sets from the attention over each of them.

    Args:
        parts: at least one (out, lse) as `attend` returns them, all for the same queries.

    Returns:
        (out, lse) over the union: the parts' outputs weighted with exp(lse - lse of the union).
        Zeros and -inf for a query whose parts are all empty.
    """
    lses = torch.stack([lse for _, lse in parts])
    total = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - torch.where(total == -torch.inf, 0.0, total))
    out = torch.stack([out for out, _ in parts])
    return (weights[..., None] * out).sum(dim=0), total


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    table_rows: Tensor,
    seq_lens: Tensor,
    sm_scale: float,
    page_size: int = 1,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Decode attention without any sharing: row b's query over its own seq_lens[b] tokens.

    Args:
        q: (batch, num_q_heads, head_size), one query token for each row.
        k_cache, v_cache: (num_slots, num_kv_heads, head_size), any strides; slots that no row
            uses may hold anything, NaN included.
        table: (num_table_rows, max pages) int32 or int64, as `slots_of`; entries beyond a
            sequence may hold anything.
        table_rows: (batch,) integers, the row of `table` of each row of the batch (SGLang's
            `req_pool_indices`); several rows of the batch may name the same one.
        seq_lens: (batch,) integers >= 0.
        sm_scale: as `attend`.
        page_size: as `slots_of`.
        dtype: everything is converted to it first.

    Returns:
        out (batch, num_q_heads, head_size) and lse (batch, num_q_heads), in `dtype`.
    """
    outs, lses = [], []
    for row in range(q.shape[0]):
        table_row = table[int(table_rows[row])]
        slots = slots_of(table_row, 0, int(seq_lens[row]), page_size)
        out, lse = attend(
            q[row : row + 1].to(dtype), k_cache[slots].to(dtype), v_cache[slots].to(dtype), sm_scale
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)
