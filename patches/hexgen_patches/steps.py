"""Hooks of `Scheduler` around each step, in each scheduler process of a server with a link."""

from __future__ import annotations

import time
from typing import Any

from hexgen_sglang.plugin.scheduler_process import this_process


def before_batch(
    scheduler: Any, batch: Any, *args: Any, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """BEFORE run_batch: the step is launched."""
    process = this_process()
    if process.ahead is not None:
        process.ahead.launched(batch.reqs)
    if process.timer is not None:
        process.timer.launched(batch, time.perf_counter())
    return (scheduler, batch, *args), kwargs


def after_results(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER process_batch_result: the step has ended."""
    process = this_process()
    if process.timer is None or process.telemetry is None:
        return
    now_s = time.perf_counter()
    process.timer.ended(now_s)
    process.telemetry.steps(process.timer.news(now_s))
