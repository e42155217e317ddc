"""Runs the Triton kernels on a verification case, with everything they may write poisoned.

Needs Triton, on a GPU or under its interpreter; apart from `verification` so that the rest can
be checked without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hexgen_kernels.shared_prefix_decode.cases import Batch
from hexgen_kernels.shared_prefix_decode.decoder import SharedPrefixDecoder, Tiles
from hexgen_kernels.shared_prefix_decode.forest import unshared
from hexgen_kernels.shared_prefix_decode.verification import Answer
from hexgen_sglang.core.errors import LawViolation

# Tiles so small that little cases have several of everything.
SMALL_TILES = Tiles(
    prefix_queries=16, prefix_tokens=32, suffix_tokens=16, min_chunk=32, prefix_warps=4
)
GUARD_ROWS = 2


class KernelCheck:
    """The kernels as an `Implementation` for `verification.judge`.

    Args:
        tiles: block sizes to check.
        target_programs: as for `SharedPrefixDecoder`; None takes its default.
        shared: False runs the same batch without its forest.
    """

    def __init__(
        self, tiles: Tiles = SMALL_TILES, target_programs: int | None = None, shared: bool = True
    ) -> None:
        self.tiles, self.target_programs, self.shared = tiles, target_programs, shared

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Answers for each step of the case: one plan, workspaces full of NaN before each.

        Raises:
            LawViolation: something outside of the output was written.
        """
        case = batch.case
        decoder = SharedPrefixDecoder(
            num_q_heads=case.num_q_heads,
            num_kv_heads=case.num_kv_heads,
            head_size=case.head_size,
            dtype=batch.q.dtype,
            device=batch.q.device,
            max_batch=len(batch.q) + 1,
            page_size=case.page_size,
            target_programs=self.target_programs,
            tiles=self.tiles,
        )
        forest = batch.forest if self.shared else unshared(batch.forest.batch)
        decoder.load(forest, batch=len(batch.q))
        rows = len(batch.q)
        guarded = batch.q.new_full((rows + 2 * GUARD_ROWS, *batch.q.shape[1:]), torch.nan)
        out = guarded[GUARD_ROWS:-GUARD_ROWS]
        for step in range(case.steps):
            now = batch.at_step(step)
            for tensor in (guarded, decoder.partial_out, decoder.partial_lse, decoder.lse):
                tensor.fill_(torch.nan)
            lse = decoder.run(
                now.q, now.k_cache, now.v_cache, now.table, now.table_rows, now.seq_lens, out,
                now.sm_scale,
            )  # fmt: skip
            around = torch.cat((guarded[:GUARD_ROWS], guarded[-GUARD_ROWS:]))
            if not (around.isnan().all() and decoder.lse[rows:].isnan().all()):
                raise LawViolation(f"{case}: written outside of the output")
            yield out.clone(), lse.clone()
