"""Hook of `SchedulerRequestReceiver`, in each scheduler process."""

from __future__ import annotations

from typing import Any

from hexgen_sglang.plugin.scheduler_process import this_process


def received(messages: list[Any] | None, receiver: Any) -> None:
    """AFTER _pull_raw_reqs: stamp new requests and add our commands to the list, in place."""
    this_process().received(receiver, messages)
