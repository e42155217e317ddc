"""How fast shared-prefix decode is on this machine's GPU, beside what else there is.

    python kernels/bench/speed.py --json kernels/bench/results/NAME.json

First the cases of `verify.py --few` are judged on the GPU, and then each system's output at each
shape against float64: on any disagreement nothing is timed and the exit status is 1. A time is the
median of many CUDA graph replays, each over so many layers that no layer's KV is still in cache,
divided by the layers. Rates are the KV bytes that must be read (the prefix once) over that time,
and stand beside the rate of a large copy, read plus written bytes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from hexgen_kernels.gpu import require_gpu
from hexgen_sglang.core.errors import ConfigError, LawViolation

BATCHES, PREFIXES, SUFFIXES = (1, 8, 32, 128, 256), (1024, 4096, 8192, 16384), (64, 1024, 2048)
HEADS = ((64, 8), (32, 8), (8, 1))  # 8:1, 4:1, and 8:1 as one of eight tensor-parallel ranks
TARGET = (32, 8192, 1024, 64, 8)
CHECKED_ROWS = 3
WARM_UP, REPEATS = 5, 50


def main() -> int:
    """Check, measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="store_true", help="only the shape with a target")
    for name, values in (("batches", BATCHES), ("prefixes", PREFIXES), ("suffixes", SUFFIXES)):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values, help=str(values))
    parser.add_argument("--tune", action="store_true", help="try block sizes on that shape first")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    if min(*args.batches, *args.prefixes, *args.suffixes) < 1:
        parser.error("--batches, --prefixes, --suffixes: must be at least 1")
    try:
        device = require_gpu()
    except ConfigError as error:
        parser.error(str(error))
    checked = check_kernels()
    tiles, tuning = tune() if args.tune else (None, [])
    copy_rate = copy_bytes_per_s()
    shapes = product(args.batches, args.prefixes, args.suffixes, HEADS)
    points = [TARGET] if args.target else [(b, p, s, *h) for b, p, s, h in shapes]
    results: list[dict[str, Any]] = []
    report = {
        "device": device,
        "versions": versions("flashinfer-python"),
        "command": " ".join(["python", *sys.argv]),
        "cases_checked": checked,
        "copy_bytes_per_s": copy_rate,
        "tiles": str(tiles or "default"),
        "tuning": tuning,
        "results": results,
    }
    for point in points:
        results.append(measure(point, tiles, copy_rate))
        print(line(results[-1]), flush=True)
        if args.json is not None:  # after each shape, so that a run cut short leaves its figures
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def check_kernels() -> int:
    """Judge the kernels on this GPU; returns how many cases.

    Raises:
        SystemExit: with status 1 when a case failed; the reason is printed.
    """
    from verify import verify

    report = verify("cuda", few=True)
    if report["failed"]:
        print("not timed: the kernels are wrong here", *report["failed_cases"], sep="\n")
        sys.exit(1)
    return int(report["cases"])


def versions(*others: str) -> dict[str, str]:
    """Of everything that the figures depend on: Python, CUDA, PyTorch, Triton and others."""
    import importlib.metadata

    import torch

    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in ("torch", "triton", *others):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def copy_bytes_per_s() -> float:
    """Bytes read plus bytes written each second by a kernel that negates 2 GiB into others.

    A captured `copy_` is a memcpy node, which is slower than a kernel: 2.8 beside 4.2 TB/s on an
    H200 (driver 580, CUDA 13.0).
    """
    import torch

    source = torch.ones(2**29, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    seconds = timed(lambda: torch.neg(source, out=target))
    return float(2 * source.nbytes / seconds)


def timed(call: Callable[[], Any]) -> float:
    """Median seconds of one replay of `call`, captured in a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    seconds: list[float] = []
    for repeat in range(WARM_UP + REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= WARM_UP:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def measure(point: tuple[int, ...], tiles: Any, copy_rate: float) -> dict[str, Any]:
    """Every system at one shape.

    What FlashInfer refuses is left out with its reason.

    Raises:
        LawViolation: a system's output is not that of float64.
    """
    import torch
    from speed_systems import Shape, TimedBatch, systems

    shape = Shape(*point)
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    num_layers = min(16, max(2, -(-4 * l2_bytes // shape.least_bytes)))
    batch = TimedBatch(shape, num_layers, torch.bfloat16)
    found: dict[str, Any] = {}
    for name, prepare in systems(batch, tiles).items():
        if isinstance(prepare, str):
            found[name] = {"skipped": prepare}
            continue
        try:
            call = prepare()
            check_output(name, batch, call)
            seconds = timed(functools.partial(run_layers, call, num_layers))
        except RuntimeError as error:
            if not name.startswith("flashinfer"):
                raise
            found[name] = {"skipped": str(error)}
            continue
        rate = shape.least_bytes * num_layers / seconds
        found[name] = {
            "microseconds": seconds / num_layers * 1e6,
            "least_bytes_per_s": rate,
            "share_of_copy": rate / copy_rate,
        }
        del call
        torch.cuda.empty_cache()
    return {"shape": vars(shape), "least_bytes": shape.least_bytes, "systems": found}


def run_layers(call: Callable[[int], None], num_layers: int) -> None:
    """One decode step's attention."""
    for layer in range(num_layers):
        call(layer)


def check_output(name: str, batch: Any, call: Callable[[int], None]) -> None:
    """Compare some rows of the first and last layer with float64, over a poisoned output.

    Raises:
        LawViolation: names the system, the shape and the error.
    """
    import torch
    from speed_systems import row_answer

    from hexgen_kernels.shared_prefix_decode.verification import OUT_TOLERANCE

    rows = sorted({0, batch.shape.batch // 2, batch.shape.batch - 1})[:CHECKED_ROWS]
    for layer in (0, len(batch.layers) - 1):
        batch.out.fill_(torch.nan)
        call(layer)
        for row in rows:
            error = float((batch.out[row].double() - row_answer(batch, layer, row)).abs().max())
            if not error <= OUT_TOLERANCE["bfloat16"]:
                raise LawViolation(f"{name} at {batch.shape}: row {row} is off by {error}")


def tune() -> tuple[Any, list[dict[str, Any]]]:
    """The fastest block sizes at the target shape, and the time of each that compiled."""
    import torch
    import triton
    from speed_systems import Shape, TimedBatch, ours

    from hexgen_kernels.shared_prefix_decode.decoder import Tiles

    batch = TimedBatch(Shape(*TARGET), 4, torch.bfloat16)
    tried: list[tuple[float, Tiles]] = []
    rows: list[dict[str, Any]] = []
    options = product((32, 64, 128), (32, 64, 128), (32, 64), (4, 8), (2, 3, 4))
    for queries, tokens, suffix_tokens, warps, stages in options:
        tiles = Tiles(
            prefix_queries=queries, prefix_tokens=tokens, suffix_tokens=suffix_tokens,
            prefix_warps=warps, prefix_stages=stages, suffix_stages=stages,
        )  # fmt: skip
        try:
            call = ours(batch, batch.forest, tiles, overlap=True)
            check_output(str(tiles), batch, call)
        except triton.runtime.errors.OutOfResources as error:
            rows.append({"tiles": str(tiles), "skipped": str(error)})
            continue
        seconds = timed(functools.partial(run_layers, call, 4))
        tried.append((seconds / 4, tiles))
        rows.append({"tiles": str(tiles), "microseconds": seconds / 4 * 1e6})
    best = min(tried, key=lambda one: one[0])
    return best[1], rows


def line(result: dict[str, Any]) -> str:
    """One row of the printed table."""
    shape = result["shape"]
    head = "batch {batch:4d}  prefix {prefix:6d}  suffix {suffix:5d}  heads ".format(**shape)
    cells = [
        f"{name} {found['microseconds']:.1f} us ({found['share_of_copy']:.0%})"
        if "microseconds" in found
        else f"{name} -"
        for name, found in result["systems"].items()
    ]
    return f"{head}{shape['num_q_heads']}:{shape['num_kv_heads']}  " + "  ".join(cells)


if __name__ == "__main__":
    sys.exit(main())
