"""What the benches of the kernels ask about the GPU of this machine."""

from __future__ import annotations

from hexgen_sglang.core.errors import ConfigError


def require_gpu() -> str:
    """Name of the GPU that kernels run on.

    Raises:
        ConfigError: there is none, or this PyTorch cannot use it.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"device: no GPU that PyTorch {torch.__version__} can use; needed: a CUDA device"
        )
    return str(torch.cuda.get_device_name())
