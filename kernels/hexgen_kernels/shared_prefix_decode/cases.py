"""Batches to hold implementations against: shapes, forests, and inputs poisoned with NaN.

Read by `verification`, and through it by tests and benches. No implementation is imported here.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hexgen_kernels.shared_prefix_decode.forest import Branch, PrefixForest, forest_of

NAN_SLOTS = 37  # slots that nobody uses, filled with NaN
# 8:1, 4:1 with two KV heads, no grouping at all, and a ratio that is no power of two.
HEADS = ((8, 1), (8, 2), (3, 3), (7, 1))
SHAPES = tuple(itertools.product(HEADS, (64, 128), (1, 4), ("float32", "float16", "bfloat16")))
SPARE_PAGES = 3  # columns of the table beyond the longest sequence, leading to NaN


@dataclass(frozen=True, kw_only=True)
class Case:
    """One batch.

    Attributes:
        name: what is special about it.
        roots: the forest; in pages of `page_size` tokens.
        suffix_lens: own tokens of each row, by row; the number of rows is its length.
        num_q_heads, num_kv_heads, head_size, page_size: the model's.
        dtype: "bfloat16", "float16", "float32" or "float64".
        padding: rows without a request behind the others, as in a CUDA graph; one token each.
        sharpness: factor on the queries; a large one lets one token take all the weight.
        index_dtype: of table, table_rows and seq_lens.
        steps: decode steps run with one plan; each gives every request a token more.
        seed: of all random values.
    """

    name: str
    roots: tuple[Branch, ...]
    suffix_lens: tuple[int, ...]
    num_q_heads: int = 8
    num_kv_heads: int = 1
    head_size: int = 64
    page_size: int = 1
    dtype: str = "float32"
    padding: int = 0
    sharpness: float = 1.0
    index_dtype: torch.dtype = torch.int32
    steps: int = 1
    seed: int = 0

    def __str__(self) -> str:
        heads = f"{self.num_q_heads}:{self.num_kv_heads}x{self.head_size}"
        return f"{self.name}, {heads}, page {self.page_size}, {self.dtype}"


@dataclass(frozen=True)
class Batch:
    """Tensors of a case: arguments of `naive.decode`, and the forest.

    Attributes:
        forest: of the rows that have a request; q and the others have padding rows as well.
    """

    case: Case
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    table: Tensor
    table_rows: Tensor
    seq_lens: Tensor
    forest: PrefixForest
    sm_scale: float

    def at_step(self, step: int) -> Batch:
        """The batch some steps later: requests have that many tokens more, in their pages."""
        later = self.seq_lens.clone()
        later[: self.forest.batch] += step
        return replace(self, seq_lens=later)


def make_batch(case: Case, device: str | torch.device = "cpu") -> Batch:
    """Random KV in shuffled slots; slots, table entries and cache rows not in use hold NaN."""
    chance = np.random.default_rng(case.seed)
    torch_chance = torch.Generator().manual_seed(case.seed)
    tokens = tuple(_in_tokens(root, case.page_size) for root in case.roots)
    forest = forest_of(len(case.suffix_lens), tokens)
    batch = len(case.suffix_lens) + case.padding
    seq_lens = np.ones(batch, dtype=np.int64)
    seq_lens[: forest.batch] = forest.suffix_start + np.array(case.suffix_lens)
    table, used = _table(case, forest, seq_lens, chance)
    dtype = getattr(torch, case.dtype)
    shape = (table.num_pages * case.page_size, case.num_kv_heads, case.head_size)
    k_cache = torch.full(shape, torch.nan, dtype=dtype)
    v_cache = torch.full(shape, torch.nan, dtype=dtype)
    for cache in (k_cache, v_cache):
        values = torch.randn(len(used), *shape[1:], generator=torch_chance, dtype=torch.float32)
        cache[torch.from_numpy(used)] = values.to(dtype)
    q = torch.randn(batch, case.num_q_heads, case.head_size, generator=torch_chance)
    return Batch(
        case,
        (q * case.sharpness).to(dtype).to(device),
        k_cache.to(device),
        v_cache.to(device),
        torch.from_numpy(table.pages).to(device, case.index_dtype),
        torch.from_numpy(table.rows).to(device, case.index_dtype),
        torch.from_numpy(seq_lens).to(device, case.index_dtype),
        forest,
        case.head_size**-0.5,
    )


def _in_tokens(branch: Branch, page_size: int) -> Branch:
    children = tuple(_in_tokens(child, page_size) for child in branch.children)
    return replace(branch, num_tokens=branch.num_tokens * page_size, children=children)


@dataclass(frozen=True)
class _Table:
    pages: np.ndarray
    rows: np.ndarray
    num_pages: int


def _table(
    case: Case, forest: PrefixForest, seq_lens: np.ndarray, chance: np.random.Generator
) -> tuple[_Table, np.ndarray]:
    """Page table with shuffled pages and table rows, and the slots that hold tokens."""
    page_size, batch = case.page_size, len(seq_lens)
    row_pages = -(-(seq_lens + case.steps) // page_size)
    shared_pages = sum((s.end - s.start) // page_size for s in forest.segments)
    num_pages = int(shared_pages + row_pages.sum()) + -(-NAN_SLOTS // page_size)
    free = list(chance.permutation(num_pages))
    table_rows = chance.permutation(batch + 2)[:batch]
    empty = free.pop()
    pages = np.full((batch + 2, int(row_pages.max()) + SPARE_PAGES), empty, dtype=np.int64)
    for segment in forest.segments:
        first, last = segment.start // page_size, segment.end // page_size
        pages[table_rows[forest.rows_of(segment)], first:last] = [
            free.pop() for _ in range(first, last)
        ]
    used = []
    for row in range(batch):
        first = int(forest.suffix_start[row]) // page_size if row < forest.batch else 0
        own = [free.pop() for _ in range(first, int(row_pages[row]))]
        pages[table_rows[row], first : int(row_pages[row])] = own
        positions = np.arange(seq_lens[row] + (case.steps - 1 if row < forest.batch else 0))
        slots = pages[table_rows[row], positions // page_size] * page_size
        used.append(slots + positions % page_size)
    return _Table(pages, table_rows, num_pages), np.unique(np.concatenate(used))


def structures() -> list[Case]:
    """Every kind of forest once, small enough for an interpreter."""
    nested = Branch(
        33,
        rows=(6,),
        children=(
            Branch(50, rows=(0, 3), children=(Branch(20, rows=(2, 5)),)),
            Branch(17, rows=(4, 1)),
        ),
    )
    return [
        Case(name="nothing shared", roots=(), suffix_lens=(40, 1, 17, 64)),
        Case(name="one row, one token", roots=(), suffix_lens=(1,)),
        Case(
            name="one group", roots=(Branch(70, (4, 0, 2, 1, 3)),), suffix_lens=(1, 33, 16, 40, 7)
        ),
        Case(
            name="group of one, two groups, and a row alone",
            roots=(Branch(45, (3,)), Branch(16, (5, 0)), Branch(1, (4, 1))),
            suffix_lens=(3, 50, 34, 8, 1, 12),
        ),
        Case(name="three levels", roots=(nested,), suffix_lens=(9, 31, 1, 5, 16, 2, 28), steps=2),
        Case(
            name="empty suffixes",
            roots=(Branch(40, (0, 1), (Branch(30, (2, 3)),)),),
            suffix_lens=(0, 0, 0, 12),
        ),
        Case(name="rows without tokens", roots=(Branch(21, (1, 3)),), suffix_lens=(0, 5, 0, 0)),
        Case(name="more rows than a tile", roots=(Branch(66, tuple(range(9))),),
             suffix_lens=(1, 2, 3, 4, 5, 6, 7, 8, 9)),
        Case(name="one token takes all", roots=(Branch(90, (0, 1, 2)),), suffix_lens=(20, 3, 60),
             sharpness=60.0),
        Case(
            name="padded for a graph",
            roots=(Branch(48, (2, 0)),),
            suffix_lens=(10, 20, 30),
            padding=3,
            index_dtype=torch.int64,
            steps=2,
        ),
        Case(name="long prefix, cut often", roots=(Branch(300, (0, 1)),), suffix_lens=(1, 2)),
    ]  # fmt: skip


def random_case(seed: int) -> Case:
    """A forest of up to three levels over up to ten rows, any model shape."""
    chance = random.Random(seed)
    rows = list(range(chance.randint(1, 10)))
    chance.shuffle(rows)

    def grow(members: list[int], level: int) -> Branch:
        own, children = members, []
        if level < 2 and len(members) > 1 and chance.random() < 0.7:
            cut = chance.randint(0, len(members) - 1)
            own, rest = members[:cut], members[cut:]
            middle = chance.randint(1, len(rest))
            children = [grow(part, level + 1) for part in (rest[:middle], rest[middle:]) if part]
        return Branch(chance.randint(1, 60), tuple(own), tuple(children))

    roots = []
    while rows:
        taken, rows = rows[: chance.randint(1, 6)], rows[6:]
        if chance.random() < 0.8:
            roots.append(grow(taken, 0))
    num_rows = 10
    heads, kv_heads = chance.choice(HEADS)
    return Case(
        name=f"random forest {seed}",
        roots=tuple(roots),
        suffix_lens=tuple(chance.choice((0, 1, 2, 15, 16, 17, 40)) for _ in range(num_rows)),
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        head_size=chance.choice((64, 128)),
        page_size=chance.choice((1, 1, 4, 16)),
        dtype=chance.choice(("float32", "float16", "bfloat16")),
        index_dtype=chance.choice((torch.int32, torch.int64)),
        padding=chance.choice((0, 0, 2)),
        seed=seed,
    )


def all_cases(num_random: int = 40) -> list[Case]:
    """Every structure with a quarter of all shapes, each with others, and random forests."""
    cases = [
        _shaped(case, shape, seed=number)
        for kind, case in enumerate(structures())
        for number, shape in enumerate(SHAPES)
        if (number + kind) % 4 == 0
    ]
    return [*cases, *(random_case(seed) for seed in range(num_random))]


def few_cases() -> list[Case]:
    """Every structure once, with shapes in turn, and a few random forests."""
    cases = [
        _shaped(case, SHAPES[number * 13 % len(SHAPES)], seed=number)
        for number, case in enumerate(structures())
    ]
    return [*cases, *(random_case(seed) for seed in range(1000, 1002))]


def _shaped(case: Case, shape: tuple[tuple[int, int], int, int, str], seed: int) -> Case:
    (num_q_heads, num_kv_heads), head_size, page_size, dtype = shape
    return replace(
        case,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        page_size=page_size,
        dtype=dtype,
        seed=seed,
    )
