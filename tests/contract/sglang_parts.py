"""SGLang's own parts of a scheduler process on a CPU, put together without a model or a server.

For processes of their own with TRITON_INTERPRET=1 and SGLANG_PLATFORM=hexgen_torch_cpu: batches,
radix cache, allocator and KV pools are SGLang's. A slot's KV is random from the time that a
prefill takes it, and NaN while it is free. No model computes anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from hexgen_kernels.shared_prefix_decode import naive
from hexgen_sglang.plugin.attention import batch_requests
from hexgen_sglang.plugin.attention.registration import register

Q_HEADS, KV_HEADS, SIZE, LAYERS = 4, 2, 64, 2  # of the tiny model, but for the layers
ROWS, SLOTS, CONTEXT = 8, 3_000, 1_024


class Parts:
    """One scheduler's memory, cache and attention backend.

    Attributes:
        attention: what `--attention-backend hexgen_shared_prefix` builds here.
        running: the decode batch.
    """

    def __init__(self, model_folder: str) -> None:
        args = ServerArgs(model_path=model_folder, attention_backend="triton", device="cpu")
        publish(args, role="scheduler")
        self.model = ModelConfig.from_server_args(args)
        register()
        torch.manual_seed(7)
        self.rows = ReqToTokenPool(ROWS, CONTEXT, "cpu", enable_memory_saver=False)
        self.kv = MHATokenToKVPool(
            SLOTS, page_size=1, dtype=torch.float32, head_num=KV_HEADS, head_dim=SIZE,
            layer_num=LAYERS, device="cpu", enable_memory_saver=False,
        )  # fmt: skip
        for layer in range(LAYERS):
            for buffer in self.buffers(layer):
                buffer.fill_(torch.nan)
        self.slots = TokenToKVPoolAllocator(SLOTS, torch.float32, "cpu", self.kv, need_sort=False)
        self.cache = UnifiedRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.slots,
                page_size=1,
                tree_components=(ComponentType.FULL,),
            )
        )
        self.runner = self._runner()
        self.attention: Any = ATTENTION_BACKENDS["hexgen_shared_prefix"](self.runner)
        self.running: Any = None

    def _runner(self) -> Any:
        translator = KVIndexTranslator(
            req_to_token=self.rows.req_to_token, token_to_kv_pool_allocator=self.slots,
            token_to_kv_pool=self.kv, page_size=1, device="cpu",
        )  # fmt: skip
        return SimpleNamespace(
            device="cpu", gpu_id=0, page_size=1, sliding_window_size=None, is_draft_worker=False,
            kv_cache_dtype=torch.float32, model_config=self.model, req_to_token_pool=self.rows,
            token_to_kv_pool=self.kv, token_to_kv_pool_allocator=self.slots,
            kv_index_translator=translator, spec_algorithm=SpeculativeAlgorithm.NONE,
            decode_num_tokens_per_req=lambda: 1, lora_manager=None, model=None,
            prefill_attention_backend_str="triton",
            ngram_embedding_manager=SimpleNamespace(enabled=False),
        )  # fmt: skip

    def request(self, name: str, tokens: Sequence[int], **more: Any) -> Req:
        """A new request in no batch yet."""
        return Req(
            name, "", array("q", tokens), SamplingParams(max_new_tokens=64),
            vocab_size=self.model.vocab_size, **more,
        )  # fmt: skip

    def prefill(self, *requests: Req, upto: int | None = None, late: bool = False) -> Any:
        """One extend batch: matched, allocated, prepared; returns it.

        Args:
            upto: tokens of a prompt that is prefilled in chunks; None: to its end.
            late: leave out what SGLang does with the batch's results (see `results`).
        """
        for request in requests:
            if request.lock is None:
                request.init_next_round_input(self.cache)
                request.lock = self.cache.lock(request.last_node)
            request.extend_end = upto or len(request.full_untruncated_fill_ids)
        batch = self._batch(requests)
        batch.prepare_for_extend()
        batch.input_ids = batch.prefill_input_ids_cpu
        for buffer in (buffer for layer in range(LAYERS) for buffer in self.buffers(layer)):
            buffer[batch.out_cache_loc] = torch.randn(len(batch.out_cache_loc), KV_HEADS, SIZE)
        self.attention.init_forward_metadata(self.forward_batch(batch))
        if not late:
            self.results(batch)
        return batch

    def results(self, batch: Any) -> None:
        """What SGLang does with the results of a prefill: prompts enter the prefix cache."""
        for request in batch.reqs:
            checkpoint_kv_cache(request, self.cache)

    def join(self, batch: Any) -> None:
        """Let prefilled requests decode: each has sampled one token."""
        for request in batch.reqs:
            request.output_ids.append(1 + len(request.output_ids))
        if self.running is None or self.running.is_empty():
            self.running = batch
        else:
            self.running.merge_batch(batch)

    def next_step(self) -> Any:
        """Make room for the next token of every running request; returns the ForwardBatch."""
        free = torch.cat((self.slots.free_pages, self.slots.release_pages))
        for buffer in (buffer for layer in range(LAYERS) for buffer in self.buffers(layer)):
            buffer[free] = torch.nan
        self.running.prepare_for_decode()
        self.running.input_ids = torch.ones(len(self.running.reqs), dtype=torch.int64)
        return self.forward_batch(self.running)

    def sampled(self) -> None:
        """Every running request has one token more."""
        for request in self.running.reqs:
            request.output_ids.append(1 + len(request.output_ids))

    def finish(self, request: Req) -> None:
        """The request leaves the decode batch, and its KV is the cache's."""
        release_kv_cache(request, self.cache, checkpoint=True)
        self._leave(request)

    def retract(self, request: Req) -> None:
        """The request loses its KV and its row, as when memory is short."""
        index = self.running.reqs.index(request)
        self.running.release_req(index, len(self.running.reqs) - 1)
        self._leave(request)

    def _leave(self, request: Req) -> None:
        keep = [i for i, other in enumerate(self.running.reqs) if other is not request]
        self.running.filter_batch(keep_indices=keep)

    def buffers(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, by slot."""
        return self.kv.get_key_buffer(layer), self.kv.get_value_buffer(layer)

    def _batch(self, requests: Sequence[Req]) -> Any:
        return ScheduleBatch.init_new(
            list(requests), self.rows, self.slots, self.cache, self.model,
            enable_overlap=False, spec_algorithm=SpeculativeAlgorithm.NONE,
        )  # fmt: skip

    def forward_batch(self, batch: Any) -> Any:
        """As the model runner makes it, with our hook."""
        made = ForwardBatch.init_new(
            batch, self.runner, capture_hidden_mode=None, return_hidden_states_before_norm=False
        )
        batch_requests.note(batch, made)
        return made

    def layer(self, index: int, **changed: Any) -> Any:
        """What a model's attention layer tells its backend."""
        fields = {
            "layer_id": index, "tp_q_head_num": Q_HEADS, "tp_k_head_num": KV_HEADS,
            "tp_v_head_num": KV_HEADS, "qk_head_dim": SIZE, "v_head_dim": SIZE, "head_dim": SIZE,
            "scaling": SIZE**-0.5, "logit_cap": 0.0, "logit_capping_method": "tanh",
            "is_cross_attention": False, "sliding_window_size": -1, "k_scale": None,
            "v_scale": None, "xai_temperature_len": -1,
        }  # fmt: skip
        return SimpleNamespace(**(fields | changed))

    def wanted(self, q: torch.Tensor, layer: int, batch: Any) -> torch.Tensor:
        """The right answer, in float64, from the KV table as it is."""
        out, _ = naive.decode(
            q.view(-1, Q_HEADS, SIZE), *self.buffers(layer), self.rows.req_to_token,
            batch.req_pool_indices, batch.seq_lens, SIZE**-0.5,
        )  # fmt: skip
        return out.reshape(len(q), -1)
