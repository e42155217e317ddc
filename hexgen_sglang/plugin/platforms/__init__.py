"""Platforms on which SGLang runs with us: the entry points of `sglang.srt.platforms`.

SGLang calls each entry function in every one of its processes while it looks for its device.
The functions here answer only when they are asked for, so that plain SGLang is unchanged by our
being installed. They import nothing: SGLang loads the named class itself.
"""

from __future__ import annotations

import os
import sys

TORCH_CPU = "hexgen_torch_cpu"
EMULATE_FLAG = "--hexgen-emulate"


def torch_cpu() -> str | None:
    """Dotted path of the torch-CPU platform.

    None unless `SGLANG_PLATFORM` names it, or the command line asks for an emulated
    accelerator: SGLang looks for its platform before it parses its command line.
    """
    emulates = any(
        argument == EMULATE_FLAG or argument.startswith(f"{EMULATE_FLAG}=") for argument in sys.argv
    )
    if not emulates and os.environ.get("SGLANG_PLATFORM") != TORCH_CPU:
        return None
    return "hexgen_sglang.plugin.platforms.torch_cpu.TorchCpuPlatform"
