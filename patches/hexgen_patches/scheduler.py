"""Hooks of `Scheduler`, in each scheduler process of a server with a coordinator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hexgen_sglang.plugin import self_check
from hexgen_sglang.plugin.scheduler_process import this_process


def before_input(scheduler: Any, recv_reqs: list[Any]) -> tuple[tuple[Any, list[Any]], dict]:
    """BEFORE process_input_requests: apply our commands, leave SGLang its own messages."""
    return (scheduler, this_process().before_input(scheduler, recv_reqs)), {}


def around_event_loop(run_event_loop: Callable[[Any], None], scheduler: Any) -> None:
    """AROUND run_event_loop: the link lasts as long as the loop."""
    self_check.require_loaded_hooks()
    process = this_process()
    process.start_link(scheduler)
    try:
        run_event_loop(scheduler)
    finally:
        process.stop_link("the scheduler's loop ended")
