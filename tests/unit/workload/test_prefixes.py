"""Prompts: true common prefixes, and nothing else in common."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats import jsonl, load_trace
from hexgen_sglang.workload.formats.published import PublishedRequest, to_workflow
from hexgen_sglang.workload.prefixes import (
    PrefixIndex,
    Prompt,
    Segment,
    TokenIds,
    TokenSource,
    prompts_of,
)
from hexgen_sglang.workload.trace import TraceWorkflow

WORKFLOW = to_workflow(
    "q",
    [
        PublishedRequest("generate_candidate_llama-agent", 11909, 663),
        PublishedRequest("generate_candidate_llama-agent", 8043, 439),
        PublishedRequest("revise", 5859, 74),
        PublishedRequest("revise", 5900, 70),
        PublishedRequest("evaluate", 958, 22),
        PublishedRequest("evaluate", 961, 22),
    ],
)
# Behind the template the shortest revise has 5859 - 3059 = 2800 tokens, 20 of them its own.
REVISE_SHARED = 5859 - 20
EVALUATE_SHARED = 958 - 32


def common(left: TokenIds, right: TokenIds) -> int:
    """Length of the common prefix of two id arrays."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if different.size else length


def flat(workflow: TraceWorkflow, instance: str, context: str) -> list[Prompt]:
    return [prompt for stage in prompts_of(workflow, instance, context) for prompt in stage]


def test_prompts_have_the_lengths_of_the_trace() -> None:
    source = TokenSource(seed=1, num_ids=30_000, first_id=10)
    lengths = [len(source.input_ids(prompt)) for prompt in flat(WORKFLOW, "a", "a")]
    assert lengths == [11909, 8043, 5859, 5900, 958, 961]


def test_siblings_and_rounds_share_template_and_context() -> None:
    source = TokenSource(seed=1, num_ids=30_000)
    ids = [source.input_ids(prompt) for prompt in flat(WORKFLOW, "a", "a")]
    assert REVISE_SHARED <= common(ids[2], ids[3]) <= REVISE_SHARED + 1
    assert EVALUATE_SHARED <= common(ids[4], ids[5]) <= EVALUATE_SHARED + 1
    for left, right in itertools.product((0, 1, 2), (0, 1, 2, 4)):
        if left != right:
            assert common(ids[left], ids[right]) <= 1


def test_other_workflows_share_the_template_only() -> None:
    source = TokenSource(seed=1, num_ids=30_000)
    here = [source.input_ids(prompt) for prompt in flat(WORKFLOW, "a", "a")]
    there = [source.input_ids(prompt) for prompt in flat(WORKFLOW, "b", "b")]
    templates = [9158, 5292, 3059, 3059, 261, 261]
    for left, right, template in zip(here, there, templates, strict=True):
        assert template <= common(left, right) <= template + 1


def test_repeats_of_a_query_share_the_context_when_wanted() -> None:
    source = TokenSource(seed=1, num_ids=30_000)
    here = source.input_ids(flat(WORKFLOW, "a", "same")[2])
    there = source.input_ids(flat(WORKFLOW, "b", "same")[2])
    assert REVISE_SHARED <= common(here, there) <= REVISE_SHARED + 1


def test_ids_depend_on_the_seed_and_stay_in_range() -> None:
    prompt = (Segment("template/x", 5_000),)
    first = TokenSource(seed=1, num_ids=300, first_id=50).input_ids(prompt)
    again = TokenSource(seed=1, num_ids=300, first_id=50).input_ids(prompt)
    other = TokenSource(seed=2, num_ids=300, first_id=50).input_ids(prompt)
    assert np.array_equal(first, again)
    assert common(first, other) < 5
    assert first.min() >= 50
    assert first.max() < 350


def test_ids_are_the_same_in_every_process() -> None:
    """Fixed values: results of different machines and versions can be compared."""
    ids = TokenSource(seed=7, num_ids=30_000, first_id=100).input_ids((Segment("own/a", 4),))
    assert ids.tolist() == FIXED_IDS


FIXED_IDS = [1152, 3654, 22428, 17672]


def test_a_longer_part_of_one_name_begins_with_the_shorter() -> None:
    for kind in ("template/x", "workflow/a/x"):
        source = TokenSource(seed=1, num_ids=30_000)
        short = source.input_ids((Segment(kind, 100),))
        long = source.input_ids((Segment(kind, 300),))
        assert common(short, long) == 100


def test_stated_prefixes_of_another_type_are_used_as_they_stand() -> None:
    agent = load_trace(jsonl.EXAMPLE).workflows[1]
    source = TokenSource(seed=1, num_ids=30_000)
    plan, search, check, answer = (source.input_ids(p) for p in flat(agent, "a", "a"))
    assert common(plan, search) == 900
    assert 1500 <= common(search, answer) <= 1501
    assert common(check, plan) <= 1
    plan_b = source.input_ids(flat(agent, "b", "b")[0])
    assert 500 <= common(plan, plan_b) <= 501


def test_index_agrees_with_token_ids() -> None:
    """The symbolic cache finds what the ids have in common, for every order of requests."""
    source = TokenSource(seed=3, num_ids=30_000)
    prompts = flat(WORKFLOW, "a", "a") + flat(WORKFLOW, "b", "b")
    ids = [source.input_ids(prompt) for prompt in prompts]
    generator = np.random.default_rng(0)
    for _ in range(5):
        index = PrefixIndex()
        seen: list[int] = []
        for number in generator.permutation(len(prompts)):
            longest = max((common(ids[number], ids[other]) for other in seen), default=0)
            assert 0 <= longest - index.match(prompts[number]) <= 1
            index.insert(prompts[number])
            seen.append(int(number))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seed": -1, "num_ids": 300}, "seed=-1"), ({"seed": 0, "num_ids": 2}, "num_ids=2")],
)
def test_source_refuses_arguments_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenSource(**arguments)
