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
ENGINE_BACKEND = "torch_native"
_SCHEDULER = "sglang.srt.managers.scheduler"


def is_asked_for(args: argparse.Namespace) -> bool:
    """Whether the command line names our backend.

    Raises:
        ConfigError: it does, and this server would not run it.
    """
    if getattr(args, "attention_backend", None) != SHARED_PREFIX:
        return False
    if os.environ.get("SGLANG_PLATFORM") != TORCH_CPU:
        raise ConfigError(
            f"{ATTENTION_BACKEND_FLAG}={SHARED_PREFIX}: runs only with SGLANG_PLATFORM="
            f"{TORCH_CPU} so far; other platforms: one of SGLang's own backends"
        )
    if getattr(args, "hexgen_emulate", None) is not None:
        raise ConfigError(
            f"{ATTENTION_BACKEND_FLAG}={SHARED_PREFIX}: must not be combined with "
            "--hexgen-emulate, which computes no attention"
        )
    return True


def name_the_engines(args: argparse.Namespace) -> None:
    """Let SGLang settle everything as for the backend below ours."""
    args.attention_backend = ENGINE_BACKEND


def register_in_scheduler() -> None:
    """Register in a scheduler process, before it builds its backends; elsewhere do nothing."""
    if _SCHEDULER in sys.modules:
        register()


def register() -> None:
    """Put our backend into SGLang's registry, under its own and under the engine's name."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    ATTENTION_BACKENDS[SHARED_PREFIX] = _make
    ATTENTION_BACKENDS[ENGINE_BACKEND] = _make


def _make(runner: object) -> object:
    from hexgen_sglang.plugin.attention.shared_prefix import SharedPrefixBackend

    return SharedPrefixBackend(runner)
