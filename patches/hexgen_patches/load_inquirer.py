"""Hook of `SchedulerLoadInquirer`, in each scheduler process of a server with a coordinator."""

from __future__ import annotations

from typing import Any

from hexgen_sglang.plugin.scheduler_process import this_process


def load_known(snapshot: Any, inquirer: Any) -> None:
    """AFTER get_loads: report what SGLang has just computed."""
    telemetry = this_process().telemetry
    if telemetry is not None:
        telemetry.load(snapshot)
