"""A radix tree over the KV slots of the running requests: who holds which prefix together.

Keys are slots and not tokens, so what the tree calls shared is one copy in the KV cache,
whatever the engine's own prefix cache looks like inside. CPU only, in the scheduler process;
what a shared prefix is worth is decided in `groups`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, KeysView
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hexgen_kernels.shared_prefix_decode.forest import Int32
from hexgen_sglang.core.errors import ConfigError


class Node:
    """An edge of the tree: table entries [start, end) that everything below it begins with.

    Attributes:
        entries: (end - start,) int32.
        children: by their first entry.
        owners: requests that end exactly here.
        num_requests: requests that end here or below.
        kept: what `groups` works out about this node; emptied whenever anything below changes.
    """

    __slots__ = (
        "children", "end", "entries", "kept", "num_requests", "owners", "parent", "start"
    )  # fmt: skip

    def __init__(self, entries: Int32, start: int, parent: Node | None) -> None:
        self.entries = entries
        self.start = start
        self.end = start + len(entries)
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.owners: list[Hashable] = []
        self.num_requests = 0
        self.kept: dict[Any, Any] = {}

    def requests(self) -> Iterator[Hashable]:
        """Everything that ends here or below, neighbours in the tree next to each other."""
        yield from self.owners
        for child in self.children.values():
            yield from child.requests()


class PrefixTree:
    """Which requests' rows of the KV table begin alike.

    Adding costs a comparison of the row with what it shares and one small node; removing
    costs the depth of the tree.
    """

    def __init__(self) -> None:
        self.root = Node(np.empty(0, dtype=np.int32), 0, None)
        self._ends: dict[Hashable, Node] = {}

    def __contains__(self, request: Hashable) -> bool:
        return request in self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def requests(self) -> KeysView[Hashable]:
        """All requests, in the order in which they came."""
        return self._ends.keys()

    def add(self, request: Hashable, entries: NDArray[np.integer]) -> None:
        """Add a request.

        Args:
            request: any name for it.
            entries: (n,) its row of the KV table, from position 0: token indices, or page
                indices of full pages; only as far as it may be shared. Copied.

        Raises:
            ConfigError: the request is there already, or `entries` is no row of integers.
        """
        if request in self._ends:
            raise ConfigError(f"request {request!r}: is in the tree already")
        row = np.array(entries, dtype=np.int32)
        if row.ndim != 1:
            raise ConfigError(f"entries of {request!r}: shape {row.shape}, must be (n,)")
        node = self.root
        while node.end < len(row):
            child = node.children.get(int(row[node.end]))
            if child is None:
                child = Node(row[node.end :], node.end, node)
                node.children[int(row[node.end])] = child
            elif (alike := _num_alike(child.entries, row[node.end :])) < len(child.entries):
                child = self._split(child, alike)
            node = child
        node.owners.append(request)
        self._ends[request] = node
        self._count(node, 1)

    def remove(self, request: Hashable) -> None:
        """Remove a request.

        Raises:
            KeyError: it is not in the tree.
        """
        node = self._ends.pop(request)
        node.owners.remove(request)
        self._count(node, -1)
        while node.parent is not None and node.num_requests == 0:
            del node.parent.children[int(node.entries[0])]
            node = node.parent
        if node.parent is not None and not node.owners and len(node.children) == 1:
            self._join(node)

    def _split(self, node: Node, length: int) -> Node:
        """Cut a node in two; returns the upper part, which is new."""
        assert node.parent is not None
        upper = Node(node.entries[:length], node.start, node.parent)
        node.parent.children[int(node.entries[0])] = upper
        upper.num_requests = node.num_requests
        node.entries, node.start, node.parent = node.entries[length:], upper.end, upper
        node.kept = {}
        upper.children[int(node.entries[0])] = node
        return upper

    def _join(self, node: Node) -> None:
        """Put a node with one way on and its child into one, the child."""
        (child,) = node.children.values()
        assert node.parent is not None
        child.entries = np.concatenate((node.entries, child.entries))
        child.start, child.parent, child.kept = node.start, node.parent, {}
        node.parent.children[int(child.entries[0])] = child

    def _count(self, node: Node | None, change: int) -> None:
        while node is not None:
            node.num_requests += change
            node.kept = {}
            node = node.parent


def _num_alike(left: Int32, right: Int32) -> int:
    """Length of the common beginning."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length
