"""Definitions of the figures, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results import statistics
from hexgen_sglang.results.records import RequestRecord, RunRecord, WorkflowRecord


def request(
    workflow: int, worker: str, due: float, sent: float, end: float, stage: int = 0
) -> RequestRecord:
    return RequestRecord(
        request_id=f"{workflow}-{stage}-{worker}-{sent}",
        workflow=workflow,
        stage=stage,
        stage_name="s",
        sibling=0,
        due_s=due,
        sent_s=sent,
        end_s=end,
        worker=worker,
        input_tokens=100,
        cached_tokens=25,
        output_tokens=10,
    )


def workflow(index: int, arrival: float, end: float, warmup: bool = False) -> WorkflowRecord:
    return WorkflowRecord(index, f"w{index}", arrival, 2.0, 8.0, warmup, end, True)


RUN = RunRecord(
    system="s",
    seed=0,
    rate_per_s=1.0,
    time_scale=1.0,
    workflows=(workflow(0, 0.0, 4.0, warmup=True), workflow(1, 1.0, 7.0), workflow(2, 2.0, 10.0)),
    requests=(
        request(0, "a", 0.0, 0.0, 4.0),
        request(1, "a", 1.0, 1.5, 7.0),
        request(2, "b", 2.0, 2.0, 5.0),
        request(2, "b", 5.0, 6.0, 10.0, stage=1),
    ),
)


@pytest.mark.parametrize(
    ("share", "value"), [(0.01, 1), (0.5, 10), (0.95, 19), (0.951, 20), (0.99, 20), (1.0, 20)]
)
def test_quantile_is_nearest_rank(share: float, value: float) -> None:
    assert statistics.quantile(list(range(20, 0, -1)), share) == value


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_quantile_refuses_nonsense(values: list[float], share: float) -> None:
    with pytest.raises(ConfigError):
        statistics.quantile(values, share)


def test_attainment_counts_workflows_that_never_completed_as_missed() -> None:
    scales = [1.0, 2.0, 3.0, math.inf]
    assert statistics.attainment(scales, 2.0) == 0.5
    assert statistics.attainment(scales, 100.0) == 0.75
    assert statistics.smallest_scale(scales, 0.75) == 3.0
    assert statistics.smallest_scale(scales, 0.99) is None


def test_goodput_is_interpolated_between_rates() -> None:
    """From 1.00 at 2/s to 0.80 at 4/s the level 0.95 is crossed a quarter of the way."""
    goodput, bound = statistics.goodput_per_s({4.0: 0.8, 1.0: 1.0, 2.0: 1.0}, 0.95)
    assert goodput == pytest.approx(2.5)
    assert not bound


def test_goodput_outside_the_measured_rates_is_a_bound() -> None:
    assert statistics.goodput_per_s({1.0: 0.99, 2.0: 0.96}, 0.95) == (2.0, True)
    assert statistics.goodput_per_s({1.0: 0.5, 2.0: 0.96}, 0.95) == (None, True)


def test_latency_counts_from_the_scheduled_arrival_behind_the_warm_up() -> None:
    assert statistics.latencies(RUN).tolist() == [6.0, 8.0]
    assert statistics.latency_scales(RUN).tolist() == [3.0, 4.0]


def test_incomplete_workflow_has_infinite_latency() -> None:
    broken = WorkflowRecord(0, "w", 0.0, 2.0, 8.0, False, 4.0, False)
    run = RunRecord("s", 0, 1.0, 1.0, (broken,), ())
    assert statistics.latencies(run).tolist() == [math.inf]


def test_prefix_hit_is_cached_over_prompt_tokens() -> None:
    assert statistics.prefix_hit_frac([RUN, RUN]) == 0.25
    assert statistics.prefix_hit_frac([RunRecord("s", 0, 1.0, 1.0, (), ())]) is None


def test_tokens_per_second_from_start_to_last_end() -> None:
    assert statistics.tokens_per_s([RUN]) == {"input": 40.0, "output": 4.0}


def test_busy_share_is_the_union_of_intervals() -> None:
    """a: 0-4 and 1.5-7 make 7 s of 10; b: 2-5 and 6-10 make 7 s."""
    assert statistics.busy_frac(RUN) == {"a": 0.7, "b": 0.7}


def test_price_is_for_the_time_of_the_run() -> None:
    """10 s at 36 $/h are 0.1 $ for 3 workflows."""
    assert statistics.usd_per_1000_workflows([RUN], 36.0) == pytest.approx(1000 * 0.1 / 3)


def test_driver_lag_is_the_sum_over_stages_of_the_latest_sibling() -> None:
    """0.5 s and 1 s of lag on 4 + 6 + 8 s of latency."""
    assert statistics.driver_lag_frac(RUN) == pytest.approx(1.5 / 18)


def test_paired_ratio_of_a_system_with_itself_is_one() -> None:
    values = [np.arange(1.0, 41.0), np.arange(5.0, 25.0)]
    interval = statistics.paired_ratio(
        values, values, lambda v: statistics.quantile(v, 0.95), np.random.default_rng(0), draws=200
    )
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_paired_ratio_cancels_what_both_sides_share() -> None:
    """Whatever is drawn, half the latency is half the latency."""
    values = [np.random.default_rng(1).exponential(size=200)]
    interval = statistics.paired_ratio(
        values, [values[0] / 2], lambda v: float(v.mean()), np.random.default_rng(0), draws=200
    )
    assert interval.low == pytest.approx(2.0)
    assert interval.high == pytest.approx(2.0)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Independent values: the block bootstrap's 90 % interval covers the true ratio 1."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        left, right = generator.exponential(size=(2, 100))
        interval = statistics.paired_ratio(
            [left], [right], lambda v: float(v.mean()), generator, draws=200, confidence=0.9
        )
        covered += interval.low <= 1.0 <= interval.high
    assert 75 <= covered <= 99


def test_paired_ratio_needs_the_same_workflows() -> None:
    with pytest.raises(ConfigError):
        statistics.paired_ratio([np.ones(3)], [np.ones(4)], lambda v: 1.0, np.random.default_rng(0))


def test_blocks_are_consecutive_arrivals() -> None:
    (sample,) = statistics.block_draws([100], 50, np.random.default_rng(0))
    assert sample.shape == (50, 100)
    steps = np.diff(sample.reshape(50, 10, 10), axis=2) % 100
    assert (steps == 1).all()
