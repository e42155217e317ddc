"""Which prefixes a worker keeps, in numbers worked out by hand."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.retention import PrefixRetention, StageGaps
from hexgen_sglang.policies.retention.prefixes import INTERVAL_S, QUIET_INTERVAL_S
from hexgen_sglang.sim.queue_order import common_prefix

Segments = tuple[tuple[str, int], ...]


def length(prompt: Segments) -> int:
    return sum(tokens for _, tokens in prompt)


def retention(kv_tokens: int = 100_000, share: float = 0.5) -> PrefixRetention[Segments]:
    return PrefixRetention(share, kv_tokens, common_prefix, length)


def prompt(context: str, tail: str, template: str = "t") -> Segments:
    return ((template, 1_000), (context, 500), (tail, 50))


def test_a_context_is_marked_until_its_time_is_over_or_its_workflow_ends() -> None:
    kept = retention()
    for number, workflow in enumerate(("a", "b", "c")):
        kept.arrived(workflow, "sql", "revise", prompt(workflow, f"{number}", workflow), 0.0)
    kept.retain("a", 5.0, 1.0)
    kept.retain("b", 50.0, 1.0)
    kept.retain("c", 20.0, 1.0)
    # The latest expected back is the first to be marked, so the first to go of the three.
    assert [found[1][0] for found, _ in kept.refresh(2.0)] == ["b", "c", "a"]
    kept.release("b")
    assert [found[1][0] for found, _ in kept.refresh(7.0)] == ["c"]
    assert kept.totals.kept == 3 * 1_550
    assert kept.totals.wasted == 2 * 1_550
    kept.arrived("c", "sql", "revise", prompt("c", "again", "c"), 8.0)
    assert kept.totals.used == 1_500
    assert kept.totals.wasted == 2 * 1_550 + 50


def test_what_two_workflows_share_is_a_template_and_outlives_both() -> None:
    kept = retention()
    kept.arrived("a", "sql", "revise", prompt("a", "1"), 0.0)
    assert kept.refresh(0.0) == [(prompt("a", "1"), 1_550)]
    kept.arrived("b", "sql", "revise", prompt("b", "2"), 1.0)
    kept.release("a")
    kept.release("b")
    assert kept.refresh(2.0) == [(prompt("b", "2"), 1_000)]
    assert kept.refresh(599.0)
    assert kept.refresh(700.0) == []


def test_prompts_of_other_namespaces_share_no_template() -> None:
    kept = retention()
    kept.arrived("a", "sql", "revise", prompt("a", "1"), 0.0, "tenant-1")
    kept.arrived("b", "sql", "revise", prompt("b", "2"), 0.0, "tenant-2")
    kept.release("a")
    kept.release("b")
    assert kept.refresh(1.0) == []


def test_templates_come_first_when_memory_is_short() -> None:
    kept = retention(kv_tokens=3_000)
    for workflow in ("a", "b", "c"):
        kept.arrived(workflow, "sql", "revise", prompt(workflow, "x"), 0.0)
    # Half of the memory: the template's 1,000 tokens, and no context of 1,550 beside it.
    assert [tokens for _, tokens in kept.refresh(1.0)] == [1_000]


def test_contexts_that_never_come_back_are_not_kept_any_more() -> None:
    kept = retention()
    for number in range(9):
        kept.arrived(f"w{number}", "sql", "vote", prompt(f"w{number}", "x", f"t{number}"), 0.0)
        kept.retain(f"w{number}", 60.0, 1.0)
        kept.release(f"w{number}")
    kept.arrived("next", "sql", "vote", prompt("next", "x", "other"), 2.0)
    kept.retain("next", 60.0, 2.0)
    assert kept.refresh(3.0) == []
    kept.arrived("next", "sql", "draft", prompt("next", "x", "another"), 3.0)
    assert [found[0][0] for found, _ in kept.refresh(4.0)] == ["another"]


def test_it_is_due_while_there_is_something_to_keep_and_not_more_often_than_that() -> None:
    kept = retention()
    assert not kept.is_due(0.0)
    kept.arrived("a", "sql", "revise", prompt("a", "1"), 0.0)
    assert kept.is_due(0.0)
    kept.refresh(0.0)
    assert not kept.is_due(QUIET_INTERVAL_S / 2)
    assert kept.is_due(QUIET_INTERVAL_S)
    kept.refresh(10.0)
    kept.release("a")
    assert not kept.is_due(10.0 + INTERVAL_S / 2)
    assert kept.is_due(10.0 + INTERVAL_S)
    kept.refresh(11.0)
    assert not kept.is_due(100.0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
        retention(share=share)


def test_the_time_to_live_follows_the_gaps_of_the_stage() -> None:
    gaps = StageGaps()
    assert gaps.ttl_s("sql", "draft") == 30.0
    for seconds in [60.0, *[4.0] * 29]:
        gaps.note("sql", "draft", seconds)
    assert 7.0 < gaps.ttl_s("sql", "draft") < 9.0
    gaps.note("sql", "vote", 0.001)
    assert gaps.ttl_s("sql", "vote") == 1.0
    gaps.note("other", "draft", 10_000.0)
    assert gaps.ttl_s("other", "draft") == 300.0
