"""Sharing by attained service: what holds for any history of any tenants."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.fairness import AttainedService, service

TENANTS = ["a", "b", "c", "d"]
AMOUNTS = st.floats(0.0, 1e7)
HISTORIES = st.lists(st.tuples(st.sampled_from(TENANTS), AMOUNTS, st.floats(0.0, 1e5)), max_size=40)
WAITING = st.sets(st.sampled_from(TENANTS), min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from(TENANTS), st.floats(0.01, 100.0))


def told(history: list[tuple[str, float, float]], weights: dict[str, float]) -> AttainedService:
    """The books after a history of (tenant, service, seconds later)."""
    books, now_s = AttainedService(weights), 0.0
    for tenant, amount, later_s in history:
        now_s += later_s
        books.note(tenant, amount, now_s)
    return books


@given(HISTORIES, WEIGHTS, WAITING)
def test_somebody_always_stands_at_level_0_and_answers_repeat(
    history: list[tuple[str, float, float]], weights: dict[str, float], waiting: set[str]
) -> None:
    books = told(history, weights)
    levels = books.levels(waiting)
    assert levels == books.levels(waiting) == told(history, weights).levels(waiting)
    assert levels.keys() == waiting
    assert min(levels.values()) == 0


@given(HISTORIES, WEIGHTS, WAITING, st.floats(1.0, 1e7))
def test_service_never_brings_a_tenant_forward(
    history: list[tuple[str, float, float]],
    weights: dict[str, float],
    waiting: set[str],
    amount: float,
) -> None:
    tenant = min(waiting)
    books, more = told(history, weights), told(history, weights)
    now_s = sum(later_s for _, _, later_s in history)
    more.note(tenant, amount, now_s)
    assert more.levels(waiting)[tenant] >= books.levels(waiting)[tenant]
    # The books above are entered with rounding; a factor of one part in 1e9 is no level.
    for other in waiting - {tenant}:
        assert more.levels(waiting)[other] <= books.levels(waiting)[other] + 1


@given(HISTORIES, WEIGHTS, WAITING)
def test_room_is_a_share_of_it_and_never_below_the_tenants_own(
    history: list[tuple[str, float, float]], weights: dict[str, float], waiting: set[str]
) -> None:
    books = told(history, weights)
    for tenant in TENANTS:
        room_frac = books.room_frac(tenant, waiting)
        assert 0.0 < room_frac <= 1.0
        assert room_frac >= books.share(tenant, TENANTS) - 1e-12


@given(HISTORIES)
def test_a_tenant_by_itself_has_all(history: list[tuple[str, float, float]]) -> None:
    books = told([("a", amount, later_s) for _, amount, later_s in history], {})
    assert books.room_frac("a", ["a"]) == 1.0
    assert books.levels(["a"]) == {"a": 0}


@given(AMOUNTS, st.floats(0.0, 1e6), st.floats(1.0, 1e4))
def test_service_is_halved_every_half_life(
    amount: float, later_s: float, half_life_s: float
) -> None:
    books = AttainedService(half_life_s=half_life_s)
    books.note("a", amount, 7.0)
    books.note("b", 1.0, 7.0 + later_s)
    left = books.all_attained(7.0 + later_s).get("a", 0.0)
    assert math.isclose(left, amount * 0.5 ** (later_s / half_life_s), rel_tol=1e-6, abs_tol=1e-3)


def test_what_is_taken_back_was_never_given() -> None:
    books = AttainedService()
    books.note("a", 100.0, 1.0)
    books.note("a", -100.0, 1.0)
    books.note("b", 1.0, 1.0)
    assert books.all_attained(1.0) == {"a": 0.0, "b": 1.0}


@given(st.lists(st.tuples(st.sampled_from(TENANTS), AMOUNTS, st.floats(0.0, 4e3)), max_size=40))
def test_two_books_that_tell_each_other_are_as_one(
    history: list[tuple[str, float, float]],
) -> None:
    one, pair, now_s = AttainedService(), [AttainedService(), AttainedService()], 0.0
    for number, (tenant, amount, later_s) in enumerate(history):
        now_s += later_s
        one.note(tenant, amount, now_s)
        pair[number % 2].note(tenant, amount, now_s)
        told = [books.all_attained(now_s) for books in pair]
        for books, others in zip(pair, reversed(told), strict=True):
            books.note_elsewhere("other", others, now_s)
    together = one.all_attained(now_s)
    for name in TENANTS:
        own = [books.all_attained(now_s).get(name, 0.0) for books in pair]
        assert sum(own) == pytest.approx(together.get(name, 0.0), rel=1e-6, abs=0.1)
    if sum(together.values()) > 1_000.0:
        expected = one.levels(TENANTS)
        for books in pair:
            for name, level in books.levels(TENANTS).items():
                assert abs(level - expected[name]) <= 1  # where one begins is a matter of rounding


def test_a_flood_is_held_to_half_and_its_weight_moves_that() -> None:
    books = AttainedService({"big": 3.0})
    for tenant, amount in (("flood", 90.0), ("small", 10.0), ("big", 90.0)):
        books.note(tenant, amount, 0.0)
    assert books.levels(["flood", "small"]) == {"flood": 12, "small": 0}
    assert books.room_frac("small", []) == 1.0
    # Shares are a fifth for each of weight 1 and three fifths for the other, which is below it.
    assert books.room_frac("big", []) == 1.0
    assert books.room_frac("flood", []) == pytest.approx(1.0 - 1.25 * 10 / 190 - 1.25 * 90 / 190)


def test_many_small_tenants_leave_a_large_one_what_they_do_not_use() -> None:
    books = AttainedService()
    for number in range(40):
        books.note(f"small-{number}", 1.0, 0.0)
    books.note("large", 60.0, 0.0)
    assert books.room_frac("large", []) == pytest.approx(0.5)
    assert books.share("large", [*(f"small-{n}" for n in range(40)), "large"]) < 0.03


def test_output_counts_twice_and_settings_are_checked() -> None:
    assert service(100, 50) == 200
    for wrong in ({"half_life_s": 0.0}, {"tolerance": 0.0}, {"weight": -1.0}):
        with pytest.raises(ConfigError, match=r"must be a finite number > 0"):
            AttainedService(**wrong)
    with pytest.raises(ConfigError, match="weight of x=0"):
        AttainedService({"x": 0.0})
