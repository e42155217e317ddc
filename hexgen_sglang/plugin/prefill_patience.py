"""Prompts that wait for decodes that they would stall: the rule of `policies.patience` on SGLang.

Runs on SGLang's scheduler thread, in every choice of a batch, on every rank of an engine. All of
them have to choose the same batch, so the instant and the step costs that decide come with
SGLang's own input, from the rank that owns the link. SGLang is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies import patience


@dataclass(frozen=True, slots=True)
class Moment:
    """What every rank decides by: an instant of the receiving rank, and what steps cost.

    Picklable, since ranks exchange it. `made` of a request counts as of the rank's own results,
    which are the same everywhere.
    """

    now_s: float
    costs: StepCosts


class PrefillPatience:
    """Takes prompts out of the waiting queue while a batch is chosen.

    Args:
        longest: the longest wait of a prompt, in prefills of its own.
        view_of: a `Req` as the policies see it.

    Attributes:
        num_held: prompts held so far, each time counted.
    """

    def __init__(self, longest: float, view_of: Callable[[Any], RequestView]) -> None:
        self.num_held = 0
        self._longest = longest
        self._view_of = view_of
        self._moment: Moment | None = None
        self._running: Sequence[Any] = ()
        self._held: list[Any] = []

    def at(self, moment: Moment) -> None:
        """The next choices are made as of this moment."""
        self._moment = moment

    def begin(self, in_progress: Sequence[Any], running: Sequence[Any]) -> None:
        """A batch is about to be chosen, while the `Req` in `running` decode."""
        self._running = running

    def take_out(self, waiting_queue: list[Any]) -> None:
        """Leave in the queue what should be admitted now, in its order."""
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
        kept = []
        for req in waiting_queue:
            view = self._view_of(req)
            cached = getattr(req, "num_matched_prefix_tokens", 0) or 0
            own_s = costs.prefill_s(len(req.origin_input_ids) - cached, cached)
            waited_s = now_s - view.arrival_s
            own = patience.tightness(view, now_s)
            waits = patience.should_wait(own_s, own, waited_s, decodes, self._longest)
            (self._held if waits else kept).append(req)
        if self._held:
            self.num_held += len(self._held)
            waiting_queue[:] = kept

    def give_back(self) -> list[Any]:
        """The held prompts, for the waiting queue; none are held any more."""
        held, self._held = self._held, []
        self._running = ()
        return held
