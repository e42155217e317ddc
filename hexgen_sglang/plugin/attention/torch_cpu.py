"""SGLang's torch attention, with decode steps that read shared prefixes once.

Runs in the scheduler process of a server on the torch-CPU platform. Prefill, the writing of KV
and everything not covered stay SGLang's own; each step that is left to it is counted with the
reason. The groups are found in the KV table itself, which lies in the host's memory here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from hexgen_kernels.shared_prefix_decode import torch_grouped
from hexgen_kernels.shared_prefix_decode.groups import CostRule, GroupFinder
from hexgen_sglang.plugin.attention.registration import SHARED_PREFIX, TORCH_NATIVE
from hexgen_sglang.plugin.attention.steps import SHARED, SharedPrefixSteps, not_covered

# Of one core that gathers KV rows, and of the torch calls of one segment: rough, to be safe on
# the side of not sharing.
_BYTES_PER_S = 4e9
_SEGMENT_S = 2e-4


class TorchSharedPrefixBackend(TorchNativeAttnBackend):
    """`torch_native`, except for decode attention over prefixes that requests share.

    Attributes:
        shared: groups of the step, and the counters.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self.shared = SharedPrefixSteps(TORCH_NATIVE)
        self._finder: GroupFinder | None = None
        # Requests by their row of req_to_token and how often that row was prefilled: a row that
        # is given to another request goes through a prefill first.
        self._prefills: Counter[int] = Counter()

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Before each forward pass: SGLang's own preparation, and the groups of a decode step."""
        super().init_forward_metadata(forward_batch)
        self.shared.forest = None
        rows = forward_batch.req_pool_indices.tolist()
        if not forward_batch.forward_mode.is_decode():
            self._prefills.update(rows)
            return
        lengths = dict(zip(rows, forward_batch.seq_lens.tolist(), strict=False))
        if len(lengths) == len(rows):  # rows that pad a batch would occur twice
            names = [(row, self._prefills[row]) for row in rows]
            self.shared.find(self._groups(), names, lambda name: self._slots(name, lengths))

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
        reason = not_covered(
            query,
            k_cache,
            v_cache,
            cross_attention=bool(rest.get("is_cross_attn")) or encoder_lens is not None,
            sliding_window=rest.get("sliding_window_size") is not None,
            unknown=bool(rest.get("causal")) or scaling is None,
        )
        reason = reason or self.shared.not_shared()
        if reason is not None:
            self.shared.count(TORCH_NATIVE, reason)
            return super()._run_sdpa_forward_decode(
                query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens,
                encoder_lens, scaling=scaling, **rest,
            )  # fmt: skip
        self.shared.count(SHARED_PREFIX, SHARED)
        out, _ = torch_grouped.decode(
            query, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, self.shared.forest,
            scaling,
        )  # fmt: skip
        output.copy_(out)
        return output

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
