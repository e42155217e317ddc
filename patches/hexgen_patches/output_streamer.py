"""Hook of `SchedulerOutputStreamer`, in each scheduler process of a server with a coordinator."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT

from hexgen_sglang.plugin.scheduler_process import this_process


def streamed(result: None, streamer: Any, reqs: list[Any], *args: Any, **kwargs: Any) -> None:
    """AFTER stream_output: report the requests among `reqs` that this was the end of."""
    telemetry = this_process().telemetry
    if telemetry is None:
        return
    for req in reqs:
        reason = req.finished_reason
        if reason is not None:
            telemetry.ended(req, aborted=isinstance(reason, FINISH_ABORT))
