"""Rows followed from step to step are those of the batch, whatever the engine does to it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_kernels.shared_prefix_decode.batch_rows import BatchRows
from hexgen_sglang.core.errors import ConfigError

STEPS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from([False, False, False, True])),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 1_000))
def test_numbers_and_rows_are_those_of_the_batch(steps: list[tuple], seed: int) -> None:
    """A step: how many leave, how many come (some of them back), and whether all are shuffled."""
    chance = random.Random(seed)
    rows = BatchRows()
    batch: list[tuple[int, int]] = []
    num_made = most = 0
    left: list[tuple[int, int]] = []
    for num_leaving, num_coming, shuffled in steps:
        before = list(batch)
        for request in chance.sample(batch, min(num_leaving, len(batch))):
            batch.remove(request)
            left.append(request)
        for _ in range(num_coming):
            if left and chance.random() < 0.2:
                back = left.pop()
                batch.append(back)
                continue
            num_made += 1
            batch.append((num_made, 0))
        if shuffled:
            chance.shuffle(batch)
        gone, new = rows.follow([(name, part) for name, part in batch])
        assert gone == [request for request in before if request not in batch]
        assert sorted(new) == sorted(request for request in batch if request not in before)
        assert rows.requests == batch
        assert rows.numbers.keys() == set(batch)
        numbers = [rows.numbers[request] for request in batch]
        assert len(set(numbers)) == len(batch)
        most = max(most, len(batch))
        assert all(0 <= number < most for number in numbers)
        assert rows.rows_of(numbers).tolist() == list(range(len(batch)))


@pytest.mark.parametrize("batch", [["a", "b", "a"], ["c", "c"], ["b", "a", "b"]])
def test_a_name_that_occurs_twice_is_refused_and_changes_nothing(batch: list[str]) -> None:
    rows = BatchRows()
    rows.follow(["a", "b"])
    with pytest.raises(ConfigError, match="occurs twice"):
        rows.follow(batch)  # type: ignore[arg-type]
    assert rows.requests == ["a", "b"]
    assert rows.numbers.keys() == {"a", "b"}
    assert rows.follow(["b", "d"]) == (["a"], ["d"])
