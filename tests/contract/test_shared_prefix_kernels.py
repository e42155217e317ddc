"""The Triton kernels of shared-prefix decode under Triton's interpreter, and their refusals.

In processes of their own: Triton decides when it is first imported whether it interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)  # seconds on an idle core; the interpreter is slow
ROOT = Path(__file__).resolve().parents[2]
REFUSALS = """
import numpy as np, torch
from hexgen_kernels.shared_prefix_decode.decoder import SharedPrefixDecoder, Tiles
from hexgen_kernels.shared_prefix_decode.forest import Branch, forest_of, unshared
from hexgen_sglang.core.errors import ConfigError

model = dict(num_q_heads=4, num_kv_heads=2, head_size=64, dtype=torch.float16, device="cpu",
             max_batch=3, max_levels=2)
def refused(call, *words):
    try:
        call()
    except ConfigError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"accepted; should have named {words}")
def made(**changed):
    return lambda: SharedPrefixDecoder(**(model | changed))
refused(made(num_kv_heads=3), "num_kv_heads=3", "multiple")
refused(made(head_size=80), "head_size=80", "64")
refused(made(dtype=torch.float64), "dtype=torch.float64")
refused(made(page_size=0), "page_size=0")
refused(made(num_entries=8), "num_entries=8", "at least 9")
refused(made(max_batch=0), "max_batch=0")
refused(made(num_q_heads=64, num_kv_heads=1, tiles=Tiles(prefix_queries=32)), "64", "32")
refused(lambda: Tiles(suffix_tokens=48), "suffix_tokens=48", "power of two")
decoder = SharedPrefixDecoder(**model)
q = torch.zeros(3, 4, 64, dtype=torch.float16)
cache = torch.zeros(9, 2, 64, dtype=torch.float16)
table = torch.zeros(3, 9, dtype=torch.int32)
rows = torch.arange(3)
lens = torch.ones(3, dtype=torch.int32)
call = dict(q=q, k_cache=cache, v_cache=cache, table=table, table_rows=rows, seq_lens=lens,
            out=torch.empty_like(q), sm_scale=1.0)
def run(**changed):
    return lambda: decoder.run(**(call | changed))
refused(run(), "plan loaded is for None")
decoder.load(unshared(3))
run()()
refused(run(q=q.float()), "q", "float32")
refused(run(k_cache=cache[:, :1]), "k_cache")
refused(run(v_cache=cache.transpose(1, 2)), "v_cache")
refused(run(table=table.t()), "table", "contiguous")
refused(run(seq_lens=lens.to(torch.int16)), "seq_lens", "int16")
refused(run(table_rows=torch.arange(6)[::2]), "table_rows", "contiguous")
refused(lambda: decoder.load(unshared(4)), "batch=4", "3")
deep = forest_of(2, [Branch(1, (), (Branch(1, (), (Branch(1, (0, 1)),)),))])
refused(lambda: decoder.load(deep), "3 levels", "at most 2")
decoder.load(unshared(2))
refused(run(), "3 rows", "for 2")
print("all refused")
"""

REPLAYS = """
import torch
from recorded_launches import recorded
from hexgen_kernels.shared_prefix_decode import naive
from hexgen_kernels.shared_prefix_decode.cases import Case, make_batch
from hexgen_kernels.shared_prefix_decode.decoder import SharedPrefixDecoder
from hexgen_kernels.shared_prefix_decode.forest import Branch
from hexgen_kernels.shared_prefix_decode.kernel_check import SMALL_TILES

ROWS, SLOTS, WIDTH = 6, 900, 200
cases = [
    Case(name="capture", roots=(), suffix_lens=(1,) * 6, dtype="float16"),
    Case(name="one group", roots=(Branch(70, (4, 0, 2, 1)),), suffix_lens=(1, 33, 16, 40, 7),
         padding=1, dtype="float16", seed=1),
    Case(name="nested", roots=(Branch(30, (5,), (Branch(50, (0, 3)), Branch(9, (1, 4))),),),
         suffix_lens=(20, 1, 64, 0, 17, 2), dtype="float16", seed=2),
    Case(name="nothing shared", roots=(), suffix_lens=(100, 3), padding=4, dtype="float16", seed=3),
]
decoder = SharedPrefixDecoder(
    num_q_heads=8, num_kv_heads=1, head_size=64, dtype=torch.float16, device="cpu", max_batch=ROWS,
    target_programs=8, tiles=SMALL_TILES,
)
half = dict(dtype=torch.float16)
q, out = torch.zeros(ROWS, 8, 64, **half), torch.zeros(ROWS, 8, 64, **half)
k, v = torch.zeros(SLOTS, 1, 64, **half), torch.zeros(SLOTS, 1, 64, **half)
table = torch.zeros(ROWS + 2, WIDTH, dtype=torch.int32)
rows, lens = torch.zeros(ROWS, dtype=torch.int32), torch.zeros(ROWS, dtype=torch.int32)

def put(case):
    batch = make_batch(case)
    for buffer, value in ((q, batch.q), (table[: len(batch.table), : batch.table.shape[1]],
                          batch.table), (rows, batch.table_rows), (lens, batch.seq_lens)):
        buffer.copy_(value)
    for buffer, value in ((k, batch.k_cache), (v, batch.v_cache)):
        buffer.fill_(torch.nan)[: len(value)] = value
    decoder.load(batch.forest, batch=ROWS)
    for tensor in (out, decoder.partial_out, decoder.partial_lse, decoder.lse):
        tensor.fill_(torch.nan)

def run():
    with recorded() as launches:
        decoder.run(q, k, v, table, rows, lens, out, 0.125)
    return launches

def check():
    want, _ = naive.decode(q, k, v, table, rows, lens, 0.125)
    assert (out.double() - want).abs().max() < 2e-3
    return True

put(cases[0])
graph = run()
assert check() and [launch.name for launch in graph] == [
    "prefix_kernel", "suffix_kernel", "merge_kernel"]
for case in cases[1:]:
    put(case)
    for launch in graph:
        launch.run()
    check()
    put(case)
    assert [launch.fixed() for launch in run()] == [launch.fixed() for launch in graph], case
print("all replayed")
"""


STRIDES = """
import torch
from recorded_launches import recorded
from hexgen_kernels.shared_prefix_decode import naive
from hexgen_kernels.shared_prefix_decode.cases import Case, make_batch
from hexgen_kernels.shared_prefix_decode.decoder import SharedPrefixDecoder
from hexgen_kernels.shared_prefix_decode.forest import Branch
from hexgen_kernels.shared_prefix_decode.kernel_check import SMALL_TILES

case = Case(name="strides", roots=(Branch(70, (4, 0, 2, 1)),), suffix_lens=(1, 33, 16, 40, 7),
            dtype="float16")
batch = make_batch(case)
decoder = SharedPrefixDecoder(
    num_q_heads=8, num_kv_heads=1, head_size=64, dtype=torch.float16, device="cpu", max_batch=5,
    target_programs=8, tiles=SMALL_TILES,
)
decoder.load(batch.forest)
slots = len(batch.k_cache)

def spread(cache, stride):  # pages that nobody touches take no memory
    there = torch.empty((slots - 1) * stride + 64, dtype=torch.float16)
    spread = there.as_strided(cache.shape, (stride, 64, 1))
    spread.copy_(cache)
    return spread

want, _ = naive.decode(batch.q, batch.k_cache, batch.v_cache, batch.table, batch.table_rows,
                       batch.seq_lens, batch.sm_scale)
far = 2**31 // (slots - 1) + 1
for k_stride, v_stride, same, wide in (
    (64, 64, True, False), (64, 192, False, False), (192, 64, False, False),
    (far, far, True, True), (64, far, False, True), (far, 64, False, True),
):
    out = torch.full_like(batch.q, torch.nan)
    with recorded() as launches:
        decoder.run(batch.q, spread(batch.k_cache, k_stride), spread(batch.v_cache, v_stride),
                    batch.table, batch.table_rows, batch.seq_lens, out, batch.sm_scale)
    assert (out.double() - want).abs().max() < 2e-3, (k_stride, v_stride)
    for launch in launches[:2]:
        assert launch.constants["SAME_STRIDES"] is same and launch.constants["WIDE"] is wide
print("all strides")
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("kernels") / "verify.json"
    done = run_python("kernels/bench/verify.py", "--interpret", "--few", "--json", str(path))
    assert path.exists(), done.stderr[-3000:]
    return {"status": done.returncode, "stderr": done.stderr, **json.loads(path.read_text())}


def run_python(*arguments: str, interpret: bool = True) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1" if interpret else "0"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_every_case_agrees_with_float64(report: dict[str, Any]) -> None:
    assert report["failed_cases"] == []
    assert report["failed"] == report["status"] == 0
    assert report["cases"] >= 12
    assert set(report["max_abs_error_by_dtype"]) == {"float32", "float16", "bfloat16"}


def test_in_float32_only_rounding_is_left(report: dict[str, Any]) -> None:
    assert report["max_abs_error_by_dtype"]["float32"] < 5e-6
    assert report["max_abs_error"] == max(report["max_abs_error_by_dtype"].values())


def test_wrong_arguments_are_named() -> None:
    done = run_python("-c", REFUSALS)
    assert done.stdout.strip() == "all refused", done.stderr[-3000:]


def test_a_captured_launch_serves_every_grouping_of_its_batch_size() -> None:
    done = run_python("-c", REPLAYS)
    assert done.stdout.strip() == "all replayed", done.stderr[-3000:]


def test_keys_and_values_may_lie_differently_and_far_apart() -> None:
    done = run_python("-c", STRIDES)
    assert done.stdout.strip() == "all strides", done.stderr[-3000:]


def test_they_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    path = tmp_path / "compiled.json"
    done = run_python("kernels/bench/compile.py", "--json", str(path), interpret=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {(row["kernel"], row["capability"]): row for row in json.loads(path.read_text())}
    assert len(rows) == 6
    for (kernel, _), row in rows.items():
        assert row["spilled_bytes"] <= 64, row
        assert (row["matrix_instruction"] is None) == (kernel == "merge_kernel"), row
    assert rows["prefix_kernel", 90]["matrix_instruction"] == "wgmma"


@pytest.mark.parametrize("script", ["verify.py", "speed.py", "serving.py"])
def test_without_a_gpu_the_benches_say_so(script: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run_python(f"kernels/bench/{script}", interpret=False)
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert "Traceback" not in done.stderr
