"""Which waiting requests a prefill step takes: SGLang's budgets of tokens, as of 0.5.23.

Three budgets: prompt tokens of a step (the chunk), prompt tokens of a batch, and KV slots. The
last counts what is free or evictable, less what running requests may still need: all that is
left of their limit when it is known to be reached, else a share that follows experience.
"""

from __future__ import annotations

from collections.abc import Sequence

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.prefix_cache import PrefixCache

# SGLang's defaults: --max-prefill-tokens, SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION,
# SGLANG_INIT_NEW_TOKEN_RATIO, SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR,
# SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS, SGLANG_RETRACT_DECODE_STEPS.
MAX_PREFILL_TOKENS = 16_384
MAX_RESERVED_TOKENS = 4_096
_INITIAL_RATIO = 0.7
_LEAST_RATIO = 0.7 * 0.14
_DECAY_STEPS = 600
_STEPS_AFTER_RETRACTION = 20
_ROUNDING = 1


class NewTokenRatio:
    """Share of a request's limit that SGLang expects it to reach; falls with every decode step.

    Attributes:
        value: 0 to 1.
    """

    def __init__(self) -> None:
        self.value = _INITIAL_RATIO

    def decay(self, steps: int) -> None:
        """So many decode steps went well."""
        step = (_INITIAL_RATIO - _LEAST_RATIO) / _DECAY_STEPS
        self.value = max(_LEAST_RATIO, self.value - steps * step)

    def after_retraction(self, running: Sequence[EngineRequest]) -> None:
        """Memory ran out: expect what the running requests have made, and a little more."""
        made = sum(request.num_made_tokens for request in running)
        limits = sum(request.max_new_tokens for request in running)
        self.value = min(1.0, (made + _STEPS_AFTER_RETRACTION * len(running)) / (limits + 1))


class Admission:
    """The budgets of one prefill step, and whom they admit.

    Attributes:
        chosen: (request, prompt tokens computed in this step).
        chunked: the request of which only a part fits into the step; None without one.
        is_short: KV memory, not the step's size, ended the admission.
    """

    def __init__(
        self,
        profile: AcceleratorProfile,
        cache: PrefixCache,
        num_free: int,
        running: Sequence[EngineRequest],
        ratio: NewTokenRatio,
    ) -> None:
        self.chosen: list[tuple[EngineRequest, int]] = []
        self.chunked: EngineRequest | None = None
        self.is_short = False
        self._cache = cache
        self._num_free = num_free
        self._chunk = profile.prefill.chunk_tokens.value
        self._batch = MAX_PREFILL_TOKENS
        self._reserved = sum(_may_come(request, ratio.value) for request in running)
        self._taken = 0.0

    @property
    def is_spent(self) -> bool:
        """The step is as large as it may be."""
        return self._chunk <= 0 or self._batch <= 0

    def go_on(self, request: EngineRequest) -> bool:
        """Continue a prompt that was begun; whether this step completes it."""
        left = request.num_fill_tokens - request.num_computed_tokens
        budget = min(self._chunk, int(self._num_left()))
        extend = min(left, budget if budget > 0 else self._chunk)
        whole = extend == left
        self._take(request, extend, min(request.max_new_tokens, MAX_RESERVED_TOKENS) * whole)
        return whole

    def admit(self, request: EngineRequest) -> bool:
        """Take a waiting request, or the part of it that fits; False when it has to wait."""
        fill = request.num_fill_tokens
        node, matched = self._cache.match(request.fill, fill - 1)
        extend = fill - matched
        limit = min(request.max_new_tokens, MAX_RESERVED_TOKENS)
        may_come = min(request.max_new_tokens - request.num_made_tokens, MAX_RESERVED_TOKENS)
        left = self._num_left() - self._cache.locked_by(node)
        if extend + may_come + _ROUNDING >= left:
            self.is_short = True
            return False
        if extend > self._chunk:
            extend, limit = self._chunk, 0
            self.chunked = request
        self._cache.lock(node)
        request.node = node
        if not request.num_retractions:
            request.num_cached_tokens = matched
        request.num_computed_tokens = matched
        self._take(request, extend, limit)
        self.is_short = self._num_left() <= 0
        return True

    def _take(self, request: EngineRequest, extend: int, may_come: int) -> None:
        self.chosen.append((request, extend))
        self._chunk -= extend
        self._batch -= extend
        self._reserved += extend + _ROUNDING + may_come

    def _num_left(self) -> float:
        return self._num_free + self._cache.num_evictable - self._reserved


def _may_come(request: EngineRequest, ratio: float) -> float:
    """Output tokens to keep room for."""
    left = min(request.max_new_tokens - request.num_made_tokens, MAX_RESERVED_TOKENS)
    return left if request.ignores_eos else left * ratio
