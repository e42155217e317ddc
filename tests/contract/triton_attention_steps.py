"""Runs our attention backend over SGLang's Triton one, while requests come and go.

A script for a process of its own: `python triton_attention_steps.py MODEL_FOLDER` prints what it
found in each scenario as JSON. Every output is NaN before it is computed, and so is every free
slot.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from recorded_launches import Launch, recorded
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import build_replay_fb_view
from sglang_parts import KV_HEADS, LAYERS, Q_HEADS, SIZE, Parts

from hexgen_kernels.shared_prefix_decode.forest import check_forest

TEMPLATE, SCHEMA, OTHER = range(100, 140), range(200, 230), range(300, 360)


class Steps:
    """Decode steps, each held against float64 and the groups against the KV table.

    Attributes:
        errors: largest difference of each step.
        saved: KV tokens that each step did not read again.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.errors: list[float] = []
        self.saved: list[int] = []
        self.stock = TritonAttnBackend(parts.runner)

    def step(self, prepare: Callable[[Any], None] | None = None, **layer: Any) -> None:
        """One step of all running requests.

        `layer` changes what the layers ask for: then SGLang's own backend says what is right.
        """
        parts, attention = self.parts, self.parts.attention
        made = parts.next_step()
        # SGLang computes a copy over buffers of its own.
        batch = dataclasses.replace(made, out_cache_loc=made.out_cache_loc.clone())
        before = attention.shared.tokens_saved
        (prepare or attention.init_forward_metadata)(batch)
        self.check_groups(batch)
        self.stock.init_forward_metadata(batch)
        worst = 0.0
        for index in range(LAYERS):
            poison(attention._decoder)
            q = torch.randn(batch.batch_size, Q_HEADS * SIZE)
            k, v = torch.randn(2, batch.batch_size, KV_HEADS, SIZE)
            asks = parts.layer(index, **layer)
            found = attention.forward_decode(q, k, v, asks, batch)
            if layer:
                wanted = self.stock.forward_decode(q, k, v, asks, batch, save_kv_cache=False)
            else:
                wanted = parts.wanted(q, index, batch)
            worst = larger(worst, (found - wanted).abs().max())
        self.saved.append(attention.shared.tokens_saved - before)
        self.errors.append(worst)
        parts.sampled()

    def check_groups(self, batch: Any) -> None:
        """Rows that are said to share a segment have the same slots there."""
        forest = self.parts.attention.shared.forest
        if forest is not None:
            rows = self.parts.rows.req_to_token[batch.req_pool_indices].numpy()
            check_forest(forest, rows[: forest.batch], batch.seq_lens.numpy()[: forest.batch], 1)


def poison(decoder: Any) -> None:
    """NaN wherever the kernels may write partial results."""
    for workspace in (decoder.partial_out, decoder.partial_lse, decoder.lse):
        workspace.fill_(torch.nan)


def larger(one: float, other: Any) -> float:
    """The larger one; NaN if either is."""
    return one if one >= float(other) else float(other)


def come_and_go(steps: Steps) -> None:
    """Prefixes at several levels, chunks, retraction, rows and slots used again."""
    parts = steps.parts
    a = parts.request("a", [*TEMPLATE, *SCHEMA, 1, 2, 3])
    b = parts.request("b", [*TEMPLATE, *SCHEMA, 4, 5])
    parts.join(parts.prefill(a, b))
    c = parts.request("c", [*TEMPLATE, *SCHEMA, 6, 7, 8, 9])
    d = parts.request("d", [*TEMPLATE, 10, 11])
    e = parts.request("e", [12, *OTHER])
    parts.join(parts.prefill(c, d, e))
    steps.step()
    steps.step()
    assert steps.saved == [3 * 40 + 2 * 30] * 2, steps.saved
    # A prompt in two chunks, with a step in between.
    chunked = parts.request("chunked", [*TEMPLATE, *SCHEMA, *range(400, 450)])
    parts.prefill(chunked, upto=90)
    steps.step()
    parts.join(parts.prefill(chunked))
    steps.step()
    assert steps.saved[2:] == [180, 180 + 40 + 30], steps.saved
    # Retraction; its row goes to a request that shares something else.
    row = b.kv.req_pool_idx
    parts.retract(b)
    steps.step()
    twin = parts.request("twin", [12, *OTHER, 13])
    parts.join(parts.prefill(twin))
    assert twin.kv.req_pool_idx == row
    steps.step()
    assert steps.saved[4:] == [180, 180 + 61], steps.saved
    parts.join(parts.prefill(b))
    steps.step()
    assert steps.saved[6] == 180 + 61 + 40 + 30, steps.saved
    # Most finish; nothing is left to share.
    for request in (a, b, d, twin, chunked):
        parts.finish(request)
    steps.step()
    assert steps.saved[7] == 0, steps.saved


def late_results(steps: Steps) -> None:
    """With the overlap schedule requests decode once before their prompt is in the cache."""
    parts = steps.parts
    one = parts.request("one", [*TEMPLATE, 1])
    two = parts.request("two", [*TEMPLATE, 2])
    batch = parts.prefill(one, two, late=True)
    parts.join(batch)
    steps.step()  # each has slots of its own
    parts.results(batch)  # the second's become the first's, and are free for others
    third = parts.request("third", [*OTHER, *range(500, 520)])
    parts.join(parts.prefill(third))
    steps.step()
    assert steps.saved == [0, 40], steps.saved
    # One that finds its prefix in the cache shares it at once.
    fourth = parts.request("fourth", [*TEMPLATE, 3, 4])
    late = parts.prefill(fourth, late=True)
    parts.join(late)
    steps.step()
    parts.results(late)
    steps.step()
    assert steps.saved[2:] == [80, 80], steps.saved


def namespaces(steps: Steps) -> None:
    """Equal tokens in two namespaces are two copies in the cache."""
    parts = steps.parts
    names = {"own": None, "own 2": None, "x": "x", "x 2": "x", "y": "y"}
    requests = [
        parts.request(name, [*TEMPLATE, number], extra_key=key)
        for number, (name, key) in enumerate(names.items(), start=1)
    ]
    for request in requests:
        parts.join(parts.prefill(request))
    steps.step()
    assert steps.saved == [40 + 40], steps.saved


def left_to_sglang(steps: Steps) -> None:
    """What is not covered is computed by SGLang's kernels, and says why."""
    parts = steps.parts
    parts.join(parts.prefill(*(parts.request(str(n), [*TEMPLATE, n]) for n in (1, 2))))
    steps.step(logit_cap=30.0)
    steps.step(k_scale=torch.tensor(2.0), k_scale_float=2.0,
               v_scale=torch.tensor(2.0), v_scale_float=2.0)  # fmt: skip

    def unknown(batch: Any) -> None:
        parts.attention.init_forward_metadata(replaced(batch))

    steps.step(unknown)
    parts.attention._unfit = "deterministic"
    steps.step()
    parts.attention._unfit = None
    steps.step()
    assert steps.saved == [0, 0, 0, 0, 40], steps.saved


class Graph:
    """One decode graph of SGLang's runner: static inputs, and the launches of our kernels."""

    def __init__(self, parts: Parts, rows: int) -> None:
        self.parts, self.rows = parts, rows
        self.buffers = SimpleNamespace(
            input_ids=torch.ones(rows, dtype=torch.int64),
            positions=torch.zeros(rows, dtype=torch.int64),
            req_pool_indices=torch.zeros(rows, dtype=torch.int64),
            seq_lens=torch.ones(rows, dtype=torch.int64),
            seq_lens_cpu=torch.ones(rows, dtype=torch.int64),
            mamba_track_indices=None,
        )
        self.queries = torch.zeros(LAYERS, rows, Q_HEADS * SIZE)
        self.outputs: list[torch.Tensor] = []
        self.launches: list[Launch] = []
        self._capture()

    def _capture(self) -> None:
        attention = self.parts.attention
        buffers = self.buffers
        batch = SimpleNamespace(
            batch_size=self.rows, forward_mode=ForwardMode.DECODE, spec_info=None,
            req_pool_indices=buffers.req_pool_indices, seq_lens=buffers.seq_lens,
            seq_lens_sum=self.rows, seq_lens_cpu=buffers.seq_lens_cpu, encoder_lens=None,
            out_cache_loc=torch.zeros(self.rows, dtype=torch.int64),
        )  # fmt: skip
        translator = self.parts.runner.kv_index_translator
        translator.own_plan(batch, runner_slots=True).bind(batch, translator)
        attention.init_forward_metadata_out_graph(batch, in_capture=True)
        for _ in range(3):  # two runs to warm up; the last is what is kept
            with recorded() as self.launches:
                attention.init_forward_metadata_in_graph(batch)
                self.outputs = [
                    attention.forward_decode(
                        self.queries[layer], None, None, self.parts.layer(layer), batch,
                        save_kv_cache=False,
                    )
                    for layer in range(LAYERS)
                ]  # fmt: skip

    def replay(self, batch: Any) -> float:
        """One step of `batch`; returns the largest error of its rows."""
        parts, buffers, count = self.parts, self.buffers, batch.batch_size
        buffers.req_pool_indices.zero_()[:count] = batch.req_pool_indices
        for lengths in (buffers.seq_lens, buffers.seq_lens_cpu):
            lengths.fill_(1)[:count] = batch.seq_lens
        view = build_replay_fb_view(
            forward_batch=batch, buffers=buffers, bs=self.rows, raw_bs=count,
            num_tokens=self.rows, global_num_tokens_cpu=None, seq_len_fill_value=1,
            capture_forward_mode=ForwardMode.DECODE, is_encoder_decoder=False,
        )  # fmt: skip
        parts.attention.init_forward_metadata_out_graph(view)
        num_items = int(parts.attention._decoder._num_items)  # that the device will read
        assert (num_items > 0) == (parts.attention.shared.not_shared() is None)
        self.queries.normal_()
        for output in self.outputs:
            output.fill_(torch.nan)
        for layer in range(LAYERS):
            for buffer in parts.buffers(layer):
                buffer[batch.out_cache_loc] = torch.randn(count, KV_HEADS, SIZE)
        for launch in self.launches:
            if launch.name == "prefix_kernel":  # the first of a layer
                poison(parts.attention._decoder)
            launch.run()
        worst = 0.0
        for layer, output in enumerate(self.outputs):
            wanted = parts.wanted(self.queries[layer, :count], layer, batch)
            worst = larger(worst, (output[:count] - wanted).abs().max())
        return worst


def graphs(steps: Steps) -> None:
    """One captured graph serves every grouping, with rows to spare and without."""
    parts = steps.parts
    parts.attention.init_cuda_graph_state(4, 4)
    graph = Graph(parts, 4)

    def step() -> None:
        batch = parts.next_step()
        before = parts.attention.shared.tokens_saved
        steps.errors.append(graph.replay(batch))
        steps.saved.append(parts.attention.shared.tokens_saved - before)
        steps.check_groups(batch)
        parts.sampled()

    a = parts.request("a", [*TEMPLATE, *SCHEMA, 1])
    b = parts.request("b", [*TEMPLATE, *SCHEMA, 2, 3])
    parts.join(parts.prefill(a, b))
    step()
    step()
    c = parts.request("c", [12, *OTHER])
    d = parts.request("d", [*TEMPLATE, 4])
    parts.join(parts.prefill(c, d))
    step()
    steps.step()  # without a graph, as a batch that is too large for one
    parts.finish(a)
    parts.finish(b)
    step()
    step()
    e = parts.request("e", [12, *OTHER, 5])
    parts.join(parts.prefill(e))
    step()
    assert steps.saved == [70, 70, 110, 110, 0, 0, 61], steps.saved


def replaced(batch: Any) -> Any:
    """The batch as one that SGLang makes from it without our knowing."""
    batch.out_cache_loc, batch.rids = batch.out_cache_loc.clone(), None
    return batch


SCENARIOS = (come_and_go, late_results, namespaces, graphs, left_to_sglang)

if __name__ == "__main__":
    empty_like = torch.empty_like
    torch.empty_like = lambda tensor, **kwargs: empty_like(tensor, **kwargs).fill_(torch.nan)
    report = {}
    for scenario in SCENARIOS:
        run = Steps(Parts(sys.argv[1]))
        scenario(run)
        counted = run.parts.attention.shared.steps.items()
        report[scenario.__name__] = {
            "errors": run.errors,
            "saved": run.saved,
            "steps": {"/".join(key): count for key, count in counted},
        }
    sys.stdout.write("found:" + json.dumps(report))
