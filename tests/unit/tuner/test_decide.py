"""The rule of live changes under scripted sequences, and its error rates under chance."""

from __future__ import annotations

import itertools
import random

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.statistics import Interval
from hexgen_sglang.tuner.decide import Decider, DecideSettings, Kind, surely_below
from hexgen_sglang.tuner.objective import parse_objective

OLD, NEW, OTHER = {"alpha": 0.4}, {"alpha": 0.2}, {"alpha": 0.7}
SURE = Interval(1.3, 1.1, 1.5)
RULE = DecideSettings(min_gain=0.05, cool_down_s=100, watch_workflows=40, watch_s=1_000, ban_s=500)


def decider() -> Decider:
    return Decider(OLD, parse_objective("p95"), RULE)


def feed(one: Decider, outcomes: list[bool], now_s: float) -> list[Kind]:
    """Workflows that begin and end at an instant."""
    return [one.ended(now_s, met, now_s).kind for met in outcomes]


def share(count: int, met: int) -> list[bool]:
    """`met` of every 10, evenly mixed."""
    return [index % 10 < met for index in range(count)]


def test_sure_gain_is_applied() -> None:
    one = decider()
    decision = one.propose(NEW, SURE, 10.0)
    assert (decision.kind, decision.settings, one.current) == (Kind.APPLY, NEW, NEW)
    assert "1.3 [1.1, 1.5]" in decision.reason


@pytest.mark.parametrize(
    ("settings", "gain", "reason"),
    [
        (NEW, Interval(1.3, 1.0, 1.6), "not sure"),
        (NEW, Interval(1.3, 0.9, 1.6), "not sure"),
        (NEW, Interval(1.04, 1.02, 1.06), "not worth"),
        (OLD, SURE, "in force"),
        (NEW, Interval(0.8, 0.7, 0.9), "not sure"),
        (NEW, Interval(float("nan"), float("nan"), float("nan")), "not sure"),
    ],
)
def test_what_is_not_sure_or_not_worth_it_changes_nothing(
    settings: dict[str, float], gain: Interval, reason: str
) -> None:
    one = decider()
    decision = one.propose(settings, gain, 10.0)
    assert (decision.kind, one.current, one.num_applied) == (Kind.KEEP, OLD, 0)
    assert reason in decision.reason


def test_difference_objectives_count_gain_from_zero() -> None:
    one = Decider(OLD, parse_objective("attainment"), RULE)
    assert one.propose(NEW, Interval(0.04, 0.01, 0.07), 0.0).kind is Kind.KEEP
    assert one.propose(NEW, Interval(0.08, 0.01, 0.15), 0.0).kind is Kind.APPLY


def test_setting_comes_back_when_attainment_falls() -> None:
    one = decider()
    feed(one, share(40, 9), 5.0)
    one.propose(NEW, SURE, 10.0)
    kinds = feed(one, share(40, 2), 20.0)
    assert kinds.count(Kind.RETURN) == 1
    assert kinds[-1] is Kind.KEEP
    assert (one.current, one.num_returned) == (OLD, 1)


def test_setting_stays_when_attainment_holds() -> None:
    one = decider()
    feed(one, share(40, 9), 5.0)
    one.propose(NEW, SURE, 10.0)
    assert set(feed(one, share(40, 9), 20.0)) == {Kind.KEEP}
    assert not one.is_watching
    assert set(feed(one, share(40, 0), 30.0)) == {Kind.KEEP}
    assert one.current == NEW


def test_workflows_begun_before_the_change_do_not_judge_it() -> None:
    one = decider()
    feed(one, share(40, 9), 5.0)
    one.propose(NEW, SURE, 10.0)
    for _ in range(100):
        assert one.ended(9.0, False, 30.0).kind is Kind.KEEP
    assert one.current == NEW
    assert one.is_watching


def test_returned_setting_is_banned_twice_as_long_each_time() -> None:
    one = decider()
    now_s, waits = 0.0, []
    for _ in range(3):
        feed(one, share(40, 9), now_s)
        assert one.propose(NEW, SURE, now_s).kind is Kind.APPLY
        assert Kind.RETURN in feed(one, share(40, 1), now_s)
        feed(one, share(40, 9), now_s)
        returned_s = now_s
        while one.propose(NEW, SURE, now_s).kind is Kind.KEEP:
            now_s += 50
        waits.append(now_s - returned_s)
        feed(one, share(40, 1), now_s)
        now_s += 100_000
    # Each round ends with one more return, of the change that ended its wait.
    assert waits == [500, 2_000, 8_000]


def test_alternating_proposals_cannot_make_it_flap() -> None:
    one = decider()
    changes = []
    for second in range(2_000):
        proposal = NEW if second % 2 else OTHER
        decision = one.propose(proposal, SURE, float(second))
        one.ended(float(second), second % 10 < 9, float(second))
        if decision.kind is not Kind.KEEP:
            changes.append(second)
    gaps = [later - earlier for earlier, later in itertools.pairwise(changes)]
    assert min(gaps) >= 100
    assert len(changes) <= 20


def test_chance_alone_returns_a_setting_seldom_and_a_real_fall_does_nearly_always() -> None:
    def returns(share_before: float, share_after: float) -> float:
        count = 0
        for world in range(200):
            random_of = random.Random(f"{share_before}/{share_after}/{world}")
            one = decider()
            feed(one, [random_of.random() < share_before for _ in range(40)], 5.0)
            one.propose(NEW, SURE, 10.0)
            feed(one, [random_of.random() < share_after for _ in range(40)], 20.0)
            count += one.num_returned
        return count / 200

    assert returns(0.8, 0.8) <= 0.05
    assert returns(0.95, 0.95) <= 0.05
    assert returns(0.9, 0.4) >= 0.95


def test_watch_ends_without_workflows_that_have_deadlines() -> None:
    one = decider()
    one.propose(NEW, SURE, 0.0)
    assert "judged" in one.propose(OTHER, SURE, 999.0).reason
    assert one.propose(OTHER, SURE, 1_000.0).kind is Kind.APPLY


def test_few_workflows_prove_nothing() -> None:
    assert not surely_below([False] * 9, (True,) * 50, 0.95)
    assert not surely_below([False] * 50, (True,) * 9, 0.95)
    assert surely_below([False] * 10, (True,) * 10, 0.95)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_gain": -0.1},
        {"cool_down_s": float("inf")},
        {"watch_workflows": 9},
        {"ban_s": 0.0},
        {"confidence": 1.0},
    ],
)
def test_careless_rules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DecideSettings(**wrong)  # type: ignore[arg-type]
