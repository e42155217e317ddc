"""The Triton kernels of shared-prefix decode; `decoder` launches them and owns their buffers.

Two kernels write partial results, normalised over the tokens that they read: `prefix_kernel` one
for each part of a shared segment and row, `suffix_kernel` one for each part of a row's own
tokens. `merge_kernel` weighs a row's partials into its output. Loaded only where Triton is.

Common to all: workspace offsets are computed in 64 bits, those of KV slots too where the cache
needs it, everything else in 32; `lse` in the workspace is to base 2. A position beyond a range is
masked in the key and the value load, so that what lies in unused slots, NaN included, reaches no
result.
"""

import triton
import triton.language as tl

# Annotations stay objects here: Triton's interpreter compares them with its own types.


@triton.jit
def _pages_at(pages_ptr, positions, end, PAGE_SIZE: tl.constexpr):
    """Page index of each position before `end`, and page 0 beyond it."""
    return tl.load(pages_ptr + positions // PAGE_SIZE, mask=positions < end, other=0)


@triton.jit
def _attend_block(
    q,
    k_ptr,
    v_ptr,
    pages,
    positions,
    end,
    best,
    total,
    acc,
    stride_k_slot,
    stride_v_slot,
    scale,
    PAGE_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    WIDE: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of positions in the online softmax: the new (best, total, acc).

    pages: page index of each position. MASKED: some positions are `end` or beyond. The others as
    for `_attend`.
    """
    dims = tl.arange(0, HEAD_SIZE)
    if WIDE:
        slots = pages.to(tl.int64) * PAGE_SIZE + positions % PAGE_SIZE
    else:
        slots = pages.to(tl.int32) * PAGE_SIZE + positions % PAGE_SIZE
    # Keys lie in the tile as values do, so that equal strides need one set of addresses.
    k_offsets = slots[:, None] * stride_k_slot + dims[None, :]
    v_offsets = k_offsets if SAME_STRIDES else slots[:, None] * stride_v_slot + dims[None, :]
    if MASKED:
        inside = positions < end
        k = tl.load(k_ptr + k_offsets, mask=inside[:, None], other=0.0)
        v = tl.load(v_ptr + v_offsets, mask=inside[:, None], other=0.0)
    else:
        k = tl.load(k_ptr + k_offsets)
        v = tl.load(v_ptr + v_offsets)
    if UPCAST:
        scores = tl.dot(q.to(tl.float32), tl.trans(k).to(tl.float32), input_precision="ieee")
    else:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    scores *= scale
    if MASKED:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    shrink = tl.exp2(best - new_best)
    weights = tl.exp2(scores - new_best[:, None])
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    if UPCAST:
        rounded = weights.to(v.dtype).to(tl.float32)
        acc += tl.dot(rounded, v.to(tl.float32), input_precision="ieee")
    else:
        acc += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _attend(
    q,
    k_ptr,
    v_ptr,
    pages_ptr,
    start,
    end,
    stride_k_slot,
    stride_v_slot,
    scale,
    PAGE_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Online softmax of a tile of queries over positions [start, end), start < end.

    q: (BLOCK_M, HEAD_SIZE). k_ptr, v_ptr: slot 0 of one KV head, whose head elements are next
    to each other. pages_ptr: page index of position 0 of the sequence. scale: sm_scale * log2 e.
    SAME_STRIDES: stride_v_slot is stride_k_slot. WIDE: offsets of slots need 64 bits.
    UPCAST: multiply as float32, for the interpreter, which knows no product of bfloat16.
    Returns the normalised output (BLOCK_M, HEAD_SIZE) float32 and its base-2 lse (BLOCK_M,).
    """
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, HEAD_SIZE], 0.0, tl.float32)
    # Page indices are loaded a block ahead: loads of keys and values then wait for no other load.
    pages = _pages_at(pages_ptr, start + tl.arange(0, BLOCK_N), end, PAGE_SIZE)
    whole = start + (end - start) // BLOCK_N * BLOCK_N
    for first in range(start, whole, BLOCK_N):
        positions = first + tl.arange(0, BLOCK_N)
        now = pages
        pages = _pages_at(pages_ptr, positions + BLOCK_N, end, PAGE_SIZE)
        best, total, acc = _attend_block(
            q, k_ptr, v_ptr, now, positions, end, best, total, acc, stride_k_slot, stride_v_slot,
            scale, PAGE_SIZE, HEAD_SIZE, SAME_STRIDES, WIDE, False, UPCAST,
        )  # fmt: skip
    if whole < end:
        best, total, acc = _attend_block(
            q, k_ptr, v_ptr, pages, whole + tl.arange(0, BLOCK_N), end, best, total, acc,
            stride_k_slot, stride_v_slot, scale, PAGE_SIZE, HEAD_SIZE, SAME_STRIDES, WIDE, True,
            UPCAST,
        )  # fmt: skip
    return acc / total[:, None], best + tl.log2(total)


@triton.jit
def prefix_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    table_rows_ptr,
    order_ptr,
    items_ptr,
    num_items_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    batch,
    num_q_heads,
    stride_q_row,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    stride_v_slot,
    stride_v_head,
    stride_table_row,
    scale,
    QUERIES_PER_KV_HEAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Parts of shared segments: one tile holds the queries of several rows of one KV head.

    Grid (programs, num_kv_heads), any number of programs: they share the items out in turn. The
    number of items is read from the device, so one captured launch serves every plan. No item
    is empty.
    """
    kv_head = tl.program_id(1)
    in_tile = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_SIZE)
    head = kv_head * QUERIES_PER_KV_HEAD + in_tile % QUERIES_PER_KV_HEAD
    num_items = tl.load(num_items_ptr)
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        item_ptr = items_ptr + item * 6
        representative = tl.load(item_ptr)
        start = tl.load(item_ptr + 1)
        end = tl.load(item_ptr + 2)
        place = tl.load(item_ptr + 3) + in_tile // QUERIES_PER_KV_HEAD
        num_rows = tl.load(item_ptr + 4)
        slot = tl.load(item_ptr + 5)
        is_query = in_tile // QUERIES_PER_KV_HEAD < num_rows
        row = tl.load(order_ptr + place, mask=is_query, other=0).to(tl.int64)
        q = tl.load(
            q_ptr + row[:, None] * stride_q_row + head[:, None] * stride_q_head + dims[None, :],
            mask=is_query[:, None],
            other=0.0,
        )
        table_row = tl.load(table_rows_ptr + representative).to(tl.int64)
        out, lse = _attend(
            q,
            k_ptr + kv_head * stride_k_head,
            v_ptr + kv_head * stride_v_head,
            table_ptr + table_row * stride_table_row,
            start,
            end,
            stride_k_slot,
            stride_v_slot,
            scale,
            PAGE_SIZE,
            HEAD_SIZE,
            BLOCK_M,
            BLOCK_N,
            SAME_STRIDES,
            WIDE,
            UPCAST,
        )
        entry = (slot * batch + row) * num_q_heads + head
        tl.store(
            partial_out_ptr + entry[:, None] * HEAD_SIZE + dims[None, :],
            out,
            mask=is_query[:, None],
        )
        tl.store(partial_lse_ptr + entry, lse, mask=is_query)


@triton.jit
def _suffix_part(num_tokens, num_splits, MULTIPLE: tl.constexpr):
    """Tokens in each part of a suffix (the last may have fewer), a multiple of MULTIPLE."""
    return tl.cdiv(tl.cdiv(num_tokens, num_splits), MULTIPLE) * MULTIPLE


@triton.jit
def suffix_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    table_rows_ptr,
    seq_lens_ptr,
    suffix_start_ptr,
    suffix_slot_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    batch,
    num_q_heads,
    num_splits,
    stride_q_row,
    stride_q_head,
    stride_k_slot,
    stride_k_head,
    stride_v_slot,
    stride_v_head,
    stride_table_row,
    scale,
    QUERIES_PER_KV_HEAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    SAME_STRIDES: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A row's own tokens, cut into parts: grid (batch, num_kv_heads, num_splits).

    With suffix_start 0 everywhere this is split-KV decode without sharing. A part beyond the
    suffix writes nothing; `merge_kernel` knows by the same arithmetic that it is not there.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    suffix_start = tl.load(suffix_start_ptr + row)
    end = tl.load(seq_lens_ptr + row).to(tl.int32)
    part = _suffix_part(end - suffix_start, num_splits, MIN_CHUNK)
    part_start = suffix_start + split * part
    part_end = tl.minimum(part_start + part, end)
    if part_start < part_end:
        in_tile = tl.arange(0, BLOCK_M)
        dims = tl.arange(0, HEAD_SIZE)
        head = kv_head * QUERIES_PER_KV_HEAD + in_tile
        is_query = in_tile < QUERIES_PER_KV_HEAD
        q = tl.load(
            q_ptr + row * stride_q_row + head[:, None] * stride_q_head + dims[None, :],
            mask=is_query[:, None],
            other=0.0,
        )
        table_row = tl.load(table_rows_ptr + row).to(tl.int64)
        out, lse = _attend(
            q,
            k_ptr + kv_head * stride_k_head,
            v_ptr + kv_head * stride_v_head,
            table_ptr + table_row * stride_table_row,
            part_start,
            part_end,
            stride_k_slot,
            stride_v_slot,
            scale,
            PAGE_SIZE,
            HEAD_SIZE,
            BLOCK_M,
            BLOCK_N,
            SAME_STRIDES,
            WIDE,
            UPCAST,
        )
        slot = tl.load(suffix_slot_ptr + row) + split
        entry = (slot * batch + row) * num_q_heads + head
        tl.store(
            partial_out_ptr + entry[:, None] * HEAD_SIZE + dims[None, :],
            out,
            mask=is_query[:, None],
        )
        tl.store(partial_lse_ptr + entry, lse, mask=is_query)


@triton.jit
def merge_kernel(
    partial_out_ptr,
    partial_lse_ptr,
    seq_lens_ptr,
    suffix_start_ptr,
    suffix_slot_ptr,
    out_ptr,
    lse_ptr,
    batch,
    num_q_heads,
    num_splits,
    stride_out_row,
    stride_out_head,
    HEAD_SIZE: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Weigh the partials of one row and query head: grid (batch, num_q_heads).

    Reads slots 0 to the last one that was written. A row without tokens gets zeros and -inf.
    lse is stored as the natural logarithm, (batch, num_q_heads) float32, contiguous.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, HEAD_SIZE)
    suffix_tokens = tl.load(seq_lens_ptr + row).to(tl.int32) - tl.load(suffix_start_ptr + row)
    num_slots = tl.load(suffix_slot_ptr + row)
    if suffix_tokens > 0:
        num_slots += tl.cdiv(suffix_tokens, _suffix_part(suffix_tokens, num_splits, MIN_CHUNK))
    best = float("-inf")
    total = 0.0
    acc = tl.full([HEAD_SIZE], 0.0, tl.float32)
    for first in range(0, num_slots, BLOCK_SLOTS):
        slots = first + tl.arange(0, BLOCK_SLOTS)
        is_slot = slots < num_slots
        entry = (slots * batch + row) * num_q_heads + head
        lse = tl.load(partial_lse_ptr + entry, mask=is_slot, other=float("-inf"))
        part = tl.load(
            partial_out_ptr + entry[:, None] * HEAD_SIZE + dims[None, :],
            mask=is_slot[:, None],
            other=0.0,
        )
        new_best = tl.maximum(best, tl.max(lse, 0))
        safe_best = tl.where(new_best == float("-inf"), 0.0, new_best)
        shrink = tl.exp2(best - safe_best)
        weights = tl.exp2(lse - safe_best)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * part, 0)
        best = new_best
    total = tl.where(total == 0.0, 1.0, total)
    out = acc / total
    out_ptrs = out_ptr + row * stride_out_row + head * stride_out_head + dims
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + row * num_q_heads + head, (best + tl.log2(total)) * 0.6931471805599453)
