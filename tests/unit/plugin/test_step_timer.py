"""Steps timed from launch and end, with and without overlap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.plugin.step_timer import INTERVAL_S, StepTimer


def decode(requests: int, context: int) -> Any:
    """A decode batch as SGLang holds it."""
    mode = SimpleNamespace(is_decode=lambda: True, is_extend=lambda: False, is_mixed=lambda: False)
    return SimpleNamespace(forward_mode=mode, reqs=[None] * requests, seq_lens_sum=context)


def prefill(*chunks: tuple[int, int]) -> Any:
    """A prefill batch of (uncached, cached) prompts."""
    mode = SimpleNamespace(is_decode=lambda: False, is_extend=lambda: True, is_mixed=lambda: False)
    return SimpleNamespace(
        forward_mode=mode,
        extend_lens=[uncached for uncached, _ in chunks],
        prefix_lens=[cached for _, cached in chunks],
    )


def prefill_s(uncached: int, cached: int) -> float:
    """The costs to be found."""
    return 0.05 + 0.0003 * uncached + 1e-8 * uncached * (cached + uncached / 2)


def decode_s(requests: int, context: int) -> float:
    """The costs to be found."""
    return 0.02 + 0.0005 * requests + 2e-7 * context


@pytest.mark.parametrize("overlap", [True, False])
def test_it_finds_the_costs_of_steps_in_flight_or_one_after_the_other(overlap: bool) -> None:
    timer = StepTimer()
    steps = []
    for number in range(40):
        uncached, cached = 100 + 731 * (number % 7), 500 * (number % 5)
        requests, context = 1 + number % 9, 3_000 * (1 + number % 4)
        steps.append((prefill((uncached, cached)), prefill_s(uncached, cached)))
        steps.append((decode(requests, context), decode_s(requests, context)))
    now_s = 100.0
    for number, (batch, seconds) in enumerate(steps):
        if not overlap or number == 0:
            timer.launched(batch, now_s)
        if overlap and number + 1 < len(steps):
            timer.launched(steps[number + 1][0], now_s + 0.001)  # while this one runs
        now_s += seconds
        timer.ended(now_s)
    news = timer.news(now_s)
    assert news is not None
    assert (news.num_prefills, news.num_decodes) == (40, 40)
    assert news.prefill_base_s == pytest.approx(0.05, rel=0.01)
    assert news.prefill_token_s == pytest.approx(0.0003, rel=0.01)
    assert news.decode_base_s == pytest.approx(0.02, rel=0.01)
    assert news.decode_request_s == pytest.approx(0.0005, rel=0.02)
    assert timer.news(now_s + INTERVAL_S / 2) is None
    assert timer.news(now_s + INTERVAL_S) is not None


def test_time_without_work_is_no_step() -> None:
    timer = StepTimer()
    for number in range(20):
        start_s = 100.0 + 10 * number  # idle for most of ten seconds
        timer.launched(prefill((1_000, 0)), start_s)
        timer.ended(start_s + 0.3)
        timer.launched(decode(2, 2_000), start_s + 0.3)
        timer.ended(start_s + 0.33)
    news = timer.news(1_000.0)
    assert news is not None
    total_s = news.decode_base_s + 2 * news.decode_request_s + 2_000 * news.decode_context_s
    assert total_s == pytest.approx(0.03, rel=0.01)


def test_results_without_a_launch_are_ignored() -> None:
    timer = StepTimer()
    timer.ended(5.0)
    assert timer.news(10.0) is None


def test_shared_context_counts_at_the_share_that_it_costs() -> None:
    timer = StepTimer(0.25, lambda batch: batch.seq_lens_sum // 2)
    now_s = 100.0
    for number in range(40):
        uncached, cached = 100 + 731 * (number % 7), 500 * (number % 5)
        requests, context = 1 + number % 9, 3_000 * (1 + number % 4)
        for batch, seconds in (
            (prefill((uncached, cached)), prefill_s(uncached, cached)),
            (decode(requests, context), decode_s(requests, round(0.625 * context))),
        ):
            timer.launched(batch, now_s)
            now_s += seconds
            timer.ended(now_s)
    news = timer.news(now_s)
    assert news is not None
    assert news.decode_context_s == pytest.approx(2e-7, rel=0.01)
    assert news.decode_repeated_frac == 0.25
