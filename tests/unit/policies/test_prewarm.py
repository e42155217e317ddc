"""What is known of the next prompt, and what a worker computes of it ahead; worked out by hand."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.retention import (
    KnownPrefixes,
    NextStages,
    PrefixesAhead,
    PrefixRetention,
    StageGaps,
)
from hexgen_sglang.sim.queue_order import common_prefix

Segments = tuple[tuple[str, int], ...]


def length(prompt: Segments) -> int:
    return sum(tokens for _, tokens in prompt)


def prompt(context: str, tail: str, template: str = "t") -> Segments:
    return ((template, 1_000), (context, 500), (tail, 50))


def known(max_tokens: int = 1_000_000) -> KnownPrefixes[Segments]:
    return KnownPrefixes(common_prefix, length, max_tokens)


def ahead(share: float = 0.5) -> PrefixesAhead[Segments]:
    return PrefixesAhead(share, 10_000, common_prefix)


def begins(rule: PrefixesAhead[Segments], workflow: str = "w", **changed) -> bool:
    given = {"is_busy": False, "now_s": 0.0, "ttl_s": 30.0, "num_cached": 0} | changed
    prefix = given.pop("prefix", (("t", 1_000), ("c", 500)))
    return rule.begin(workflow, prefix, length(prefix), **given)


def test_the_next_stage_is_what_most_workflows_went_on_with() -> None:
    following = NextStages()
    assert following.after("sql", "draft") is None
    for stage in ("revise", "revise", "vote"):
        following.note("sql", "draft", stage)
    assert following.after("sql", "draft") == "revise"
    assert following.after("other", "draft") is None
    for stage in ("vote", "end", "end"):
        following.note("sql", "draft", stage)
    assert following.after("sql", "draft") is None  # nothing comes in half of the cases


def test_what_follows_is_learned_anew() -> None:
    following = NextStages()
    for _ in range(1_000):
        following.note("sql", "draft", "revise")
    for _ in range(300):
        following.note("sql", "draft", "vote")
    assert following.after("sql", "draft") == "vote"


def test_the_usual_gap_is_the_median() -> None:
    gaps = StageGaps()
    assert gaps.usual_s("sql", "draft") is None
    for seconds in (2.0, 2.0, 2.0, 60.0):
        gaps.note("sql", "draft", seconds)
    assert gaps.usual_s("sql", "draft") == pytest.approx(2.0, rel=0.1)


def test_a_further_prompt_begins_with_what_two_earlier_ones_share() -> None:
    prompts = known()
    prompts.note("a", "sql", "revise", prompt("a", "1"))
    assert prompts.expected("a", "sql", "revise") is None
    prompts.note("a", "sql", "revise", prompt("a", "2"))
    assert prompts.expected("a", "sql", "revise") == (prompt("a", "2"), 1_500)
    # Of the second workflow's first prompt the tail is left out that prompts of the stage have.
    prompts.note("b", "sql", "revise", prompt("b", "1"))
    assert prompts.expected("b", "sql", "revise") == (prompt("b", "1"), 1_500)


def test_the_first_prompt_of_a_stage_begins_with_its_template() -> None:
    prompts = known()
    prompts.note("a", "sql", "vote", prompt("a", "1"))
    prompts.note("b", "sql", "vote", prompt("b", "1"))
    assert prompts.expected("c", "sql", "vote") == (prompt("b", "1"), 1_000)
    assert prompts.expected("c", "other", "vote") is None
    prompts.release("b")
    assert prompts.expected("c", "sql", "vote") == (prompt("b", "1"), 1_000)


def test_prompts_of_the_workflows_longest_unheard_of_are_forgotten_first() -> None:
    prompts = known(max_tokens=4_000)
    for workflow in ("a", "b"):
        for tail in ("1", "2"):
            prompts.note(workflow, "sql", "revise", prompt(workflow, tail, workflow))
    assert prompts.expected("a", "sql", "revise") == (prompt("a", "2", "a"), 1_500)
    prompts.note("a", "sql", "revise", prompt("a", "3", "a"))
    prompts.note("c", "sql", "revise", prompt("c", "1", "c"))  # 4,650 tokens without this
    assert prompts.expected("b", "sql", "revise") is None
    assert prompts.expected("a", "sql", "revise") == (prompt("a", "3", "a"), 1_500)


def test_what_is_used_of_a_prefix_is_saved_and_the_rest_wasted() -> None:
    rule = ahead()
    assert begins(rule, num_cached=200)
    rule.arrived("other", prompt("c", "x"))
    rule.arrived("w", (("elsewhere", 2_000),))  # another stage: not what was meant
    assert (rule.totals.computed, rule.totals.saved, rule.totals.wasted) == (1_300, 0, 0)
    rule.arrived("w", prompt("d", "x"))  # the template only
    assert (rule.totals.saved, rule.totals.wasted) == (800, 500)
    rule.arrived("w", prompt("c", "x"))
    rule.release("w")
    assert (rule.totals.saved, rule.totals.wasted) == (800, 500)


def test_what_nobody_used_is_wasted_at_the_end_of_the_workflow_or_of_its_time() -> None:
    rule = ahead()
    assert begins(rule, "a", prefix=(("a", 1_000),))
    assert begins(rule, "b", prefix=(("b", 2_000),), ttl_s=5.0)
    rule.release("a")
    assert rule.totals.wasted == 1_000
    assert begins(rule, "c", prefix=(("c", 200),), now_s=6.0)
    assert rule.totals.wasted == 3_000


def test_it_stays_within_its_share_and_out_of_the_way() -> None:
    rule = ahead()
    assert not begins(rule, is_busy=True)
    assert not begins(rule, num_cached=1_400)  # 100 tokens are not worth a step
    assert begins(rule)
    assert not begins(rule)  # one at a time for a workflow
    assert not begins(rule, "x", prefix=(("x", 3_501),))
    assert begins(rule, "y", prefix=(("y", 3_500),))
    assert (rule.totals.refused, rule.totals.present) == (3, 1)
    rule.release("y")
    assert begins(rule, "x", prefix=(("x", 3_500),))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
        ahead(share)


def test_a_worker_knows_prefixes_of_the_workflows_that_it_has_had() -> None:
    kept = PrefixRetention(0.5, 100_000, common_prefix, length)
    kept.arrived("a", "sql", "revise", prompt("a", "1"), 0.0)
    kept.arrived("a", "sql", "revise", prompt("a", "2"), 1.0)
    assert kept.known("a", "revise") == (prompt("a", "2"), 1_500)
    assert kept.known("b", "revise") is None
    kept.arrived("b", "sql", "vote", prompt("b", "1", "v"), 2.0)
    assert kept.known("b", "revise") is None  # no template yet: one workflow only
    kept.arrived("c", "sql", "revise", prompt("c", "1"), 3.0)
    assert kept.known("b", "revise") == (prompt("c", "1"), 1_000)
    kept.arrived("d", "sql", "vote", prompt("d", "1", "v"), 4.0, "another tenant's")
    assert kept.known("d", "revise") is None
