"""The emulated timeline, on a clock that the test moves by hand."""

from __future__ import annotations

import pytest

from hexgen_sglang.plugin.emulation.clock import EmulatedClock


class HandClock:
    """Time that moves when told to, and a sleep that overshoots by `late_s`."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.late_s = late_s
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds + self.late_s


def test_a_step_launched_while_another_runs_starts_at_its_end() -> None:
    host = HandClock()
    clock = EmulatedClock(host.now, host.sleep)
    first = clock.launch(2.0)
    host.now_s += 0.5
    second = clock.launch(3.0)
    assert (first.start_s, first.end_s) == (100.0, 102.0)
    assert (second.start_s, second.end_s) == (102.0, 105.0)
    assert second.overhead_s == 0.0
    assert first.begins_busy_period
    assert not second.begins_busy_period


def test_a_step_launched_late_starts_late_and_says_so() -> None:
    host = HandClock()
    clock = EmulatedClock(host.now, host.sleep)
    clock.launch(2.0)
    host.now_s = 102.25
    late = clock.launch(1.0)
    assert (late.start_s, late.end_s) == (102.25, 103.25)
    assert late.overhead_s == pytest.approx(0.25)


def test_time_without_work_is_no_overhead_but_the_launch_after_it_is() -> None:
    host = HandClock()
    clock = EmulatedClock(host.now, host.sleep)
    clock.launch(2.0)
    host.now_s = 110.0
    clock.idle()
    host.now_s = 110.01
    timing = clock.launch(1.0)
    assert timing.overhead_s == pytest.approx(0.01)
    assert timing.begins_busy_period


def test_idle_while_a_step_still_runs_does_not_hide_a_late_launch() -> None:
    host = HandClock()
    clock = EmulatedClock(host.now, host.sleep)
    clock.launch(2.0)
    clock.idle()
    host.now_s = 102.5
    assert clock.launch(1.0).overhead_s == pytest.approx(0.5)


def test_a_timer_that_is_always_late_moves_no_later_step() -> None:
    host = HandClock(late_s=0.1)
    clock = EmulatedClock(host.now, host.sleep)
    running = clock.launch(1.0)
    for _ in range(50):
        following = clock.launch(1.0)
        assert clock.wait_until(running.end_s) == pytest.approx(0.1)
        running = following
    assert running.end_s == pytest.approx(100.0 + 51.0)


def test_waiting_for_what_has_passed_does_not_sleep() -> None:
    host = HandClock()
    clock = EmulatedClock(host.now, host.sleep)
    assert clock.wait_until(99.0) == pytest.approx(1.0)
    assert host.slept == []


def test_a_sleep_that_returns_early_is_continued() -> None:
    host = HandClock()

    def interrupted_sleep(seconds: float) -> None:
        host.sleep(seconds if len(host.slept) == 1 else 0.6 * seconds)

    clock = EmulatedClock(host.now, interrupted_sleep)
    assert not clock.has_passed(101.0)
    assert clock.wait_until(101.0) == pytest.approx(0.0)
    assert host.slept == pytest.approx([0.6, 0.4])
    assert clock.has_passed(101.0)
