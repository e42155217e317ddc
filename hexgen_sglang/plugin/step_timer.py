"""How long SGLang's steps take, from their launch and the end of their results.

Runs on SGLang's scheduler thread, twice in every step, a few microseconds each. With the overlap
schedule a step is launched while the one before runs; it then begins when that one ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import StepCostFit
from hexgen_sglang.protocol.messages import StepTimes

INTERVAL_S = 1.0
_MOST_S = 60.0  # a step that takes longer was interrupted
_MOST_IN_FLIGHT = 8


class StepTimer:
    """Times the steps of one scheduler. `now_s`: seconds of `time.perf_counter`.

    Args:
        repeated_frac: of a read, for context tokens that requests of a step share; 1: all of it.
        repeated: counts those tokens in a decode batch; asked for only where they cost less.

    Attributes:
        costs: what steps cost, as of the last news; None before.
    """

    def __init__(
        self, repeated_frac: float = 1.0, repeated: Callable[[Any], int] | None = None
    ) -> None:
        self.costs: StepCosts | None = None
        self._fit = StepCostFit(repeated_frac)
        self._repeated = repeated if repeated_frac < 1 else None
        # When, prefill or not, how many tokens or requests, context tokens, repeated ones.
        self._launched: deque[tuple[float, bool, int, float, int]] = deque(maxlen=_MOST_IN_FLIGHT)
        self._last_end_s = 0.0
        self._told_s = float("-inf")

    def launched(self, batch: Any, now_s: float) -> None:
        """SGLang gives a batch to the accelerator."""
        mode = batch.forward_mode
        if mode.is_decode():
            context = batch.seq_lens_sum
            if context is None:
                context = int(batch.seq_lens_cpu.sum())
            repeated = 0 if self._repeated is None else self._repeated(batch)
            self._launched.append((now_s, False, len(batch.reqs), float(context), repeated))
        elif mode.is_extend() and not mode.is_mixed():
            uncached, attended = 0, 0.0
            for extend, prefix in zip(batch.extend_lens, batch.prefix_lens, strict=True):
                uncached += extend
                attended += extend * (prefix + extend / 2)
            self._launched.append((now_s, True, uncached, attended, 0))
        else:
            self._launched.append((now_s, True, 0, 0.0, 0))

    def ended(self, now_s: float) -> None:
        """SGLang has taken the results of the oldest batch launched."""
        if not self._launched:
            return
        launched_s, is_prefill, count, context, repeated = self._launched.popleft()
        seconds = now_s - max(launched_s, self._last_end_s)
        self._last_end_s = now_s
        if not count or not 0 < seconds < _MOST_S:
            return
        if is_prefill:
            self._fit.add_prefill(count, context, seconds)
        else:
            self._fit.add_decode(count, context, seconds, num_repeated_tokens=repeated)

    def news(self, now_s: float) -> StepTimes | None:
        """What to tell the coordinator, once a second; None when nothing is due or known."""
        if now_s - self._told_s < INTERVAL_S:
            return None
        costs = self._fit.costs()
        if costs is None:
            return None
        self._told_s = now_s
        self.costs = costs
        return step_times(costs, self._fit.num_prefills, self._fit.num_decodes)


def step_times(costs: StepCosts, num_prefills: int, num_decodes: int) -> StepTimes:
    """The message; terms beyond its bounds are cut to them."""
    return StepTimes(
        prefill_base_s=min(60.0, costs.prefill_base_s),
        prefill_token_s=min(1.0, costs.prefill_token_s),
        prefill_context_s=min(1.0, costs.prefill_context_s),
        decode_base_s=min(60.0, costs.decode_base_s),
        decode_request_s=min(60.0, costs.decode_request_s),
        decode_context_s=min(1.0, costs.decode_context_s),
        num_prefills=num_prefills,
        num_decodes=num_decodes,
        decode_repeated_frac=costs.decode_repeated_frac,
    )
