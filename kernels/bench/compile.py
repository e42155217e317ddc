"""Compile the kernels of shared-prefix decode for GPUs that are not there.

    python kernels/bench/compile.py --json FILE

Triton brings NVIDIA's assembler, so this needs no GPU and no driver. For each kernel and compute
capability it says how much shared memory and how many registers the default block sizes take,
what spilled, and which matrix instructions they became. It says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHARED_BYTES = {80: 166_912, 90: 232_448}  # most that one block may have, by capability
POINTERS = {
    "q_ptr": "*bf16", "k_ptr": "*bf16", "v_ptr": "*bf16", "out_ptr": "*bf16",
    "partial_out_ptr": "*fp32", "partial_lse_ptr": "*fp32", "lse_ptr": "*fp32",
    "table_rows_ptr": "*i64", "seq_lens_ptr": "*i64", "scale": "fp32",
}  # fmt: skip


def main() -> int:
    """Compile, print and write; exit status 1 when something does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head-size", type=int, choices=(64, 128), default=128)
    parser.add_argument("--queries-per-kv-head", type=int, default=8)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    rows = [
        row
        for capability in sorted(SHARED_BYTES)
        for row in compiled(capability, args.head_size, args.queries_per_kv_head)
    ]
    print(json.dumps(rows, indent=2))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["fits"] for row in rows) else 1


def compiled(capability: int, head_size: int, queries_per_kv_head: int) -> list[dict[str, Any]]:
    """One row for each kernel with the default block sizes, bfloat16 and page size 1."""
    from hexgen_kernels.shared_prefix_decode import triton_kernels as kernels
    from hexgen_kernels.shared_prefix_decode.decoder import MERGE_SLOTS, MERGE_WARPS, tiles_for

    tiles = tiles_for(queries_per_kv_head, capability)
    model = {
        "QUERIES_PER_KV_HEAD": queries_per_kv_head, "PAGE_SIZE": 1, "HEAD_SIZE": head_size,
        "SAME_STRIDES": True, "WIDE": False, "UPCAST": False,
    }  # fmt: skip
    prefix = {"BLOCK_M": tiles.prefix_queries, "BLOCK_N": tiles.prefix_tokens}
    suffix = {"BLOCK_M": 16, "BLOCK_N": tiles.suffix_tokens, "MIN_CHUNK": tiles.min_chunk}
    merge = {"HEAD_SIZE": head_size, "MIN_CHUNK": tiles.min_chunk, "BLOCK_SLOTS": MERGE_SLOTS}
    return [
        _row(kernel, constants, warps, stages, capability)
        for kernel, constants, warps, stages in (
            (kernels.prefix_kernel, model | prefix, tiles.prefix_warps, tiles.prefix_stages),
            (kernels.suffix_kernel, model | suffix, tiles.suffix_warps, tiles.suffix_stages),
            (kernels.merge_kernel, merge, MERGE_WARPS, 3),
        )
    ]


def _row(
    kernel: Any, constants: dict[str, Any], warps: int, stages: int, capability: int
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    types = {
        name: POINTERS.get(name, "*i32" if name.endswith("_ptr") else "i32") for name in names
    } | dict.fromkeys(constants, "constexpr")
    # What torch's allocator and contiguous layouts give, and Triton sees at a launch.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name.endswith("_ptr") or name.startswith("stride")
    }
    source = ASTSource(
        kernel, types, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    built = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    ptx = built.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "capability": capability,
        "shared_bytes": built.metadata.shared,
        "fits": built.metadata.shared <= SHARED_BYTES[capability],
        "matrix_instruction": next((i for i in ("wgmma", "mma.sync") if i in ptx), None),
        "copies_asynchronously": "cp.async" in ptx,
        **_assembled(ptx, capability),
    }


def _assembled(ptx: str, capability: int) -> dict[str, int]:
    """Registers of a thread, and bytes spilled, as NVIDIA's assembler reports them."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        arch = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        done = subprocess.run(
            [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={arch}", str(source), "-o",
             str(Path(folder) / "kernel.cubin")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    used = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert used is not None, done.stderr
    assert spilled is not None, done.stderr
    return {"registers": int(used[1]), "spilled_bytes": int(spilled[1])}


if __name__ == "__main__":
    sys.exit(main())
