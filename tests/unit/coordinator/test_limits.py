"""Limits of tenants: buckets on a clock that the test sets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.limits import MOST_TOLD, Limiter, TenantLimits, Used


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def refusal(limiter: Limiter, tenant: str | None = "acme", num_tokens: int = 1) -> ApiError:
    with pytest.raises(ApiError) as caught:
        limiter.take(tenant, num_tokens)
    assert caught.value.status == 429
    return caught.value


def test_a_burst_then_the_rate_with_the_seconds_to_wait() -> None:
    clock = Clock()
    limiter = Limiter(TenantLimits(requests_per_s=2.0, burst=3), {}, clock)
    for _ in range(3):
        limiter.take("acme", 1)
    told = refusal(limiter)
    assert (told.param, told.retry_after_s) == ("requests_per_s", pytest.approx(0.5))
    clock.now_s += 0.5
    limiter.take("acme", 1)
    assert refusal(limiter).param == "requests_per_s"


def test_places_come_back_when_requests_end_and_only_once() -> None:
    limiter = Limiter(TenantLimits(max_concurrent=2), {}, Clock())
    first, _ = limiter.take("acme", 1), limiter.take("acme", 1)
    assert refusal(limiter).param == "max_concurrent"
    first.settle(10)
    first.settle(10)
    limiter.take("acme", 1)
    assert refusal(limiter).param == "max_concurrent"


def test_tokens_are_charged_as_expected_and_settled_as_used() -> None:
    clock = Clock()
    limiter = Limiter(TenantLimits(tokens_per_min=600), {}, clock)
    lease = limiter.take("acme", 500)
    told = refusal(limiter, num_tokens=200)
    assert (told.param, told.retry_after_s) == ("tokens_per_min", pytest.approx(10.0))
    lease.settle(100)
    limiter.take("acme", 500)
    limiter.take("acme", 0).settle(300)  # more than was expected: a debt
    assert refusal(limiter, num_tokens=100).retry_after_s == pytest.approx(40.0)
    clock.now_s += 40.0
    limiter.take("acme", 100)


def test_a_request_larger_than_the_limit_is_served_when_nothing_else_was() -> None:
    clock = Clock()
    limiter = Limiter(TenantLimits(tokens_per_min=60), {}, clock)
    limiter.take("acme", 1_000)
    clock.now_s += 939.0
    assert refusal(limiter, num_tokens=1).param == "tokens_per_min"
    clock.now_s += 2.0
    limiter.take("acme", 1)


def test_what_was_not_accepted_after_all_costs_nothing() -> None:
    limits = TenantLimits(requests_per_s=1.0, max_concurrent=1, tokens_per_min=60)
    limiter = Limiter(limits, {}, Clock())
    for _ in range(5):
        limiter.take("acme", 60).give_back()
    limiter.take("acme", 60)


def test_tenants_do_not_share_and_may_have_their_own_limits() -> None:
    each, named = TenantLimits(max_concurrent=1), {"big": TenantLimits(max_concurrent=3)}
    limiter = Limiter(each, named, Clock())
    limiter.take("acme", 1)
    limiter.take("other", 1)
    for _ in range(3):
        limiter.take("big", 1)
    assert "tenant 'big'" in str(refusal(limiter, "big"))
    limiter.take(None, 1)
    assert "all callers" in str(refusal(limiter, None))


@settings(max_examples=100, deadline=None)
@given(
    waits=st.lists(st.floats(0, 5), min_size=1, max_size=60),
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 10),
)
def test_no_more_pass_than_burst_and_rate_allow(
    waits: list[float], rate: float, burst: int
) -> None:
    clock = Clock()
    limiter = Limiter(TenantLimits(requests_per_s=rate, burst=burst), {}, clock)
    num_passed, start_s = 0, clock.now_s
    retries_s: list[float] = []
    for wait_s in waits:
        clock.now_s += wait_s
        try:
            limiter.take("acme", 1)
            num_passed += 1
        except ApiError as told:
            retries_s.append(told.retry_after_s or 0.0)
    assert all(0 < retry_s <= 1 / rate + 1e-6 for retry_s in retries_s)
    assert num_passed <= burst + rate * (clock.now_s - start_s) + 1e-6


@settings(max_examples=100, deadline=None)
@given(
    calls=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 1)), min_size=1, max_size=80),
    rate=st.floats(0.1, 5),
    burst=st.integers(1, 10),
    every=st.integers(1, 5),
)
def test_two_that_tell_each_other_let_through_what_one_would(
    calls: list[tuple[float, int]], rate: float, burst: int, every: int
) -> None:
    """But for what they accept before they have told."""
    clock = Clock()
    pair = [Limiter(TenantLimits(requests_per_s=rate, burst=burst), {}, clock) for _ in range(2)]
    began_s, num_passed, not_told, overshoot = clock.now_s, 0, [0, 0], 0
    for number, (wait_s, which) in enumerate(calls):
        if number % every == 0:
            told = [limiter.used() for limiter in pair]
            for limiter, used in zip(pair, reversed(told), strict=True):
                limiter.note_elsewhere("other", used)
            overshoot += min(not_told)
            not_told = [0, 0]
        clock.now_s += wait_s
        try:
            pair[which].take("acme", 1)
        except ApiError:
            continue
        num_passed += 1
        not_told[which] += 1
        allowed = burst + rate * (clock.now_s - began_s) + overshoot + max(not_told)
        assert num_passed <= allowed + 1e-6
    if every == 1:
        assert num_passed <= burst + rate * (clock.now_s - began_s) + 1e-6


def test_what_another_used_is_taken_out_and_corrections_are_put_back() -> None:
    limiter = Limiter(TenantLimits(tokens_per_min=600), {}, Clock())
    limiter.note_elsewhere("b", {})
    limiter.note_elsewhere("b", {"acme": Used(1, 1, 500)})
    assert refusal(limiter, num_tokens=200).param == "tokens_per_min"
    limiter.note_elsewhere("b", {"acme": Used(0, 1, 300)})
    limiter.take("acme", 300)
    assert limiter.used() == {"acme": Used(1, 0, 300)}


def test_only_limited_tenants_are_told_and_no_more_than_fit() -> None:
    each = TenantLimits(max_concurrent=1)
    limiter = Limiter(each, {"free": TenantLimits()}, Clock())
    for name in ("free", *(f"tenant-{number}" for number in range(MOST_TOLD + 1))):
        limiter.take(name, 1)
    told = limiter.used()
    assert len(told) == MOST_TOLD
    assert "free" not in told
    assert "tenant-0" not in told
    # Whoever hears of a tenant that did not fit before begins to count with what is told.
    other = Limiter(TenantLimits(requests_per_s=1.0, burst=3), {}, Clock())
    for used in (told, {"tenant-0": Used(0, 1_000, 0)}):
        other.note_elsewhere("b", used)
    for _ in range(3):
        other.take("tenant-0", 1)
