"""Hook of `SenderWrapper`, in each scheduler process of a server with a coordinator.

With SGLang's Rust front (SGLANG_RUST_SERVER) abort notices take another way: requests that are
aborted in the queue are not reported there.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import AbortReq

from hexgen_sglang.plugin.scheduler_process import this_process


def sent(result: None, sender: Any, output: Any, recv_obj: Any = None) -> None:
    """AFTER send_output: an abort notice for a request is the request's end."""
    telemetry = this_process().telemetry
    if telemetry is not None and isinstance(output, AbortReq) and hasattr(recv_obj, "time_stats"):
        telemetry.ended(recv_obj, aborted=True)
