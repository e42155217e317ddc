"""Laws of shared-prefix decode on the CPU: groups, plans, and the sums they lead to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_kernels.shared_prefix_decode import naive, torch_grouped
from hexgen_kernels.shared_prefix_decode.cases import Batch, few_cases, make_batch, random_case
from hexgen_kernels.shared_prefix_decode.forest import PrefixForest, check_forest
from hexgen_kernels.shared_prefix_decode.groups import CostRule, GroupFinder
from hexgen_kernels.shared_prefix_decode.plan import WorkLimits, cut
from hexgen_kernels.shared_prefix_decode.prefix_tree import PrefixTree
from hexgen_kernels.shared_prefix_decode.verification import Answer, Implementation, judge

Row = tuple[int, ...]
FREE = CostRule(kv_bytes=1.0, partial_bytes=0.0)


@st.composite
def tables(draw: st.DrawFn, max_rows: int = 7) -> list[Row]:
    """Rows of KV slots that begin alike now and then, as radix caches hand them out."""
    numbers = itertools.count(1000)
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, max_rows))):
        old = draw(st.sampled_from(rows)) if rows and draw(st.booleans()) else ()
        kept = old[: draw(st.integers(0, len(old)))]
        own = tuple(next(numbers) for _ in range(draw(st.integers(0, 4))))
        rows.append(kept + own)
    return rows


rules = st.builds(
    CostRule,
    kv_bytes=st.sampled_from((1.0, 3.0)),
    partial_bytes=st.sampled_from((0.0, 0.4, 2.0, 7.0)),
    part_tokens=st.sampled_from((2, 512)),
    segment_bytes=st.sampled_from((0.0, 1.0, 5.0)),
)


def found(
    rows: list[Row], rule: CostRule, finder: GroupFinder | None = None, names: range | None = None
) -> PrefixForest:
    names = range(len(rows)) if names is None else names
    entries = {name: np.array(row, dtype=np.int64) for name, row in zip(names, rows, strict=True)}
    return (finder or GroupFinder(rule, max_levels=9)).step(list(names), entries.get)


def check(forest: PrefixForest, rows: list[Row]) -> None:
    width = max((len(row) for row in rows), default=0) + 1
    table = np.full((len(rows), width), -1)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    check_forest(forest, table, np.array([len(row) for row in rows]), page_size=1)


def prefixes_of_several(rows: list[Row]) -> set[Row]:
    """Where rows part: every longest common beginning of two of them."""
    pairs = itertools.combinations(rows, 2)
    alike = ([a for a, b in zip(x, y, strict=False) if a == b] for x, y in pairs)
    return {tuple(beginning) for beginning in alike if beginning}


def bytes_read(rows: list[Row], prefixes: set[Row], shared: set[Row], rule: CostRule) -> float:
    """What the rule says a step moves when exactly the prefixes in `shared` are segments."""
    total = 0.0
    for prefix in shared:
        above = max(
            (len(p) for p in shared if len(p) < len(prefix) and prefix[: len(p)] == p), default=0
        )
        holders = sum(row[: len(prefix)] == prefix for row in rows)
        total += rule.shared(len(prefix) - above, holders)
    for row in rows:
        ends = [len(p) for p in prefixes if row[: len(p)] == p]
        in_segments = max((len(p) for p in shared if row[: len(p)] == p), default=0)
        total += (max(ends, default=0) - in_segments) * rule.kv_bytes
    return total


@settings(max_examples=60, deadline=None)
@given(tables(), rules)
def test_the_forest_holds_for_the_table_and_is_the_cheapest(
    rows: list[Row], rule: CostRule
) -> None:
    forest = found(rows, rule)
    check(forest, rows)
    prefixes = prefixes_of_several(rows)
    chosen = {rows[forest.rows_of(segment)[0]][: segment.end] for segment in forest.segments}
    assert chosen <= prefixes
    all_choices = itertools.chain.from_iterable(
        itertools.combinations(sorted(prefixes), size) for size in range(len(prefixes) + 1)
    )
    best = min(bytes_read(rows, prefixes, set(choice), rule) for choice in all_choices)
    assert bytes_read(rows, prefixes, chosen, rule) == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(tables())
def test_sharing_that_costs_nothing_shares_everything(rows: list[Row]) -> None:
    forest = found(rows, FREE)
    distinct = {row[: end + 1] for row in rows for end in range(len(row))}
    alone = {
        row[: end + 1]
        for row in rows
        for end in range(len(row))
        if sum(other[: end + 1] == row[: end + 1] for other in rows) == 1
    }
    read = sum(len(row) for row in rows) - forest.tokens_saved
    assert read == len(distinct - alone) + len(alone)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_step_by_step_the_finder_finds_what_a_new_one_finds(data: st.DataObject) -> None:
    rule = data.draw(rules)
    rows = data.draw(tables(max_rows=9))
    finder = GroupFinder(rule, max_levels=9)
    for _ in range(4):
        names = data.draw(st.permutations(range(len(rows))))
        names = names[: data.draw(st.integers(0, len(rows)))]
        batch = [rows[name] for name in names]
        entries = {name: np.array(rows[name]) for name in names}
        forest = finder.step(names, entries.get)
        check(forest, batch)
        fresh = found(batch, rule)
        assert by_name(forest, names) == by_name(fresh, names)
        assert len(finder.tree) == len(names)
        assert finder.step(names, entries.get) is forest


def by_name(forest: PrefixForest, names: list[int]) -> set[tuple[frozenset[int], int, int]]:
    """Segments by who shares them and where, whatever their order."""
    return {
        (frozenset(names[row] for row in forest.rows_of(s)), s.start, s.end)
        for s in forest.segments
    }


@settings(max_examples=40, deadline=None)
@given(tables(max_rows=9), st.data())
def test_the_tree_forgets_who_left(rows: list[Row], data: st.DataObject) -> None:
    tree = PrefixTree()
    for name, row in enumerate(rows):
        tree.add(name, np.array(row))
    for name in data.draw(st.permutations(range(len(rows)))):
        tree.remove(name)
    assert len(tree) == 0
    assert not tree.root.children
    assert tree.root.num_requests == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 500),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 12),
    st.sampled_from((16, 32)),
)
def test_a_plan_reads_every_shared_token_once_for_each_row(
    seed: int, target_programs: int, rows_per_item: int, spare: int, min_chunk: int
) -> None:
    case = random_case(seed)
    forest = make_batch(case).forest
    batch = forest.batch + case.padding
    limits = WorkLimits(
        max_batch=batch,
        max_levels=3,
        num_kv_heads=case.num_kv_heads,
        rows_per_item=rows_per_item,
        target_programs=target_programs,
        min_chunk=min_chunk,
        num_entries=batch * 4 + spare,
    )
    plan = cut(forest, limits, batch)
    assert len(plan.items) <= limits.max_items
    read: list[dict[int, tuple[int, int]]] = [{} for _ in range(batch)]
    for representative, start, end, begin, rows, slot in plan.items.tolist():
        assert start < end
        assert 1 <= rows <= rows_per_item
        members = plan.order[begin : begin + rows].tolist()
        assert representative in forest.order.tolist()
        for row in members:
            assert slot not in read[row]
            read[row][slot] = (start, end)
            assert holders_of(forest, row, start)[0] == representative
    for row in range(batch):
        parts = [read[row][slot] for slot in range(len(read[row]))]
        ends = [0, *(end for _, end in parts)]
        assert [start for start, _ in parts] == ends[:-1]
        assert ends[-1] == plan.suffix_start[row]
        assert plan.suffix_slot[row] == len(parts)
        last_slot = len(parts) + limits.suffix_splits(batch) - 1
        assert last_slot * batch + row < limits.num_entries


def holders_of(forest: PrefixForest, row: int, position: int) -> list[int]:
    """The rows of the segment that holds a position of a row, the one that is read first."""
    (segment,) = (
        s for s in forest.segments if s.start <= position < s.end and row in forest.rows_of(s)
    )
    return forest.rows_of(segment).tolist()


def grouped(batch: Batch) -> Iterator[Answer]:
    for step in range(batch.case.steps):
        yield decoded(batch.at_step(step), batch.forest)


def decoded(now: Batch, forest: PrefixForest) -> Answer:
    return torch_grouped.decode(
        now.q, now.k_cache, now.v_cache, now.table, now.table_rows, now.seq_lens,
        forest.padded(len(now.q)), now.sm_scale, now.case.page_size,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_reading_prefixes_once_in_torch_gives_the_same_sums(dtype: str) -> None:
    verdicts = [judge(replace(case, dtype=dtype), grouped) for case in few_cases()]
    assert [str(verdict) for verdict in verdicts if not verdict.ok] == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_random_forests_in_torch_give_the_same_sums(seed: int) -> None:
    verdict = judge(replace(random_case(seed), dtype="float64"), grouped)
    assert verdict.ok, verdict


def one_token_short(batch: Batch) -> Iterator[Answer]:
    yield from grouped(replace(batch, seq_lens=(batch.seq_lens - 1).clamp(min=0)))


def reads_unused_slots(batch: Batch) -> Iterator[Answer]:
    yield from grouped(replace(batch, seq_lens=batch.seq_lens + batch.case.page_size))


def forgets_a_segment(batch: Batch) -> Iterator[Answer]:
    forest = batch.forest
    short = PrefixForest(forest.order, forest.columns[1:], forest.suffix_start)
    for step in range(batch.case.steps):
        yield decoded(batch.at_step(step), short)


@pytest.mark.parametrize("wrong", [one_token_short, reads_unused_slots, forgets_a_segment])
def test_the_judge_sees_a_wrong_implementation(wrong: Implementation) -> None:
    case = next(case for case in few_cases() if case.name == "three levels")
    assert not judge(replace(case, dtype="bfloat16"), wrong).ok


def test_partial_results_merge_into_the_whole() -> None:
    torch.manual_seed(1)
    q = torch.randn(3, 8, 16, dtype=torch.float64)
    k, v = torch.randn(2, 50, 2, 16, dtype=torch.float64)
    cuts = [0, 7, 7, 30, 50]
    parts = [naive.attend(q, k[a:b], v[a:b], 0.3) for a, b in itertools.pairwise(cuts)]
    scores = torch.einsum("qhd,thd->qht", q, k.repeat_interleave(4, 1)) * 0.3
    whole = torch.einsum("qht,thd->qhd", scores.softmax(-1), v.repeat_interleave(4, 1))
    out, lse = naive.merge(parts)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    nothing = naive.merge([naive.attend(q, k[:0], v[:0], 0.3)] * 2)
    assert torch.equal(nothing[0], torch.zeros_like(q))
    assert (nothing[1] == -torch.inf).all()
