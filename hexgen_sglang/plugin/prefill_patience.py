"""Prompts that wait for decodes that they would stall: the rule of `policies.patience` on SGLang.

Runs on SGLang's scheduler thread, in every choice of a batch, on every rank of an engine. All of
them have to choose the same batch, so the instant and the step costs that decide come with
SGLang's own input, from the rank that owns the link. SGLang is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.plugin.hold import Hold
from hexgen_sglang.policies import patience


@dataclass(frozen=True, slots=True)
class Moment:
    """What every rank decides by: an instant of the receiving rank, and what steps cost.

    Picklable, since ranks exchange it. `made` of a request counts as of the rank's own results,
    which are the same everywhere.
    """

    now_s: float
    costs: StepCosts


class PrefillPatience(Hold):
    """Holds prompts by the rule.

    Args:
        longest: the longest wait of a prompt, in prefills of its own.
        view_of: a `Req` as the policies see it.
    """

    def __init__(self, longest: float, view_of: Callable[[Any], RequestView]) -> None:
        super().__init__()
        self._longest = longest
        self._view_of = view_of
        self._moment: Moment | None = None

    def at(self, moment: Moment) -> None:
        """The next choices are made as of this moment."""
        self._moment = moment

    def _waits(self, waiting_queue: Sequence[Any]) -> Iterator[bool]:
        if self._moment is None or not self._running:
            return
        now_s, costs = self._moment.now_s, self._moment.costs
        context = sum(len(req.origin_input_ids) + len(req.output_ids) for req in self._running)
        step_s = costs.decode_s(len(self._running), context)
        decodes = []
        for req in self._running:
            view = self._view_of(req)
            left_s = patience.decode_left_s(view, len(req.output_ids), step_s)
            decodes.append((left_s, patience.tightness(view, now_s)))
        for req in waiting_queue:
            view = self._view_of(req)
            cached = getattr(req, "num_matched_prefix_tokens", 0) or 0
            own_s = costs.prefill_s(len(req.origin_input_ids) - cached, cached)
            own, waited_s = patience.tightness(view, now_s), now_s - view.arrival_s
            yield patience.should_wait(own_s, own, waited_s, decodes, self._longest)
