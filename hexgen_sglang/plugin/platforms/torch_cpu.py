"""A platform for trying things out: SGLang on a CPU with plain torch and no compiled kernels.

Loaded in SGLang's processes when `SGLANG_PLATFORM=hexgen_torch_cpu`. Scheduler, radix cache, KV
accounting and HTTP are SGLang's own; matrices are multiplied by torch, attention is
`torch_native`. Correct for dense attention models of moderate size; speed is no aim, and
nothing here is meant for GPUs.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class _DeclaresNothing:
    """SGLang that asks an out-of-tree platform only for what differs from its own classes."""


class _NamesEveryClass:
    """SGLang (at least 0.5.17 to 0.5.20) in which an out-of-tree platform names each class.

    Hands out SGLang's own; MLA and DSA models are refused there with NotImplementedError.
    """

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_paged_allocator_cls(self) -> Any:
        return _token_allocator


def _token_allocator(size: int, *, page_size: int, **rest: Any) -> Any:
    """SGLang's allocator of single KV slots, called with the paged allocator's arguments.

    Raises ValueError when `page_size` is not 1: the paged allocator of these versions launches
    Triton kernels, which need a GPU.
    """
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    if page_size != 1:
        raise ValueError(f"--page-size {page_size}: hexgen_torch_cpu allows only 1 here")
    return TokenToKVPoolAllocator(size, **rest)


_Classes = _DeclaresNothing if hasattr(SRTPlatform, "get_kv_pool_cls") else _NamesEveryClass


class TorchCpuPlatform(_Classes, CpuDeviceMixin, SRTPlatform):  # type: ignore[misc, valid-type]
    """The host's CPU as an out-of-tree platform, without graphs, Triton or FP8.

    Declared out of tree although SGLang knows CPUs, because its own CPU platform needs a build
    of `sgl_kernel` that is on no package registry. Capabilities are SGLang's defaults: none.
    """

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Compute in float32 unless `--dtype` says otherwise, with the only attention there is.

        `auto` would choose bfloat16 or float16, for which CPUs without AMX have no fast
        matrix product: float16 took 8 times as long over a prompt of 256 tokens. SGLang's
        attention for CPUs needs the same missing build of `sgl_kernel` as its platform.
        """
        if server_args.dtype == "auto":
            server_args.dtype = "float32"
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = self.get_default_attention_backend()

    def get_default_attention_backend(self) -> str:
        return "torch_native"
