"""What an emulated run adds up to, and when it is not to be believed."""

from __future__ import annotations

import pytest

from hexgen_sglang.plugin.emulation.accounting import (
    JUDGED_AFTER_S,
    MAX_OVERHEAD_FRAC,
    StepAccounting,
    StepRecord,
)


def step(
    start_s: float, predicted_s: float, slept_s: float, overhead_s: float = 0.0, **rest: object
) -> StepRecord:
    fields = {"kind": "decode", "num_requests": 2, "extend_tokens": 0, "context_tokens": 10}
    return StepRecord(
        start_s=start_s,
        predicted_s=predicted_s,
        slept_s=slept_s,
        overhead_s=overhead_s,
        cpu_s=0.002,
        **{**fields, **rest},  # type: ignore[arg-type]
    )


def test_lateness_that_moves_no_step_is_not_drift() -> None:
    accounting = StepAccounting(1.0)
    for number in range(10):
        accounting.add(step(float(number), 1.0, 1.01), begins_busy_period=number == 0)
    summary = accounting.summary()
    assert summary["late_frac"] == pytest.approx(0.01)
    assert summary["drift_s"] == pytest.approx(0.01)
    assert summary["drift_frac"] == pytest.approx(0.001)
    assert summary["valid"] is True


def test_standstill_before_a_step_is_overhead_and_explains_its_share_of_the_time() -> None:
    accounting = StepAccounting(1.0)
    start_s = 0.0
    for number in range(10):
        overhead_s = 0.05 if number else 0.0
        start_s += overhead_s
        accounting.add(step(start_s, 1.0, 1.0, overhead_s), begins_busy_period=number == 0)
        start_s += 1.0
    summary = accounting.summary()
    assert summary["overhead_frac"] == pytest.approx(0.045)
    assert summary["drift_s"] == pytest.approx(0.0, abs=1e-9)
    assert summary["valid"] is True


def test_too_much_overhead_makes_a_run_invalid_and_says_why() -> None:
    accounting = StepAccounting(8.0)
    start_s = 0.0
    for number in range(10):
        overhead_s = 0.2 if number else 0.0
        start_s += overhead_s
        accounting.add(step(start_s, 1.0, 1.0, overhead_s), begins_busy_period=number == 0)
        start_s += 1.0
    summary = accounting.summary()
    assert summary["valid"] is False
    (reason,) = summary["invalid_because"]
    assert "overhead_frac" in reason
    assert str(MAX_OVERHEAD_FRAC) in reason


def test_steps_that_leave_their_timeline_are_drift_and_make_a_run_invalid() -> None:
    accounting = StepAccounting(1.0)
    for number in range(10):
        accounting.add(step(1.05 * number, 1.0, 1.0), begins_busy_period=number == 0)
    summary = accounting.summary()
    assert summary["drift_frac"] == pytest.approx(0.045)
    assert summary["valid"] is False
    assert "drift_frac" in summary["invalid_because"][0]


def test_idle_time_between_busy_periods_is_neither() -> None:
    accounting = StepAccounting(1.0)
    for start_s in (0.0, 100.0, 1_000.0):
        accounting.add(step(start_s, 2.0, 2.0), begins_busy_period=True)
        accounting.add(step(start_s + 2.0, 2.0, 2.0), begins_busy_period=False)
    summary = accounting.summary()
    assert summary["drift_s"] == pytest.approx(0.0, abs=1e-9)
    assert summary["overhead_s"] == 0.0


def test_a_short_run_is_not_judged() -> None:
    accounting = StepAccounting(1.0)
    assert accounting.summary()["valid"] is None
    accounting.add(step(0.0, JUDGED_AFTER_S / 2, JUDGED_AFTER_S, JUDGED_AFTER_S), True)
    summary = accounting.summary()
    assert summary["valid"] is None
    assert summary["invalid_because"] == []


def test_counts_are_by_kind() -> None:
    accounting = StepAccounting(1.0)
    accounting.add(step(0.0, 2.0, 2.0, kind="prefill", extend_tokens=700, num_requests=1), True)
    accounting.add(step(2.0, 1.0, 1.0, num_requests=4), False)
    accounting.add(step(3.0, 3.0, 3.0, kind="mixed", extend_tokens=50, num_requests=4), False)
    summary = accounting.summary()
    assert summary["num_steps"] == {"prefill": 1, "decode": 1, "mixed": 1}
    assert summary["predicted_s"] == {"prefill": 2.0, "decode": 1.0, "mixed": 3.0}
    assert summary["prompt_tokens_computed"] == 750
    assert summary["mean_batch"] == 3.0
    assert summary["cpu_per_step_s"] == pytest.approx(0.002)
