"""Our attention backend over SGLang's own batches and KV pools, beside SGLang's backends.

In processes of their own, on the torch-CPU platform: over `torch_native`, and over `triton` as
Triton interprets it. A whole server is in tests/integration.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hexgen_patches.declarations import Need
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.plugin.attention.registration import (
    SHARED_PREFIX,
    is_asked_for,
    name_the_engines,
    register_in_scheduler,
)
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.entry import needs_of
from hexgen_sglang.plugin.flags import add_flags, config_from

STEPS = Path(__file__).with_name("triton_attention_steps.py")

COMPARE = """
import json
from types import SimpleNamespace as Plain
import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from hexgen_sglang.plugin.attention.registration import register

register()
Q_HEADS, KV_HEADS, SIZE, LAYERS = 8, 2, 64, 2
torch.manual_seed(3)
pools = dict(
    req_to_token_pool=ReqToTokenPool(8, 3000, "cpu", enable_memory_saver=False),
    token_to_kv_pool=MHATokenToKVPool(
        6000, page_size=1, dtype=torch.float32, head_num=KV_HEADS, head_dim=SIZE,
        layer_num=LAYERS, device="cpu", enable_memory_saver=False,
    ),
)
runner = Plain(device="cpu", **pools)
ours, native = ATTENTION_BACKENDS["hexgen_shared_prefix"](runner), TorchNativeAttnBackend(runner)
assert type(ATTENTION_BACKENDS["torch_native"](runner)) is type(ours)
kv, table = pools["token_to_kv_pool"], pools["req_to_token_pool"].req_to_token
for layer in range(LAYERS):
    for buffer in (kv.get_key_buffer(layer), kv.get_value_buffer(layer)):
        buffer.copy_(torch.randn_like(buffer))
free = torch.randperm(5999) + 1
taken = 0
def slots(count):
    global taken
    taken += count
    return free[taken - count : taken].to(torch.int32)
def prefill(row, *parts):
    tokens = torch.cat(parts)
    table[row, : len(tokens)] = tokens
    lengths[row] = len(tokens)
    batch = Plain(forward_mode=ForwardMode.EXTEND, req_pool_indices=torch.tensor([row]),
                  seq_lens=torch.tensor([len(tokens)]), out_cache_loc=None)
    ours.init_forward_metadata(batch)
def layer_of(index, **changed):
    fields = dict(
        layer_id=index, tp_q_head_num=Q_HEADS, tp_k_head_num=KV_HEADS, tp_v_head_num=KV_HEADS,
        qk_head_dim=SIZE, v_head_dim=SIZE, head_dim=SIZE, scaling=SIZE**-0.5, logit_cap=0.0,
        is_cross_attention=False, sliding_window_size=-1, k_scale=None, v_scale=None,
    )
    return Plain(**(fields | changed))
def decode(rows, **changed):
    for row in rows:
        table[row, lengths[row]] = slots(1)
        lengths[row] += 1
    indices = torch.tensor(rows)
    batch = Plain(
        forward_mode=ForwardMode.DECODE, req_pool_indices=indices, encoder_lens=None,
        seq_lens=torch.tensor([lengths[row] for row in rows]),
        out_cache_loc=torch.stack([table[row, lengths[row] - 1] for row in rows]).long(),
    )
    worst = 0.0
    ours.init_forward_metadata(batch)
    native.init_forward_metadata(batch)
    for index in range(LAYERS):
        q = torch.randn(len(rows), Q_HEADS * SIZE)
        k, v = torch.randn(2, len(rows), KV_HEADS, SIZE)
        layer = layer_of(index, **changed)
        found = ours.forward_decode(q, k, v, layer, batch)
        wanted = native.forward_decode(q, k, v, layer, batch)
        worst = max(worst, float((found - wanted).abs().max()))
    return worst

lengths = {}
template, schema = slots(900), slots(1200)
errors = []
for row in (5, 1, 3):
    prefill(row, template, schema, slots(20 + row))
prefill(2, template, slots(64))
prefill(7, slots(300))
errors += [decode([5, 1, 7, 3, 2]) for _ in range(3)]
saved = ours.shared.tokens_saved
assert saved == 3 * (3 * 900 + 2 * 1200), saved
# Row 5 goes to another request with another prompt; row 7 leaves; 3 is retracted and comes back.
prefill(5, slots(400))
prefill(3, template, schema, slots(40))
errors += [decode([1, 2, 5, 3]) for _ in range(2)]
assert ours.shared.tokens_saved - saved == 2 * (2 * 900 + 1200), ours.shared.tokens_saved - saved
errors.append(decode([1, 3], sliding_window_size=50))
errors.append(decode([5, 2]))
names = {"/".join(key): count for key, count in ours.shared.steps.items()}
print("found:" + json.dumps({"errors": errors, "steps": names}))
"""


def run(*arguments: str, **environment: str) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"SGLANG_PLATFORM": "hexgen_torch_cpu", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.rpartition("found:")[2]))


@pytest.fixture(scope="module")
def on_triton() -> dict[str, Any]:
    """What was found in each scenario of `triton_attention_steps.py`."""
    found = run(str(STEPS), str(make_tiny_model()), TRITON_INTERPRET="1")
    for scenario in found.values():
        assert max(scenario["errors"]) < 2e-6, scenario  # NaN is not below either
    return found


@pytest.mark.timeout(300)
def test_it_agrees_with_torch_native_while_requests_come_and_go() -> None:
    found = run("-c", COMPARE)
    assert max(found["errors"]) < 1e-5
    assert found["steps"] == {
        "hexgen_shared_prefix/shared": 10,
        "torch_native/sliding_window": 2,
        "torch_native/nothing_worth_sharing": 2,
    }


@pytest.mark.timeout(300)  # 25 s on an idle core, with the fixture
def test_over_triton_it_is_right_while_requests_come_and_go(on_triton: dict[str, Any]) -> None:
    assert on_triton["come_and_go"]["steps"] == {
        "hexgen_shared_prefix/shared": 14,
        "triton/nothing_worth_sharing": 2,
    }


def test_over_triton_it_is_right_when_results_come_a_step_late(on_triton: dict[str, Any]) -> None:
    assert on_triton["late_results"]["steps"]["hexgen_shared_prefix/shared"] == 6


def test_over_triton_namespaces_share_nothing(on_triton: dict[str, Any]) -> None:
    assert on_triton["namespaces"]["saved"] == [80]


def test_over_triton_one_captured_graph_serves_every_grouping(on_triton: dict[str, Any]) -> None:
    assert on_triton["graphs"]["steps"] == {
        "hexgen_shared_prefix/shared": 10,
        "hexgen_shared_prefix/nothing_worth_sharing": 4,
    }


def test_over_triton_what_is_not_covered_is_sglangs_and_counted(on_triton: dict[str, Any]) -> None:
    assert on_triton["left_to_sglang"]["steps"] == {
        "triton/scores": 4,
        "triton/no_groups_known": 2,
        "triton/deterministic": 2,
        "hexgen_shared_prefix/shared": 2,
    }


@pytest.mark.parametrize(
    ("platform", "interpret", "cuda", "engine"),
    [
        ("hexgen_torch_cpu", "0", False, "torch_native"),
        ("hexgen_torch_cpu", "1", False, "triton"),
        ("hexgen_torch_cpu", "0", True, "torch_native"),
        (None, "0", True, "triton"),
    ],
)
def test_which_of_sglangs_backends_is_below(
    monkeypatch: pytest.MonkeyPatch, platform: str | None, interpret: str, cuda: bool, engine: str
) -> None:
    set_up(monkeypatch, platform, interpret, cuda)
    args = argparse.Namespace(attention_backend=SHARED_PREFIX, schedule_policy="fcfs")
    assert is_asked_for(args)
    needs = needs_of(PluginConfig(shared_prefix=True))
    assert (Need.PREFIX_GROUPS in needs) == (engine == "triton")
    name_the_engines(args)
    assert args.attention_backend == engine


@pytest.mark.parametrize(
    ("platform", "words"),
    [(None, "no CUDA device.*SGLANG_PLATFORM=hexgen_torch_cpu"), ("other", "=other; allowed: ")],
)
def test_it_is_refused_where_it_would_not_run(
    monkeypatch: pytest.MonkeyPatch, platform: str | None, words: str
) -> None:
    set_up(monkeypatch, platform, "1", cuda=platform is not None)
    with pytest.raises(ConfigError, match=words):
        is_asked_for(argparse.Namespace(attention_backend=SHARED_PREFIX))
    assert not is_asked_for(argparse.Namespace(attention_backend="triton"))


def test_it_is_refused_with_an_emulated_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, "hexgen_torch_cpu", "0", cuda=False)
    asked = argparse.Namespace(attention_backend=SHARED_PREFIX, hexgen_emulate="a.toml")
    with pytest.raises(ConfigError, match="--hexgen-emulate"):
        is_asked_for(asked)


def set_up(
    monkeypatch: pytest.MonkeyPatch, platform: str | None, interpret: str, cuda: bool
) -> None:
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    if platform is not None:
        monkeypatch.setenv("SGLANG_PLATFORM", platform)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)


def test_the_command_line_takes_its_name_and_sglang_gets_one_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_PLATFORM", "hexgen_torch_cpu")
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule-policy", choices=["fcfs"], default="fcfs")
    parser.add_argument("--attention-backend", choices=["torch_native", "triton"])
    add_flags(parser)
    args = parser.parse_args(["--attention-backend", SHARED_PREFIX])
    assert config_from(args) == PluginConfig(shared_prefix=True)
    name_the_engines(args)
    assert args.attention_backend == "torch_native"
    assert config_from(parser.parse_args(["--attention-backend", "triton"])) is None


def test_outside_of_a_scheduler_nothing_is_loaded() -> None:
    before = set(sys.modules)
    if "sglang.srt.managers.scheduler" in before:
        pytest.skip("another test of this run has loaded SGLang's scheduler")
    register_in_scheduler()
    assert set(sys.modules) == before
