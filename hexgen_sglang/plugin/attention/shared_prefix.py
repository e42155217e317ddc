"""SGLang's torch attention, with decode steps that read shared prefixes once.

Runs in the scheduler process of a server on the torch-CPU platform. Prefill, the writing of KV
and everything not covered here stay SGLang's own; each step that is left to it is counted with
the reason. GPUs are not served here: the kernels for them are in `hexgen_kernels`.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
from prometheus_client import Counter as Metric
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from hexgen_kernels.shared_prefix_decode import torch_grouped
from hexgen_kernels.shared_prefix_decode.forest import PrefixForest
from hexgen_kernels.shared_prefix_decode.groups import CostRule, GroupFinder
from hexgen_sglang.plugin.attention.registration import ENGINE_BACKEND, SHARED_PREFIX

logger = logging.getLogger(__name__)

# Of one core that gathers KV rows, and of the torch calls of one segment: rough, to be safe on
# the side of not sharing.
_BYTES_PER_S = 4e9
_SEGMENT_S = 2e-4

STEPS = Metric(
    "hexgen_shared_prefix_layer_steps",
    "Decode steps of one attention layer, by the backend that computed them and why",
    ("backend", "reason"),
)
TOKENS_SAVED = Metric(
    "hexgen_shared_prefix_tokens_saved",
    "KV tokens that decode steps did not read again, counted once a step and not a layer",
)


class SharedPrefixBackend(TorchNativeAttnBackend):
    """`torch_native`, except for decode attention over prefixes that requests share.

    Attributes:
        steps: layer steps by (backend, reason), as in the metric.
        tokens_saved: as in the metric.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self.steps: Counter[tuple[str, str]] = Counter()
        self.tokens_saved = 0
        self._finder: GroupFinder | None = None
        self._forest: PrefixForest | None = None
        # Requests by their row of req_to_token and how often that row was prefilled: a row that
        # is given to another request goes through a prefill first.
        self._prefills: Counter[int] = Counter()
        logger.info("attention backend: %s over %s", SHARED_PREFIX, ENGINE_BACKEND)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Before each forward pass: SGLang's own preparation, and the groups of a decode step."""
        super().init_forward_metadata(forward_batch)
        self._forest = None
        rows = forward_batch.req_pool_indices.tolist()
        if not forward_batch.forward_mode.is_decode():
            self._prefills.update(rows)
            return
        lengths = dict(zip(rows, forward_batch.seq_lens.tolist(), strict=False))
        if len(lengths) == len(rows):  # rows that pad a batch would occur twice
            names = [(row, self._prefills[row]) for row in rows]
            self._forest = self._groups().step(names, lambda name: self._slots(name, lengths))
            self._count_saved(self._forest.tokens_saved)

    def _run_sdpa_forward_decode(
        self,
        query: Any,
        output: Any,
        k_cache: Any,
        v_cache: Any,
        req_to_token: Any,
        req_pool_indices: Any,
        seq_lens: Any,
        encoder_lens: Any = None,
        scaling: float | None = None,
        **rest: Any,
    ) -> Any:
        """One layer's decode attention into `output`; SGLang has written the new KV already."""
        reason = self._not_covered(query, k_cache, v_cache, encoder_lens, scaling, rest)
        if reason is not None:
            self._count(ENGINE_BACKEND, reason)
            return super()._run_sdpa_forward_decode(
                query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
                encoder_lens, scaling=scaling, **rest,
            )  # fmt: skip
        self._count(SHARED_PREFIX, "shared")
        out, _ = torch_grouped.decode(
            query, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, self._forest, scaling
        )
        output.copy_(out)
        return output

    def _not_covered(
        self, query: Any, k_cache: Any, v_cache: Any, encoder_lens: Any, scaling: Any, rest: Any
    ) -> str | None:
        """Why this layer step is SGLang's, or None when it is ours."""
        if rest.get("is_cross_attn") or encoder_lens is not None:
            return "cross_attention"
        if rest.get("causal") or scaling is None:
            return "unknown_call"
        if rest.get("sliding_window_size") is not None:
            return "sliding_window"
        if k_cache.shape != v_cache.shape or query.shape[-1] != k_cache.shape[-1]:
            return "head_sizes"
        if k_cache.dtype != query.dtype or v_cache.dtype != query.dtype:
            return "kv_dtype"
        if self._forest is None:
            return "no_groups_known"
        if not len(self._forest.columns):
            return "nothing_worth_sharing"
        return None

    def _groups(self) -> GroupFinder:
        """The group finder; made late, when the KV pool has its final shape."""
        if self._finder is None:
            pool = self.token_to_kv_pool
            k_cache = pool.get_key_buffer(pool.start_layer)
            rule = CostRule.of_model(
                num_q_heads=k_cache.shape[1], num_kv_heads=k_cache.shape[1],
                head_size=k_cache.shape[2], itemsize=k_cache.element_size(),
                bytes_per_s=_BYTES_PER_S, step_s=0.0, segment_s=_SEGMENT_S,
            )  # fmt: skip
            self._finder = GroupFinder(rule)
        return self._finder

    def _slots(self, name: Any, lengths: dict[int, int]) -> np.ndarray:
        """KV slots of a request so far, without the token that this step adds."""
        row = name[0]
        return self.req_to_token_pool.req_to_token[row, : lengths[row] - 1].numpy()

    def _count(self, backend: str, reason: str) -> None:
        if not self.steps[backend, reason]:
            logger.info("decode attention: first layer step by %s (%s)", backend, reason)
        self.steps[backend, reason] += 1
        STEPS.labels(backend, reason).inc()

    def _count_saved(self, tokens: int) -> None:
        self.tokens_saved += tokens
        TOKENS_SAVED.inc(tokens)
