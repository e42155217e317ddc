"""Earliest deadline first on paper."""

from __future__ import annotations

import random

import pytest

from hexgen_sglang.coordinator.feasibility import Due, Schedule


def test_a_place_follows_the_deadlines_and_the_end_what_goes_before() -> None:
    schedule = Schedule([Due(30.0, 10.0, 2.0), Due(10.0, 4.0, 1.0)])
    assert [schedule.place(at) for at in (5.0, 10.0, 20.0, 99.0)] == [0, 1, 1, 2]
    asked = Due(20.0, 3.0, 2.0, factor=1.5)
    assert [schedule.end_s(place, asked) for place in range(3)] == [3.0, 9.0, 24.0]


def test_only_who_is_in_time_can_be_harmed() -> None:
    rows = [
        Due(1.0, 5.0, 2.0),  # late already
        Due(10.0, 4.0, 1.0),  # 10 - 1 - 5: bears 4 s before it
        Due(20.0, 4.0, 1.0, counts=False),  # best effort misses nothing
        Due(40.0, 4.0, 1.0),  # bears 26 s
    ]
    schedule = Schedule(rows)
    assert (schedule.num_counted, schedule.num_in_time) == (3, 2)
    assert schedule.num_harmed(0, Due(5.0, 4.0, 1.0)) == 0
    assert schedule.num_harmed(0, Due(5.0, 4.5, 1.0)) == 1
    assert schedule.num_harmed(0, Due(5.0, 27.0, 1.0)) == 2
    assert schedule.num_harmed(2, Due(5.0, 27.0, 1.0)) == 1


def test_the_earliest_deadline_of_an_empty_cluster_is_what_it_takes_alone() -> None:
    assert Schedule([]).earliest_s(Due(1.0, 9.0, 4.0, factor=2.0), 0) == 8.0


def test_the_earliest_deadline_can_be_kept_and_no_earlier_later_one_can() -> None:
    dice = random.Random(5)
    for _ in range(200):
        rows = [
            Due(dice.uniform(0, 60), dice.uniform(0, 8), dice.uniform(0, 5), dice.uniform(1, 2))
            for _ in range(dice.randrange(8))
        ]
        schedule = Schedule(rows)
        asked = Due(dice.uniform(0, 30), dice.uniform(0, 8), dice.uniform(0, 5), dice.uniform(1, 2))
        most = dice.randrange(2)

        def fits(at_s: float, schedule: Schedule = schedule, asked: Due = asked) -> bool:
            place = schedule.place(at_s)
            is_in_time = schedule.end_s(place, asked) <= at_s
            return is_in_time and schedule.num_harmed(place, asked) <= most  # noqa: B023

        earliest_s = schedule.earliest_s(asked, most)
        assert fits(earliest_s + 1e-9)
        assert earliest_s >= asked.deadline_s
        later = [asked.deadline_s + step / 4 for step in range(400)]
        assert not any(fits(at) for at in later if at < earliest_s - 1e-6)


def test_best_effort_goes_before_but_is_not_counted() -> None:
    schedule = Schedule([Due(5.0, 10.0, 0.0, counts=False)])
    assert (schedule.num_counted, schedule.num_in_time) == (0, 0)
    assert schedule.end_s(1, Due(9.0, 1.0, 2.0)) == pytest.approx(12.0)
