"""The simulator's prefix cache against a plain model: sets of token prefixes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.sim.prefix_cache import Node, PrefixCache

Segments = tuple[tuple[str, int], ...]

# Few streams and short lengths, so that prompts often part in the middle of a stream.
SEGMENTS = st.lists(
    st.tuples(st.sampled_from(["t", "u", "c1", "c2", "o"]), st.integers(1, 5)),
    min_size=1,
    max_size=4,
    unique_by=lambda segment: segment[0],
).map(tuple)


def tokens(segments: Segments) -> list[tuple[str, int]]:
    """The prompt as single tokens."""
    return [(key, place) for key, length in segments for place in range(length)]


def nodes(cache: PrefixCache) -> list[Node]:
    """All nodes but the root."""
    found, todo = [], list(cache.root.children.values())
    while todo:
        node = todo.pop()
        found.append(node)
        todo += node.children.values()
    return found


def held(cache: PrefixCache) -> set[tuple[tuple[str, int], ...]]:
    """Every token prefix that the tree holds."""
    prefixes: set[tuple[tuple[str, int], ...]] = set()
    todo: list[tuple[Node, tuple[tuple[str, int], ...]]] = [(cache.root, ())]
    while todo:
        node, before = todo.pop()
        path = before
        for key, start, length in node.pieces:
            for place in range(start, start + length):
                path = (*path, (key, place))
                prefixes.add(path)
        todo += [(child, path) for child in node.children.values()]
    return prefixes


@settings(max_examples=150, deadline=None)
@given(st.lists(SEGMENTS, min_size=1, max_size=12), SEGMENTS)
def test_it_holds_and_matches_exactly_the_prefixes_of_what_was_inserted(
    prompts: list[Segments], asked: Segments
) -> None:
    cache = PrefixCache()
    model: set[tuple[tuple[str, int], ...]] = set()
    for prompt in prompts:
        ids = tokens(prompt)
        known = sum(tuple(ids[:end]) in model for end in range(1, len(ids) + 1))
        assert cache.insert(prompt, len(ids))[1] == known
        model |= {tuple(ids[:end]) for end in range(1, len(ids) + 1)}
    assert held(cache) == model
    assert cache.num_tokens == len(model) == cache.num_evictable
    ids = tokens(asked)
    wanted = sum(tuple(ids[:end]) in model for end in range(1, len(ids) + 1))
    assert cache.num_matched(asked, len(ids)) == wanted
    assert cache.match(asked, len(ids))[1] == wanted
    assert held(cache) == model


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(SEGMENTS, st.booleans()), min_size=1, max_size=10),
    st.integers(1, 40),
)
def test_eviction_frees_what_is_asked_and_never_what_is_locked(
    prompts: list[tuple[Segments, bool]], wanted: int
) -> None:
    cache = PrefixCache()
    locked: list[tuple[Node, Segments]] = []
    for prompt, keep in prompts:
        node, _ = cache.insert(prompt, len(tokens(prompt)))
        if keep:
            cache.lock(node)
            locked.append((node, prompt))
    before, evictable = cache.num_tokens, cache.num_evictable
    freed = cache.evict(wanted)
    assert freed >= min(wanted, evictable)
    assert cache.num_tokens == before - freed == sum(node.num_tokens for node in nodes(cache))
    for _, prompt in locked:
        length = len(tokens(prompt))
        assert cache.num_matched(prompt, length) == length
    for node, _ in locked:
        cache.unlock(node)
    assert cache.num_evictable == cache.num_tokens
    assert cache.evict(cache.num_tokens) == before - freed
    assert cache.num_tokens == 0


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache = PrefixCache()
    for name in "abc":
        cache.insert((("t", 4), (name, 3)), 7)
    cache.match((("t", 4), ("a", 3)), 7)
    assert cache.evict(1) == 3
    assert [cache.num_matched((("t", 4), (name, 3)), 7) for name in "abc"] == [7, 4, 7]
