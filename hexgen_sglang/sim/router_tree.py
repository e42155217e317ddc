"""sglang-router's radix tree of the prompts it has routed, as of 0.3, on segments of prompts.

It holds characters, where token ids stand as decimal numbers. A part of a prompt belongs for
good to the worker that it was first sent to, and prompts that part behind a common prefix often
still share the first digits of their next token: then the prompt belongs to whoever had those
digits first. The ids are those that the bench sends to emulated workers.
"""

from __future__ import annotations

from hexgen_sglang.sim.prefix_cache import Piece, Segments, agreement, cut
from hexgen_sglang.workload.prefixes import Segment, TokenSource

# Of the bench's prompts by default: the model of emulated workers has 1,690 tokens.
_FIRST_ID, _NUM_IDS = 300, 1_390


class _Node:
    """A run of tokens behind those of its parents.

    Attributes:
        pieces, num_tokens: what it holds.
        owner: the worker that it was first sent to.
        children: by stream and place of the first token.
        digits: owners of what comes next, by the first digits of the next token.
    """

    __slots__ = ("children", "digits", "num_tokens", "owner", "pieces")

    def __init__(self, pieces: tuple[Piece, ...], owner: str) -> None:
        self.pieces = pieces
        self.num_tokens = sum(piece[2] for piece in pieces)
        self.owner = owner
        self.children: dict[tuple[str, int], _Node] = {}
        self.digits: dict[str, str] = {}

    def add(self, child: _Node, prefixes: list[str]) -> None:
        """Put a child behind this node; digits that others had first stay theirs."""
        key, start, _ = child.pieces[0]
        self.children[key, start] = child
        for prefix in prefixes:
            self.digits.setdefault(prefix, child.owner)


class RouterTree:
    """The prompts sent so far, and to whom.

    Args:
        seed: of the workload, which decides the token ids.
    """

    def __init__(self, seed: int) -> None:
        self._root = _Node((), "")
        self._tokens = TokenSource(seed, _NUM_IDS, _FIRST_ID)

    def match(self, segments: Segments) -> tuple[int, str]:
        """Length of the longest known prefix, and the worker that it belongs to."""
        node, matched, at, offset = self._root, 0, 0, 0
        while at < len(segments):
            child = node.children.get((segments[at][0], offset))
            if child is None:
                for prefix in self._prefixes(segments[at][0], offset):
                    if prefix in node.digits:
                        return matched, node.digits[prefix]
                break
            taken, at, offset = agreement(child, segments, at, offset, child.num_tokens)
            matched += taken
            node = child
            if taken < child.num_tokens:
                break
        return matched, node.owner

    def insert(self, segments: Segments, worker: str) -> None:
        """A prompt goes to a worker."""
        node, at, offset = self._root, 0, 0
        while at < len(segments):
            child = node.children.get((segments[at][0], offset))
            if child is None:
                rest = [(key, 0, length) for key, length in segments[at:]]
                rest[0] = (segments[at][0], offset, segments[at][1] - offset)
                node.add(_Node(tuple(rest), worker), self._prefixes(segments[at][0], offset))
                return
            taken, at, offset = agreement(child, segments, at, offset, child.num_tokens)
            if taken < child.num_tokens:
                child = self._split(node, child, taken)
            node = child

    def _split(self, parent: _Node, node: _Node, num_tokens: int) -> _Node:
        """Cut a node in two, both its owner's; returns the upper part."""
        upper, lower = cut(node.pieces, num_tokens)
        above = _Node(upper, node.owner)
        parent.children[upper[0][0], upper[0][1]] = above
        node.pieces, node.num_tokens = lower, node.num_tokens - num_tokens
        above.add(node, self._prefixes(lower[0][0], lower[0][1]))
        return above

    def _prefixes(self, key: str, place: int) -> list[str]:
        """The first digits of a token's id, the most first."""
        ids = self._tokens.input_ids((Segment(key, place + 1),))
        digits = str(ids[place])
        return [digits[:end] for end in range(len(digits), 0, -1)]
