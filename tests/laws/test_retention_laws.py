"""Laws of kept prefixes, over any order of arrivals, stages, ends and markings."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.policies.retention import PrefixRetention
from hexgen_sglang.sim.prefix_cache import PrefixCache
from hexgen_sglang.sim.queue_order import common_prefix

Segments = tuple[tuple[str, int], ...]
WORKFLOWS = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), WORKFLOWS, st.sampled_from(["s", "t"]), st.integers(0, 400)),
        st.tuples(st.just("retain"), WORKFLOWS, st.floats(0.1, 20)),
        st.tuples(st.just("release"), WORKFLOWS),
        st.tuples(st.just("wait"), st.floats(0, 30)),
    ),
    max_size=30,
)
KV_TOKENS = 4_000


def length(prompt: Segments) -> int:
    return sum(tokens for _, tokens in prompt)


def play(events: list[tuple], share: float = 0.5) -> tuple[PrefixRetention[Segments], list]:
    """Replay; returns the rule and what it marked after each event."""
    kept: PrefixRetention[Segments] = PrefixRetention(share, KV_TOKENS, common_prefix, length)
    now_s, marked = 0.0, []
    for kind, *what in events:
        if kind == "arrive":
            workflow, stage, own = what
            prompt = ((f"template-{stage}", 200), (f"context-{workflow}", 300), ("own", own))
            kept.arrived(workflow, "type", stage, prompt, now_s)
        elif kind == "retain":
            kept.retain(what[0], what[1], now_s)
        elif kind == "release":
            kept.release(what[0])
        else:
            now_s += what[0]
        marked.append(kept.refresh(now_s))
    return kept, marked


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_marks_are_bounded_and_the_same_on_every_rank(events: list[tuple]) -> None:
    kept, marked = play(events)
    for found in marked:
        assert sum(tokens for _, tokens in found) <= KV_TOKENS / 2
        assert all(0 < tokens <= length(prompt) for prompt, tokens in found)
    assert play(events)[1] == marked
    totals = kept.totals
    assert 0 <= totals.used + totals.wasted <= totals.kept


@settings(max_examples=60, deadline=None)
@given(EVENTS, WORKFLOWS)
def test_a_released_workflow_leaves_no_context_behind(events: list[tuple], workflow: str) -> None:
    _, marked = play([*events, ("release", workflow)], share=1.0)
    for prompt, tokens in marked[-1]:
        assert prompt[1][0] != f"context-{workflow}" or tokens <= 200


@settings(max_examples=40, deadline=None)
@given(EVENTS)
def test_what_is_marked_last_is_evicted_last(events: list[tuple]) -> None:
    _, marked = play([*events, ("wait", 0.0)])
    cache = PrefixCache()
    for number in range(5):
        cache.insert(((f"dead-{number}", 300),), 300)
    for prompt, tokens in marked[-1]:
        cache.insert(prompt, tokens)
    for prompt, tokens in marked[-1]:
        cache.match(prompt, tokens)
    cache.evict(5 * 300)
    for prompt, tokens in marked[-1]:
        assert cache.num_matched(prompt, tokens) == tokens
