"""How SGLang comes to use our attention backend: the flag at launch, the registry in a scheduler.

SGLang decides many things by the name of the attention backend (Triton or torch for index
kernels, page sizes). So a server asked for `hexgen_shared_prefix` is told the name of the
engine's own backend below ours, and the scheduler process builds ours under that name.
"""

from __future__ import annotations

import argparse
import os
import sys

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.platforms import TORCH_CPU

SHARED_PREFIX = "hexgen_shared_prefix"
ATTENTION_BACKEND_FLAG = "--attention-backend"
TORCH_NATIVE = "torch_native"
TRITON = "triton"
_SCHEDULER = "sglang.srt.managers.scheduler"


def is_asked_for(args: argparse.Namespace) -> bool:
    """Whether the command line names our backend.

    Raises:
        ConfigError: it does, and this server would not run it.
    """
    if getattr(args, "attention_backend", None) != SHARED_PREFIX:
        return False
    engine_backend()
    if getattr(args, "hexgen_emulate", None) is not None:
        raise ConfigError(
            f"{ATTENTION_BACKEND_FLAG}={SHARED_PREFIX}: must not be combined with "
            "--hexgen-emulate, which computes no attention"
        )
    return True


def engine_backend() -> str:
    """Name of SGLang's backend below ours on this machine and platform.

    `triton` with a CUDA device; on the torch-CPU platform `torch_native`, or `triton` when
    Triton interprets its kernels, which is there to check on a CPU what GPUs would run.

    Raises:
        ConfigError: there is none.
    """
    platform = os.environ.get("SGLANG_PLATFORM", "")
    if platform == TORCH_CPU:
        return TRITON if os.environ.get("TRITON_INTERPRET") == "1" else TORCH_NATIVE
    if platform:
        raise ConfigError(
            f"{ATTENTION_BACKEND_FLAG}={SHARED_PREFIX}: does not run with SGLANG_PLATFORM="
            f"{platform}; allowed: {TORCH_CPU}, or unset with a CUDA device"
        )
    if not _has_cuda():
        raise ConfigError(
            f"{ATTENTION_BACKEND_FLAG}={SHARED_PREFIX}: PyTorch finds no CUDA device here; needed: "
            f"one, or SGLANG_PLATFORM={TORCH_CPU}"
        )
    return TRITON


def name_the_engines(args: argparse.Namespace) -> None:
    """Let SGLang settle everything as for the backend below ours."""
    args.attention_backend = engine_backend()


def register_in_scheduler() -> None:
    """Register in a scheduler process, before it builds its backends; elsewhere do nothing."""
    if _SCHEDULER in sys.modules:
        register()


def register() -> None:
    """Put our backend into SGLang's registry, under its own and under the engine's name."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    engine = engine_backend()
    make = _make_triton if engine == TRITON else _make_torch
    ATTENTION_BACKENDS[SHARED_PREFIX] = make
    ATTENTION_BACKENDS[engine] = make


def _has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None and torch.cuda.is_available()


def _make_torch(runner: object) -> object:
    from hexgen_sglang.plugin.attention.torch_cpu import TorchSharedPrefixBackend

    return TorchSharedPrefixBackend(runner)


def _make_triton(runner: object) -> object:
    from hexgen_sglang.plugin.attention.triton_gpu import TritonSharedPrefixBackend

    return TritonSharedPrefixBackend(runner)
