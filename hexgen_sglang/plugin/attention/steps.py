"""What our attention backends share: the groups of a step, what is covered, and the counters.

In a scheduler process. Each backend puts one `SharedPrefixSteps` on top of one of SGLang's, and
asks it for every layer of a decode step whether it is ours to compute.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from prometheus_client import Counter as Metric

from hexgen_kernels.shared_prefix_decode.forest import PrefixForest
from hexgen_kernels.shared_prefix_decode.groups import EntriesOf, GroupFinder
from hexgen_sglang.plugin.attention.registration import SHARED_PREFIX

logger = logging.getLogger(__name__)

SHARED = "shared"

STEPS = Metric(
    "hexgen_shared_prefix_layer_steps",
    "Decode steps of one attention layer, by the backend that computed them and why",
    ("backend", "reason"),
)
TOKENS_SAVED = Metric(
    "hexgen_shared_prefix_tokens_saved",
    "KV tokens that decode steps did not read again, counted once a step and not a layer",
)


class SharedPrefixSteps:
    """The decode steps of one backend.

    Attributes:
        engine: name of SGLang's own backend, which computes what is not covered.
        forest: who shares what in the step that is being computed; None: not known.
        steps: layer steps by (backend, reason), as in the metric.
        tokens_saved: as in the metric.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.forest: PrefixForest | None = None
        self.steps: Counter[tuple[str, str]] = Counter()
        self.tokens_saved = 0
        self._to_save = 0  # in this step, once a layer has been computed by us
        logger.info("attention backend: %s over %s", SHARED_PREFIX, engine)

    def find(self, finder: GroupFinder, names: Sequence[Hashable], entries_of: EntriesOf) -> None:
        """Set `forest` for a step of these requests; arguments as for `GroupFinder.step`."""
        self.forest = finder.step(names, entries_of)
        self._to_save = self.forest.tokens_saved

    def not_shared(self) -> str | None:
        """Why nothing is shared in this step; None when something is."""
        if self.forest is None:
            return "no_groups_known"
        return None if len(self.forest.columns) else "nothing_worth_sharing"

    def count(self, backend: str, reason: str, layers: int = 1) -> None:
        """Count layer steps that `backend` computed; the first of each kind is logged."""
        if not self.steps[backend, reason]:
            logger.info("decode attention: first layer step by %s (%s)", backend, reason)
        self.steps[backend, reason] += layers
        STEPS.labels(backend, reason).inc(layers)
        if reason == SHARED:
            self.tokens_saved += self._to_save
            TOKENS_SAVED.inc(self._to_save)
            self._to_save = 0


def not_covered(
    query: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    cross_attention: bool = False,
    sliding_window: bool = False,
    changes_scores: bool = False,
    unknown: bool = False,
) -> str | None:
    """Why a layer's decode attention is SGLang's, whatever its batch shares; None: it is ours.

    Args:
        query: (rows, num_q_heads, head_size).
        k_cache: of all slots, (num_slots, num_kv_heads, head_size).
        v_cache: likewise.
        cross_attention: keys are not the request's own tokens.
        sliding_window: not all of them are seen.
        changes_scores: anything else than softmax(scale * q k) v, or scaled KV.
        unknown: the call has something that we do not know.
    """
    if cross_attention:
        return "cross_attention"
    if unknown:
        return "unknown_call"
    if sliding_window:
        return "sliding_window"
    if changes_scores:
        return "scores"
    if k_cache.ndim != 3 or k_cache.shape != v_cache.shape or query.shape[-1] != k_cache.shape[-1]:
        return "head_sizes"
    if k_cache.dtype != query.dtype or v_cache.dtype != query.dtype:
        return "kv_dtype"
    return None
