"""Estimators on examples worked out by hand."""

from __future__ import annotations

import pytest

from hexgen_sglang.policies.deadlines import stage_budget_s
from hexgen_sglang.policies.estimators import (
    BoundedTable,
    DecayedRate,
    PrefixMemory,
    PromptLengths,
    RunningMean,
    StageEstimates,
    StageVisit,
    WorkerRates,
)


def test_running_mean_is_plain_first_and_exponential_later() -> None:
    mean = RunningMean(weight=0.25)
    for sample in (1.0, 2.0, 3.0, 6.0):
        mean.add(sample)
    assert mean.mean == pytest.approx(3.0)
    mean.add(7.0)  # the fifth counts a quarter, not a fifth
    assert mean.mean == pytest.approx(4.0)


def test_decayed_rate_weighs_by_duration_and_skips_empty_samples() -> None:
    rate = DecayedRate(keep=0.5)
    assert rate.per_second is None
    rate.add(0, 1.0)
    rate.add(10, 0.0)
    assert rate.per_second is None
    rate.add(100, 1.0)
    rate.add(100, 4.0)
    assert rate.per_second == pytest.approx((50 + 100) / (0.5 + 4.0))


def test_bounded_table_forgets_the_longest_unused() -> None:
    table: BoundedTable[str, list[int]] = BoundedTable(list, 2)
    table.at("a").append(1)
    table.at("b").append(2)
    table.at("a")
    table.at("c")
    assert (table.get("a"), table.get("b"), len(table)) == ([1], None, 2)


def test_rates_are_stated_until_measured() -> None:
    rates = WorkerRates()
    rates.state("w", 1_000.0, 20.0)
    assert (rates.of("w").prefill_tokens_per_s, rates.of("w").decode_tokens_per_s) == (1000.0, 20.0)
    rates.note_prefill("w", 400, 0.2)
    rates.note_decode("w", 99, 3.0, batch=4)
    known = rates.of("w")
    assert known.prefill_tokens_per_s == pytest.approx(2_000.0)
    assert known.decode_tokens_per_s == pytest.approx(33.0)
    assert known.usual_batch == 4.0
    rates.rename("w", "v")
    assert rates.of("v") == known
    rates.rename("nobody", "v")
    assert rates.of("v") == known
    rates.forget("v")
    assert rates.of("v").prefill_tokens_per_s is None
    assert rates.of("w").prefill_tokens_per_s is None


def test_stage_lengths_by_worker_fall_back_to_all_workers() -> None:
    stages = StageEstimates()
    stages.note_request("fast", "sql", "draft", 100, 1.0)
    stages.note_request("slow", "sql", "draft", 200, 4.0)
    assert stages.output_tokens("sql", "draft") == pytest.approx(150)
    assert stages.request_s("sql", "draft", "slow") == pytest.approx(4.0)
    assert stages.request_s("sql", "draft", "new") == pytest.approx(2.5)
    assert stages.request_s("sql", "other") is None
    stages.forget_worker("slow")
    assert stages.request_s("sql", "draft", "slow") == pytest.approx(2.5)


def test_siblings_that_differ_by_design_have_lengths_of_their_own() -> None:
    stages = StageEstimates()
    for _ in range(3):
        stages.note_request("w", "sql", "draft", 800, 9.0, sibling=0)
        stages.note_request("w", "sql", "draft", 500, 5.0, sibling=1)
    assert stages.sibling_tokens("sql", "draft", 0) is None, "three say too little"
    stages.note_request("w", "sql", "draft", 800, 9.0, sibling=0)
    assert stages.sibling_tokens("sql", "draft", 0) == pytest.approx(800)
    assert stages.sibling_tokens("sql", "draft", 1) is None
    assert stages.sibling_tokens("sql", "draft", 2) is None
    assert stages.output_tokens("sql", "draft") == pytest.approx(4_700 / 7)


def test_what_remains_is_later_service_and_tool_time_without_queueing() -> None:
    stages = StageEstimates()
    # link 0-2 (2 s of service), database until 3, draft 3-9 of which 4 s service, check 9-10
    visits = [
        StageVisit("link", 0.0, 2.0, 2.0),
        StageVisit("draft", 3.0, 9.0, 4.0),
        StageVisit("check", 9.0, 10.0, 1.0),
    ]
    stages.note_workflow("sql", visits)
    assert stages.remaining_after_s("sql", "check") == 0.0
    assert stages.remaining_after_s("sql", "draft") == pytest.approx(1.0)
    assert stages.remaining_after_s("sql", "link") == pytest.approx(1.0 + 4.0 + 1.0)
    assert stages.stage_s("sql", "draft") == pytest.approx(4.0)


def test_remaining_work_may_be_what_nine_of_ten_do_not_exceed() -> None:
    mean, high = StageEstimates(), StageEstimates(remaining="p90")
    for number in range(100):
        second_s = 100.0 if number % 5 == 0 else 10.0
        for stages in (mean, high):
            stages.note_workflow(
                "t",
                [
                    StageVisit("a", 0.0, 1.0, 1.0),
                    StageVisit("b", 1.0, 1.0 + second_s, second_s),
                ],
            )
    usual_s = mean.remaining_after_s("t", "a")
    assert usual_s is not None
    assert 15.0 < usual_s < 45.0
    assert high.remaining_after_s("t", "a") == pytest.approx(100.0, rel=0.05)
    assert high.remaining_after_s("t", "b") == pytest.approx(0.0, abs=0.01)
    assert high.remaining_after_s("t", "unseen") is None


def test_overlapping_stages_cannot_remain_longer_than_time_passed() -> None:
    stages = StageEstimates()
    visits = [
        StageVisit("a", 0.0, 4.0, 4.0),
        StageVisit("b", 0.0, 5.0, 5.0),
        StageVisit("c", 1.0, 6.0, 5.0),
    ]
    stages.note_workflow("t", visits)
    assert stages.remaining_after_s("t", "a") == pytest.approx(2.0)
    assert stages.remaining_after_s("t", "b") == pytest.approx(1.0)


def test_prefix_memory_matches_leading_blocks_only() -> None:
    memory = PrefixMemory()
    memory.note_sent("w", [1, 2, 3])
    assert memory.num_matched("w", [1, 2, 9, 3]) == 2
    assert memory.num_matched("w", [2, 3]) == 2
    assert memory.num_matched("other", [1]) == 0
    memory.rename("w", "v")
    assert (memory.num_matched("w", [1]), memory.num_matched("v", [1, 2])) == (0, 2)
    memory.forget("v")
    assert memory.num_matched("v", [1]) == 0


def test_prefix_memory_forgets_leaves_before_their_parents() -> None:
    memory = PrefixMemory(max_blocks=4)
    memory.note_sent("w", [1, 2, 3])
    memory.note_sent("w", [1, 7, 8])  # five distinct blocks: 3, the old leaf, goes
    assert memory.num_matched("w", [1, 2, 3]) == 2
    assert memory.num_matched("w", [1, 7, 8]) == 3
    memory.limit("w", 2)
    memory.note_sent("w", [1, 7])
    assert memory.num_matched("w", [1, 2]) == 1


def test_prompt_lengths_learn_by_model() -> None:
    lengths = PromptLengths()
    assert lengths.num_tokens("m", 400) == 100
    lengths.note("m", 600, 200)
    assert lengths.num_tokens("m", 400) == 133
    assert lengths.num_tokens("other", 400) == 100
    assert lengths.num_tokens("m", 0) == 1


@pytest.mark.parametrize(
    ("left_s", "stage_s", "remaining_s", "budget_s"),
    [(12.0, 2.0, 4.0, 4.0), (12.0, 3.0, 0.0, 12.0), (-5.0, 1.0, 1.0, 0.0), (6.0, 0.0, 0.0, 6.0)],
)
def test_stage_budget_is_the_published_share(
    left_s: float, stage_s: float, remaining_s: float, budget_s: float
) -> None:
    assert stage_budget_s(left_s, stage_s, remaining_s) == pytest.approx(budget_s)
