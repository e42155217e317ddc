"""Laws of backing off, of the retry budget and of a worker's circuit breaker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.coordinator.backoff import backoff_s
from hexgen_sglang.coordinator.breaker import BreakerState, CircuitBreaker
from hexgen_sglang.coordinator.retry_budget import RetryBudget
from hexgen_sglang.core.errors import ConfigError


def breaker(num_failures: int = 3) -> CircuitBreaker:
    """One that stays open for exactly 1, 2, 4, 8, 8, ... seconds."""
    return CircuitBreaker(num_failures, 1.0, 8.0, lambda: 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5_000), st.floats(0.001, 10), st.floats(1, 100), st.floats(0, 1))
def test_backoff_grows_to_its_bound_and_never_below_half(
    number: int, first_s: float, times: float, dice: float
) -> None:
    most_s = first_s * times
    longest_s = min(most_s, first_s * 2.0 ** min(number - 1, 64))
    got = backoff_s(number, first_s, most_s, lambda: dice)
    assert 0.5 * longest_s <= got <= longest_s <= most_s


@pytest.mark.parametrize(
    ("number", "first_s", "most_s", "told"),
    [(0, 1.0, 2.0, "number=0"), (1, 0.0, 2.0, "first_s=0"), (1, 3.0, 2.0, "most_s=2")],
)
def test_backoff_refuses_what_has_no_meaning(
    number: int, first_s: float, most_s: float, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        backoff_s(number, first_s, most_s, lambda: 0.5)


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0, 2),
    reserve=st.integers(0, 20),
    events=st.lists(st.sampled_from(["request", "retry"]), max_size=200),
)
def test_no_stretch_of_time_sees_more_repeated_tries_than_its_budget(
    share: float, reserve: int, events: list[str]
) -> None:
    budget = RetryBudget(share, reserve)
    granted: list[bool] = []
    for event in events:
        if event == "request":
            budget.request_came()
        granted.append(event == "retry" and budget.take())
    for start in range(len(events)):
        requests = retries = 0
        for event, was_granted in zip(events[start:], granted[start:], strict=True):
            requests += event == "request"
            retries += was_granted
            assert retries <= reserve + share * requests + 1e-9
    assert budget.num_refused == events.count("retry") - sum(granted)


@pytest.mark.parametrize(("share", "reserve"), [(-0.1, 1), (11, 1), (0.2, -1)])
def test_a_budget_out_of_range_is_refused(share: float, reserve: float) -> None:
    with pytest.raises(ConfigError, match="must be"):
        RetryBudget(share, reserve)


def test_failures_in_a_row_open_it_and_a_success_between_starts_over() -> None:
    one = breaker()
    assert [one.failed(f"r{n}", 0.0) for n in range(2)] == [None, None]
    one.succeeded("r2")
    assert [one.failed(f"r{n}", 0.0) for n in range(3)] == [None, None, 1.0]
    assert not one.may_send(0.999)
    assert one.may_send(1.0)


def test_half_open_lets_exactly_one_probe_through_whose_end_decides() -> None:
    one = breaker(1)
    one.failed("r", 0.0)
    one.sent("probe", 1.0)
    assert one.state(1.0) is BreakerState.HALF_OPEN
    assert not one.may_send(1.0)
    assert one.failed("probe", 2.0) == 2.0
    assert not one.may_send(3.9)
    one.sent("second", 4.0)
    one.succeeded("second")
    assert one.state(4.0) is BreakerState.CLOSED
    assert one.failed("r", 5.0) == 1.0  # it opens as briefly as at first


def test_what_was_sent_before_it_opened_neither_closes_it_nor_opens_it_longer() -> None:
    one = breaker(1)
    one.sent("early", 0.0)
    one.failed("r", 0.0)
    one.succeeded("early")
    assert one.failed("early", 0.5) is None
    assert one.state(0.999) is BreakerState.OPEN
    assert one.state(1.0) is BreakerState.HALF_OPEN


def test_a_probe_that_leaves_without_an_end_makes_room_for_another() -> None:
    one = breaker(1)
    one.failed("r", 0.0)
    one.sent("probe", 1.0)
    one.left("probe")
    assert one.may_send(1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["send", "ok", "fail", "leave"]), st.floats(0, 3))),
    st.integers(1, 4),
)
def test_half_open_never_has_two_probes(steps: list[tuple[str, float]], failures: int) -> None:
    one, now_s, number = breaker(failures), 0.0, 0
    at_worker: dict[str, bool] = {}  # rid: whether it was sent half open
    for step, pause_s in steps:
        now_s += pause_s
        if step == "send" and one.may_send(now_s):
            number += 1
            is_probe = one.state(now_s) is BreakerState.HALF_OPEN
            assert not (is_probe and any(at_worker.values()))
            at_worker[f"r{number}"] = is_probe
            one.sent(f"r{number}", now_s)
        elif step != "send" and at_worker:
            rid = next(iter(at_worker))
            if step == "ok":
                one.succeeded(rid)
            elif step == "fail":
                one.failed(rid, now_s)
            one.left(rid)
            del at_worker[rid]
            if one.state(now_s) is BreakerState.CLOSED:
                at_worker = dict.fromkeys(at_worker, False)
