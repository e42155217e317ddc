"""Callers of the coordinator: the workflow tag helper and the SGLang frontend backend.

Importing this package, `Workflow` or `CoordinatorClient` never loads SGLang or torch;
touching `HexgenEndpoint` or `workflow_of` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hexgen_sglang.client.coordinator import CoordinatorClient
from hexgen_sglang.client.tags import Workflow

if TYPE_CHECKING:
    from hexgen_sglang.client.frontend import HexgenEndpoint, workflow_of

_NEED_SGLANG = ("HexgenEndpoint", "workflow_of")

__all__ = ["CoordinatorClient", "HexgenEndpoint", "Workflow", "workflow_of"]


def __getattr__(name: str) -> Any:
    """Load the parts that need SGLang only when they are touched."""
    if name in _NEED_SGLANG:
        return getattr(importlib.import_module("hexgen_sglang.client.frontend"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
