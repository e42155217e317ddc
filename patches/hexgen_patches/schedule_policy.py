"""Subclass of `SchedulePolicy`, in each scheduler process of a server with our policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.schedule_policy import SchedulePolicy

from hexgen_sglang.plugin import self_check
from hexgen_sglang.plugin.flags import POLICY
from hexgen_sglang.plugin.hold import Hold
from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.plugin.scheduler_process import this_process


class HexgenSchedulePolicy(SchedulePolicy):
    """SGLang's policy class, with one more policy: `hexgen`.

    To SGLang it is `fcfs` on a queue that we have put in order before, so that prefix matching
    for the load snapshot and everything else stays as under fcfs. Any other policy name gets
    SGLang's behaviour unchanged.
    """

    def __init__(self, policy: str, tree_cache: Any, *args: Any, **kwargs: Any) -> None:
        self.hexgen_order: QueueOrder | None = None
        self.hexgen_holds: Sequence[Hold] = ()
        if policy == POLICY:
            self_check.require_loaded_hooks()
            self.hexgen_order = this_process().order
            self.hexgen_holds = this_process().holds
            policy = "fcfs"
        super().__init__(policy, tree_cache, *args, **kwargs)

    def calc_priority(self, waiting_queue: list[Any], *args: Any, **kwargs: Any) -> None:
        """Order the queue in place; the further arguments differ between SGLang versions."""
        if self.hexgen_order is not None:
            self.hexgen_order.sort(waiting_queue)
        super().calc_priority(waiting_queue, *args, **kwargs)  # matches prefixes, too
        for hold in self.hexgen_holds:
            hold.take_out(waiting_queue)
