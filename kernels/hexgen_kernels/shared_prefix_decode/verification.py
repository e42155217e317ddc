"""Judges an implementation of shared-prefix decode against `naive` in float64.

The same cases, poison and tolerances serve the tests, `kernels/bench/verify.py` and the check
that the speed bench makes before it times anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hexgen_kernels.shared_prefix_decode import naive
from hexgen_kernels.shared_prefix_decode.cases import Batch, Case, make_batch
from hexgen_kernels.shared_prefix_decode.forest import check_forest

# Largest |out - float64|: weights and outputs are rounded to the dtype, sums are in float32.
OUT_TOLERANCE = {"float64": 1e-12, "float32": 5e-6, "float16": 2e-3, "bfloat16": 2e-2}
# Scores are sums of exact products, in float32 or float64; their errors grow with the scores, and
# become relative errors of the weights.
SCORE_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}

Answer = tuple[Tensor, Tensor]
Implementation = Callable[[Batch], Iterable[Answer]]


@dataclass(frozen=True)
class Verdict:
    """How one case went.

    Attributes:
        case: which.
        out_error, lse_error: largest absolute differences from float64; NaN when any is NaN.
        ok: both are within their tolerance.
    """

    case: Case
    out_error: float
    lse_error: float

    @property
    def ok(self) -> bool:
        sharpness = max(1.0, self.case.sharpness)
        score_tolerance = SCORE_TOLERANCE[self.case.dtype]
        out_tolerance = OUT_TOLERANCE[self.case.dtype] + score_tolerance * (sharpness - 1)
        return self.out_error <= out_tolerance and self.lse_error <= score_tolerance * sharpness


def judge(case: Case, implementation: Implementation, device: str = "cpu") -> Verdict:
    """Run one case and compare every step of it.

    Args:
        case: the batch.
        implementation: given the batch, yields (out, lse) for each of the case's steps.
        device: where the batch is made.

    Raises:
        LawViolation: the case itself is wrong: its forest does not fit its table.
    """
    batch = make_batch(case, device)
    table = batch.table.cpu().numpy()[batch.table_rows.cpu().numpy()]
    rows = slice(0, batch.forest.batch)
    check_forest(batch.forest, table[rows], batch.seq_lens.cpu().numpy()[rows], case.page_size)
    out_error = lse_error = 0.0
    answers = list(implementation(batch))
    if len(answers) != case.steps:
        raise ValueError(f"{case}: {len(answers)} answers for {case.steps} steps")
    for step, (out, lse) in enumerate(answers):
        now = batch.at_step(step)
        want_out, want_lse = naive.decode(
            now.q, now.k_cache, now.v_cache, now.table, now.table_rows, now.seq_lens,
            now.sm_scale, case.page_size,
        )  # fmt: skip
        out_error = _worse(out_error, _difference(out, want_out))
        lse_error = _worse(lse_error, _difference(lse, want_lse))
    return Verdict(case, out_error, lse_error)


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; equal infinities do not differ. NaN if anything is NaN."""
    if found.shape != wanted.shape:
        return float("inf")
    if found.numel() == 0:
        return 0.0
    same = found.to(wanted.dtype) == wanted
    return float(torch.where(same, 0.0, (found.to(wanted.dtype) - wanted).abs()).max())


def _worse(one: float, other: float) -> float:
    return other if other > one or other != other else one
