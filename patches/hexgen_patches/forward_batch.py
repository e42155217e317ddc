"""Hook of `ForwardBatch`, in each scheduler process whose attention on a GPU shares prefixes."""

from __future__ import annotations

from typing import Any

from hexgen_sglang.plugin.attention.batch_requests import note


def made(forward_batch: Any, cls: type, batch: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER init_new: remember whose rows the forward pass has."""
    note(batch, forward_batch)
