"""SGLang's Triton attention, with decode steps that read shared prefixes once.

Runs in the scheduler process of a server with a CUDA device (or, for tests, on a CPU under
Triton's interpreter). Prefill, the writing of KV and everything not covered stay SGLang's own;
each step that is left to it is counted with the reason. No GPU has run this backend yet.

A captured CUDA graph holds our kernels for every layer that they cover, and serves every grouping,
none included: groups are copied into the decoder's buffers before each replay. Only where
nothing was captured does a step without groups go to SGLang's kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

import torch
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from hexgen_kernels.shared_prefix_decode.decoder import DTYPES, HEAD_SIZES, SharedPrefixDecoder
from hexgen_kernels.shared_prefix_decode.forest import Int32, PrefixForest, unshared
from hexgen_kernels.shared_prefix_decode.groups import CostRule, GroupFinder
from hexgen_sglang.core.errors import CompatibilityError
from hexgen_sglang.plugin.attention.batch_requests import RequestPrefixes, noted
from hexgen_sglang.plugin.attention.registration import SHARED_PREFIX, TRITON
from hexgen_sglang.plugin.attention.steps import SHARED, SharedPrefixSteps, not_covered

MAX_LEVELS = 4
# Rows of a step without a graph that workspaces are made for, if there are no graphs.
_MAX_BATCH = 256
# What SGLang passes to its decode kernel beyond what ours needs, without effect on the result.
_HOW_NOT_WHAT = frozenset(
    (
        "use_pdl", "page_size", "aux_tensors", "enable_lean", "lean_Mp", "lean_Lp", "lean_Op",
        "lean_locks", "uneven_batch",
    )
)  # fmt: skip
# What may change the result.
_SCORES = frozenset(("logit_cap", "sinks", "xai_temperature_len", "has_mla", "score_mod"))


class TritonSharedPrefixBackend(TritonAttnBackend):
    """`triton`, except for decode attention over prefixes that requests share.

    SGLang copies the slots of the whole batch into one array (`kv_indices`) before it computes
    the first layer; our kernels read that copy, so no write to the KV table races with them.

    Attributes:
        shared: groups of the step, and the counters.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self.shared = SharedPrefixSteps(TRITON)
        self._decode_by_engine = self.decode_attention_fwd
        self.decode_attention_fwd = torch.compiler.disable(self._decode)
        self._unfit = _unfit(self, runner)
        self._prefixes = RequestPrefixes()
        self._finder: GroupFinder | None = None
        self._decoder: SharedPrefixDecoder | None = None
        self._loaded: tuple[PrefixForest, int] | None = None
        self._seq_lens: Any = None
        # Layers of the graph of each batch size, by why they are SGLang's; None: they are ours.
        self._captured: dict[int, Counter[str | None]] = {}
        self._capturing: Counter[str | None] | None = None

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int, *args: Any) -> None:
        """Before graphs are captured: take all memory that they will refer to."""
        super().init_cuda_graph_state(max_bs, max_num_tokens, *args)
        self._captured = {}
        self._make_decoder(max_bs)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Before a forward pass without a graph."""
        super().init_forward_metadata(forward_batch)
        self._capturing = self._seq_lens = self.shared.forest = None
        if forward_batch.forward_mode.is_decode() and self._unfit is None:
            if self._decoder is None:
                self._make_decoder(min(_MAX_BATCH, self.req_to_token_pool.size))
            self._find_groups(forward_batch)
            self._seq_lens = forward_batch.seq_lens
            if self._not_now(forward_batch.batch_size) is None:
                self._load(self.shared.forest, forward_batch.batch_size)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Before a graph is captured, and before each replay.

        Raises:
            CompatibilityError: this itself is being captured, which would keep one step's groups
                for ever; SGLang's metadata glue graph then gives up, and says so.
        """
        if self.req_to_token.is_cuda and torch.cuda.is_current_stream_capturing():
            raise CompatibilityError(f"{SHARED_PREFIX}: groups are found anew before each replay")
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        self._capturing = None
        if not forward_batch.forward_mode.is_decode():
            return
        batch = forward_batch.batch_size
        if in_capture:
            self._capturing = self._captured[batch] = Counter()
            self.shared.forest = None
            self._seq_lens = forward_batch.seq_lens
            if self._unfit is None:
                self._load(unshared(batch), batch)
            return
        if self._unfit is None:
            self._find_groups(forward_batch)
            forest = self.shared.forest
            self._load(unshared(batch) if forest is None else forest, batch)
        self._count_replay(self._captured[batch])

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """At the beginning of every run of what will be a graph; the last one is the graph."""
        super().init_forward_metadata_in_graph(forward_batch)
        if self._capturing is not None:
            self._capturing.clear()

    def _decode(
        self,
        q: Any,
        k_buffer: Any,
        v_buffer: Any,
        o: Any,
        kv_indptr: Any,
        kv_indices: Any,
        attn_logits: Any,
        attn_lse: Any,
        num_kv_splits: Any,
        max_kv_splits: Any,
        sm_scale: float,
        k_scale: float,
        v_scale: float,
        **rest: Any,
    ) -> None:
        """One layer's decode attention into `o`; SGLang has written the new KV already."""
        rows = q.shape[0]
        reason = self._unfit or not_covered(
            q,
            k_buffer,
            v_buffer,
            sliding_window=kv_indices is not self.forward_metadata.kv_indices,
            changes_scores=not k_scale == v_scale == 1.0 or _changes_scores(rest),
            unknown=not rest.keys() <= _HOW_NOT_WHAT | _SCORES
            or (self._seq_lens is None or len(self._seq_lens) != rows),
        )
        reason = reason or self._unlike_decoder(q, k_buffer)
        if self._capturing is not None:
            self._capturing[reason] += 1
        else:
            reason = reason or self._not_now(rows)
            self._count(reason)
        if reason is not None:
            self._decode_by_engine(
                q, k_buffer, v_buffer, o, kv_indptr, kv_indices, attn_logits, attn_lse,
                num_kv_splits, max_kv_splits, sm_scale, k_scale, v_scale, **rest,
            )  # fmt: skip
            return
        assert self._decoder is not None
        # One row of the array for each slot: a request's first row is where its slots begin.
        table = kv_indices.unsqueeze(1)
        self._decoder.run(
            q, k_buffer, v_buffer, table, kv_indptr[:rows], self._seq_lens, o, sm_scale
        )

    def _not_now(self, rows: int) -> str | None:
        """Why a step without a graph is SGLang's, although its layers are covered."""
        assert self._decoder is not None
        if rows > self._decoder.limits.max_batch:
            return "batch_size"
        return self.shared.not_shared()

    def _unlike_decoder(self, q: Any, k_buffer: Any) -> str | None:
        decoder = self._decoder
        assert decoder is not None
        if q.dtype != decoder.dtype:
            return "kv_dtype"
        heads = (q.shape[1], *k_buffer.shape[1:])
        known = (decoder.num_q_heads, decoder.num_kv_heads, decoder.head_size)
        return None if heads == known else "head_sizes"

    def _find_groups(self, forward_batch: Any) -> None:
        """Set the step's forest, from what the host knows; never waits for the device."""
        assert self._finder is not None
        self.shared.forest = None
        requests = noted(forward_batch)
        if requests is None:
            return
        names = self._prefixes.names(requests)
        by_name: dict[Hashable, Any] = dict(zip(names, requests, strict=True))

        def entries(name: Hashable) -> Int32:
            return self._prefixes.entries(by_name[name])

        self.shared.find(self._finder, names, entries)

    def _load(self, forest: PrefixForest | None, batch: int) -> None:
        """Copy the step's plan to the device, unless it is there already."""
        assert self._decoder is not None
        assert forest is not None
        if self._loaded is None or self._loaded[0] is not forest or self._loaded[1] != batch:
            self._decoder.load(forest, batch)
            self._loaded = (forest, batch)

    def _count_replay(self, layers: Counter[str | None]) -> None:
        for reason, count in layers.items():
            if reason is None:
                self.shared.count(SHARED_PREFIX, self.shared.not_shared() or SHARED, count)
            else:
                self.shared.count(TRITON, reason, count)

    def _count(self, reason: str | None) -> None:
        """Count one layer step that was computed without a graph."""
        if reason is None:
            self.shared.count(SHARED_PREFIX, SHARED)
        else:
            self.shared.count(TRITON, reason)

    def _make_decoder(self, max_batch: int) -> None:
        if self._unfit is not None:
            return
        pool = self.token_to_kv_pool
        k_cache = pool.get_key_buffer(pool.start_layer)
        heads = {
            "num_q_heads": self.num_head,
            "num_kv_heads": self.num_kv_head,
            "head_size": k_cache.shape[2],
        }
        self._decoder = SharedPrefixDecoder(
            **heads,
            dtype=k_cache.dtype,
            device=k_cache.device,
            max_batch=max_batch,
            max_levels=MAX_LEVELS,
        )
        self._loaded = None
        rule = CostRule.of_model(**heads, itemsize=k_cache.element_size())
        # Under the interpreter times mean nothing: whatever can be shared is.
        rule = rule if k_cache.is_cuda else CostRule(kv_bytes=1.0, partial_bytes=0.0)
        self._finder = GroupFinder(rule, MAX_LEVELS)


def _changes_scores(rest: dict[str, Any]) -> bool:
    """Whether the arguments named in `_SCORES` ask for more than softmax(scale * q k) v."""
    given = rest.get("sinks") is not None or rest.get("score_mod") is not None
    lengths = rest.get("xai_temperature_len", -1) > 0
    return given or lengths or bool(rest.get("logit_cap")) or bool(rest.get("has_mla"))


def _unfit(backend: Any, runner: Any) -> str | None:
    """Why no layer of this model is ours; None: what follows depends on the layer."""
    if not runner.spec_algorithm.is_none() or runner.is_draft_worker:
        return "speculative"
    if backend.enable_deterministic:
        return "deterministic"
    if backend.dcp_size > 1:
        return "context_parallel"
    if getattr(runner, "page_size", 1) != 1:
        return "page_size"
    pool = backend.token_to_kv_pool
    if backend.use_mla or not isinstance(pool, MHATokenToKVPool):
        return "kv_pool"
    k_cache = pool.get_key_buffer(pool.start_layer)
    if k_cache.dtype not in DTYPES:
        return "kv_dtype"
    queries_per_kv_head = backend.num_head // backend.num_kv_head
    if k_cache.ndim != 3 or k_cache.shape[2] not in HEAD_SIZES or queries_per_kv_head > 128:
        return "head_sizes"
    return None
