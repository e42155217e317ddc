"""The torch-CPU platform: absent unless asked for, and what SGLang makes of it when it is.

That servers generate on it is shown by every test in tests/integration.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.plugin.platforms import torch_cpu

SETTLE = """
import json, sys
from sglang.srt.server_args import prepare_server_args
from sglang.srt.platforms import current_platform as platform
settled = {}
for name, extra in json.loads(sys.argv[2]).items():
    args = prepare_server_args(["--model-path", sys.argv[1], "--device", "cpu", *extra])
    args.resolve_once()
    resolved = args.resolved_dict()
    settled[name] = [resolved["dtype"], resolved["attention_backend"]]
facts = [type(platform).__name__, platform.is_out_of_tree(), platform.is_cuda_alike()]
print("settled:" + json.dumps({"platform": facts, "args": settled}))
"""


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (None, None),
        ("", None),
        ("some_other_platform", None),
        ("hexgen_torch_cpu", "hexgen_sglang.plugin.platforms.torch_cpu.TorchCpuPlatform"),
    ],
)
def test_it_answers_only_to_its_name(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, found: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch_server"])
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    if chosen is not None:
        monkeypatch.setenv("SGLANG_PLATFORM", chosen)
    assert torch_cpu() == found


@pytest.mark.timeout(240)
def test_sglang_settles_on_float32_and_torch_attention_unless_told_otherwise() -> None:
    asked = {"plain": [], "bfloat16": ["--dtype", "bfloat16"]}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", SETTLE, str(make_tiny_model()), json.dumps(asked)],
        env=env | {"SGLANG_PLATFORM": "hexgen_torch_cpu", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settled = json.loads(done.stdout.rpartition("settled:")[2])
    assert settled["platform"] == ["TorchCpuPlatform", True, False]
    assert settled["args"] == {
        "plain": ["float32", "torch_native"],
        "bfloat16": ["bfloat16", "torch_native"],
    }
