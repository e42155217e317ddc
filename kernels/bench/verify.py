"""Hold the kernels of shared-prefix decode against float64, on a GPU or under the interpreter.

    python kernels/bench/verify.py --interpret --json FILE

The JSON has `cases`, `failed` and `max_abs_error` (over all cases), the largest error of each
dtype, and the failed cases by name. The exit status is 1 when a case failed. Without
`--interpret` it needs a GPU, where it also checks the default block sizes and KV slots that
lie beyond 2**31 elements.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hexgen_kernels.gpu import require_gpu
from hexgen_sglang.core.errors import ConfigError


def main() -> int:
    """Parse, verify, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpret", action="store_true", help="Triton's interpreter, on a CPU")
    parser.add_argument("--few", action="store_true", help="only the cases that the tests run")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        try:
            require_gpu()
        except ConfigError as error:
            parser.error(f"{error}; on a CPU: --interpret")
    report = verify("cpu" if args.interpret else "cuda", args.few)
    print(json.dumps(report, indent=2))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if report["failed"] else 0


def verify(device: str, few: bool) -> dict[str, Any]:
    """Judge every case; the report that is written.

    Triton must not have been imported before TRITON_INTERPRET was set.
    """
    import torch
    import triton

    from hexgen_kernels.shared_prefix_decode import kernel_check
    from hexgen_kernels.shared_prefix_decode.cases import all_cases, few_cases
    from hexgen_kernels.shared_prefix_decode.decoder import Tiles
    from hexgen_kernels.shared_prefix_decode.verification import judge

    began_s = time.monotonic()
    cases = few_cases() if few else all_cases()
    small = kernel_check.KernelCheck(target_programs=8)
    verdicts = [judge(case, small, device) for case in cases]
    if device == "cuda":
        default = kernel_check.KernelCheck(Tiles())
        verdicts += [judge(case, default, device) for case in cases]
        far = next(case for case in few_cases() if case.dtype == "float16" and case.roots)
        verdicts.append(judge(replace(far, name="far slots"), FarSlots(default), device))
    failed = [verdict for verdict in verdicts if not verdict.ok]
    by_dtype = {
        dtype: largest(v.out_error for v in verdicts if v.case.dtype == dtype)
        for dtype in sorted({verdict.case.dtype for verdict in verdicts})
    }
    return {
        "cases": len(verdicts),
        "failed": len(failed),
        "max_abs_error": largest(v.out_error for v in verdicts),
        "max_abs_error_by_dtype": by_dtype,
        "failed_cases": [f"{v.case}: out {v.out_error}, lse {v.lse_error}" for v in failed],
        "seconds": round(time.monotonic() - began_s, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter",
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        },
        "command": " ".join(["python", *sys.argv]),
    }


def largest(errors: Iterable[float]) -> float | None:
    """The largest error; None, as JSON has no word for it, when one is NaN or infinite."""
    known = list(errors)
    return max(known) if all(math.isfinite(error) for error in known) else None


class FarSlots:
    """An implementation run on caches whose used slots lie beyond 2**31 elements."""

    def __init__(self, implementation: Any) -> None:
        self.implementation = implementation

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Move the case's KV to the end of a large cache, and its page table with it."""
        elements_a_page = batch.case.page_size * batch.k_cache[0].numel()
        pages = 2**31 // elements_a_page + 1
        first = pages * batch.case.page_size
        caches = []
        for cache in (batch.k_cache, batch.v_cache):
            large = cache.new_empty(first + len(cache), *cache.shape[1:])
            large[first:] = cache
            caches.append(large)
        far = replace(batch, k_cache=caches[0], v_cache=caches[1], table=batch.table + pages)
        return iter(self.implementation(far))


if __name__ == "__main__":
    sys.exit(main())
