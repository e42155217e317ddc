"""Hook of `TpModelWorker`, in the scheduler process of a server that emulates an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hexgen_sglang.plugin.emulation.accelerator import this_accelerator


def forward(original: Callable[..., Any], worker: Any, batch: Any, **kwargs: Any) -> Any:
    """AROUND forward_batch_generation, without calling it: the batch's time passes instead."""
    return this_accelerator(worker.server_args.model_path).forward(batch)
