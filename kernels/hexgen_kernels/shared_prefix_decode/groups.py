"""Finds the prefix groups of each decode step, and decides which are worth sharing.

CPU only, in SGLang's scheduler process, before a step's kernels are launched. Steps with the
same requests cost one comparison of two lists; a request that comes or goes costs its own path
in the tree, and putting the parts that did not change behind each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hexgen_kernels.shared_prefix_decode.batch_rows import BatchRows
from hexgen_kernels.shared_prefix_decode.forest import (
    NO_PARENT,
    SEGMENT_FIELDS,
    PrefixForest,
    unshared,
)
from hexgen_kernels.shared_prefix_decode.prefix_tree import Node, PrefixTree
from hexgen_sglang.core.errors import ConfigError

EntriesOf = Callable[[Hashable], "NDArray[np.integer] | None"]


@dataclass(frozen=True, kw_only=True)
class CostRule:
    """What a decode step's attention costs, in bytes moved for one layer.

    Decode attention is bound by memory, so time is bytes over bandwidth, and fixed times count
    as the bytes that could have been moved meanwhile. Sharing saves reads of KV and pays with
    one more partial result for each row and part.

    Attributes:
        kv_bytes: K and V of one token.
        partial_bytes: writing and reading back one partial result of a row, all its heads.
        part_tokens: tokens of a shared segment for each partial, about.
        segment_bytes: fixed cost of one shared segment.
        step_bytes: fixed cost of sharing anything in a step.
    """

    kv_bytes: float
    partial_bytes: float
    part_tokens: int = 512
    segment_bytes: float = 0.0
    step_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0 or (name in ("kv_bytes", "part_tokens") and value == 0):
                least = "above 0" if name in ("kv_bytes", "part_tokens") else "0 or more"
                raise ConfigError(f"{name}={value}: must be {least}")

    @classmethod
    def of_model(
        cls,
        num_q_heads: int,
        num_kv_heads: int,
        head_size: int,
        itemsize: int,
        bytes_per_s: float = 2.5e12,
        step_s: float = 4e-6,
        segment_s: float = 2e-7,
    ) -> CostRule:
        """The rule for a model's heads on one device.

        Args:
            num_q_heads, num_kv_heads, head_size: on this device.
            itemsize: bytes of one KV element.
            bytes_per_s: memory bandwidth that decode attention reaches.
            step_s: one more kernel launch in a graph, and its tail.
            segment_s: what a segment adds to the launch by cutting work less evenly.

        The default times are estimates for an H100, not measurements; `kernels/bench/speed.py`
        measures the first.
        """
        return cls(
            kv_bytes=2 * num_kv_heads * head_size * itemsize,
            partial_bytes=2 * num_q_heads * (head_size + 1) * 4,
            segment_bytes=segment_s * bytes_per_s,
            step_bytes=step_s * bytes_per_s,
        )

    def shared(self, tokens: int, rows: int) -> float:
        """Bytes to read `tokens` once for that many rows."""
        parts = -(-tokens // self.part_tokens)
        return tokens * self.kv_bytes + parts * rows * self.partial_bytes + self.segment_bytes


class GroupFinder:
    """Keeps the forest of the running batch from step to step.

    Attributes:
        tree: the requests of the last step that are known to share or not.
        num_groups: prefixes held by two or more requests in the last step, down to
            `max_levels`, whether worth sharing or not.

    Args:
        rule: decides for each prefix whether to share it, or to let each part of the batch
            below it read it again. The choice is the cheapest over the whole forest.
        max_levels: most shared segments above one row. Branchings deeper in the tree are not
            considered.
        page_size: tokens that one table entry stands for.
    """

    def __init__(self, rule: CostRule, max_levels: int = 6, page_size: int = 1) -> None:
        for name, value in (("max_levels", max_levels), ("page_size", page_size)):
            if value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        self.rule, self.max_levels, self.page_size = rule, max_levels, page_size
        self.tree = PrefixTree()
        self.num_groups = 0
        self._rows = BatchRows()
        self._unknown: list[Hashable] = []  # requests of the batch that are not in the tree yet
        self._forest = unshared(0)

    def step(self, batch: Sequence[Hashable], entries_of: EntriesOf) -> PrefixForest:
        """The forest of this step.

        Args:
            batch: names of the requests by row, without repetition. A name must not be used
                again for another request before a step without it.
            entries_of: called for each request that is new: its row of the KV table (see
                `PrefixTree.add`), or None if that is not known yet: then it shares nothing in
                this step and is asked for again in the next.

        Returns:
            The very object of the last step if nothing changed.

        Raises:
            ConfigError: a name occurs twice.
        """
        requests = list(batch)
        changed = requests != self._rows.requests
        if not changed and not self._unknown:
            return self._forest
        if changed:
            gone, new = self._rows.follow(requests)
            left = set(gone)
            for request in gone:
                if request in self.tree:
                    self.tree.remove(request)
            self._unknown = [one for one in self._unknown if one not in left] + new
        asked, self._unknown = self._unknown, []
        for request in asked:
            entries = entries_of(request)
            if entries is None:
                self._unknown.append(request)
            else:
                self.tree.add(request, entries)
                changed = True
        if changed:
            self._forest = self._build(len(requests))
        return self._forest

    def _build(self, batch: int) -> PrefixForest:
        tops = [node for node in self.tree.root.children.values() if node.num_requests > 1]
        choices = [self._choose(node, 0, 0) for node in tops]
        self.num_groups = sum([choice.num_groups for choice in choices])
        if sum([choice.unshared - choice.cost for choice in choices]) <= self.rule.step_bytes:
            return unshared(batch)
        layout = _Layout([], [], [], [])
        for node in tops:
            layout.put_behind(self._lay_out(node, 0, 0))
        order = np.empty(batch, dtype=np.int32)
        num_placed = len(layout.numbers)
        order[:num_placed] = self._rows.rows_of(layout.numbers)
        suffix_start = np.zeros(batch, dtype=np.int32)
        suffix_start[order[:num_placed]] = np.repeat(layout.ends, layout.counts)
        if num_placed < batch:
            alone = np.ones(batch, dtype=bool)
            alone[order[:num_placed]] = False
            order[num_placed:] = np.flatnonzero(alone)
        fields = chain.from_iterable(layout.segments)
        columns = np.fromiter(fields, np.int32, len(layout.segments) * SEGMENT_FIELDS)
        return PrefixForest(order, columns.reshape(-1, SEGMENT_FIELDS), suffix_start)

    def _choose(self, node: Node, pending: int, depth: int) -> _Choice:
        """The cheapest way to read a prefix of several requests and what is shared below it.

        `pending` tokens before the node are read with it, because no segment holds them. What
        every way reads alike, each request's own tokens, is left out.
        """
        kept: _Choice | None = node.kept.get((pending, depth))
        if kept is not None:
            return kept
        tokens = pending + len(node.entries) * self.page_size
        alone, branches = self._parts(node, depth)
        below_cost = below_unshared = 0.0
        num_groups = 1
        for child in branches:
            choice = self._choose(child, 0, depth + 1)
            below_cost += choice.cost
            below_unshared += choice.unshared
            num_groups += choice.num_groups
        read_cost = tokens * self.rule.kv_bytes
        share = self.rule.shared(tokens, node.num_requests) + below_cost
        # Not shared, every branch reads these tokens at least once: mostly that settles it.
        separate = (len(alone) + len(branches)) * read_cost + below_cost
        if separate < share:
            separate = len(alone) * read_cost
            separate += sum(self._choose(child, tokens, depth + 1).cost for child in branches)
        choice = _Choice(
            min(share, separate),
            node.num_requests * read_cost + below_unshared,
            share <= separate,
            num_groups,
        )
        node.kept[pending, depth] = choice
        return choice

    def _parts(self, node: Node, depth: int) -> tuple[list[int], list[Node]]:
        """Requests (their numbers) that share no segment below the node, and the children that
        may be one.
        """
        is_last = depth + 1 == self.max_levels
        kept: tuple[list[int], list[Node]] | None = node.kept.get(is_last)
        if kept is not None:
            return kept
        alone, branches = list(node.owners), []
        for child in node.children.values():
            if child.num_requests > 1 and not is_last:
                branches.append(child)
            elif child.children:
                alone += child.requests()
            else:
                alone += child.owners
        numbers = self._rows.numbers
        kept = node.kept[is_last] = ([numbers[request] for request in alone], branches)
        return kept

    def _lay_out(self, node: Node, start: int, depth: int) -> _Layout:
        """Requests and segments of a node; `start` is the first token that no segment holds.

        Worked out again only for the nodes above what changed.
        """
        key = ("layout", start, depth)
        kept: _Layout | None = node.kept.get(key)
        if kept is not None:
            return kept
        share = self._choose(node, node.start * self.page_size - start, depth).share
        end = node.end * self.page_size if share else start
        alone, branches = self._parts(node, depth)
        layout = _Layout(list(alone), [end], [len(alone)], [])
        for child in branches:
            layout.put_behind(self._lay_out(child, end, depth + 1))
        if share:
            layout.put_below(start, end)
        node.kept[key] = layout
        return layout


class _Choice(NamedTuple):
    """What reading a node and all below it costs at least, and without sharing."""

    cost: float
    unshared: float
    share: bool
    num_groups: int


@dataclass(slots=True)
class _Layout:
    """A part of a forest: places in the order, parents and levels count from its own first.

    Attributes:
        numbers: of the requests, in the order of the forest.
        ends, counts: where the last segment above so many of them ends, one after the other.
        segments: fields of `Segment`.
    """

    numbers: list[int]
    ends: list[int]
    counts: list[int]
    segments: list[tuple[int, int, int, int, int, int]]

    def put_behind(self, part: _Layout) -> None:
        """Add another part behind what is here; it stays as it is."""
        place, first = len(self.numbers), len(self.segments)
        self.numbers += part.numbers
        self.ends += part.ends
        self.counts += part.counts
        self.segments += [
            (start, end, begin + place, rows, parent if parent < 0 else parent + first, level)
            for start, end, begin, rows, parent, level in part.segments
        ]

    def put_below(self, start: int, end: int) -> None:
        """Add a segment that holds everything here."""
        # NO_PARENT is one below the first segment, which the new one is now.
        below = [
            (begin_token, end_token, place, rows, parent + 1, level + 1)
            for begin_token, end_token, place, rows, parent, level in self.segments
        ]
        self.segments = [(start, end, 0, len(self.numbers), NO_PARENT, 0), *below]
