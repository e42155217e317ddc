"""Hooks of `Scheduler`, in each scheduler process of a server with our policy or a link."""

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


def around_prefill(choose: Callable[[Any, Any], Any], scheduler: Any, running_batch: Any) -> Any:
    """AROUND get_new_batch_prefill: what is held back meanwhile returns to the queue."""
    holds = this_process().holds
    if not holds:
        return choose(scheduler, running_batch)
    in_progress = _in_progress(scheduler)
    # Chunks of a prompt follow each other: nothing can be held back for decodes meanwhile.
    running = running_batch.reqs if scheduler.chunked_req is None else ()
    for hold in holds:
        hold.begin(in_progress, running)
    try:
        return choose(scheduler, running_batch)
    finally:
        held = [req for hold in holds for req in hold.give_back()]
        if held:
            scheduler.waiting_queue = held + scheduler.waiting_queue


def _in_progress(scheduler: Any) -> list[Any]:
    """Requests whose prompts are being computed, and not in the prefix cache yet."""
    last = scheduler.last_batch if scheduler.enable_overlap else None
    requests = list(last.reqs) if last is not None and last.forward_mode.is_extend() else []
    if scheduler.chunked_req is not None:
        requests.append(scheduler.chunked_req)
    return requests
