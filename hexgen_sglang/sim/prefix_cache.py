"""SGLang's radix prefix cache, on segments of prompts instead of token ids.

A prompt is a sequence of `(key, num_tokens)`: the first tokens of the stream called `key`.
Two prompts agree on a token when they agree on everything before it and on stream and place,
so matching costs a few comparisons where SGLang compares thousands of ids. Nodes hold runs of
such pieces and split where prompts part; locked nodes belong to running requests; of the others
the least recently used leaf goes first, as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol

Piece = tuple[str, int, int]  # stream, first token of it, number of tokens
Segments = Sequence[tuple[str, int]]


class Node:
    """A run of tokens behind those of its parents.

    Attributes:
        pieces: what it holds; () for the root.
        num_tokens: of all pieces.
        locks: running requests that need it.
        used: when it was used last, as a count of uses of the cache.
    """

    __slots__ = ("children", "locks", "num_tokens", "parent", "pieces", "used")

    def __init__(self, pieces: tuple[Piece, ...], parent: Node | None, used: int) -> None:
        self.pieces = pieces
        self.num_tokens = sum(piece[2] for piece in pieces)
        self.parent = parent
        self.children: dict[tuple[str, int], Node] = {}
        self.locks = 0
        self.used = used


class PrefixCache:
    """One engine's cache.

    Attributes:
        num_tokens: held, locked or not.
        num_evictable: held by nodes that nobody locks.
    """

    def __init__(self) -> None:
        self.root = Node((), None, 0)
        self.root.locks = 1
        self.num_tokens = 0
        self.num_evictable = 0
        self._uses = 0
        self._order = 0
        self._leaves: list[tuple[int, int, Node]] = []  # candidates for eviction

    @property
    def num_uses(self) -> int:
        """Matches, insertions and additions so far."""
        return self._uses

    def match(self, segments: Segments, limit: int) -> tuple[Node, int]:
        """The node at which the longest cached prefix ends, and its length, at most `limit`.

        Splits a node that matches in part, and marks what matched as used.
        """
        node, matched, _, _ = self._walk(segments, limit)
        return node, matched

    def num_matched(self, segments: Segments, limit: int) -> int:
        """Length of the longest cached prefix, at most `limit`; changes nothing."""
        node, matched, at, offset = self.root, 0, 0, 0
        while at < len(segments) and matched < limit:
            child = node.children.get((segments[at][0], offset))
            if child is None:
                return matched
            taken, at, offset = agreement(child, segments, at, offset, limit - matched)
            matched += taken
            if taken < child.num_tokens:
                return matched
            node = child
        return matched

    def insert(self, segments: Segments, num_tokens: int) -> tuple[Node, int]:
        """Hold the first `num_tokens` of a prompt; its node, and how many were held before."""
        node, matched, at, offset = self._walk(segments, num_tokens)
        if matched == num_tokens:
            return node, matched
        pieces = []
        left = num_tokens - matched
        while left:
            key, length = segments[at]
            taken = min(length - offset, left)
            pieces.append((key, offset, taken))
            left -= taken
            at, offset = at + 1, 0
        return self.append(node, tuple(pieces)), matched

    def append(self, node: Node, pieces: tuple[Piece, ...]) -> Node:
        """A new leaf behind `node`, which must have no child that begins with these pieces."""
        leaf = Node(pieces, node, self._next_use())
        node.children[pieces[0][0], pieces[0][1]] = leaf
        self.num_tokens += leaf.num_tokens
        self.num_evictable += leaf.num_tokens
        self._offer(leaf)
        return leaf

    def lock(self, node: Node) -> None:
        """Keep the node and everything before it."""
        at: Node | None = node
        while at is not None:
            if at.locks == 0:
                self.num_evictable -= at.num_tokens
            at.locks += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        """Take one `lock` back."""
        at: Node | None = node
        while at is not None:
            at.locks -= 1
            if at.locks == 0:
                self.num_evictable += at.num_tokens
                self._offer(at)
            at = at.parent

    def locked_by(self, node: Node) -> int:
        """Tokens that a `lock` of the node would make unevictable."""
        total = 0
        at: Node | None = node
        while at is not None and at.locks == 0:
            total += at.num_tokens
            at = at.parent
        return total

    def evict(self, num_tokens: int) -> int:
        """Free at least so many tokens, least recently used leaves first; returns how many."""
        freed = 0
        while freed < num_tokens and self._leaves:
            used, _, leaf = heapq.heappop(self._leaves)
            if leaf.locks or leaf.children or leaf.parent is None:
                continue
            if leaf.used != used:
                self._offer(leaf)
                continue
            freed += leaf.num_tokens
            self._remove(leaf)
        return freed

    def _walk(self, segments: Segments, limit: int) -> tuple[Node, int, int, int]:
        """Follow a prompt; node, tokens matched, and the segment and offset that come next."""
        use = self._next_use()
        node, matched, at, offset = self.root, 0, 0, 0
        while matched < limit:
            child = node.children.get((segments[at][0], offset))
            if child is None:
                break
            taken, at, offset = agreement(child, segments, at, offset, limit - matched)
            matched += taken
            if taken < child.num_tokens:
                node = self._split(child, taken)
                node.used = use
                break
            node = child
            node.used = use
        return node, matched, at, offset

    def _split(self, node: Node, num_tokens: int) -> Node:
        """Cut a node in two; the upper part is new, the lower stays what others point to."""
        upper, lower = cut(node.pieces, num_tokens)
        parent = node.parent
        assert parent is not None
        above = Node(upper, parent, node.used)
        above.locks = node.locks
        parent.children[upper[0][0], upper[0][1]] = above
        above.children[lower[0][0], lower[0][1]] = node
        node.pieces, node.num_tokens, node.parent = (
            lower,
            node.num_tokens - num_tokens,
            above,
        )
        return above

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.pieces[0][0], leaf.pieces[0][1]]
        leaf.parent = None
        self.num_tokens -= leaf.num_tokens
        self.num_evictable -= leaf.num_tokens
        self._offer(parent)

    def _offer(self, node: Node) -> None:
        """Remember the node for eviction, if it can go."""
        if not node.locks and not node.children:
            self._order += 1
            heapq.heappush(self._leaves, (node.used, self._order, node))

    def _next_use(self) -> int:
        self._uses += 1
        return self._uses


def repeated_tokens(nodes: Sequence[Node | None]) -> int:
    """Tokens on the paths to these nodes beyond the first copy of each."""
    repeated = 0
    seen: set[int] = set()
    for node in nodes:
        at = node
        while at is not None:
            if id(at) in seen:
                repeated += at.num_tokens
            seen.add(id(at))
            at = at.parent
    return repeated


def beginning(segments: Segments, num_tokens: int) -> tuple[tuple[str, int], ...]:
    """The first `num_tokens` of a prompt."""
    found = []
    for key, length in segments:
        if num_tokens <= 0:
            break
        found.append((key, min(length, num_tokens)))
        num_tokens -= length
    return tuple(found)


class Run(Protocol):
    """A run of tokens, as pieces of streams."""

    pieces: tuple[Piece, ...]


def cut(pieces: Sequence[Piece], num_tokens: int) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The first `num_tokens` of a run of pieces, and the rest of it."""
    upper: list[Piece] = []
    lower: list[Piece] = []
    left = num_tokens
    for key, start, length in pieces:
        head = min(left, length)
        if head:
            upper.append((key, start, head))
        if head < length:
            lower.append((key, start + head, length - head))
        left -= head
    return tuple(upper), tuple(lower)


def agreement(
    node: Run, segments: Segments, at: int, offset: int, limit: int
) -> tuple[int, int, int]:
    """Tokens of `node` that the prompt has from (segment, offset) on; and where it is then."""
    taken = 0
    for key, start, length in node.pieces:
        if taken == limit or at == len(segments):
            break
        name, num_tokens = segments[at]
        if name != key or offset != start:
            break
        more = min(length, num_tokens - offset, limit - taken)
        taken += more
        offset += more
        if offset == num_tokens:
            at, offset = at + 1, 0
        if more < length:
            break
    return taken, at, offset
