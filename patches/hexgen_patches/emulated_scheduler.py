"""Hooks of `Scheduler`, in the scheduler process of a server that emulates an accelerator."""

from __future__ import annotations

from typing import Any

from hexgen_sglang.plugin.emulation.accelerator import this_accelerator
from hexgen_sglang.protocol.emulation import STATE_FIELD


def after_idle(result: None, scheduler: Any) -> None:
    """AFTER on_idle: until now there was nothing to run."""
    this_accelerator(scheduler.server_args.model_path).idle()


def after_internal_state(result: Any, scheduler: Any, recv_req: Any) -> Any:
    """AFTER get_internal_state: add the run's summary to what GET /server_info shows."""
    summary = this_accelerator(scheduler.server_args.model_path).summary()
    result.internal_state[STATE_FIELD] = summary
    return result
