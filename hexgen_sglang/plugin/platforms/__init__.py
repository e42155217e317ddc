"""Platforms on which SGLang runs with us: the entry points of `sglang.srt.platforms`.

SGLang calls each entry function in every one of its processes while it looks for its device.
The functions here answer only when `SGLANG_PLATFORM` names them, so that plain SGLang is
unchanged by our being installed. They import nothing: SGLang loads the named class itself.
"""

from __future__ import annotations

import os

TORCH_CPU = "hexgen_torch_cpu"


def torch_cpu() -> str | None:
    """Dotted path of the torch-CPU platform, or None unless `SGLANG_PLATFORM` names it."""
    if os.environ.get("SGLANG_PLATFORM") != TORCH_CPU:
        return None
    return "hexgen_sglang.plugin.platforms.torch_cpu.TorchCpuPlatform"
