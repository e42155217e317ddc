"""Laws of traces, prompts and arrivals over generated workflows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.workload.arrivals import ArrivalProcess, Arrivals
from hexgen_sglang.workload.capacity import least_makespan
from hexgen_sglang.workload.formats import jsonl, load_trace
from hexgen_sglang.workload.latency import Reuse, cached_tokens, unloaded_s
from hexgen_sglang.workload.prefixes import PrefixIndex, TokenSource, prompts_of
from hexgen_sglang.workload.streams import Subsystem, stream
from hexgen_sglang.workload.trace import (
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

PARTS = st.builds(
    PrefixPart,
    st.sampled_from(PrefixScope),
    st.sampled_from(["a", "b"]),
    st.integers(1, 40),
)


@st.composite
def requests(draw: st.DrawFn) -> TraceRequest:
    prefix = draw(st.none() | st.lists(PARTS, max_size=3).map(tuple))
    shared = sum(part.num_tokens for part in prefix or ())
    return TraceRequest(shared + draw(st.integers(1, 60)), draw(st.integers(1, 50)), prefix)


@st.composite
def workflows(draw: st.DrawFn) -> TraceWorkflow:
    stages = []
    for index in range(draw(st.integers(1, 5))):
        after = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        stages.append(
            TraceStage(
                draw(st.sampled_from(["revise", "evaluate", "generate_candidate", "other"])),
                tuple(draw(st.lists(requests(), min_size=1, max_size=3))),
                tuple(sorted(after)),
                draw(st.floats(0, 5)),
            )
        )
    kind = draw(st.sampled_from(["text2sql", "agent"]))
    return TraceWorkflow(draw(st.text("abc", min_size=1, max_size=5)), kind, tuple(stages))


NUMBER = '{ value = %s, source = "made up" }'
PROFILE = profile_from_toml(
    f"""
    name = "priced"
    model = "none"
    device = "a price for everything"
    tensor_parallel = {NUMBER % 1}
    [prefill]
    base_s = {NUMBER % 0.01}
    per_token_s = {NUMBER % 0.001}
    per_token_per_1k_context_s = {NUMBER % 0.0001}
    chunk_tokens = {NUMBER % 64}
    [decode]
    base_s = {NUMBER % 0.02}
    per_request_s = {NUMBER % 0.001}
    per_1k_context_tokens_s = {NUMBER % 0.001}
    [capacity]
    kv_tokens = {NUMBER % 1000}
    max_running_requests = {NUMBER % 8}
    [price]
    usd_per_hour = {NUMBER % 1.0}
    [fit]
    method = "made up"
    """,
    "test",
)


@given(st.lists(workflows(), min_size=1, max_size=3))
def test_own_format_is_lossless(made: list[TraceWorkflow]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        jsonl.write(Trace("t", "t", "jsonl", tuple(made)), path)
        assert load_trace(path).workflows == tuple(made)


@given(workflows())
def test_prompts_have_the_lengths_of_the_trace(workflow: TraceWorkflow) -> None:
    prompts = prompts_of(workflow, "i", "c")
    for stage, sibling, request in workflow.requests():
        lengths = [segment.num_tokens for segment in prompts[stage][sibling]]
        assert sum(lengths) == request.num_input_tokens
        assert min(lengths) >= 1


@settings(max_examples=50)
@given(st.lists(workflows(), min_size=2, max_size=3))
def test_symbolic_prefixes_are_those_of_the_ids(made: list[TraceWorkflow]) -> None:
    """The index finds exactly what the token ids have in common, but for chance equals."""
    source = TokenSource(seed=0, num_ids=1_000_000)
    index = PrefixIndex()
    seen: list[np.ndarray] = []
    for number, workflow in enumerate(made):
        for prompts in prompts_of(workflow, str(number), str(number % 2)):
            for prompt in prompts:
                ids = source.input_ids(prompt)
                longest = max((_common(ids, other) for other in seen), default=0)
                assert 0 <= longest - index.match(prompt) <= 1
                index.insert(prompt)
                assert index.match(prompt) == len(ids)
                seen.append(ids)


def _common(left: np.ndarray, right: np.ndarray) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if different.size else length


@given(workflows())
def test_reuse_never_makes_a_workflow_slower(workflow: TraceWorkflow) -> None:
    warm = unloaded_s(workflow, [PROFILE], Reuse.PERFECT)
    cold = unloaded_s(workflow, [PROFILE], Reuse.NONE)
    assert 0 < warm <= cold
    for stage, sibling, request in workflow.requests():
        hit = cached_tokens(workflow, Reuse.PERFECT)[stage][sibling]
        assert 0 <= hit <= request.num_input_tokens


@given(
    st.sampled_from(ArrivalProcess),
    st.floats(0.1, 10),
    st.floats(0.01, 100),
    st.integers(1, 200),
    st.integers(0, 2**32),
)
def test_arrivals_never_go_back(
    process: ArrivalProcess, cv: float, rate: float, num: int, seed: int
) -> None:
    instants = Arrivals(process, cv).instants_s(rate, num, stream(seed, Subsystem.ARRIVALS))
    assert len(instants) == num
    assert (np.diff(instants, prepend=0.0) >= 0).all()
    assert np.isfinite(instants).all()


@given(
    st.integers(1, 6).flatmap(
        lambda workers: st.lists(
            st.lists(st.floats(0.01, 100), min_size=workers, max_size=workers),
            min_size=1,
            max_size=6,
        )
    )
)
def test_makespan_lies_between_its_simple_bounds(rows: list[list[float]]) -> None:
    """Not below the work at each job's best rate on all workers, nor above the best worker."""
    seconds = np.array(rows)
    best = least_makespan(seconds)
    same_split = 1.0 / (1.0 / seconds.sum(axis=0)).sum()
    assert best <= same_split * (1 + 1e-9)
    assert best >= seconds.min(axis=1).sum() / seconds.shape[1] * (1 - 1e-9)
